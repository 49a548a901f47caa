from __future__ import annotations

import json
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from PIL import Image

from bcc_ops.dataset.decoding import decode_rgb, fit_square
from bcc_ops.exceptions import ImageRefused, ModelError
from bcc_ops.models.classifier import load_classifier
from bcc_ops.training.architectures import build_classifier, with_mirror_image

SIDE = 46


def _save(model: keras.Model, path: Path) -> Path:
    model.save(path, include_optimizer=False)
    return path


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    return build_classifier("cnn", SIDE, 3, dropout=0.5, weights=None, frozen_part=0.0)


@pytest.fixture(scope="module")
def model_file(classifier: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(with_mirror_image(classifier), tmp_path_factory.mktemp("model") / "model.h5")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"image {number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (30 + 10 * number, 60, 3), np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_images_are_read_as_in_training_and_keep_their_order(
    classifier: keras.Model, model_file: Path, images: list[Path], keep_aspect: bool
) -> None:
    loaded = load_classifier(model_file, keep_aspect=keep_aspect)
    pixels = np.stack([fit_square(decode_rgb(path), SIDE, keep_aspect=keep_aspect) for path in images]).astype(np.float32)
    flipped = pixels[:, :, ::-1].copy()
    expected = (classifier.predict_on_batch(pixels) + classifier.predict_on_batch(flipped)) / 2

    answers = loaded.predict(images, batch_size=2)

    assert (loaded.image_size, loaded.classes_count) == (SIDE, 3)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, expected, atol=1e-6)


def test_no_images_give_no_answers(model_file: Path) -> None:
    assert load_classifier(model_file, keep_aspect=True).predict([]).shape == (0, 3)


def test_an_image_that_cannot_be_decoded_is_refused(model_file: Path, images: list[Path]) -> None:
    images[1].write_bytes(b"no image")

    with pytest.raises(ImageRefused):
        load_classifier(model_file, keep_aspect=True).predict(images)


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut short", "no model in it"])
def test_a_damaged_file_is_refused_by_name(model_file: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.h5"
    content = {"empty": b"", "text": b"hello" * 100, "cut short": model_file.read_bytes()[:-20_000]}
    if damage == "no model in it":
        with h5py.File(path, "w") as file:
            file["weights"] = [1.0]
    elif damage != "missing":
        path.write_bytes(content[damage])

    with pytest.raises(ModelError, match=r"model\.h5"):
        load_classifier(path, keep_aspect=True)


def test_a_lambda_is_refused_and_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    pixels = keras.Input((8, 8, 3))
    touch = str(ran)
    x = keras.layers.Lambda(lambda x: (open(touch, "w").close(), x)[1], output_shape=(8, 8, 3))(pixels)  # noqa: PTH123
    x = keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(x))
    path = _save(keras.Model(pixels, x), tmp_path / "model.h5")
    ran.unlink(missing_ok=True)

    with pytest.raises(ModelError, match="Lambda"):
        load_classifier(path, keep_aspect=True)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["TFSMLayer", "MyOwnLayer", "TFOpLambda"])
def test_a_layer_that_may_run_code_is_refused_however_deep_it_lies(model_file: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes(model_file.read_bytes())
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        (inner,) = [layer for layer in config["config"]["layers"] if layer["class_name"] == "Functional"]
        inner["config"]["layers"][2]["class_name"] = name
        file.attrs["model_config"] = json.dumps(config)

    with pytest.raises(ModelError, match=name):
        load_classifier(path, keep_aspect=True)


@pytest.mark.parametrize(
    ("shape", "activation", "message"),
    [
        ((8, 8, 1), "softmax", "square RGB"),
        ((8, 9, 3), "softmax", "square RGB"),
        ((None, None, 3), "softmax", "square RGB"),
        ((8, 8, 3), None, "probabilities"),
        ((8, 8, 3), "sigmoid", "probabilities"),
    ],
)
def test_a_model_of_another_contract_is_refused(
    tmp_path: Path, shape: tuple[int | None, ...], activation: str | None, message: str
) -> None:
    pixels = keras.Input(shape)
    x = keras.layers.GlobalAveragePooling2D()(pixels)
    path = _save(keras.Model(pixels, keras.layers.Dense(3, activation=activation)(x)), tmp_path / "model.h5")

    with pytest.raises(ModelError, match=message):
        load_classifier(path, keep_aspect=True)


def test_a_model_of_a_notebooks_own_is_taken(tmp_path: Path) -> None:
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )

    loaded = load_classifier(_save(model, tmp_path / "model.h5"), keep_aspect=False)

    assert (loaded.image_size, loaded.classes_count) == (16, 2)
