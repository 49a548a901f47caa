"""Turn an image file into 8-bit RGB pixels: the one decoder of checks, training, evaluation and prediction.

The content decides the format, never the name. Whatever cannot be read as one still picture is refused with a reason,
and never with a crash: nothing that somebody uploads may stop a night.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from bcc_ops.config import LARGEST_IMAGE
from bcc_ops.dataset.dicom import DicomTags, GivesPseudonyms, keep_of_dicom, refuse_again, tags_of
from bcc_ops.dataset.dicom_elements import is_dicom
from bcc_ops.dataset.file_parts import refuse_many_parts
from bcc_ops.dataset.resources import IMAGES
from bcc_ops.exceptions import ImageRefused, OutOfResources

FORMATS = ("PNG", "JPEG", "BMP")
"""What is read. Fewer of Pillow's readers than there are, since each of them parses what strangers upload."""

LARGEST_FILE = 1_024_000_000
"""Bytes of an image file, whatever a run's parameters say. Larger ones are not read into memory."""

MOST_SCANS = 100
"""Passes over a progressive JPEG. Encoders write ten or so, and each costs the decoder as much as the whole image."""

BYTES_PER_PIXEL = 24
"""What decoding and checking an image take at their peak: measured at 12 for gray, 14 for RGB, and 21 for transparent images and
for progressive JPEGs that are turned upright."""

PngImagePlugin.MAX_TEXT_MEMORY = PngImagePlugin.MAX_TEXT_CHUNK
"""Bytes of text in a PNG, unpacked, all together: as many as one chunk may have. Pillow's own limit is 64 of them."""

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP"}
_ORIENTATION = int(ExifTags.Base.Orientation)


@dataclass(frozen=True)
class DecodedImage:
    """An image as every later step sees it.

    Attributes:
        rgb: uint8, (height, width, 3).
        mode: how the file stores its pixels: "RGB" where nothing was converted, else Pillow's name of the mode ("L",
            "P", "RGBA", "CMYK", …), with ";16" for 16 bits a channel. Of DICOM, the photometric interpretation.
        info: the text chunks and other remarks in the file, as Pillow reads them.
        file_format: one of `FORMATS`, or "DICOM".
        quantization: mean of a JPEG's first quantization table; 0 for other formats.
        tags: what is kept of a DICOM file beside its pixels; None for other formats.
    """

    rgb: np.ndarray
    mode: str
    info: Mapping[str, Any]
    file_format: str
    quantization: float
    tags: DicomTags | None = None


def decode_rgb(source: Path | bytes) -> np.ndarray:
    """Pixels of an image file or of its content: uint8, (height, width, 3).

    Whether it is larger than a run wants is for validation to say, which has the parameter `max_pixels`.

    Gray, palette and CMYK images are converted, 16 bits are scaled to 8, transparent pixels are on black, and an EXIF
    orientation is applied.

    Raises:
        ImageRefused: it is not an image that can be read (a DataError).
        OutOfResources: this machine's memory or disk did not allow it now, which says nothing about the image.
    """
    content = read_image_file(source) if isinstance(source, Path) else source
    if is_dicom(content):
        content = keep_of_dicom(content)
    with memory_for(content):
        return decode_image(content).rgb


def pixels_digest(rgb: np.ndarray) -> str:
    """Return sha256 over shape and pixels, in hex: what the same view has in every lossless encoding.

    Args:
        rgb: uint8, (height, width, 3).
    """
    return hashlib.sha256(str(rgb.shape).encode() + np.ascontiguousarray(rgb).tobytes()).hexdigest()


