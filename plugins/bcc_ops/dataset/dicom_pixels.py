"""The pixels of a DICOM file -> 8-bit gray or RGB, as they are to be shown.

pydicom decodes what is not compressed, RLE, JPEG and JPEG 2000 (by Pillow) and JPEG-LS (by pyjpegls). Pillow alone decodes
lossless JPEG. None of them is given more than one frame, whose size was checked.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from bcc_ops.config import LARGEST_IMAGE
from bcc_ops.dataset.dicom_elements import DEFLATED, DicomParts, Element, fragments
from bcc_ops.dataset.file_parts import refuse_many_parts
from bcc_ops.exceptions import ImageRefused

MOST_FRAMES = 100_000

_BASELINE, _EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_RLE = "1.2.840.10008.1.2.5"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED)
_STARTS_OF_FRAME: Mapping[str, tuple[int, ...]] = {
    _BASELINE: (0xC0,),
    _EXTENDED: (0xC0, 0xC1),
    **dict.fromkeys(_LOSSLESS, (0xC3,)),
    **dict.fromkeys(_JPEG_LS, (0xF7,)),
}
"""Which markers begin a frame of a JPEG of this transfer syntax."""
_MOST_SCANS = 8
"""Of a JPEG that is not progressive: DICOM has no other, and one scan per colour is the most that these have."""

_MOST_TILES = 1_024
"""Of a JPEG 2000 frame. OpenJPEG keeps ten kilobytes for each, however small; scanners write one."""

_GRAY, _PALETTE = ("MONOCHROME1", "MONOCHROME2"), "PALETTE COLOR"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PHOTOMETRIC = (*_GRAY, _PALETTE, *_COLOURS)
"""The photometric interpretations that are read."""

_SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES = 0x00280002, 0x00280004, 0x00280006, 0x00280008
_ROWS, _COLUMNS = 0x00280010, 0x00280011
_ALLOCATED, _STORED, _HIGH_BIT, _SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_WINDOW_CENTER, _WINDOW_WIDTH, _WINDOW_FUNCTION = 0x00281050, 0x00281051, 0x00281056
_INTERCEPT, _SLOPE = 0x00281052, 0x00281053
_PALETTES = ((0x00281101, 0x00281201), (0x00281102, 0x00281202), (0x00281103, 0x00281203))
_MODALITY_TABLES, _VOI_TABLES = 0x00283000, 0x00283010
_REPRESENTATIVE_FRAME, _EXTENDED_OFFSETS = 0x00286010, 0x7FE00001
_TABLE_DESCRIPTOR, _TABLE = 0x00283002, 0x00283006  # in the items of these two sequences

PIXEL_TAGS = frozenset(
    (
        *(_SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES, _ROWS, _COLUMNS, _ALLOCATED, _STORED, _HIGH_BIT, _SIGNED),
        *(_WINDOW_CENTER, _WINDOW_WIDTH, _WINDOW_FUNCTION, _INTERCEPT, _SLOPE, _MODALITY_TABLES, _VOI_TABLES),
        *(_REPRESENTATIVE_FRAME, _EXTENDED_OFFSETS),
        *(tag for pair in _PALETTES for tag in pair),
    )
)
"""The elements that are read here."""

Bytes8 = npt.NDArray[np.uint8]


class Header(NamedTuple):
    """How the pixels are stored. `stored` and `allocated` in bits."""

    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    signed: bool
    planar: int
    frames: int
    frame: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame that is not compressed."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * (self.allocated // 8)


_IMPORTING = threading.Lock()


def import_pydicom() -> None:
    """Import what is used of pydicom, one thread at a time. Only a run with DICOM files needs it, so nothing imports it earlier.

    Its modules import each other, so threads that import it at the same time may find a module half made, and refuse their files
    as damaged.
    """
    with _IMPORTING:
        import pydicom.encaps
        import pydicom.pixels.processing
        import pydicom.uid  # noqa: F401


def refuse_undecodable(syntax: str) -> None:
    """Refuse, by its name, a transfer syntax that cannot be decoded here.

    Raises:
        ImageRefused: "unsupported format".
    """
    if syntax in (*_NATIVE, _BASELINE, _EXTENDED, *_LOSSLESS, *_JPEG_LS, *_JPEG_2000, _RLE):
        return
    from pydicom.uid import UID, UID_dictionary

    known = syntax in UID_dictionary
    name = UID(syntax).name if known else "an unknown one"
    number = f" ({syntax})" if re.fullmatch(r"[0-9.]{1,64}", syntax) else ""
    raise ImageRefused("unsupported format", f"the DICOM transfer syntax {name}{number} cannot be decoded here")


def read_header(parts: DicomParts) -> Header:
    """Read how the pixels are stored.

    Raises:
        ImageRefused: they cannot be read here.
    """
    if parts.pixels is None:
        raise ImageRefused("not an image", "the DICOM file has no pixel data: a report, a directory or the like")
    frames = parts.integer(_FRAMES, 1)
    if not 1 <= frames <= MOST_FRAMES:
        raise ImageRefused("damaged" if frames < 1 else "too many parts", f"{frames:,} frames; 1 to {MOST_FRAMES:,} are read")
    representative = parts.short(_REPRESENTATIVE_FRAME)
    photometric = parts.text(_PHOTOMETRIC).upper()
    header = Header(
        rows=parts.short(_ROWS),
        columns=parts.short(_COLUMNS),
        samples=parts.short(_SAMPLES, 1),
        photometric=photometric,
        allocated=parts.short(_ALLOCATED),
        stored=parts.short(_STORED, parts.short(_ALLOCATED)),
        signed=bool(parts.short(_SIGNED)),
        planar=parts.short(_PLANAR),
        frames=frames,
        frame=representative - 1 if 1 <= representative <= frames else frames // 2,
    )
    if not header.rows * header.columns:
        raise ImageRefused("damaged", f"{header.columns} x {header.rows} pixels")
    if header.rows * header.columns > LARGEST_IMAGE:
        raise ImageRefused("too large", f"{header.columns} x {header.rows} pixels; at most {LARGEST_IMAGE:,} are read")
    if photometric not in PHOTOMETRIC:
        raise ImageRefused("unsupported format", "a DICOM photometric interpretation that is not read here")
    if header.samples != (3 if photometric in _COLOURS else 1) or header.planar not in (0, 1):
        raise ImageRefused(
            "damaged", f"{header.samples} samples per pixel do not fit the photometric interpretation {photometric}"
        )
    high_bit = parts.short(_HIGH_BIT, header.stored - 1)
    depths = (8,) if photometric in _COLOURS else (8, 16)
    if header.allocated not in depths or not 1 <= header.stored <= header.allocated or high_bit != header.stored - 1:
        bits = f"{header.stored} bits in {header.allocated}, the highest at {high_bit}"
        raise ImageRefused("unsupported format", f"{bits}: only gray of 8 or 16 bits and colour of 8 are read")
    return header


def decode_pixels(parts: DicomParts, header: Header) -> Bytes8:
    """Return the frame that is used: uint8, (rows, columns) or (rows, columns, 3) in RGB.

    Raises:
        ImageRefused: "unsupported format", "too many parts", "truncated" or "damaged".
    """
    stored = _decode(parts, header, _frame(parts, header))
    if header.photometric in _GRAY:
        return _gray(parts, header, stored)
    return _coloured(parts, stored) if header.photometric == _PALETTE else stored.astype(np.uint8, copy=False)


def _frame(parts: DicomParts, header: Header) -> bytes:
    """Return the bytes of the frame that is used, as they are stored."""
    assert parts.pixels is not None
    start, end = parts.pixels
    native = parts.transfer_syntax in _NATIVE
    if native != (end is not None):
        raise ImageRefused("damaged", "its pixel data is not stored as its DICOM transfer syntax requires")
    if end is None:
        return _encapsulated(parts, header, [*fragments(parts.content, start)])
    if end - start < header.frames * header.frame_bytes:
        wanted = (
            f"{header.frames:,} frames of {header.columns} x {header.rows} pixels take {header.frames * header.frame_bytes:,}"
        )
        raise ImageRefused("truncated", f"{end - start:,} bytes of pixel data; {wanted}")
    start += header.frame * header.frame_bytes
    return bytes(parts.content[start : start + header.frame_bytes])


def _encapsulated(parts: DicomParts, header: Header, found: list[Element]) -> bytes:
    table, pieces = (found[0], found[1:]) if found else (None, [])
    if table is None or len(pieces) < header.frames:
        raise ImageRefused("truncated", f"{len(pieces):,} fragments of pixel data for {header.frames:,} frames")
    if header.frames == 1:
        return b"".join(parts.content[piece.value : piece.end] for piece in pieces)
    if len(pieces) > header.frames:
        offsets = _offsets(parts.value(_EXTENDED_OFFSETS), "<u8")
        if not len(offsets):
            offsets = _offsets(parts.content[table.value : table.end][: 4 * header.frames], "<u4")
        if len(offsets) != header.frames:
            raise ImageRefused("damaged", "no table says which fragments of its pixel data make which frame")
        first = pieces[0].start
        begin = int(offsets[header.frame])
        end = int(offsets[header.frame + 1]) if header.frame + 1 < header.frames else len(parts.content)
        pieces = [piece for piece in pieces if begin <= piece.start - first < end]
    else:
        pieces = [pieces[header.frame]]
    return b"".join(parts.content[piece.value : piece.end] for piece in pieces)


def _offsets(table: bytes | memoryview, kind: str) -> npt.NDArray[Any]:
    if len(table) % np.dtype(kind).itemsize:
        raise ImageRefused("damaged", "its table of frames is cut off")
    return np.frombuffer(table, kind)


def _decode(parts: DicomParts, header: Header, frame: bytes) -> npt.NDArray[Any]:
    """Return a frame's stored values: (rows, columns), or uint8 (rows, columns, 3) in RGB."""
    _check_codestream(parts.transfer_syntax, header, frame)
    try:
        if parts.transfer_syntax in _LOSSLESS:
            return _decode_lossless(header, frame)
        return _decode_with_pydicom(parts.transfer_syntax, header, frame)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on broken data; the words of some quote the file
        raise ImageRefused("damaged", f"its pixels cannot be decoded ({type(error).__name__})") from None


