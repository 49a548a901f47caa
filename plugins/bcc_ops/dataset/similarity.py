"""How alike two images are, pixel by pixel, where they show the same place.

All scans of one machine are alike in outline: dark below, bright lines above. What only copies of one scan share is
their texture. So the images are aligned by their local features, band-passed, and correlated tile by tile; the median
over the tiles is the similarity. Calipers, text and arrows change a few tiles and leave the median alone, brightness and
gamma change none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from bcc_ops.dataset.fingerprints import Features, Gray, to_working_size, working_scale

_Transform = npt.NDArray[np.float64]
_Tiles = npt.NDArray[np.float32]

_MATCH_BITS = 64
_LEAST_INLIERS = 6
_RANSAC_PIXELS = 3.0
_MOST_SHEAR = 0.2
_MOST_SCALE = 3.0
_TILE = 24
_TILE_OF_SMALL = 12
_SMALL = 120
_LEAST_TILES = 4
_DARK = 12.0
_FLAT = 1.5


LARGEST_COMPARED = 2_000_000
"""Pixels. Larger images are compared on copies of this size, so that a pair takes no more than some 100 MB."""


class Similarity(NamedTuple):
    """How alike two images are.

    `similarity` is the median correlation of the tiles, from -1 to 1; 0 if too few tiles show anything. `overlap` is
    the part of the smaller image that the other one shows as well, from 0 to 1.
    """

    similarity: float
    overlap: float


def compare(one: tuple[Features, Gray], other: tuple[Features, Gray]) -> Similarity:
    """Align two images and correlate their texture.

    Args:
        one, other: features and gray pixels, uint8 (height, width), as `bounded` gives them.
    """
    (features, gray), (other_features, other_gray) = one, other
    transform = align(features, other_features)
    if transform is None:
        transform = _align_by_size(gray, other_gray)
    return correlate(gray, other_gray, transform)


def bounded(features: Features, gray: Gray) -> tuple[Features, Gray]:
    """Shrink an image with more than `LARGEST_COMPARED` pixels, and the points of its features with it.

    Args:
        features: its local features.
        gray: its gray pixels, uint8 (height, width) at full size.
    """
    if gray.size <= LARGEST_COMPARED:
        return features, gray
    scale = math.sqrt(LARGEST_COMPARED / gray.size)
    height, width = (max(1, round(side * scale)) for side in gray.shape)
    small = np.ascontiguousarray(cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return features._replace(points=features.points * np.float32(scale)), small


def align(one: Features, other: Features) -> _Transform | None:
    """Return the affine transform, float64 (2, 3), that takes points of `other` to those of `one`; None if there is none.

    Only scaling, shifting and a little shear (the probe presses the tissue) are believed.
    """
    if min(len(one.points), len(other.points)) < _LEAST_INLIERS:
        return None
    bits = hamming(one.descriptors[:, None], other.descriptors[None])
    nearest = bits.argmin(axis=1)
    own = np.arange(len(nearest))
    mutual = np.flatnonzero((bits.argmin(axis=0)[nearest] == own) & (bits[own, nearest] <= _MATCH_BITS))
    if len(mutual) < _LEAST_INLIERS:
        return None
    transform, inliers = cv2.estimateAffine2D(
        other.points[nearest[mutual], :2],
        one.points[mutual, :2],
        ransacReprojThreshold=_RANSAC_PIXELS,
        maxIters=2000,
        confidence=0.999,
    )
    if transform is None or int(inliers.sum()) < _LEAST_INLIERS:
        return None
    scales, shears = np.array([transform[0, 0], transform[1, 1]]), np.array([transform[0, 1], transform[1, 0]])
    plausible = scales.min() > 1 / _MOST_SCALE and scales.max() < _MOST_SCALE and np.abs(shears).max() < _MOST_SHEAR
    return np.asarray(transform, np.float64) if plausible else None


def hamming(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Bits that differ between descriptors, uint8 (…, 32); the leading axes are broadcast."""
    words = np.ascontiguousarray(one).view(np.uint64) ^ np.ascontiguousarray(other).view(np.uint64)
    return np.asarray(np.bitwise_count(words).sum(axis=-1, dtype=np.int32))


def correlate(gray: Gray, other: Gray, transform: _Transform) -> Similarity:
    """Correlate the texture of two images where they overlap.

    Args:
        gray, other: uint8 (height, width).
        transform: takes points of `other` to points of `gray`, float64 (2, 3).
    """
    small, other_small = to_working_size(gray), to_working_size(other)
    scale, other_scale = working_scale(*gray.shape), working_scale(*other.shape)
    warp = np.hstack([transform[:, :2] * scale / other_scale, transform[:, 2:] * scale])
    height, width = small.shape
    moved = cv2.warpAffine(other_small, warp, (width, height), flags=cv2.INTER_LINEAR)
    seen = cv2.warpAffine(np.full(other_small.shape, 255, np.uint8), warp, (width, height), flags=cv2.INTER_NEAREST)
    seen = cv2.erode(seen, np.ones((9, 9), np.uint8))  # the band-pass mixes in what is beyond the edge

    side = _TILE if min(height, width) >= _SMALL else _TILE_OF_SMALL
    one_tiles, other_tiles = _tiles(_band_pass(small), side), _tiles(_band_pass(moved), side)
    inside = _tiles(seen, side).min(axis=1) > 0
    smaller = min(float(small.size), abs(float(np.linalg.det(warp[:, :2]))) * other_small.size)
    overlap = min(1.0, float((seen > 0).sum()) / smaller)

    spread, other_spread = one_tiles.std(axis=1), other_tiles.std(axis=1)
    lit = np.minimum(_tiles(small, side).mean(axis=1), _tiles(moved, side).mean(axis=1)) > _DARK
    telling = inside & lit & (np.minimum(spread, other_spread) > _FLAT)
    if int(telling.sum()) < _LEAST_TILES:
        return Similarity(0.0, overlap)
    centred = one_tiles - one_tiles.mean(axis=1, keepdims=True)
    other_centred = other_tiles - other_tiles.mean(axis=1, keepdims=True)
    covariance = (centred * other_centred).mean(axis=1)[telling]
    return Similarity(float(np.median(covariance / (spread * other_spread)[telling])), overlap)


def _align_by_size(gray: Gray, other: Gray) -> _Transform:
    """For images without common features: one is stretched to the other's size, and moved by what that leaves over."""
    height, width = gray.shape
    transform = np.array([[width / other.shape[1], 0, 0], [0, height / other.shape[0], 0]])
    stretched = cv2.resize(other, (width, height), interpolation=cv2.INTER_AREA)
    (right, down), _ = cv2.phaseCorrelate(_band_pass(stretched), _band_pass(gray))
    transform[:, 2] = right, down
    return transform


def _band_pass(gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    pixels = gray.astype(np.float32)
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 1) - cv2.GaussianBlur(pixels, (0, 0), 5), np.float32)


def _tiles(pixels: npt.NDArray[np.generic], side: int) -> _Tiles:
    """Return the whole tiles of an image, (tiles, side x side)."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    cut = pixels[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.asarray(cut.swapaxes(1, 2).reshape(-1, side * side), np.float32)
