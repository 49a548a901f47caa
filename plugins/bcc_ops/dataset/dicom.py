"""A DICOM file -> the PNG that is kept of it: 8-bit pixels, and the few tags of an allow-list.

Nothing else of a DICOM file is stored anywhere: not the file, no other tag, no patient identifier. The PNG is made where the
file arrives, so that whatever works with images afterwards sees a PNG, the same on every worker.
"""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ConfigDict, TypeAdapter, ValidationError

from bcc_ops.dataset.dicom_elements import DEFLATED, LONGEST_TEXT, DicomParts, take_apart, transfer_syntax_of
from bcc_ops.dataset.dicom_pixels import (
    PHOTOMETRIC,
    PIXEL_TAGS,
    Header,
    decode_pixels,
    import_pydicom,
    read_header,
    refuse_undecodable,
)
from bcc_ops.dataset.pseudonyms import DIGITS, NOT_KNOWN, SALT_NAME_DIGITS, Pseudonyms
from bcc_ops.dataset.resources import IMAGES
from bcc_ops.exceptions import BccError, ImageRefused, OutOfResources

log = logging.getLogger(__name__)

LONGEST_DETAIL = 300
"""Most characters of the reason for a refusal."""

METHOD = 2
"""Goes up whenever the same file gives other pixels or tags: what was made before is fetched again. `fingerprints.METHOD` goes
up with it."""

OLDEST = 90
"""Years. Older patients get this age: they are so few that they could be recognised."""

_TAGS_CHUNK = "bcc-dicom"
_REFUSED = b"BCC-REFUSED-DICOM\n"
_REASONS = ("not an image", "unsupported format", "too large", "too many parts", "truncated", "damaged")
_BYTES_PER_PIXEL = 32
"""What decoding a frame and scaling it to 8 bits takes at its peak."""

_INFLATING = threading.Lock()
"""A deflated file is held whole, so only one at a time."""

_STUDY_DATE, _ACQUISITION_DATE, _CONTENT_DATE = 0x00080020, 0x00080022, 0x00080023
_MANUFACTURER, _MODEL, _AGE, _PATIENT = 0x00080070, 0x00081090, 0x00101010, 0x00100020
_LATERALITY, _IMAGE_LATERALITY = 0x00200060, 0x00200062
_BURNED_IN, _REGIONS = 0x00280301, 0x00186011
_ALLOWED = PIXEL_TAGS | {
    *(_STUDY_DATE, _ACQUISITION_DATE, _CONTENT_DATE, _MANUFACTURER, _MODEL, _AGE, _PATIENT),
    *(_LATERALITY, _IMAGE_LATERALITY, _BURNED_IN, _REGIONS),
}
"""The elements that are read. No other is."""

# In the items of the sequence of regions:
_REGION_FORMAT = 0x00186012
_REGION_BOX = (0x00186018, 0x0018601A, 0x0018601C, 0x0018601E)
_REGION_UNITS, _REGION_DELTAS = (0x00186024, 0x00186026), (0x0018602C, 0x0018602E)
_TWO_DIMENSIONAL, _CENTIMETRES = 1, 3


GivesPseudonyms = Callable[[], Pseudonyms]


@dataclass(frozen=True)
class DicomTags:
    """What is kept of a DICOM file beside its pixels. Text is "" and numbers are None if the file does not say.

    Attributes:
        device: manufacturer and model.
        acquired_at: the day, ISO 8601. The time of day is not kept.
        laterality: "left", "right" or "both".
        age: of the patient in whole years, `OLDEST` at most.
        burned_in: whether the file says that text is burned into its pixels.
        spacing_mm: of the pixels, if all regions of the image agree.
        photometric: the photometric interpretation, as stored.
        frame: the one that is used, from 0.
        frames: how many there are.
        cropped: whether only the regions that show an image were kept.
        patient: pseudonym of the patient; "" if pseudonyms were not asked for.
        salt: names the salt of the pseudonym.
    """

    device: str = ""
    acquired_at: str = ""
    laterality: str = ""
    age: int | None = None
    burned_in: bool | None = None
    spacing_mm: float | None = None
    photometric: str = ""
    frame: int = 0
    frames: int = 1
    cropped: bool = False
    patient: str = ""
    salt: str = ""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, str_max_length=LONGEST_TEXT)

    @property
    def may_be_ours(self) -> bool:
        """Whether `dicom_to_png` can have written this: an uploader could name patients in such a PNG, or inject text."""
        return (
            self.laterality in ("", *_SIDES.values())
            and self.photometric in PHOTOMETRIC
            and _PSEUDONYM.fullmatch(f"{self.patient} {self.salt}") is not None
            and self.device.isprintable()
            and (not self.acquired_at or _day(self.acquired_at.replace("-", "")) == self.acquired_at)
        )