def read_image_file(path: Path, pseudonyms: GivesPseudonyms | None = None) -> bytes:
    """Read an image file whole; of a DICOM file, return what the worker's cache would keep of it.

    Args:
        path: the file.
        pseudonyms: as of `dicom_to_png`.

    Raises:
        ImageRefused: it is larger than any image, "too large".
        OutOfResources: the disk does not give it.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise ImageRefused("too large", f"{size:,} bytes; at most {LARGEST_FILE:,} are read")
        content = path.read_bytes()
        return keep_of_dicom(content, pseudonyms) if is_dicom(content) else content
    except OSError as error:
        raise OutOfResources(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def memory_for(content: bytes, besides: Callable[[int, int], int] | None = None) -> Iterator[None]:
    """Reserve the memory that an image takes while it is decoded and checked; wait until it is free.

    Args:
        content: the file's bytes.
        besides: height and width in pixels -> the bytes of what else is done with the image.
    """
    try:
        refuse_many_parts(content)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            height, width = image.height, image.width
    except Exception:  # not an image: `decode_image` says why
        height = width = 0
    more = besides(height, width) if besides else 0
    with IMAGES.reserve(BYTES_PER_PIXEL * min(height * width, LARGEST_IMAGE) + more + len(content)):
        yield


def decode_image(content: bytes, min_side: int = 1, max_pixels: int = LARGEST_IMAGE) -> DecodedImage:
    """Decode the content of an image file.

    Args:
        content: the file's bytes.
        min_side: images with a shorter side are refused, in pixels.
        max_pixels: images whose header promises more (width x height) are refused before anything is decompressed.

    Raises:
        ImageRefused: with the reason "empty", "not an image", "unsupported format", "animated", "too small",
            "too large", "too many parts", "too many scans", "truncated" or "damaged".
        OutOfResources: the memory did not suffice, which says nothing about the image.
    """
    try:
        with _open(content) as image:
            _check_header(image, min_side, max_pixels)
            if image.format == "PNG":
                _verify(content)
            if image.format == "JPEG":
                _check_scans(content)
            mode = _stored_mode(image)
            info = dict(image.info)
            file_format = {"MPO": "JPEG"}.get(str(image.format), str(image.format))
            tags = tags_of(info)
            if tags is not None:
                mode, file_format = tags.photometric, "DICOM"
            return DecodedImage(_to_rgb(image), mode, info, file_format, _quantization(image), tags)
    except ImageRefused:
        raise
    except MemoryError as error:
        raise OutOfResources("the memory does not suffice to decode an image; run fewer tasks on this worker") from error
    except Exception as error:  # Pillow's readers raise anything on broken files: struct.error, IndexError, zlib.error, …
        raise _unreadable(content, error) from None


@dataclass(frozen=True)
class Box:
    """The part of a square that shows the image, in pixels: `square[top:bottom, left:right]`. The rest is padding."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Return what to index a square with, to get the image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def box_in_square(shape: tuple[int, ...], side: int, *, keep_aspect: bool) -> Box:
    """Return where a square shows an image.

    Args:
        shape: of the image: height and width in pixels, and perhaps channels.
        side: of the square, in pixels.
        keep_aspect: whether the longer side becomes `side` and the shorter one keeps its ratio to it (rounded half up, at least 1
            pixel), in the middle; of an odd number of padded rows or columns, the last one is below or on the right. Else the
            image is the whole square.
    """
    height, width = shape[:2]
    longer = max(height, width)
    rows, columns = (max(1, (2 * n * side + longer) // (2 * longer)) if keep_aspect else side for n in (height, width))
    top, left = (side - rows) // 2, (side - columns) // 2
    return Box(top, top + rows, left, left + columns)


def fit_square(rgb: np.ndarray, side: int, *, keep_aspect: bool) -> np.ndarray:
    """Make the square that a network sees of an image: the one definition of training, evaluation, prediction and Grad-CAM.

    Resized bilinearly, with antialiasing.

    Args:
        rgb: uint8, (height, width, 3).
        side: of the square, in pixels.
        keep_aspect: whether the aspect is kept and the rest of the square is black (0), as `box_in_square` says, or the image is
            squeezed to the square, as in the notebook.

    Returns:
        uint8, (side, side, 3).
    """
    if rgb.shape[:2] == (side, side):
        return rgb
    box = box_in_square(rgb.shape, side, keep_aspect=keep_aspect)
    square = np.zeros((side, side, 3), np.uint8)
    size = (box.right - box.left, box.bottom - box.top)
    square[box.slices] = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))
    return square


