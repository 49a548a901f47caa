"""DICOM files for tests, as a scanner or an archive would write them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
)

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
LOSSLESS = (*NATIVE, RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)
LOSSY = (JPEGBaseline8Bit,)

MARKER = "PLANTED^MARKER"
"""In every tag that is not on the allow-list, and in the patient's identifiers."""


def dicom_file(
    pixels: np.ndarray,
    syntax: str = ExplicitVRLittleEndian,
    photometric: str = "",
    *,
    frames: int = 1,
    **tags: Any,
) -> bytes:
    """Return a DICOM file.

    Args:
        pixels: uint8 or uint16, (rows, columns) or (rows, columns, 3) in RGB, with a first axis of frames if there are several.
        syntax: the UID of its transfer syntax.
        photometric: how colour or gray is stored: RGB or MONOCHROME2 if it is not said. Palettes are of `palette_file`.
        frames: how many.
        tags: keyword -> value, written over what is there.
    """
    pictures = list(pixels) if frames > 1 else [pixels]
    samples = 3 if pictures[0].ndim == 3 else 1
    photometric = photometric or ("RGB" if samples == 3 else "MONOCHROME2")
    stored = [_as_stored(picture, photometric, syntax) for picture in pictures]
    dataset = described(**tags)
    dataset.SamplesPerPixel = samples
    if samples == 3:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pictures[0].shape[:2]
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = dataset.BitsStored = 8 * pictures[0].itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    if syntax in NATIVE:
        order: Any = ">" if syntax == ExplicitVRBigEndian else "<"
        content = b"".join(picture.astype(picture.dtype.newbyteorder(order)).tobytes() for picture in stored)
        dataset.PixelData = content + b"\0" * (len(content) % 2)
    else:
        dataset.PixelData = encapsulate([_compressed(picture, syntax) for picture in stored])
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated == 16 else "OB"
    for name, value in tags.items():
        setattr(dataset, name, value)
    return written(dataset, syntax)


def described(**tags: Any) -> Dataset:
    """Return a dataset with the tags that an ultrasound scanner writes, and no pixels."""
    dataset = Dataset()
    dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
    dataset.SOPInstanceUID = dataset.StudyInstanceUID = "1.2.3.4.5"
    dataset.PatientName = dataset.PatientID = dataset.OtherPatientNames = dataset.ReferringPhysicianName = MARKER
    dataset.PatientBirthDate, dataset.PatientAge = "19700102", "052Y"
    dataset.StudyDescription = dataset.ImageComments = dataset.InstitutionName = MARKER
    dataset.Manufacturer, dataset.ManufacturerModelName = "GE", "LOGIQ E9"
    dataset.StudyDate, dataset.StudyTime = "20260314", "120102"
    dataset.Laterality, dataset.BurnedInAnnotation = "L", "YES"
    private = dataset.private_block(0x0011, f"<script>{MARKER}</script>", create=True)
    private.add_new(0x01, "LO", f"<b>{MARKER}</b>")
    other = Dataset()
    other.PatientID = MARKER
    dataset.OtherPatientIDsSequence = Sequence([other])
    dataset["OtherPatientIDsSequence"].is_undefined_length = True
    return dataset


def written(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """Return the file of a dataset."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def palette_file(indices: np.ndarray, colours: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """Return a DICOM file of a palette image.

    Args:
        indices: uint8, (rows, columns).
        colours: uint8, (entries, 3); stored with 16 bits per entry, as scanners do.
    """
    tables: dict[str, Any] = {}
    for place, name in enumerate(("Red", "Green", "Blue")):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [len(colours), 0, 16]
        order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
        tables[f"{name}PaletteColorLookupTableData"] = (colours[:, place].astype(np.uint16) * 257).astype(order).tobytes()
    return dicom_file(indices, syntax, "PALETTE COLOR", **tables, **tags)


def region(left: int, top: int, right: int, bottom: int, *, kind: int = 1, delta: float = 0.02) -> Dataset:
    """Return an item of the sequence of ultrasound regions: the sides are within it, and `delta` is in cm per pixel."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = kind, 1, 0
    item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right, bottom
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = delta
    return item


def _as_stored(picture: np.ndarray, photometric: str, syntax: str) -> np.ndarray:
    if photometric == "MONOCHROME1":
        return np.iinfo(picture.dtype).max - picture
    if photometric == "YBR_FULL" and syntax != JPEGBaseline8Bit:  # a JPEG's encoder does this itself
        return convert_color_space(picture, "RGB", "YBR_FULL")
    if photometric == "YBR_FULL_422" and syntax in NATIVE:
        ybr = convert_color_space(picture, "RGB", "YBR_FULL")
        pairs = ybr.reshape(len(ybr), -1, 2, 3)
        return np.stack([pairs[:, :, 0, 0], pairs[:, :, 1, 0], pairs[:, :, 0, 1], pairs[:, :, 0, 2]], axis=2)
    return picture


def _compressed(picture: np.ndarray, syntax: str) -> bytes:
    if syntax == JPEGLosslessSV1:
        return _lossless_jpeg(picture)
    if syntax == JPEGLSLossless:
        import jpeg_ls

        return bytes(jpeg_ls.encode_array(picture, interleave_mode=2 if picture.ndim == 3 else None))
    if syntax == RLELossless:
        from pydicom.pixels import get_encoder

        samples = 3 if picture.ndim == 3 else 1
        return get_encoder(RLELossless).encode(
            picture.tobytes(),
            rows=picture.shape[0],
            columns=picture.shape[1],
            number_of_frames=1,
            samples_per_pixel=samples,
            planar_configuration=0,
            bits_allocated=8 * picture.itemsize,
            bits_stored=8 * picture.itemsize,
            pixel_representation=0,
            photometric_interpretation="RGB" if samples == 3 else "MONOCHROME2",
        )
    file = io.BytesIO()
    if syntax == JPEG2000Lossless:
        Image.fromarray(picture).save(file, "JPEG2000", irreversible=False, no_jp2=True, mct=0)
    else:
        Image.fromarray(picture).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _lossless_jpeg(picture: np.ndarray) -> bytes:
    """Return a lossless JPEG (process 14, selection value 1) of 8 bits: every code has the length of 4 bits, none is clever."""
    values = picture.reshape(*picture.shape[:2], -1).astype(np.int64)
    rows, columns, samples = values.shape
    left = np.empty_like(values)
    left[:, 1:] = values[:, :-1]
    left[1:, 0] = values[:-1, 0]
    left[0, 0] = 128
    bits: list[str] = []
    for difference in (values - left).ravel().tolist():
        size = abs(difference).bit_length()
        bits.append(f"{size:04b}")
        if size:
            bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    coded = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    components = b"".join(bytes((1 + number, 0x11, 0)) for number in range(samples))
    selectors = b"".join(bytes((1 + number, 0)) for number in range(samples))
    table = bytes((0,)) + bytes((0, 0, 0, 9, *(0,) * 12)) + bytes(range(9))  # nine codes of 4 bits: 0000 to 1000
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xC3, struct.pack(">BHHB", 8, rows, columns, samples) + components),
            _segment(0xC4, table),
            _segment(0xDA, bytes((samples,)) + selectors + bytes((1, 0, 0))),
            coded,
            b"\xff\xd9",
        )
    )


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def deflated(content: bytes) -> bytes:
    """Return content as a deflated DICOM file has it."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(content) + deflater.flush()