_SIDES = {"L": "left", "R": "right", "B": "both"}
_PSEUDONYM = re.compile(rf" |[0-9a-f]{{{DIGITS}}} [0-9a-f]{{{SALT_NAME_DIGITS}}}")
_TAGS = TypeAdapter(DicomTags)


def dicom_to_png(content: bytes | memoryview, pseudonyms: GivesPseudonyms | None = None) -> bytes:
    """Return the PNG that is kept of a DICOM file; `tags_of` reads the tags in it.

    Of several frames it has the representative one if the file names one, else the middle one. The ultrasound regions that show
    two dimensions, if there are any, are cut out together.

    Args:
        content: the file; `dicom_elements.is_dicom` says that it is one.
        pseudonyms: gives what becomes of the patient's identifier; asked if there is one. None keeps nothing of it.

    Raises:
        ImageRefused: "not an image", "unsupported format", "too large", "too many parts", "truncated" or "damaged". The detail
            quotes nothing of the file but its transfer syntax.
        OutOfResources: the memory did not suffice.
    """
    view = memoryview(content)
    import_pydicom()
    try:
        syntax, _ = transfer_syntax_of(view)
        refuse_undecodable(syntax)
        with _INFLATING if syntax == DEFLATED else nullcontext():
            parts = take_apart(view, _ALLOWED)
            header = read_header(parts)
            with IMAGES.reserve(_BYTES_PER_PIXEL * header.rows * header.columns):
                return _to_png(parts, header, pseudonyms)
    except MemoryError as error:
        raise OutOfResources("the memory does not suffice to decode a DICOM file; run fewer tasks on this worker") from error


def keep_of_dicom(content: bytes | memoryview, pseudonyms: GivesPseudonyms | None = None) -> bytes:
    """Return what is kept of a DICOM file: its PNG, or why there is none, for `refuse_again`. Arguments as for `dicom_to_png`."""
    try:
        return dicom_to_png(content, pseudonyms)
    except ImageRefused as refusal:
        return _REFUSED + json.dumps([refusal.reason, refusal.detail[:LONGEST_DETAIL]]).encode()
    except (BccError, ImportError, MemoryError, OSError):  # not a property of the file
        raise
    except Exception as error:  # an unforeseen file must not stop a run
        log.exception("a DICOM file cannot be decoded")
        return _REFUSED + json.dumps(["damaged", f"the decoder failed: {type(error).__name__}"]).encode()


def refuse_again(content: bytes) -> None:
    """Refuse a file again, by what `keep_of_dicom` kept when it refused it.

    Raises:
        ImageRefused: as then.
    """
    if not content.startswith(_REFUSED):
        return
    try:
        reason, detail = json.loads(content[len(_REFUSED) :])
    except ValueError:
        reason, detail = "", ""
    if reason not in _REASONS or not isinstance(detail, str) or len(detail) > LONGEST_DETAIL:  # an uploader wrote this
        raise ImageRefused("not an image", f"its first bytes are {content[:8]!r}")
    raise ImageRefused(reason, detail)


def tags_of(info: Mapping[str, Any]) -> DicomTags | None:
    """Return the tags in a PNG that `dicom_to_png` made; None for any other image. `info` is Pillow's `image.info`."""
    text = info.get(_TAGS_CHUNK)
    if not isinstance(text, str):
        return None
    try:
        tags = _TAGS.validate_json(text)
    except ValidationError:  # an uploader wrote this
        return None
    return tags if tags.may_be_ours else None


