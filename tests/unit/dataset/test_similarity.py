"""How alike two images are that show the same view."""

from __future__ import annotations

import numpy as np
from PIL import Image

from bcc_ops.dataset.fingerprints import fingerprint, to_gray
from bcc_ops.dataset.similarity import align, compare
from tests.factories.images import scan_pixels


def scan(seed: int, label: str = "benign") -> Image.Image:
    """A synthetic scan, twice as large as it is drawn."""
    drawn = scan_pixels(seed, label)
    return drawn.resize((drawn.width * 2, drawn.height * 2), Image.Resampling.BICUBIC).convert("RGB")


def test_the_alignment_of_a_crop_is_found_to_the_pixel():
    image = scan(7)
    crop = image.crop((60, 40, image.width, image.height - 30))
    marks = [fingerprint(rgb, to_gray(rgb)).features() for rgb in (np.asarray(image), np.asarray(crop))]
    transform = align(*marks)
    assert transform is not None
    assert np.allclose(transform, [[1, 0, 60], [0, 1, 40]], atol=0.7)
    similarity = compare(*((mark, to_gray(np.asarray(one))) for mark, one in zip(marks, (image, crop))))
    assert similarity.similarity > 0.95
    assert similarity.overlap > 0.9
