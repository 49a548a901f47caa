"""What an image file tells without its content: its size, its border, its colour, its compression, its burned-in text.

`dataset.shortcuts` asks how well these alone predict the class. They are measured while an image is checked, on the pixels
that are decoded then anyway, and remembered with the rest that is known of its content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from bcc_ops.dataset.decoding import DecodedImage

BLACK, WHITE = 16, 240
"""Gray values up to and from which a pixel counts as blank: background that a scanner's screen has around the scan."""

_BLANK_LINE = 0.98
"""Part of a row or column that is blank if it belongs to the border."""
_COLOURED = 24
"""Difference between the largest and the smallest channel of a coloured pixel. JPEG gives gray ones up to about 10."""
_CORNER = 8
_RIM = 20
_BAND = 0.15
_STROKE_WIDTH = 7
_STROKE_CONTRAST = 100

Gray = npt.NDArray[np.uint8]


class Properties(NamedTuple):
    """One image's. The fields have the same names in `ContentRow`.

    Attributes:
        file_format: "PNG", "JPEG" or "BMP".
        file_bytes: size of the file.
        quantization: mean of a JPEG's first quantization table, 1 to 255: the larger, the coarser. 0 for other formats.
        border_left, border_right, border_top, border_bottom: width of the blank border, as a part of the image's.
        rim_left, rim_right, rim_top, rim_bottom: mean gray value of the outermost twentieth, 0 to 255.
        corners_top, corners_bottom: part of the two corners' pixels that is blank: 1 around a sector or a trapezoid.
        coloured: part of the pixels that is coloured.
        saturation: mean difference between a pixel's largest and smallest channel, 0 to 255.
        strokes: part of the pixels near the edges that belongs to thin bright strokes, as those of text and rulers.
    """

    file_format: str
    file_bytes: int
    quantization: float
    border_left: float
    border_right: float
    border_top: float
    border_bottom: float
    rim_left: float
    rim_right: float
    rim_top: float
    rim_bottom: float
    corners_top: float
    corners_bottom: float
    coloured: float
    saturation: float
    strokes: float


def measure_properties(image: DecodedImage, gray: Gray, file_bytes: int) -> Properties:
    """Measure an image.

    Args:
        image: as it was decoded.
        gray: its pixels in gray, uint8 (height, width).
        file_bytes: size of its file.
    """
    blank = ((gray <= BLACK) | (gray >= WHITE)).astype(np.uint8)
    columns, rows = (cv2.reduce(blank, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel() for axis in (0, 1))
    down, across = max(1, gray.shape[0] // _CORNER), max(1, gray.shape[1] // _CORNER)
    low, thin = max(1, gray.shape[0] // _RIM), max(1, gray.shape[1] // _RIM)
    red, green, blue = cv2.split(image.rgb)
    span = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    return Properties(
        file_format=image.file_format,
        file_bytes=file_bytes,
        quantization=image.quantization,
        border_left=_border(columns),
        border_right=_border(columns[::-1]),
        border_top=_border(rows),
        border_bottom=_border(rows[::-1]),
        rim_left=float(gray[:, :thin].mean()),
        rim_right=float(gray[:, -thin:].mean()),
        rim_top=float(gray[:low].mean()),
        rim_bottom=float(gray[-low:].mean()),
        corners_top=float((blank[:down, :across].mean() + blank[:down, -across:].mean()) / 2),
        corners_bottom=float((blank[-down:, :across].mean() + blank[-down:, -across:].mean()) / 2),
        coloured=float((span >= _COLOURED).mean()),
        saturation=float(span.mean()),
        strokes=_strokes(gray),
    )


def _border(blank: npt.NDArray[np.float32]) -> float:
    """Return the part of the rows or columns, from the first one on, that is blank."""
    picture = np.flatnonzero(blank < _BLANK_LINE)
    return float(picture[0] / len(blank)) if len(picture) else 1.0


def _strokes(gray: Gray) -> float:
    kernel = np.ones((_STROKE_WIDTH, _STROKE_WIDTH), np.uint8)
    stroke = cv2.morphologyEx(gray, cv2.MORPH_TOPHAT, kernel) >= _STROKE_CONTRAST
    height, width = gray.shape
    down, across = round(height * _BAND), round(width * _BAND)
    inside = stroke[down : height - down, across : width - across]
    return float((stroke.sum() - inside.sum()) / max(1, stroke.size - inside.size))
