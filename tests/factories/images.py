"""Images whose content does not matter, each drawn once in a test session: drawing one takes some ten milliseconds."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image

from bcc_ops.dataset.synthetic import draw_image


@cache
def scan_pixels(seed: int, label: str = "benign") -> Image.Image:
    """A synthetic scan in gray. Not to be changed in place."""
    return Image.fromarray(draw_image(label, np.random.default_rng(seed)))


@cache
def scan_png(seed: int, label: str = "benign") -> bytes:
    """The same as an RGB file that does not say that it is synthetic."""
    content = io.BytesIO()
    scan_pixels(seed, label).convert("RGB").save(content, "PNG")
    return content.getvalue()
