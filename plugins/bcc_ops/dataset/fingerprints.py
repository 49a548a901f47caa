"""What is kept of an image to find its near-duplicates: a digest of its pixels, a perceptual hash and local features.

The features are ORB's (Rublee et al. 2011, "ORB: an efficient alternative to SIFT or SURF") without their rotation:
scans are cropped, shifted and scaled, never turned, and an upright descriptor tells speckle from speckle far better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from bcc_ops.dataset.decoding import pixels_digest

METHOD = 10
"""Goes up whenever decoding, properties, fingerprints, the search of features or the comparison of pixels change: what was
learned before is forgotten."""

HASH_BYTES = 8
DESCRIPTOR_BYTES = 32
LEVEL_RATIO = 1.2
"""From one level of the features' pyramid to the next; five levels reach a scale of 2."""

_FEATURES = 300
_LEVELS = 5
_MARGIN = 16
_SMALL = 256

Gray = npt.NDArray[np.uint8]


class Features(NamedTuple):
    """An image's local features.

    Attributes:
        points: float32 (n, 3), of each one x, y and scale, in pixels of the image.
        descriptors: uint8 (n, 32), of each one its 256 bits.
    """

    points: npt.NDArray[np.float32]
    descriptors: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Fingerprint:
    """One image's.

    Attributes:
        pixels: sha256 over shape and pixels, in hex.
        hash: 64-bit perceptual hash (DCT), 8 bytes.
        features: returns the local features. They are 13 kB per image, so they may come from a file on demand.
    """

    pixels: str
    hash: bytes
    features: Callable[[], Features]

    @classmethod
    def of(cls, pixels: str, hash_: bytes, points: npt.NDArray[np.float32], descriptors: npt.NDArray[np.uint8]) -> Fingerprint:
        """Return one that holds its features in memory."""
        features = Features(points, descriptors)
        return cls(pixels, hash_, lambda: features)


def fingerprint(rgb: npt.NDArray[np.uint8], gray: Gray) -> Fingerprint:
    """Fingerprint of an image.

    Args:
        rgb: its pixels, uint8 (height, width, 3).
        gray: the same in gray, uint8 (height, width).
    """
    digest = pixels_digest(rgb)
    bits = imagehash.phash(Image.fromarray(gray)).hash
    points, descriptors = _features(gray)
    return Fingerprint.of(digest, np.packbits(bits).tobytes(), points, descriptors)


def to_gray(rgb: npt.NDArray[np.uint8]) -> Gray:
    """Luminance (ITU-R BT.601), uint8 (height, width)."""
    return _uint8(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))


def working_scale(height: int, width: int) -> float:
    """Return the scale at which images are compared: half their size, where noise is less and speckle is still seen."""
    return 0.5 if min(height, width) >= _SMALL else 1.0


def to_working_size(gray: Gray) -> Gray:
    """Return the gray image at its working scale."""
    scale = working_scale(*gray.shape)
    return gray if scale == 1 else _uint8(cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def _features(gray: Gray) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    scale = working_scale(*gray.shape)
    orb = cv2.ORB_create(  # type: ignore[attr-defined, unused-ignore]
        nfeatures=_FEATURES, scaleFactor=LEVEL_RATIO, nlevels=_LEVELS, edgeThreshold=_MARGIN, fastThreshold=5
    )
    small = to_working_size(gray)
    found: Any = orb.detect(small, None)
    for point in found:
        point.angle = 0
    found, descriptors = orb.compute(small, found)
    if descriptors is None:
        return np.zeros((0, 3), np.float32), np.zeros((0, DESCRIPTOR_BYTES), np.uint8)
    points = [(point.pt[0] / scale, point.pt[1] / scale, LEVEL_RATIO**point.octave / scale) for point in found]
    return np.array(points, np.float32), _uint8(descriptors)


def _uint8(array: Any) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array, np.uint8)
