from __future__ import annotations

import numpy as np
import pytest

from bcc_ops.training.linear_probe import fit_last_layer


def _points(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of which one tells a class each, at scales that differ by a thousand."""
    rng = np.random.default_rng(1)
    labels = np.arange(60 * classes) % classes
    features = np.eye(classes)[labels] * 4 + rng.standard_normal((len(labels), classes))
    return (features * np.logspace(0, 3, classes) + 5).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_the_layer_tells_the_classes_by_the_features(classes: int) -> None:
    features, labels = _points(classes)

    layer = fit_last_layer(features, labels, dict.fromkeys(range(classes), 1.0))

    assert layer is not None
    kernel, bias = layer
    assert kernel.shape == (classes, classes)
    assert ((features @ kernel + bias).argmax(axis=1) == labels).mean() > 0.95


def test_a_class_that_weighs_more_is_answered_more_often() -> None:
    features, labels = _points(2)
    mixed = features * 0.1 + np.random.default_rng(2).standard_normal(features.shape) * features.std(axis=0)
    answered = []
    for weight in (1.0, 5.0):
        layer = fit_last_layer(mixed, labels, {0: 1.0, 1: weight})
        assert layer is not None
        answered.append(float(((mixed @ layer[0] + layer[1]).argmax(axis=1) == 1).mean()))
    assert answered[1] > answered[0] + 0.1


def test_there_is_no_layer_if_a_class_has_no_image() -> None:
    features, labels = _points(2)
    assert fit_last_layer(features, labels, {0: 1.0, 1: 1.0, 2: 1.0}) is None
