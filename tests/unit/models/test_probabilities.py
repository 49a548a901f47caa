from __future__ import annotations

import numpy as np
import pytest

from bcc_ops.models.probabilities import cross_entropies


def test_it_is_minus_the_logarithm_of_the_true_class_probability() -> None:
    probabilities = np.array([[0.8, 0.2], [0.5, 0.5], [1.0, 0.0]], np.float32)
    assert cross_entropies(probabilities, np.array([0, 1, 0])) == pytest.approx([0.22314, 0.69315, 0.0], abs=1e-5)


def test_one_confident_error_does_not_cost_infinity_and_nan_stays() -> None:
    losses = cross_entropies(np.array([[1.0, 0.0], [np.nan, 0.5]]), np.array([1, 0]))
    assert losses[0] == pytest.approx(16.118, abs=1e-3)
    assert np.isnan(losses[1])
