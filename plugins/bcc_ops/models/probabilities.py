"""What training and evaluation both compute from probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_PROBABILITY = 1e-7
"""Probabilities are clipped here before a logarithm, as Keras does: one confident error must not cost infinity."""


def cross_entropies(probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return minus the natural logarithm of the true class' probability, float64 (n,), one per image.

    Args:
        probabilities: (n, classes), in [0, 1]. NaN stays NaN.
        labels: (n,) indices of the true classes.
    """
    chosen = np.asarray(probabilities[np.arange(len(labels)), labels], np.float64)
    return np.asarray(-np.log(np.clip(chosen, SMALLEST_PROBABILITY, 1.0)))
