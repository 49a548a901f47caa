"""What an image shows besides the scan, told from its pixels: measuring marks, colour, seams, letters that are cut off.

Each function takes pixels as they were decoded and returns whether, or where, it sees something. The thresholds were chosen on
a part of the labelled images of `benchmarks/findings.py` and are reported on the others.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Gray = npt.NDArray[np.uint8]


class Mark(NamedTuple):
    """A place in an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


# calipers ---------------------------------------------------------------------------------------------------------------

_CROSS = 0.72
"""Correlation from which one cross is enough."""
_CROSSES = 0.66
"""Correlation from which a pair is: calipers come in pairs, and tissue seldom has two crosses."""
_APART = 12
_STEEP, _STEEP_COLOURED = 20.0, 12.0
_COLOURED_CROSS, _TINT = 0.55, 8.0
_PAD = 8
_MOST_SIDE = 1600
_BYTES_PER_PIXEL = 14
"""What OpenCV's correlation takes at its peak, besides what was reserved to decode the image: measured at 13."""
_MOST_MARKS = 200
"""Of one kind: an image of thousands was drawn to keep a worker busy."""

_SHAPES = ((6, 3, False), (7, 3, False), (8, 3, False), (9, 3, False), (8, 1, False), (4, 1, True), (5, 1, True))
"""Length of an arm and width of a stroke in pixels, and whether the middle is open, as coloured crosses have it."""


def memory_to_find(height: int, width: int) -> int:
    """Return the bytes that `find_calipers` takes for an image of so many pixels, besides those that decoding it takes."""
    return _BYTES_PER_PIXEL * min(height * width, _MOST_SIDE**2)


def find_calipers(rgb: Pixels, gray: Gray) -> list[Mark]:
    """Return where a person has set measuring marks; empty if there are none.

    Args:
        rgb: uint8 (height, width, 3).
        gray: the same in gray.
    """
    scale = min(1.0, _MOST_SIDE / max(gray.shape))
    if scale < 1:
        rgb, gray = (cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for pixels in (rgb, gray))
    padded = cv2.copyMakeBorder(gray, _PAD, _PAD, _PAD, _PAD, cv2.BORDER_REPLICATE).astype(np.float32)
    green_less_blue = cv2.subtract(rgb[..., 1], rgb[..., 2])
    tint = cv2.copyMakeBorder(green_less_blue, _PAD, _PAD, _PAD, _PAD, cv2.BORDER_REPLICATE).astype(np.float32)
    crosses: list[tuple[float, int, int]] = []
    for arm, stroke, is_open in _SHAPES:
        if is_open and tint.max() < _TINT:
            continue
        crosses += _correlate(padded, tint if is_open else None, arm, stroke)
    distinct: list[tuple[float, int, int]] = []
    for value, x, y in sorted(crosses, reverse=True)[:_MOST_MARKS]:
        if all(max(abs(x - other[1]), abs(y - other[2])) >= _APART for other in distinct):
            distinct.append((value, x, y))
    if not distinct or (len(distinct) < 2 and distinct[0][0] < _CROSS):
        return []
    side = 2 * _APART
    return [Mark(*(round(edge / scale) for edge in (x - _PAD - _APART, y - _PAD - _APART, side, side))) for _, x, y in distinct]


def _correlate(
    padded: npt.NDArray[np.float32], tint: npt.NDArray[np.float32] | None, arm: int, stroke: int
) -> list[tuple[float, int, int]]:
    """Return the places where the image looks like a cross: correlation (1 more for a coloured one, which is sure), x and y."""
    cross = _cross(arm, stroke, tint is not None)
    side = len(cross)
    if min(padded.shape) < side:
        return []
    alike = cv2.matchTemplate(padded, cross, cv2.TM_CCOEFF_NORMED)
    half, (rows, columns) = side // 2, alike.shape
    inner = (slice(half, half + rows), slice(half, half + columns))
    mean, square = (cv2.boxFilter(values, -1, (side, side)) for values in (padded, padded * padded))
    flat = np.sqrt(np.maximum(square - mean * mean, 0))[inner] < (_STEEP if tint is None else _STEEP_COLOURED)
    alike[flat] = 0
    if tint is not None:
        alike[cv2.boxFilter(tint, -1, (side - 2, side - 2))[inner] < _TINT] = 0
    least = _CROSSES if tint is None else _COLOURED_CROSS
    peaks = (alike >= least) & (alike >= cv2.dilate(alike, np.ones((2 * _APART + 1,) * 2, np.uint8)))
    sure = 0.0 if tint is None else 1.0
    return [(float(alike[y, x]) + sure, int(x) + half, int(y) + half) for y, x in zip(*np.nonzero(peaks))]


@cache
def _cross(arm: int, stroke: int, is_open: bool) -> npt.NDArray[np.float32]:
    side, half = 2 * (arm + 3) + 1, stroke // 2
    cross, middle = np.zeros((side, side), np.float32), arm + 3
    cross[middle - half : middle + half + 1, middle - arm : middle + arm + 1] = 1
    cross[middle - arm : middle + arm + 1, middle - half : middle + half + 1] = 1
    if is_open:
        cross[middle - 1 : middle + 2, middle - 1 : middle + 2] = 0
    return cross


