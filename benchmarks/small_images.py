"""Any number of small images, made from real ones: no two of them are the same, and the same number gives the same image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from bcc_ops.dataset.decoding import decode_rgb, fit_square
from bcc_ops.dataset.input_pipeline import Augmentation

SIDE = 128
CHANGES = Augmentation(
    flip="horizontal", rotation=0.08, zoom=0.25, stretch=0.2, shift=0.1, brightness=0.1, contrast=0.2, gamma=0.3, speckle=0.2
)


def small_images(folder: Path, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield key and PNG of so many images: turned, zoomed, mirrored, lit otherwise, with speckle; `SIDE` pixels wide.

    Args:
        folder: has one folder per class. Each image is taken in turn.
        count: how many.
    """
    paths = [path for path in sorted(folder.glob("*/*")) if path.is_file() and "_mask" not in path.name]
    squares = [fit_square(decode_rgb(path), SIDE, keep_aspect=False) for path in paths[:count]]
    for number in range(count):
        place = number % len(squares)
        changed = CHANGES(squares[place], np.random.default_rng(number))
        _, content = cv2.imencode(".png", changed[..., 0])
        yield f"images/{paths[place].parent.name}/{number:07d}.png", content.tobytes()
