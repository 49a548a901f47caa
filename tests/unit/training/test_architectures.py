from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import h5py
import keras
import numpy as np
import pytest
from PIL import Image

from bcc_ops.exceptions import ConfigError, WeightsUnavailable
from bcc_ops.models.classifier import load_model
from bcc_ops.models.combination import model_file_of
from bcc_ops.training import architectures
from bcc_ops.training.architectures import (
    build_classifier,
    efficientnet_lite,
    standardized,
    with_mirror_image,
)
from bcc_ops.training.pretrained import efficientnet_lite_weights

PHOTOS = {  # two names of ImageNet's classes by their index: 442 bell cote, 698 palace, 985 daisy, 652 military uniform
    "china.jpg": ("sklearn.datasets", "images/china.jpg", {442, 698}),
    "flower.jpg": ("sklearn.datasets", "images/flower.jpg", {985}),
    "grace_hopper.jpg": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", {652}),
}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return dict(efficientnet_lite_weights("efficientnet_lite0", tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def imagenet_classifier(imagenet: dict[str, np.ndarray]) -> keras.Model:
    classifier = build_classifier("efficientnet_lite0", 224, 1000, dropout=0.0, weights=imagenet, frozen_part=1.0)
    classifier.get_layer("probabilities").set_weights([imagenet["fc/kernel"], imagenet["fc/bias"]])
    return classifier


@pytest.mark.parametrize("photo", PHOTOS)
def test_the_pretrained_network_knows_what_is_on_public_photos(imagenet_classifier: keras.Model, photo: str) -> None:
    package, path, expected = PHOTOS[photo]
    with Image.open(str(resources.files(package) / path)) as image:
        pixels = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC), np.float32)

    answer = imagenet_classifier.predict_on_batch(pixels[None])[0]

    assert expected & set(answer.argsort()[-5:].tolist())


def test_folding_batch_normalisation_leaves_the_function_as_it_is(imagenet: dict[str, np.ndarray]) -> None:
    folded, plain = efficientnet_lite("efficientnet_lite0", 64, imagenet), efficientnet_lite("efficientnet_lite0", 64, None)
    for layer in plain.layers:
        names = (
            {"kernel": "kernel"} if "conv" in layer.name else {n: n for n in ("gamma", "beta", "moving_mean", "moving_variance")}
        )
        if layer.weights:
            layer.set_weights([imagenet[f"{layer.name}/{name}"] for name in names])
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)

    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    np.testing.assert_allclose(folded.predict_on_batch(pixels), plain.predict_on_batch(pixels), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "blocks", "numbers"),  # as published: millions with ImageNet's last layer
    [("efficientnet_lite0", 16, 4.65), ("efficientnet_lite1", 21, 5.42), ("efficientnet_lite2", 21, 6.09)],
)
def test_the_networks_are_as_deep_and_as_large_as_published(name: str, blocks: int, numbers: float) -> None:
    network = efficientnet_lite(name, 64)

    assert sum("depthwise_conv" in layer.name for layer in network.layers if layer.weights) == blocks
    trained = sum(weight.numpy().size for weight in network.trainable_variables)
    assert (trained + 1281 * 1000) / 1e6 == pytest.approx(numbers, abs=0.01)


def test_weights_of_another_network_are_refused(imagenet: dict[str, np.ndarray]) -> None:
    without_head = {name: array for name, array in imagenet.items() if not name.startswith("conv_head")}

    with pytest.raises(WeightsUnavailable, match="conv_head/kernel"):
        efficientnet_lite("efficientnet_lite0", 64, without_head)
    with pytest.raises(WeightsUnavailable, match="shape"):
        efficientnet_lite("efficientnet_lite0", 64, imagenet | {"conv_stem/kernel": np.zeros((3, 3, 1, 32), np.float32)})


@pytest.mark.parametrize(("part", "counted", "trained"), [(0.0, 49, 33), (0.3, 34, 23), (1.0, 0, 0)])
def test_the_frozen_part_is_counted_from_the_input_on_and_depthwise_filters_are_frozen_throughout(
    imagenet: dict[str, np.ndarray], part: float, counted: int, trained: int
) -> None:
    classifier = build_classifier("efficientnet_lite0", 64, 3, dropout=0.0, weights=imagenet, frozen_part=part)

    backbone = [layer for layer in classifier.get_layer("efficientnet_lite0").layers if layer.weights]
    pointwise = [not isinstance(layer, keras.layers.DepthwiseConv2D) for layer in backbone]

    assert [layer.trainable for layer in backbone] == [False] * (49 - counted) + pointwise[49 - counted :]
    assert sum(layer.trainable for layer in backbone) == trained
    assert classifier.get_layer("probabilities").trainable


