"""What a line of text in an image is about. The text itself is forgotten: it may be a name."""

from __future__ import annotations

import re

AXILLA, POSITION, DEVICE, MEASUREMENT = "axilla", "position", "device", "measurement"
UNKNOWN, UNREAD = "unknown_text", "unread_text"

_LEAST = 2
"""Letters and digits of a text. A single one is a caliper's number or the rest of a scanner's mark."""

# Readers take l, I and 1 for one another, and a line may begin or end at the image's edge. Spaces are removed before.
_SIDE = r"(?:RIGHT|[I1]GHT|LEFT|EFT|BOTH|BILAT(?:ERAL)?|[RLI1]T|[RL])"
_AXILLA = re.compile(rf"{_SIDE}?AX[I1L][L1I]A?|^{_SIDE}?AX\d*$|ARMPIT|LYMPHNODE")
_MEASUREMENT = re.compile(r"\d+(?:[.,]\d+)?(?:CM|MM)[23²³]?(?![A-Z])|^\d?[LDWHAV]\d+[.,]\d+|DIST(?:ANCE)?\d+|^VOL(?:UME)?\d+")
_DEVICE = re.compile(
    r"LOG[I1]?[QO0]?(?:E\d)?|[GCS6][I1]Q|^[I1][QO0]\]?$|^[I1]?E[89]$|ACUSON|SIEMENS|PHIL[I1]PS|EP[I1]Q|AFFIN[I1]T[I1]"
    r"|TOSHIBA|CANON|APL[I1]O|SAMSUNG|M[I1]NDRAY|H[I1]TACH[I1]|ALOKA|ESAOTE|MYLAB|VOLUSON|SUPERSON[I1]C|A[I1]XPLORER|FUJ[I1]F[I1]LM"
    r"|SONOS[I1]TE|HOLOG[I1]C|^GE$|\d+(?:[.,]\d+)?(?:[MK]?HZ|DB|FPS)"
    r"|^(?:FR|MI|TI[SBC]?|GN|GAIN|DR|PRF|WF|FRE?Q|DEPTH|MAP|CHI|THI)[-:.]?\d+(?:[.,]\d+)?|^\d+%$|^FREEZE"
)
_POSITION = re.compile(
    rf"{_SIDE}|BREAST|BR|[UL][OI1]Q|UPPER|LOWER|OUTER|INNER|QUADRANT|MEDIAL|LATERAL|CENTRAL|N[I1]PP[LI1]?E?S?|AREOLAR?|RETRO|PERI"
    r"|SUB|ABOVE|BELOW|O'?CLOCK|FN|TRANS(?:VERSE)?|TRV|LONG(?:ITUDINAL)?|SAG(?:ITTAL)?|A?RAD(?:IAL)?|SCAR"
    r"|(?<=\d)(?:O|H|CL?)$|(?<!\d)(?:1[0-2]|[1-9])(?!\d)|[-./:,'+°]"
)
_NAME = re.compile(r"[^\W\d_]{3}|[^\W\d_\u0000-\u024f]{2}|\d[-./]\d+[-./]\d")
"""Text that may tell who the patient is: some letters in a row (of scripts like Chinese, two), a date."""
_NUMBER = re.compile(r"\d{5}")
"""No length and no setting has so many digits, whatever is written before or after them: MI1234567 may be a patient's number."""


def classify_text(text: str) -> frozenset[str]:
    """Return what a line is about.

    `AXILLA`, `POSITION` (a side, a quadrant, an hour), `DEVICE` (its name or a setting), `MEASUREMENT`, `UNKNOWN` (it may be a
    name or a number of a patient, alone or besides) or `UNREAD` (characters that say nothing). Empty if it is not text: fewer
    than two letters or digits.
    """
    compact = re.sub(r"[\s_]+", "", text).upper()
    if sum(character.isalnum() for character in compact) < _LEAST:
        return frozenset()
    about = set()
    rest = compact
    for kind, pattern in ((AXILLA, _AXILLA), (MEASUREMENT, _MEASUREMENT), (DEVICE, _DEVICE)):
        rest, count = pattern.subn(" ", rest)
        if count:
            about.add(kind)
    # Only what consists of such words alone: MARTA holds RT.
    if not any(character.isalnum() for character in _POSITION.sub("", rest)):
        about |= {POSITION} if rest.strip() and not about else set()
    elif _NAME.search(rest):
        about.add(UNKNOWN)
    if _NUMBER.search(compact):
        about.add(UNKNOWN)
    return frozenset(about or {UNREAD})