def _to_png(parts: DicomParts, header: Header, pseudonyms: GivesPseudonyms | None) -> bytes:
    pixels = decode_pixels(parts, header)
    box, spacing = _regions(parts, header)
    if box is not None:
        left, top, right, bottom = box
        pixels = pixels[top:bottom, left:right]
    tags = _read_tags(parts, header, spacing, cropped=box is not None)
    patient = parts.text(_PATIENT)
    if pseudonyms is not None and patient and patient.casefold() not in NOT_KNOWN:
        names = pseudonyms()
        tags = replace(tags, patient=names.of(patient), salt=names.salt_name)
    info = PngInfo()
    info.add_text(_TAGS_CHUNK, json.dumps(asdict(tags)))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def _regions(parts: DicomParts, header: Header) -> tuple[tuple[int, int, int, int] | None, float | None]:
    """Return the box around all regions that show two dimensions (left, top, right, bottom), and their pixels' spacing in mm.

    Regions that are not within the image are ignored: a wrong box must not cost the image.
    """
    order = parts.encoding.order
    boxes, spacings = [], set()
    for item in parts.items(_REGIONS):
        kind = _unpacked(item.get(_REGION_FORMAT), f"{order}u2")
        box = [_unpacked(item.get(tag), f"{order}u4") for tag in _REGION_BOX]
        if kind != _TWO_DIMENSIONAL or None in box:
            continue
        left, top, right, bottom = (int(side) for side in box if side is not None)
        if not (left < right < header.columns and top < bottom < header.rows):
            continue
        boxes.append((left, top, right + 1, bottom + 1))
        measures = {_unpacked(item.get(tag), f"{order}u2") for tag in _REGION_UNITS}
        deltas = {_unpacked(item.get(tag), f"{order}f8") for tag in _REGION_DELTAS}
        spacings.add(deltas.pop() if measures == {_CENTIMETRES} and len(deltas) == 1 else None)
    if not boxes:
        return None, None
    edges = np.array(boxes)
    (left, top), (right, bottom) = edges[:, :2].min(axis=0).tolist(), edges[:, 2:].max(axis=0).tolist()
    spacing = spacings.pop() if len(spacings) == 1 else None
    whole = (left, top, right, bottom) == (0, 0, header.columns, header.rows)
    return None if whole else (left, top, right, bottom), round(10 * spacing, 6) if spacing and 0 < spacing < 10 else None


def _unpacked(value: bytes | None, kind: str) -> Any:
    wanted = np.dtype(kind)
    return np.frombuffer(value[: wanted.itemsize], wanted)[0].item() if value and len(value) >= wanted.itemsize else None


def _read_tags(parts: DicomParts, header: Header, spacing: float | None, *, cropped: bool) -> DicomTags:
    dates = (_day(parts.text(tag)) for tag in (_ACQUISITION_DATE, _CONTENT_DATE, _STUDY_DATE))
    sides = (parts.text(tag).upper()[:1] for tag in (_IMAGE_LATERALITY, _LATERALITY))
    return DicomTags(
        device=" ".join(filter(None, (parts.text(_MANUFACTURER), parts.text(_MODEL))))[:LONGEST_TEXT],
        acquired_at=next(filter(None, dates), ""),
        laterality=_SIDES.get(next(filter(None, sides), ""), ""),
        age=_years(parts.text(_AGE)),
        burned_in={"YES": True, "NO": False}.get(parts.text(_BURNED_IN).upper()),
        spacing_mm=spacing,
        photometric=header.photometric,
        frame=header.frame,
        frames=header.frames,
        cropped=cropped,
    )


def _day(text: str) -> str:
    try:
        return datetime.strptime(text[:8], "%Y%m%d").date().isoformat()
    except ValueError:
        return ""


def _years(text: str) -> int | None:
    if not (found := re.fullmatch(r"(\d{3})([DWMY])", text)):
        return None
    number, period = int(found[1]), found[2]
    return min(OLDEST, number // {"D": 365, "W": 52, "M": 12, "Y": 1}[period])
