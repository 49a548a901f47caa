"""One file from several models: the average of their weights, or the mean of their answers."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from bcc_ops.exceptions import ModelError
from bcc_ops.models.classifier import Classifier, load_classifier
from bcc_ops.models.combination import average_weights, mean_of_answers, model_file_of
from bcc_ops.training.architectures import build_classifier, with_mirror_image

SIDE = 46


def arrays_file(arrays: Mapping[str, object], name: str = "network") -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened.attrs["model_config"] = json.dumps({"config": {"name": name}})
        for where, array in arrays.items():
            opened[where] = array
    return file.getvalue()


def read(content: bytes) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def network(seed: int, *, side: int = SIDE, classes: int = 3, mirrored: bool = False) -> keras.Model:
    """The notebook's network with random weights."""
    keras.utils.set_random_seed(seed)
    model = build_classifier("cnn", side, classes, dropout=0.5, weights=None, frozen_part=0.0)
    return with_mirror_image(model) if mirrored else model


def loaded(content: bytes, folder: Path) -> Classifier:
    path = folder / "model.h5"
    path.write_bytes(content)
    return load_classifier(path, keep_aspect=True)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3)).astype(np.float32)


# average_weights ------------------------------------------------------------------------------------------------------


def test_each_array_is_the_mean_of_those_of_the_files() -> None:
    files = [
        arrays_file({"dense/kernel": np.array([[1, 2], [3, 4]], "f4"), "dense/bias": np.array([0, 1], "f4")}, "of fold 1"),
        arrays_file({"dense/kernel": np.array([[3, 2], [1, 0]], "f4"), "dense/bias": np.array([0, 3], "f4")}, "of fold 2"),
        arrays_file({"dense/kernel": np.array([[5, 2], [2, 2]], "f4"), "dense/bias": np.array([9, 5], "f4")}, "of fold 3"),
    ]

    average = read(average_weights(files))

    np.testing.assert_array_equal(average["dense/kernel"], [[3, 2], [2, 2]])
    np.testing.assert_array_equal(average["dense/bias"], [3, 3])
    assert {array.dtype for array in average.values()} == {np.dtype("f4")}
    with h5py.File(io.BytesIO(average_weights(files))) as file:
        assert json.loads(file.attrs["model_config"])["config"]["name"] == "of fold 1", "the network is described once"


def test_the_mean_is_computed_in_double_precision() -> None:
    """In single precision, 2**24 + 1 + 1 is 2**24."""
    files = [arrays_file({"w": np.array([value], "f4")}) for value in (2.0**24, 1, 1, -(2.0**24))]

    assert read(average_weights(files))["w"].tolist() == [0.5]


def test_a_single_model_stays_as_it_is_byte_by_byte() -> None:
    content = arrays_file({"w": np.array([1], "f4")})

    assert average_weights([content]) == content


def test_the_files_that_are_averaged_are_not_changed() -> None:
    files = [arrays_file({"w": np.array([value], "f4")}) for value in (1, 3)]
    before = list(files)

    assert read(average_weights(files))["w"].tolist() == [2]
    assert files == before


@pytest.mark.parametrize(
    "other",
    [{"w": np.zeros(3, "f4")}, {"v": np.zeros(2, "f4")}, {"w": np.zeros(2, "f4"), "v": np.zeros(2, "f4")}, {}],
    ids=["another shape", "another name", "one more", "none"],
)
def test_models_of_different_networks_have_no_average(other: Mapping[str, object]) -> None:
    one = arrays_file({"w": np.zeros(2, "f4")})

    with pytest.raises(ModelError, match="model 3 of 3 is another network than the first"):
        average_weights([one, one, arrays_file(other)])


def test_the_average_of_networks_answers_as_a_network_with_the_mean_of_their_weights(tmp_path: Path, pixels: np.ndarray) -> None:
    networks = [network(seed, mirrored=True) for seed in (1, 2, 3)]
    means = [np.mean(arrays, axis=0) for arrays in zip(*(model.get_weights() for model in networks))]
    files = [model_file_of(model) for model in networks]

    average = loaded(average_weights(files), tmp_path)

    networks[0].set_weights(means)
    np.testing.assert_allclose(average.predict_pixels(pixels), networks[0].predict_on_batch(pixels), atol=1e-6)


