"""What a model file may contain: everything that the project builds, and nothing that runs code or leads elsewhere."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bcc_ops.exceptions import ModelError
from bcc_ops.models.classifier import load_model
from bcc_ops.models.model_file import refuse_unsafe
from bcc_ops.training.architectures import build_classifier, with_mirror_image


def save(model: keras.Model, path: Path) -> Path:
    model.save(path, include_optimizer=False)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = with_mirror_image(build_classifier("cnn", 46, 3, dropout=0.5, weights=None, frozen_part=0.0))
    return save(model, tmp_path_factory.mktemp("model") / "model.h5")


@pytest.fixture
def changed(good: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """Change the architecture of a good file."""

    def change(edit: Callable[[dict[str, Any]], None]) -> Path:
        path = tmp_path / "model.h5"
        shutil.copy(good, path)
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            edit(config)
            file.attrs["model_config"] = json.dumps(config)
        return path

    return change


def a_layer(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """The configuration of the first layer of a kind, however deep it is."""
    left: list[Any] = [config]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if value.get("class_name") == kind:
                return value
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    raise KeyError(kind)


@pytest.mark.parametrize("architecture", ["cnn", "efficientnet_lite0", "MobileNetV2", "MobileNetV3Small", "DenseNet121"])
def test_what_the_project_builds_is_allowed(architecture: str, tmp_path: Path) -> None:
    model = with_mirror_image(build_classifier(architecture, 64, 3, dropout=0.3, weights=None, frozen_part=0.3))
    refuse_unsafe(save(model, tmp_path / "model.h5"))


def test_a_notebooks_own_network_is_allowed(tmp_path: Path) -> None:
    layers = keras.layers
    regular = keras.regularizers.L2(1e-4)
    model = keras.Sequential(
        [
            *(keras.Input((32, 32, 3)), layers.Rescaling(1 / 255), layers.Conv2D(8, 3, activation="relu")),
            *(layers.MaxPooling2D(), layers.Flatten(), layers.Dense(8, "relu", kernel_regularizer=regular)),
            layers.Dense(3, "softmax"),
        ]
    )
    refuse_unsafe(save(model, tmp_path / "model.h5"))


POPEN = {"module": "subprocess", "class_name": "Popen", "config": {"args": ["true"]}, "registered_name": None}
LAMBDA = {"class_name": "__lambda__", "config": {"value": "gASVAAAA"}}
HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "a lambda as an activation": lambda c: a_layer(c, "Conv2D")["config"].update(activation=LAMBDA),
    "a function as an activation": lambda c: a_layer(c, "Conv2D")["config"].update(
        activation={"module": "builtins", "class_name": "function", "config": "os.system", "registered_name": "function"}
    ),
    "an activation by another name": lambda c: a_layer(c, "Conv2D")["config"].update(activation="os.system"),
    "Popen as an initializer": lambda c: a_layer(c, "Dense")["config"].update(kernel_initializer=POPEN),
    "Popen as an initializer by name": lambda c: a_layer(c, "Dense")["config"].update(kernel_initializer="subprocess.Popen"),
    "Popen without a class": lambda c: c.update(registered_name="subprocess>Popen", module="subprocess"),
    "a TFSMLayer without a name": lambda c: c["config"]["layers"].append(
        {"class_name": "TFSMLayer", "config": {"filepath": "/etc/passwd"}}
    ),
    "a TorchModuleWrapper": lambda c: a_layer(c, "Dense").update(class_name="TorchModuleWrapper"),
    "a vocabulary from a file": lambda c: c["config"]["layers"].append(
        {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}
    ),
    "Keras' name in another module": lambda c: a_layer(c, "Dense").update(module="evil.layers"),
    "Keras' name registered as another": lambda c: a_layer(c, "Dense").update(registered_name="evil>Dense"),
    "a class that is not text": lambda c: a_layer(c, "Dense").update(class_name=["Dense"]),
    "a width without an array": lambda c: a_layer(c, "Dense")["config"].update(units=4096),
    "a width that fills the memory": lambda c: a_layer(c, "Conv2D")["config"].update(filters=2**40),
    "an input that fills the memory": lambda c: a_layer(c, "InputLayer")["config"].update(batch_shape=[None, 10**6, 10**6, 3]),
    "an input of allowed sides that fills it": lambda c: a_layer(c, "InputLayer")["config"].update(
        batch_shape=[None, 60000, 60000, 3]
    ),
    "a layer that builds itself for such an input": lambda c: a_layer(c, "Dense").update(
        build_config={"input_shape": [[None, 60000, 60000, 3]]}
    ),
    "a padding that fills the memory": lambda c: c["config"]["layers"].append(
        {"class_name": "ZeroPadding2D", "config": {"padding": [[10**9, 0], [0, 0]]}}
    ),
}


@pytest.mark.parametrize("edit", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_architecture_is_refused_before_keras_sees_it(
    changed: Callable[..., Path], edit: Callable[[dict[str, Any]], None]
) -> None:
    with pytest.raises(ModelError, match=r"model\.h5 is not loaded"):
        refuse_unsafe(changed(edit))


def test_an_architecture_of_bottomless_depth_is_a_clear_error(good: Path, tmp_path: Path) -> None:
    for depth in (200, 100_000):
        path = tmp_path / f"{depth}.h5"
        shutil.copy(good, path)
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = "[" * depth + "]" * depth
        with pytest.raises(ModelError, match="nested too deeply"):
            refuse_unsafe(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), name=st.sampled_from(["Popen", "Lambda", "eval", "TFSMLayer", "JaxLayer", "Wrapper", ""]))
def test_a_foreign_class_is_found_wherever_it_is(good: Path, place: int, name: str) -> None:
    from bcc_ops.models.model_file import _check_config, _check_datasets, _every_object

    with h5py.File(good, "r") as file:
        (dimensions, _), config = _check_datasets(file, 10**9), json.loads(file.attrs["model_config"])
    objects = list(_every_object(config))
    objects[place % len(objects)]["planted"] = [{"deep": {"class_name": name, "config": {}}}]  # type: ignore[index]
    with pytest.raises(ModelError, match="not on the list"):
        _check_config(config, dimensions)


def leads_elsewhere(file: h5py.File, kind: str) -> None:
    group = file["model_weights"]
    if kind == "an external link":
        group["out"] = h5py.ExternalLink("/etc/passwd", "/")
    elif kind == "a soft link":
        group["out"] = h5py.SoftLink("/elsewhere")
    elif kind == "numbers in another file":
        group.create_dataset("out", (10,), "u1", external=[("/etc/passwd", 0, 10)])
    elif kind == "a virtual array":
        layout = h5py.VirtualLayout((10,), "u1")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (10,))
        group.create_virtual_dataset("out", layout)
    elif kind == "a compressed bomb":
        group.create_dataset("out", (10**9,), "f4", chunks=(10**6,), compression="gzip")
    else:
        group.create_dataset("out", (10**12,), "f4")


KINDS = ["an external link", "a soft link", "numbers in another file", "a virtual array", "a compressed bomb", "an empty promise"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_leads_elsewhere_or_promises_too_much_is_refused(good: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.h5"
    shutil.copy(good, path)
    with h5py.File(path, "r+") as file:
        leads_elsewhere(file, kind)
    with pytest.raises(ModelError, match=r"model\.h5 is not loaded"):
        refuse_unsafe(path)


WIDE = 20_000


def network(*layers: keras.Layer) -> keras.Model:
    return keras.Sequential(
        [keras.Input((8, 8, 3)), *layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")]
    )


def enlarged(path: Path, edit: Callable[[dict[str, Any]], None], *widths: int) -> Path:
    """Change a file's architecture, and give it arrays of these widths, as a forger can at little cost."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        edit(config)
        file.attrs["model_config"] = json.dumps(config)
        for width in widths:
            file["model_weights"].create_dataset(f"width {width}", data=np.zeros((5, width), np.uint8))
    return path