def _open(content: bytes) -> Image.Image:
    if not content:
        raise ImageRefused("empty", "the file has no content")
    refuse_again(content)
    refuse_many_parts(content)
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRefused("too large", f"its header promises more than can be held: {error}") from None
    except UnidentifiedImageError as error:
        if _signature(content):
            raise _unreadable(content, error) from None
        _refuse_foreign(content)
        raise ImageRefused("not an image", f"its first bytes are {content[:8]!r}") from None


def _check_header(image: Image.Image, min_side: int, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageRefused("too large", f"{width} x {height} pixels; at most {max_pixels:,} are read")
    if min(width, height) < min_side:
        raise ImageRefused("too small", f"{width} x {height} pixels; the shorter side must have at least {min_side}")
    # A JPEG with previews (MPO) has several frames too, but one picture.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format == "PNG":
        raise ImageRefused("animated", f"{frames} frames; one still picture is needed")


def _check_scans(content: bytes) -> None:
    """Count the scans of a JPEG: in its compressed data, the two bytes of their marker cannot occur."""
    scans = content.count(b"\xff\xda")
    if scans > MOST_SCANS:
        raise ImageRefused("too many scans", f"{scans} scans; at most {MOST_SCANS} are decoded")


def _verify(content: bytes) -> None:
    """Check every chunk's CRC: reading the pixels alone skips those of the pixel data."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        image.verify()


def _stored_mode(image: Image.Image) -> str:
    tile = getattr(image, "tile", None)
    rawmode = str(tile[0].args) if tile else ""
    sixteen = ";16" in rawmode or image.mode.startswith("I")
    base = "L" if image.mode.startswith("I") else image.mode
    return f"{base};16" if sixteen else base


def _quantization(image: Image.Image) -> float:
    tables: Mapping[int, Any] = getattr(image, "quantization", None) or {}
    return float(np.mean(tables[min(tables)])) if tables else 0.0


def _to_rgb(image: Image.Image) -> np.ndarray:
    upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
    if upright.mode.startswith("I"):
        # Pillow's own conversion of 16 bits cuts everything above 255 off.
        gray = ((np.asarray(upright).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if upright.has_transparency_data:
        upright = _on_black(upright)
    return np.array(upright.convert("RGB"))


def _on_black(image: Image.Image) -> Image.Image:
    # A function of its own: its layers are freed before the next copy is made.
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a mangled EXIF block says nothing about the pixels
        return 1


def _signature(content: bytes) -> str:
    return next((name for start, name in _SIGNATURES.items() if content.startswith(start)), "")


def _refuse_foreign(content: bytes) -> None:
    """Refuse by its format what Pillow can tell to be an image of another one."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            found, frames = image.format, getattr(image, "n_frames", 1)
    except Exception:
        return
    if frames > 1:
        raise ImageRefused("animated", f"a {found} of {frames} frames; one still picture is needed")
    raise ImageRefused("unsupported format", f"its content is {found}, not {', '.join(FORMATS)}")


def _unreadable(content: bytes, error: Exception) -> ImageRefused:
    detail = " ".join(str(error).split()) or type(error).__name__
    detail = detail.split(" <_io.BytesIO", maxsplit=1)[0]
    if _is_cut_short(content):
        return ImageRefused("truncated", f"{len(content):,} bytes, and the end is missing: {detail}")
    return ImageRefused("damaged", detail)


def _is_cut_short(content: bytes) -> bool:
    """Return whether a file with a known signature lacks its end."""
    kind = _signature(content)
    if kind == "PNG":
        return b"IEND" not in content[-64:]
    if kind == "JPEG":
        return b"\xff\xd9" not in content[-64:]
    return kind == "BMP" and int.from_bytes(content[2:6], "little") > len(content)
