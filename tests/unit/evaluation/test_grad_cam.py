"""Grad-CAM on networks small enough to work the answer out by hand."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from bcc_ops.evaluation.grad_cam import GradCam
from bcc_ops.exceptions import ModelError
from bcc_ops.models.classifier import Classifier
from bcc_ops.training.architectures import build_classifier, with_mirror_image

SIDE = 4


def red_detector(weights: tuple[float, float]) -> keras.Model:
    """Two classes, scored by `weights` times the mean of the red channel."""
    pixels = keras.Input((SIDE, SIDE, 3))
    convolution = layers.Conv2D(1, 1, use_bias=False)
    last = layers.Dense(2, activation="softmax")
    model = keras.Model(pixels, last(layers.GlobalAveragePooling2D()(convolution(pixels))))
    convolution.set_weights([np.array([1.0, 0.0, 0.0]).reshape(1, 1, 3, 1)])
    last.set_weights([np.array([weights]), np.zeros(2)])
    return model


def corner() -> np.ndarray:
    """An image that is red in its upper left corner, half as red beside it, and blue elsewhere."""
    pixels = np.zeros((1, SIDE, SIDE, 3), np.float32)
    pixels[..., 2] = 200
    pixels[0, 0, 0] = (100, 0, 0)
    pixels[0, 0, 1] = (50, 0, 0)
    return pixels


def explain(model: keras.Model, pixels: np.ndarray, classes: list[int]) -> np.ndarray:
    return GradCam(Classifier(model, int(model.input_shape[1]), int(model.output_shape[1]), keep_aspect=True)).of_pixels(
        pixels, classes
    )


def test_heat_lies_where_the_score_comes_from() -> None:
    expected = np.zeros((1, SIDE, SIDE))
    expected[0, 0, :2] = (1.0, 0.5)
    np.testing.assert_allclose(explain(red_detector((0.01, -0.01)), corner(), [0]), expected, atol=1e-5)


@pytest.mark.parametrize(("keep_aspect", "rows"), [(True, [0, 1, 1, 0]), (False, [1, 1, 1, 1])])
def test_heat_lies_on_what_the_model_saw_of_the_file(tmp_path: Path, keep_aspect: bool, rows: list[int]) -> None:
    Image.new("RGB", (40, 20), (100, 0, 0)).save(tmp_path / "wide.png")
    heat = GradCam(Classifier(red_detector((0.01, -0.01)), SIDE, 2, keep_aspect))([tmp_path / "wide.png"], [0])
    np.testing.assert_allclose(heat[0], np.array(rows)[:, None] * np.ones(SIDE), atol=1e-5)


def test_nothing_speaks_for_the_class_that_is_spoken_against() -> None:
    assert explain(red_detector((0.01, -0.01)), corner(), [1]).max() == 0


def test_each_image_is_asked_about_its_own_class() -> None:
    heat = explain(red_detector((0.01, -0.01)), np.concatenate([corner(), corner()]), [1, 0])
    assert heat[0].max() == 0
    assert heat[1].max() == pytest.approx(1)


def test_frozen_networks_are_explained_too() -> None:
    model = red_detector((0.01, -0.01))
    model.trainable = False
    assert explain(model, corner(), [0]).max() == pytest.approx(1)


def test_a_model_that_averages_mirror_images_is_looked_through() -> None:
    heat = explain(with_mirror_image(red_detector((0.01, -0.01))), corner(), [0])
    assert np.unravel_index(heat[0].argmax(), heat[0].shape) == (0, 0)
    assert heat[0, 0, -1] == 0, "the mirror image's map is turned back"


@pytest.mark.parametrize("architecture", ["efficientnet_lite0", "cnn"])
def test_the_projects_own_networks_are_explained(architecture: str) -> None:
    model = with_mirror_image(build_classifier(architecture, 64, 3, dropout=0.3, weights=None, frozen_part=0))
    heat = explain(model, np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3)), [1, 2])
    assert heat.shape == (2, 2, 2)
    assert 0 <= heat.min() <= heat.max() <= 1


def test_a_network_without_a_feature_map_is_refused_with_a_reason() -> None:
    pixels = keras.Input((SIDE, SIDE, 3))
    model = keras.Model(pixels, layers.Dense(2, activation="softmax")(layers.Flatten()(pixels)))
    with pytest.raises(ModelError, match="this network has none"):
        explain(model, corner(), [0])


def test_a_network_that_ends_otherwise_is_refused_with_a_reason() -> None:
    pixels = keras.Input((SIDE, SIDE, 3))
    model = keras.Model(pixels, layers.Softmax()(layers.GlobalAveragePooling2D()(layers.Conv2D(2, 1)(pixels))))
    with pytest.raises(ModelError, match="dense softmax"):
        explain(model, corner(), [0])