def widen(config: dict[str, Any]) -> None:
    """Let two layers be `WIDE`: 400 million numbers between them."""
    for layer in config["config"]["layers"]:
        layer.pop("build_config", None)
        if layer["config"]["name"] in ("first", "second"):
            layer["config"]["units"] = WIDE
            layer["config"]["kernel_initializer"] = "zeros"


def pad(config: dict[str, Any]) -> None:
    """Let a padding make the image 60,000 pixels high and wide."""
    for layer in config["config"]["layers"]:
        layer.pop("build_config", None)
        if layer["class_name"] == "ZeroPadding2D":
            layer["config"]["padding"] = [[30000, 30000], [30000, 30000]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each array has that Keras makes."""
    sizes: list[int] = []
    for kind in (keras.initializers.Zeros, keras.initializers.GlorotUniform):
        make = kind.__call__

        def counted(self: Any, shape: Any, *given: Any, make: Any = make, **named: Any) -> Any:
            sizes.append(math.prod(shape))
            return make(self, shape, *given, **named)

        monkeypatch.setattr(kind, "__call__", counted)
    return sizes


def test_layers_that_are_gigantic_only_together_are_refused_before_their_array_is_made(tmp_path: Path, drawn: list[int]) -> None:
    model = network(keras.layers.Dense(4, name="first"), keras.layers.Dense(4, name="second"))
    path = enlarged(save(model, tmp_path / "model.h5"), widen, WIDE)
    drawn.clear()
    with pytest.raises(ModelError, match=r"^model\.h5 is not loaded: its layer second needs an array of shape \(20000, 20000\)"):
        load_model(path)
    assert drawn == [3 * WIDE, WIDE]  # the first layer's, which fit into the file


@pytest.mark.parametrize("after", ["Normalization", "GlobalAveragePooling2D"])
def test_a_layer_that_would_take_in_too_many_numbers_is_refused_before_it_computes(tmp_path: Path, after: str) -> None:
    own = [keras.layers.Normalization(axis=(1, 2, 3), mean=1.0, variance=1.0)] if after == "Normalization" else []
    model = network(keras.layers.ZeroPadding2D(), *own)
    path = enlarged(save(model, tmp_path / "model.h5"), pad)
    with pytest.raises(ModelError, match=r"^model\.h5 is not loaded: its layer \w+ has 10,802,880,192 numbers for an image"):
        load_model(path)


def test_models_that_call_one_another_again_and_again_are_refused_before_keras_sees_them(tmp_path: Path) -> None:
    """Five levels of four calls took half a minute to load, and each level more four times as long."""
    pixels = keras.Input((8, 8, 3))
    inner = keras.Model(pixels, keras.layers.ReLU()(pixels))
    for _ in range(2):
        pixels = keras.Input((8, 8, 3))
        inner = keras.Model(pixels, inner(inner(pixels)))
    path = save(network(inner), tmp_path / "model.h5")
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        nested = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Functional")
        within = next(layer for layer in nested["config"]["layers"] if layer["class_name"] == "Functional")
        for layer in (within, *within["config"]["layers"]):
            layer["inbound_nodes"] = (layer["inbound_nodes"] or [{"args": [], "kwargs": {}}]) * 100
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ModelError, match=r"^model\.h5 is not loaded: it calls more than 20,000 layers for one answer"):
        refuse_unsafe(path)


def test_a_file_that_is_refused_leaves_keras_as_it_was(tmp_path: Path, good: Path) -> None:
    path = enlarged(save(network(keras.layers.ZeroPadding2D()), tmp_path / "model.h5"), pad)
    with pytest.raises(ModelError):
        load_model(path)
    assert keras.layers.Dense(7)(keras.ops.zeros((1, 70_000))).shape == (1, 7)
    assert load_model(good).output_shape == (None, 3)