def _decode_with_pydicom(syntax: str, header: Header, frame: bytes) -> npt.NDArray[Any]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    # A JPEG with a JFIF segment is YCbCr by definition, whatever the header says; pydicom knows, and warns about each.
    jfif = header.photometric == "RGB" and syntax in (_BASELINE, _EXTENDED) and frame[6:10] == b"JFIF"
    decoder = get_decoder(UID(syntax))
    values, _ = decoder.as_array(
        frame if syntax in _NATIVE else encapsulate([frame]),
        index=0,
        rows=header.rows,
        columns=header.columns,
        number_of_frames=1,
        samples_per_pixel=header.samples,
        photometric_interpretation="YBR_FULL" if jfif else header.photometric,
        bits_allocated=header.allocated,
        bits_stored=header.stored,
        pixel_representation=int(header.signed),
        planar_configuration=header.planar,
        pixel_keyword="PixelData",
    )
    decoded: npt.NDArray[Any] = values
    return decoded


def _decode_lossless(header: Header, frame: bytes) -> npt.NDArray[Any]:
    """Decode by Pillow, whose libjpeg reads lossless JPEGs of 8 bits; pydicom does not ask it to."""
    from pydicom.pixels.processing import convert_color_space

    with Image.open(io.BytesIO(frame), formats=("JPEG",)) as image:
        values = np.asarray(image)
    return convert_color_space(values, header.photometric, "RGB") if header.photometric.startswith("YBR") else values