def test_averaging_loads_no_tensorflow(tmp_path: Path) -> None:
    """The task that does it is on a worker without a GPU, and takes seconds."""
    for number in (1, 3):
        (tmp_path / f"{number}.h5").write_bytes(arrays_file({"w": np.array([number], "f4")}))
    script = (
        "import sys, pathlib\n"
        "from bcc_ops.training.combine import average_weights\n"
        "average_weights([pathlib.Path(name).read_bytes() for name in sys.argv[1:]])\n"
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, *(str(tmp_path / f"{number}.h5") for number in (1, 3))]

    said = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": "plugins", "PATH": ""})

    assert said.stdout.strip() == "[]"


# mean_of_answers ------------------------------------------------------------------------------------------------------


def test_the_file_answers_the_mean_of_what_the_models_answer(tmp_path: Path, pixels: np.ndarray) -> None:
    """Their weights are far apart, so that a network with the mean of them would answer something else."""
    networks = [network(seed) for seed in (1, 2)]
    for model in networks:
        model.get_layer(index=-1).set_weights([weights * 20 for weights in model.get_layer(index=-1).get_weights()])
    answers = [model.predict_on_batch(pixels) for model in networks]
    assert np.abs(answers[0] - answers[1]).max() > 0.01, "else this shows nothing"

    mean = loaded(mean_of_answers([model_file_of(model) for model in networks]), tmp_path)

    assert (mean.image_size, mean.classes_count) == (SIDE, 3)
    np.testing.assert_allclose(mean.predict_pixels(pixels), np.mean(answers, axis=0), atol=1e-6)


def test_models_that_average_over_the_mirror_image_have_a_mean_too(tmp_path: Path, pixels: np.ndarray) -> None:
    networks = [network(seed, mirrored=True) for seed in (1, 2, 3)]

    mean = loaded(mean_of_answers([model_file_of(model) for model in networks]), tmp_path)

    expected = np.mean([model.predict_on_batch(pixels) for model in networks], axis=0)
    np.testing.assert_allclose(mean.predict_pixels(pixels), expected, atol=1e-6)


def test_the_file_holds_stock_layers_alone() -> None:
    content = mean_of_answers([model_file_of(network(seed)) for seed in (1, 2)])

    with h5py.File(io.BytesIO(content)) as file:
        assert "optimizer_weights" not in file
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
    assert [layer["class_name"] for layer in layers] == ["InputLayer", "Functional", "Functional", "Average"]


def test_a_single_model_answers_for_itself() -> None:
    content = model_file_of(network(1))

    assert mean_of_answers([content]) == content


@pytest.mark.parametrize("other", [{"side": SIDE + 2}, {"classes": 4}], ids=["another input", "other classes"])
def test_models_of_different_input_or_classes_have_no_mean(other: dict[str, Any]) -> None:
    files = [model_file_of(network(1)), model_file_of(network(2, **other))]

    with pytest.raises(ModelError, match="differ in their input or in their classes"):
        mean_of_answers(files)


def test_a_mean_that_nobody_would_load_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was made, and refused by the next task: five models of ConvNeXtLarge have 4 GB."""
    files = [model_file_of(network(seed)) for seed in range(2)]
    monkeypatch.setattr("bcc_ops.models.combination.LARGEST_FILE", len(files[0]) + len(files[1]) - 1)
    with pytest.raises(ModelError, match=r"the mean of the answers of 2 models would be a file of .* switch ensemble off"):
        mean_of_answers(files)


def test_a_damaged_model_is_refused_by_its_fold() -> None:
    with pytest.raises(ModelError, match=r"fold-2\.h5"):
        mean_of_answers([model_file_of(network(1)), b"not a model"])


def test_a_file_whose_numbers_lie_elsewhere_is_refused_before_it_is_opened_for_writing(tmp_path: Path) -> None:
    """It read any file of the worker into the average, and as the first one, it was written into that file."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"\0" * 8)
    hostile = tmp_path / "hostile.h5"
    with h5py.File(hostile, "w") as opened:
        opened.attrs["model_config"] = "{}"
        opened.create_dataset("w", (2,), "f4", external=[(str(victim), 0, 8)])
    honest = arrays_file({"w": np.ones(2, "f4")})
    for files in ([hostile.read_bytes(), honest], [honest, hostile.read_bytes()], [hostile.read_bytes()]):
        with pytest.raises(ModelError, match="keeps its numbers in another file"):
            average_weights(files)
    assert victim.read_bytes() == b"\0" * 8


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n and then nothing"])
def test_a_damaged_file_is_a_model_error(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"is not a Keras \.h5 model"):
        average_weights([arrays_file({"w": np.ones(2, "f4")}), content])