def test_the_notebooks_network_takes_raw_pixels() -> None:
    classifier = build_classifier("cnn", 64, 3, dropout=0.5, weights=None, frozen_part=0.0)

    kinds = [type(layer).__name__ for layer in classifier.layers]

    assert kinds[:2] == ["InputLayer", "Rescaling"]
    assert kinds.count("Conv2D") == kinds.count("MaxPooling2D") == 4
    assert kinds[-3:] == ["Dense", "Dropout", "Dense"]
    assert classifier.output_shape == (None, 3)


def test_an_unknown_architecture_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"resnet5000.*cnn, efficientnet_lite0.*MobileNetV2"):
        build_classifier("resnet5000", 64, 3, dropout=0.0, weights=None, frozen_part=0.0)


@pytest.mark.parametrize("module", ["mobilenet_v2", "resnet", "densenet", "vgg16", "efficientnet_v2"])
def test_a_stock_layer_does_what_an_applications_own_preprocessing_does(module: str) -> None:
    preprocess = importlib.import_module(f"keras.applications.{module}").preprocess_input
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.float32)

    layer = architectures._as_layer(importlib.import_module(f"keras.src.applications.{module}").preprocess_input)

    np.testing.assert_allclose(np.asarray(layer(pixels)), preprocess(pixels.copy()), rtol=1e-4, atol=1e-3)
    assert type(layer).__module__.startswith("keras.")


def test_weights_that_cannot_be_fetched_are_told_with_the_way_out(tmp_path: Path) -> None:
    damaged = tmp_path / "weights.h5"
    damaged.write_bytes(b"nothing")

    with pytest.raises(WeightsUnavailable, match=r"MobileNetV2.*weights file on the worker"):
        build_classifier("mobilenet_v2", 64, 3, dropout=0.0, weights=damaged, frozen_part=0.0)


def test_an_applications_batch_normalisation_and_depthwise_filters_are_frozen_when_it_is_pretrained(tmp_path: Path) -> None:
    weights = tmp_path / "mobilenet.weights.h5"
    keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(64, 64, 3)).save_weights(weights)

    classifier = build_classifier("MobileNet_V2", 64, 3, dropout=0.0, weights=weights, frozen_part=0.5)

    layers = [layer for layer in classifier.get_layer("mobilenetv2_1.00_64").layers if layer.weights]
    stay = [layer for layer in layers if isinstance(layer, (keras.layers.BatchNormalization, keras.layers.DepthwiseConv2D))]
    assert len({type(layer) for layer in stay}) == 2
    assert not any(layer.trainable for layer in stay)
    assert [layer.trainable for layer in layers if layer not in stay][-1]
    assert not layers[0].trainable


def _classifier(imagenet: dict[str, np.ndarray], seed: int = 3) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return build_classifier("efficientnet_lite0", 64, 3, dropout=0.3, weights=imagenet, frozen_part=0.3)


def test_the_mirror_image_is_averaged_in_exactly(imagenet: dict[str, np.ndarray]) -> None:
    classifier = _classifier(imagenet)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.float32)
    plain, mirrored = classifier.predict_on_batch(pixels), classifier.predict_on_batch(pixels[:, :, ::-1].copy())

    answer = with_mirror_image(classifier).predict_on_batch(pixels)

    assert np.abs(plain - mirrored).max() > 1e-3, "else this shows nothing"
    np.testing.assert_allclose(answer, (plain + mirrored) / 2, atol=1e-6)


@pytest.fixture(scope="module")
def saved(imagenet: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Saved]:
    """The file without and with the mirror image, and what another process says that each answers."""
    folder = tmp_path_factory.mktemp("saved")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    np.save(folder / "pixels.npy", pixels)
    paths, expected = {}, {}
    for flip in (False, True):
        classifier = _classifier(imagenet)
        classifier.compile("adam", "categorical_crossentropy")
        model = with_mirror_image(classifier) if flip else classifier
        expected[flip] = model.predict_on_batch(pixels)
        paths[flip] = folder / f"{flip}.h5"
        paths[flip].write_bytes(model_file_of(model))
    script = (
        "import sys, json, keras, numpy as np\n"
        "for path in sys.argv[2:]:\n"
        "    model = keras.models.load_model(path, compile=False, safe_mode=True)\n"
        "    print(json.dumps(model.predict_on_batch(np.load(sys.argv[1])).tolist()))"
    )
    command = [sys.executable, "-c", script, str(folder / "pixels.npy"), *map(str, paths.values())]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-2:]
    return {flip: Saved(paths[flip], expected[flip], json.loads(line)) for flip, line in zip(paths, said)}