# letters ----------------------------------------------------------------------------------------------------------------

_BRIGHT, _DARK = 140, 24
_LETTER = range(6, 35)
_WIDEST = 1.6
_OUTLINED = 0.75
_REACH = 1.5


def find_cut_letters(gray: Gray) -> list[Mark]:
    """Return bright signs with a black outline that stand beside or above one another: letters, also if they are cut off.

    Scanners outline the letters of their mark so that they can be read on any tissue. Where an image was cut to its scan, the
    rest of them is at the edge, and no reader of text finds them there.
    """
    bright = (gray >= _BRIGHT).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=8)
    # What is as tall as a letter but not much wider than one. Most bright spots are smaller, most tissue is larger.
    tall = np.isin(stats[:, cv2.CC_STAT_HEIGHT], _LETTER) & (
        stats[:, cv2.CC_STAT_WIDTH] <= _WIDEST * stats[:, cv2.CC_STAT_HEIGHT]
    )
    reach = cv2.erode(gray, np.ones((5, 5), np.uint8))
    letters = []
    for number in np.flatnonzero(tall[1:count]) + 1:
        left, top, width, height, _ = (int(value) for value in stats[number])
        around = (slice(max(0, top - 1), top + height + 1), slice(max(0, left - 1), left + width + 1))
        sign = (labels[around] == number).astype(np.uint8)
        rim = (cv2.dilate(sign, np.ones((3, 3), np.uint8)) - sign) > 0
        if rim.sum() >= 6 and (reach[around][rim] <= _DARK).mean() >= _OUTLINED:
            letters.append(Mark(left, top, width, height))
        if len(letters) == _MOST_MARKS:
            break
    return [one for one in letters if any(_are_neighbours(one, other) for other in letters if other is not one)]


def _are_neighbours(one: Mark, other: Mark) -> bool:
    across = max(one.left, other.left) - min(one.left + one.width, other.left + other.width)
    down = max(one.top, other.top) - min(one.top + one.height, other.top + other.height)
    return max(across, down) <= _REACH * max(one.height, other.height) / 2


# colour, seams, blanks --------------------------------------------------------------------------------------------------

_FLOW = 60
_FLOW_PART = 0.0002


def shows_flow(rgb: Pixels) -> bool:
    """Return whether there are spots of pure red or blue, as Doppler draws flow. Scanners' own marks are yellow or violet."""
    red, green, blue = (channel.astype(np.int16) for channel in cv2.split(rgb))
    flow = (red - np.maximum(green, blue) >= _FLOW) | (blue - np.maximum(red, green) >= _FLOW)
    spots = cv2.morphologyEx(flow.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    return bool(spots.mean() >= _FLOW_PART)


_CENTRE = (0.3, 0.7)
_NARROWEST = 32
_SEAM = 4.0
_SEAM_STEP = 12.0
_GAP_DARK, _GAP_PART = 8, 0.01


def shows_two_views(gray: Gray) -> bool:
    """Return whether a straight seam, or a black gap, from top to bottom parts the image near its middle."""
    height, width = gray.shape
    if min(height, width) < _NARROWEST:
        return False
    rows = gray[: round(height * 0.85)]  # the lower edge has marks of its own
    columns = rows.astype(np.int16)
    steps = np.median(np.abs(np.diff(columns, axis=1)), axis=0)  # most rows: a measuring line is in few of them
    first, last = (round(width * part) for part in _CENTRE)
    middle = steps[first:last]
    usual = float(np.median(middle))
    seam = bool(middle.size and middle.max() >= max(_SEAM * usual, _SEAM_STEP))
    dark = (rows <= _GAP_DARK).mean(axis=0) >= 0.99
    gap = dark[first:last].sum() >= max(3, _GAP_PART * width) and not dark[:first].all() and not dark[last:].all()
    lively = min(float(columns[:, :first].std()), float(columns[:, last:].std())) >= 10
    return bool((seam or gap) and lively)


_PAPER, _PAPER_PART = 235, 0.4
_COLOUR, _COLOUR_PART = 40, 0.3
_FLAT = 3.0
_LIT, _LIT_PART = 20, 0.02


def is_not_ultrasound(rgb: Pixels, gray: Gray) -> bool:
    """Return whether the image is white like paper or coloured like a photograph. A tinted scan is neither."""
    span = cv2.subtract(rgb.max(axis=2), rgb.min(axis=2))
    return bool((gray >= _PAPER).mean() >= _PAPER_PART or (span >= _COLOUR).mean() >= _COLOUR_PART)


def is_nearly_blank(gray: Gray) -> bool:
    """Return whether there is almost nothing to see: all of one brightness, or almost all black."""
    return bool(gray.std() < _FLAT or (gray >= _LIT).mean() < _LIT_PART)
