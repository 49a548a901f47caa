"""DICOM files that an uploader could use to stop a night: name, content, and the reason for which each must be left out."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG4HP41,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from tests.factories.dicom_files import MARKER, described, dicom_file, written

PREAMBLE = bytes(128) + b"DICM"


def element(tag: int, vr: bytes, value: bytes = b"", length: int | None = None) -> bytes:
    """An element in explicit VR, little endian. `length`: what it states, if not the truth."""
    stated = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return head + struct.pack("<HL", 0, stated) + value
    return head + struct.pack("<H", stated) + value


def item(value: bytes = b"", length: int | None = None) -> bytes:
    """An item of a sequence."""
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(value) if length is None else length) + value


def nested(tag: int, depth: int) -> bytes:
    """Sequences of undefined length, each in an item of the one before."""
    return (element(tag, b"SQ", length=0xFFFFFFFF) + item(length=0xFFFFFFFF)) * depth


def with_elements(elements: bytes, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """A file of these elements, which need not be those of an image."""
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    return PREAMBLE + element(0x00020010, b"UI", uid) + elements


def hostile_dicoms() -> Iterator[tuple[str, bytes, str]]:
    """Yield each file with its name and the reason to refuse it."""
    picture = np.arange(96 * 96, dtype=np.uint8).reshape(96, 96)
    good = dicom_file(picture)
    pixels = good.rindex(b"\xe0\x7f\x10\x00")
    before, after = good[:pixels], good[pixels:]
    yield "cut in its header.dcm", good[: pixels - 200], "truncated"
    yield "cut in its pixels.dcm", good[:-100], "truncated"
    yield "fewer pixels than stated.dcm", dicom_file(picture, Rows=4_000, Columns=4_000), "truncated"
    yield "absurd rows.dcm", dicom_file(picture, Rows=65_535, Columns=65_535), "too large"
    yield "no rows.dcm", dicom_file(picture, Rows=0), "damaged"
    yield "absurd frames.dcm", dicom_file(picture, NumberOfFrames=2_000_000_000), "too many parts"
    yield "less than no frame.dcm", dicom_file(picture, NumberOfFrames=-1), "damaged"
    yield "deep.dcm", before + nested(0x00091010, 50_000) + after, "too many parts"
    inside = nested(0x00186012, 2_000)
    yield "deep in a region.dcm", before + element(0x00186011, b"SQ", item(inside)) + after, "too many parts"
    yield "many elements.dcm", before + element(0x00091010, b"LO") * 50_001 + after, "too many parts"
    yield "many regions.dcm", before + element(0x00186011, b"SQ", item() * 65) + after, "too many parts"
    yield "long.dcm", before + element(0x00091010, b"UN", length=0xFFFFFFF0) + after, "truncated"
    yield "large table.dcm", before + element(0x00283010, b"SQ", bytes(3_000_000)) + after, "too many parts"
    yield "wrong ends.dcm", before + element(0x00091010, b"SQ", item(length=0), 0xFFFFFFFF) + after, "damaged"
    yield "item outside.dcm", before + item() + after, "damaged"
    yield "<script>.dcm", before + element(0x00091010, b"<b", MARKER.encode()) + after, "damaged"
    yield "no syntax", PREAMBLE + element(0x00020002, b"UI", b"1.2 "), "damaged"
    yield "1.2.840.99", written(described()), "not an image"
    yield "video.dcm", with_elements(after, MPEG4HP41), "unsupported format"
    yield "own syntax.dcm", with_elements(after, "1.2.3<script>"), "unsupported format"
    bomb = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = bomb.compress(element(0x00091010, b"UN", length=0xFFFFFF00)) + b"".join(
        bomb.compress(bytes(1_000_000)) for _ in range(65)
    )
    yield "bomb.dcm", with_elements(packed + bomb.flush(), DeflatedExplicitVRLittleEndian), "too large"
    yield "deflated and cut.dcm", dicom_file(picture, DeflatedExplicitVRLittleEndian)[:-60], "truncated"
    yield "not deflated.dcm", with_elements(after, DeflatedExplicitVRLittleEndian), "damaged"
    for syntax in (JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless):
        larger = dicom_file(np.tile(picture, (3, 3)), syntax, Rows=96, Columns=96)
        yield f"larger inside {syntax}.dcm", larger, "damaged"
    yield "tiles.dcm", _of_tiny_tiles(picture), "too many parts"
    yield "no end.dcm", _without_end(picture), "truncated"
    yield "no fragment.dcm", dicom_file(picture, JPEGBaseline8Bit, PixelData=encapsulate([b"\0\0"])), "damaged"
    yield "twelve bits.dcm", _of_twelve_bits(picture), "unsupported format"
    yield "segmented.dcm", dicom_file(picture, photometric="PALETTE COLOR"), "damaged"


def _without_end(picture: np.ndarray) -> bytes:
    """A JPEG-LS without its end marker, on which CharLS would search for half a minute."""
    content = bytearray(dicom_file(picture, JPEGLSLossless))
    end = content.rindex(b"\xff\xd9")
    content[end : end + 2] = b"\x3e\xd9"
    return bytes(content)


def _of_tiny_tiles(picture: np.ndarray) -> bytes:
    """A JPEG 2000 whose decoder keeps ten kilobytes for each four pixels: 65,000 tiles take 640 MB."""
    file = io.BytesIO()
    tiled = np.tile(picture, (3, 3))
    Image.fromarray(tiled).save(file, "JPEG2000", no_jp2=True, tile_size=(2, 2), num_resolutions=1)
    return dicom_file(tiled, JPEG2000Lossless, PixelData=encapsulate([file.getvalue()]))


def _of_twelve_bits(picture: np.ndarray) -> bytes:
    content = dicom_file(picture, JPEGLosslessSV1)
    place = content.index(b"\xff\xc3") + 4
    return content[:place] + b"\x0c" + content[place + 1 :]