def _check_codestream(syntax: str, header: Header, frame: bytes) -> None:
    """Check that a compressed frame is as large as the header says, before anything decompresses it."""
    if syntax in _STARTS_OF_FRAME:
        refuse_many_parts(frame)
        kind, precision, rows, columns, samples = _jpeg_frame(frame)
        if kind not in _STARTS_OF_FRAME[syntax] or frame.count(b"\xff\xda") > _MOST_SCANS:
            raise ImageRefused("damaged", "its pixel data is not a JPEG of the DICOM transfer syntax that it states")
        if syntax in _JPEG_LS and not frame.rstrip(b"\0").endswith(b"\xff\xd9"):  # CharLS reads on for half a minute
            raise ImageRefused("truncated", "the end of its JPEG-LS pixels is missing")
        if syntax in _JPEG_LS and (precision > header.stored or (precision > 8) != (header.stored > 8)):
            raise ImageRefused("damaged", f"its compressed pixels have {precision} bits and its header states {header.stored}")
        if precision > 8 and syntax not in _JPEG_LS:
            raise ImageRefused("unsupported format", f"JPEG of {precision} bits per sample cannot be decoded here, only of 8")
    elif syntax in _JPEG_2000:
        if frame[:4] != b"\xff\x4f\xff\x51" or len(frame) < 42:
            raise ImageRefused("damaged", "its pixel data does not begin as JPEG 2000 does")
        right, bottom, left, top = (int.from_bytes(frame[place : place + 4], "big") for place in (8, 12, 16, 20))
        rows, columns, samples = bottom - top, right - left, int.from_bytes(frame[40:42], "big")
        width, height, first, uppermost = (int.from_bytes(frame[place : place + 4], "big") for place in (24, 28, 32, 36))
        if not width or not height or -(-(right - first) // width) * -(-(bottom - uppermost) // height) > _MOST_TILES:
            raise ImageRefused("too many parts", f"more than {_MOST_TILES:,} tiles of JPEG 2000 pixels")
    else:
        return
    if (rows, columns, samples) != (header.rows, header.columns, header.samples):
        stated = f"{header.columns} x {header.rows} pixels of {header.samples}"
        raise ImageRefused(
            "damaged", f"its compressed pixels are {columns} x {rows} of {samples} samples, and its header states {stated}"
        )


def _jpeg_frame(frame: bytes) -> tuple[int, int, int, int, int]:
    """Return a JPEG's kind (the second byte of its marker), bits per sample, rows, columns and samples per pixel."""
    place = 2
    while frame.startswith(b"\xff", place) and place + 10 <= len(frame):
        kind = frame[place + 1]
        if kind == 0xFF:
            place += 1
        elif kind in (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7):
            body = frame[place + 4 : place + 10]
            return kind, body[0], int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"), body[5]
        else:
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    raise ImageRefused("damaged", "its pixel data does not begin as a JPEG does")


# gray values and colours -----------------------------------------------------------------------------------------------


def _gray(parts: DicomParts, header: Header, stored: npt.NDArray[Any]) -> Bytes8:
    """Scale gray values to 8 bits as they are to be shown: rescaled, through the window or the table, inverted."""
    low, high = (-(1 << header.stored - 1), (1 << header.stored - 1) - 1) if header.signed else (0, (1 << header.stored) - 1)
    values, limits = _without_other_bits(header, stored), np.array([low, high], np.float64)
    modality, voi = _first_table(parts, _MODALITY_TABLES), _first_table(parts, _VOI_TABLES)
    if modality is not None:
        values, limits = modality.look_up(values), np.array([0, modality.most], np.float64)
    else:
        slope, intercept = parts.number(_SLOPE), parts.number(_INTERCEPT)
        if slope not in (None, 0, 1) or intercept:
            values = values.astype(np.float32) * np.float32(slope or 1) + np.float32(intercept or 0)
            limits = limits * float(slope or 1) + float(intercept or 0)
    center, width = parts.number(_WINDOW_CENTER), parts.number(_WINDOW_WIDTH)
    shown: npt.NDArray[Any] | None
    if voi is not None:
        shown = voi.look_up(values).astype(np.float32) / voi.most
    elif center is not None and width is not None and width >= 1:
        shown = _window(values.astype(np.float32), center, width, parts.text(_WINDOW_FUNCTION).upper())
    elif (limits[0], limits[1]) == (0, 255):
        shown = None
    else:
        shown = (values.astype(np.float32) - np.float32(limits.min())) / np.float32(max(1e-6, float(np.ptp(limits))))
    gray = values.astype(np.uint8) if shown is None else np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
    return 255 - gray if header.photometric == "MONOCHROME1" else gray


def _without_other_bits(header: Header, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the values without what is in the bits above them, where older scanners keep overlays."""
    if not header.signed and header.stored == header.allocated:
        return stored
    values = stored.astype(np.int32) & ((1 << header.stored) - 1)
    sign = 1 << header.stored - 1
    return (values ^ sign) - sign if header.signed else values


def _window(values: npt.NDArray[np.float32], center: float, width: float, function: str) -> npt.NDArray[np.float32]:
    """Return values through a window, 0 to 1 and beyond (PS3.3, C.11.2.1)."""
    shown: npt.NDArray[np.float32]
    if function == "SIGMOID":
        shown = 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -50, 50)))
    elif function == "LINEAR_EXACT":
        shown = (values - center) / width + 0.5
    else:
        shown = (values - (center - 0.5)) / max(width - 1, 1e-6) + 0.5
    return shown


class _Table(NamedTuple):
    """A lookup table: its entries are for the stored values from `first` on; the nearest one serves those outside."""

    first: int
    entries: npt.NDArray[Any]
    bits: int

    @property
    def most(self) -> int:
        """The largest value that an entry can have."""
        return (1 << self.bits) - 1

    def look_up(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the entry of each value."""
        places = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        found: npt.NDArray[Any] = self.entries[places]
        return found


def _table(parts: DicomParts, descriptor: bytes, data: bytes) -> _Table:
    order = parts.encoding.order
    if len(descriptor) < 6:
        raise ImageRefused(
            "damaged", "a lookup table of the DICOM file is missing or is of a kind that is not read here (segmented)"
        )
    count, first, bits = np.frombuffer(descriptor[:6], f"{order}u2").tolist()
    count = count or 1 << 16
    if not 8 <= bits <= 16:
        raise ImageRefused("damaged", f"a lookup table of {bits} bits per entry")
    wide = bits > 8 or len(data) >= 2 * count
    entries = np.frombuffer(data, f"{order}u2" if wide else "u1", min(count, len(data) // (2 if wide else 1)))
    if len(entries) < count:
        raise ImageRefused("truncated", "a lookup table of the DICOM file is shorter than it states")
    return _Table(first, entries, bits)


def _first_table(parts: DicomParts, tag: int) -> _Table | None:
    items = parts.items(tag)
    return _table(parts, items[0].get(_TABLE_DESCRIPTOR, b""), items[0].get(_TABLE, b"")) if items else None


def _coloured(parts: DicomParts, stored: npt.NDArray[Any]) -> Bytes8:
    """Return RGB of a palette image. Of entries with more than 8 bits, the upper 8 are the colour."""
    tables = (_table(parts, parts.value(descriptor), parts.value(data)) for descriptor, data in _PALETTES)
    return np.stack([(table.look_up(stored) >> (table.bits - 8)).astype(np.uint8) for table in tables], axis=2)