class Saved(NamedTuple):
    path: Path
    expected: np.ndarray
    answered: list[list[float]]


@pytest.mark.slow
@pytest.mark.parametrize("test_time_flip", [False, True])
def test_the_saved_file_answers_alike_in_a_process_of_its_own(saved: dict[bool, Saved], test_time_flip: bool) -> None:
    np.testing.assert_allclose(saved[test_time_flip].answered, saved[test_time_flip].expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("test_time_flip", [False, True])
def test_the_saved_file_holds_stock_layers_and_no_optimizer(saved: dict[bool, Saved], test_time_flip: bool) -> None:
    with h5py.File(saved[test_time_flip].path) as file:
        assert "optimizer_weights" not in file
        assert "training_config" not in file.attrs
        names = set(_class_names(json.loads(file.attrs["model_config"])["config"]["layers"]))
    stock = {name for name in names if hasattr(keras.layers, name)}
    assert names - stock <= {"Functional"}
    assert "Lambda" not in names
    assert not any(name.startswith("Random") for name in names)


def _class_names(layers: list[dict[str, object]]) -> list[str]:
    names = []
    for layer in layers:
        names.append(str(layer["class_name"]))
        names += _class_names(layer["config"].get("layers", []))  # type: ignore[attr-defined]
    return names


def test_images_that_are_too_small_for_the_notebooks_network_are_told() -> None:
    assert build_classifier("cnn", 46, 3, dropout=0.5, weights=None, frozen_part=0.0).output_shape == (None, 3)
    with pytest.raises(ConfigError, match="at least 46"):
        build_classifier("cnn", 45, 3, dropout=0.5, weights=None, frozen_part=0.0)


@pytest.fixture(scope="module")
def standardize() -> keras.Model:
    pixels = keras.Input((32, 32, 3))
    return keras.Model(pixels, standardized(pixels))


def _padded(rng: np.random.Generator, gray: tuple[int, int]) -> np.ndarray:
    """Return a landscape image between black bars: (1, 32, 32, 3)."""
    square = np.zeros((1, 32, 32, 3), np.float32)
    square[:, 8:24] = rng.integers(*gray, (1, 16, 32, 1))
    return square


def test_brightness_is_standardized_where_there_is_something_to_see(standardize: keras.Model) -> None:
    square = _padded(np.random.default_rng(1), (20, 90))

    answer = np.asarray(standardize.predict_on_batch(square))

    shown = answer[:, 8:24]
    assert (answer[:, :8].max(), answer[:, 24:].max()) == (0, 0), "padding stays black"
    assert (float(shown.mean()), float(shown.std())) == pytest.approx((80, 50), abs=1)


def test_gain_and_black_level_of_a_machine_do_not_matter(standardize: keras.Model) -> None:
    square = _padded(np.random.default_rng(1), (20, 90))
    brighter = np.where(square > 0, square * 1.8 + 30, 0).astype(np.float32)

    first, second = (np.asarray(standardize.predict_on_batch(each)) for each in (square, brighter))

    np.testing.assert_allclose(first, second, atol=0.5)


def test_the_tint_of_a_display_does_not_matter(standardize: keras.Model) -> None:
    square = _padded(np.random.default_rng(1), (20, 90))
    tinted = square * np.array([0.9, 0.95, 1.2], np.float32)

    first, second = (np.asarray(standardize.predict_on_batch(each)) for each in (square, tinted))

    np.testing.assert_allclose(first, second, atol=0.1)
    assert np.ptp(second, axis=-1).max() == 0, "all three channels are alike"


@pytest.mark.parametrize(("shade", "expected"), [(0, 0.0), (77, 80.0), (255, 80.0)])
def test_an_image_of_one_shade_stays_one(standardize: keras.Model, shade: int, expected: float) -> None:
    answer = np.asarray(standardize.predict_on_batch(np.full((1, 32, 32, 3), shade, np.float32)))
    np.testing.assert_allclose(answer, expected, atol=0.05)


def test_a_file_that_standardizes_answers_as_the_network_that_was_saved(tmp_path: Path) -> None:
    classifier = build_classifier("cnn", 46, 3, dropout=0.5, weights=None, frozen_part=0.0, standardize=True)
    path = tmp_path / "model.h5"
    path.write_bytes(model_file_of(with_mirror_image(classifier)))
    square = np.random.default_rng(1).integers(0, 255, (1, 46, 46, 3)).astype(np.float32)

    both = (classifier.predict_on_batch(view) for view in (square, square[:, :, ::-1]))

    np.testing.assert_allclose(load_model(path).predict_on_batch(square), np.mean(list(both), axis=0), atol=1e-5)
