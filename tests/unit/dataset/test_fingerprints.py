"""What is kept of an image. How images are found by it is tested with `near_duplicates`."""

from __future__ import annotations

import numpy as np
import pytest

from bcc_ops.dataset.fingerprints import DESCRIPTOR_BYTES, HASH_BYTES, fingerprint, to_gray, to_working_size, working_scale
from tests.factories.images import scan_pixels


def rgb(height: int, width: int, value: int = 7) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize(("colour", "gray"), [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29), ((90, 90, 90), 90)])
def test_gray_is_the_luminance(colour: tuple[int, int, int], gray: int) -> None:
    """0.299 R + 0.587 G + 0.114 B."""
    assert to_gray(np.array([[colour]], np.uint8)).tolist() == [[gray]]


def test_images_are_compared_at_half_their_size_unless_they_are_small() -> None:
    assert (working_scale(256, 400), working_scale(255, 400), working_scale(400, 255)) == (0.5, 1.0, 1.0)
    assert to_working_size(np.zeros((300, 400), np.uint8)).shape == (150, 200)
    assert to_working_size(np.zeros((200, 400), np.uint8)).shape == (200, 400)


def test_the_digest_is_of_pixels_and_shape() -> None:
    digests = [fingerprint(image, to_gray(image)).pixels for image in (rgb(20, 30), rgb(20, 30), rgb(30, 20), rgb(20, 30, 8))]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_an_image_without_texture_has_a_hash_and_no_features() -> None:
    found = fingerprint(rgb(80, 90), to_gray(rgb(80, 90)))
    assert (len(found.hash), found.features().points.shape, found.features().descriptors.shape) == (
        HASH_BYTES,
        (0, 3),
        (0, DESCRIPTOR_BYTES),
    )


def test_features_are_told_in_pixels_of_the_whole_image() -> None:
    image = np.asarray(scan_pixels(3).resize((600, 400)).convert("RGB"))
    found = fingerprint(image, to_gray(image))
    assert len(found.features().points) == len(found.features().descriptors) > 100
    assert 300 < found.features().points[:, 0].max() < 600 and 200 < found.features().points[:, 1].max() < 400
