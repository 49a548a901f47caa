"""Read what is burned into an image: a thin layer over RapidOCR, whose models come with its package.

RapidOCR is not part of every installation; without it nothing is read, and the caller says so. Each image costs one processor
for a fraction of a second: its size, the places that are read and their shape are limited.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MOST_SIDE = 1024
"""Pixels. Larger images are scaled down: text that a person is meant to read stays readable."""
MOST_LINES = 40
"""Places that are read in one image, the most certain ones first. A page of text need not be read to be called text."""

_BYTES_PER_PIXEL = 340
_BYTES_BESIDES = 60_000_000
"""What finding and reading the lines takes at its peak: for each pixel of the image as it is read, and besides. Measured at
362 MB for 1024 x 1024 pixels, 123 MB for 200 x 1024 and 47 MB for 48 x 200."""

_LEAST_SIDE = 30
"""Pixels. RapidOCR enlarges an image that is lower or narrower, and pads one that is flat to a quarter of its width."""

_LONGEST = 25
"""Times its height that a line is read for; a longer one is cut."""
_LOWEST = 6
_MARGIN = 3
_CERTAIN = 0.7

Pixels = npt.NDArray[np.uint8]


class Line(NamedTuple):
    """A line of text, and its box in the image's pixels."""

    text: str
    left: int
    top: int
    right: int
    bottom: int


def can_read() -> bool:
    """Return whether RapidOCR is installed here."""
    return find_spec("rapidocr") is not None and find_spec("onnxruntime") is not None


def memory_to_read(height: int, width: int) -> int:
    """Return the bytes that `read_lines` takes for an image of so many pixels, besides the image and the engines."""
    scale = _scale(height, width)
    short, long = sorted((height * scale, width * scale))
    # The image may be stored lying on its side: which of its sides is the width is not known yet.
    long = min(MOST_SIDE, long * max(1.0, _LEAST_SIDE / max(short, 1.0)))
    return round(_BYTES_PER_PIXEL * long * max(short, long / 4)) + _BYTES_BESIDES


def read_lines(rgb: Pixels) -> list[Line]:
    """Read an image.

    Args:
        rgb: uint8 (height, width, 3). Any number of threads may call this at once; each call uses one processor.
    """
    import cv2

    height, width = rgb.shape[:2]
    scale = _scale(height, width)
    if round(height * scale) < 2 * _LOWEST:  # no line fits; enlarged, one row of pixels would become 236 million of them
        return []
    image = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    with _LOADING:  # or each thread that asks before the first is done would load engines of its own
        detector, reader = _engines()
    found = detector(image)
    if found.boxes is None:
        return []
    lines = []
    certain = sorted(zip(found.scores, found.boxes), key=lambda one: -one[0])[:MOST_LINES]
    for _, corners in certain:
        box = _box(corners, image.shape)
        if box is None:
            continue
        left, top, right, bottom = box
        read = reader(image[top:bottom, left:right])
        if read.txts and read.scores[0] >= _CERTAIN:
            lines.append(Line(read.txts[0], *(round(edge / scale) for edge in box)))
    return lines


def _scale(height: int, width: int) -> float:
    return min(1.0, MOST_SIDE / max(height, width, 1))


def _box(corners: npt.NDArray[Any], shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of what is read of a place; None if it cannot be a line of text."""
    (left, top), (right, bottom) = corners.min(axis=0).astype(int), corners.max(axis=0).astype(int)
    height, width = shape[:2]
    if bottom - top < _LOWEST or bottom - top > height / 2:
        return None
    left, top = max(0, left - _MARGIN), max(0, top - _MARGIN)
    right, bottom = min(width, right + _MARGIN), min(height, bottom + _MARGIN)
    return int(left), int(top), int(min(right, left + _LONGEST * (bottom - top))), int(bottom)


_LOADING = threading.Lock()


@lru_cache(maxsize=1)
def _engines() -> tuple[Any, Any]:
    """Return what finds lines and what reads one. They share no state between calls, so that threads can share them."""
    from pathlib import Path

    import rapidocr

    models = Path(rapidocr.__file__).parent / "models"
    common = {
        "Global.log_level": "critical",
        "Global.use_cls": False,
        "Global.max_side_len": MOST_SIDE,
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "Det.limit_side_len": MOST_SIDE,
        "Det.limit_type": "max",
        # Named, so that nothing is ever fetched from elsewhere.
        "Det.model_path": str(models / "PP-OCRv6_det_small.onnx"),
        "Rec.model_path": str(models / "PP-OCRv6_rec_small.onnx"),
    }
    finds = {"Global.use_rec": False}
    reads = {"Global.use_det": False, "Global.text_score": 0.0, "Global.max_side_len": MOST_SIDE * 2}
    return rapidocr.RapidOCR(params=common | finds), rapidocr.RapidOCR(params=common | reads)
