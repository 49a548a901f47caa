"""Count the parts of an image file before Pillow opens it.

Pillow keeps an object for every segment of a JPEG and for every chunk of a PNG, and joins Exif segments in a time that grows with
the square of their number. A file of many tiny parts takes minutes and dozens of times its size in memory; no camera and no
scanner writes one. Of what is beside the pixel data, Pillow makes up to four copies.
"""

from __future__ import annotations

from PIL.JpegImagePlugin import MARKER
from PIL.PngImagePlugin import is_cid

from bcc_ops.exceptions import ImageRefused

MOST_PARTS = 1_000
"""Segments or chunks beside the pixel data. A colour profile has 255 at most, and everything else together some dozens."""

MOST_BYTES_BESIDE_PIXELS = 16_777_216
"""In these segments or chunks together: as much as the largest colour profile that a JPEG can hold."""

MOST_EXIF_SEGMENTS = 64

MOST_BYTES_OF_TABLES = 65_536
"""Of a JPEG's headers and tables. They take three kilobytes; Pillow makes Python lists of them."""

MOST_STRAY_BYTES = 65_536
"""Between the segments of a JPEG, where there should be none. Pillow looks at them one by one."""

LEAST_BYTES_OF_PIXELS = 1_024
"""On average, in each chunk of a PNG's pixel data. Encoders write 8 KB and more."""

_START_OF_SCAN, _EXIF, _COMMENT = 0xFFDA, 0xFFE1, 0xFFFE
_APPLICATION = range(0xFFE0, 0xFFF0)


def refuse_many_parts(content: bytes) -> None:
    """Refuse a file of too many parts; one that is not a JPEG or a PNG has none.

    Raises:
        ImageRefused: "too many parts".
    """
    if content.startswith(b"\xff\xd8\xff"):
        _check_segments(content)
    elif content.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_chunks(content)


def _check_segments(content: bytes) -> None:
    """Walk over a JPEG up to its pixel data, exactly as Pillow does: what the two see differently could hide segments."""
    segments = beside = exif = tables = stray = 0
    place = 2
    while (start := content.find(b"\xff", place)) >= 0 and start + 1 < len(content):
        stray += start - place
        marker = 0xFF00 | content[start + 1]
        if marker == 0xFFFF:  # padding
            stray, place = stray + 1, start + 1
        elif marker == 0xFF00:
            stray, place = stray + 2, start + 2
        elif marker not in MARKER or marker == _START_OF_SCAN:
            return
        else:
            segments, place = segments + 1, start + 2
            if MARKER[marker][2] is not None:  # Pillow reads a length after these only
                size = max(2, int.from_bytes(content[place : place + 2], "big"))
                beside += size
                exif += marker == _EXIF and content.startswith(b"Exif\0\0", place + 2)
                tables += 0 if marker in _APPLICATION or marker == _COMMENT else size
                place += size
        _refuse_more(segments, MOST_PARTS, "segments")
        _refuse_more(beside, MOST_BYTES_BESIDE_PIXELS, "bytes beside the pixel data")
        _refuse_more(exif, MOST_EXIF_SEGMENTS, "Exif segments")
        _refuse_more(tables, MOST_BYTES_OF_TABLES, "bytes of tables")
        _refuse_more(stray, MOST_STRAY_BYTES, "bytes between its segments")


def _check_chunks(content: bytes) -> None:
    """Walk over the chunks of a PNG."""
    most_pixel_chunks = MOST_PARTS + len(content) // LEAST_BYTES_OF_PIXELS
    pixel_chunks = others = beside = 0
    place = 8
    while place + 8 <= len(content):
        name, size = content[place + 4 : place + 8], int.from_bytes(content[place : place + 4], "big")
        if name == b"IEND" or not is_cid(name):  # Pillow reads no further
            return
        if name == b"IDAT":
            pixel_chunks += 1
        else:
            others += 1
            beside += min(size, len(content) - place)
        _refuse_more(others, MOST_PARTS, "chunks beside the pixel data")
        _refuse_more(beside, MOST_BYTES_BESIDE_PIXELS, "bytes beside the pixel data")
        _refuse_more(pixel_chunks, most_pixel_chunks, "chunks of pixel data")
        place += 12 + size


def _refuse_more(found: int, most: int, what: str) -> None:
    if found > most:
        raise ImageRefused("too many parts", f"more than {most:,} {what}")
