"""What a model file may contain. It comes from a bucket that others can write to, so it is searched before Keras reads it.

Nothing in an `.h5` may run code, read another file or take more memory than the file has bytes. Keras' safe loading stops some
of that, in some versions. This check allows what the project's networks, `keras.applications` and plain convolutional networks
need, by name, and refuses everything else. What a network's layers take together is known only when Keras joins them, so each
array and each layer's input is counted then, before it is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from bcc_ops.exceptions import ModelError

if TYPE_CHECKING:
    from types import ModuleType

    import keras

LARGEST_FILE = 2_000_000_000
"""Bytes. The largest model of keras.applications without its classifier has 1.4 GB."""

LARGEST_CONFIG = 16_000_000
"""Bytes of the architecture's JSON. Keras writes about one kilobyte per layer."""

LARGEST_NUMBER = 65_536
"""No size in an architecture is larger: widths, filters, sides, strides. A larger one would be an attack on the memory."""

LARGEST_LAYER = 2**27
"""Numbers that a layer takes in, or the network answers, for one image. VGG's widest layer has half of it at a side of 1,024."""

MOST_CALLS = 20_000
"""Of layers for one answer. A model that calls another one four times, which does the same, grows fourfold with each level. The
mean of five DenseNets takes some 7,000, mirror images included."""

DEEPEST = 64
"""Levels of lists and objects in the architecture's JSON."""

MODELS = frozenset({"Functional", "Model", "Sequential"})

LAYERS = frozenset(
    {
        *("InputLayer", "Rescaling", "Normalization", "Resizing", "CenterCrop", "ZeroPadding2D", "Cropping2D"),
        *("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense", "BatchNormalization", "LayerNormalization"),
        *("GroupNormalization", "Activation", "ReLU", "LeakyReLU", "PReLU", "Softmax", "Dropout", "SpatialDropout2D"),
        *("MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D", "GlobalMaxPooling2D"),
        *("Flatten", "Reshape", "Permute", "Add", "Average", "Concatenate", "Multiply"),
    }
)
"""Keras' own layers without code, files or vocabularies in their configuration."""

PARTS = frozenset(
    {
        *("Zeros", "Ones", "Constant", "RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling"),
        *("GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "LecunNormal", "LecunUniform", "Orthogonal", "Identity"),
        *("L1", "L2", "L1L2", "MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm"),
        *("DTypePolicy", "__keras_tensor__"),
    }
)
"""Initializers, regularizers and constraints, the type of a layer's numbers, and the mark of a layer's input."""

ACTIVATIONS = frozenset(
    {
        *("linear", "relu", "relu6", "leaky_relu", "softmax", "sigmoid", "hard_sigmoid", "log_softmax", "tanh", "elu", "selu"),
        *("gelu", "silu", "swish", "hard_silu", "hard_swish", "softplus", "softsign", "exponential", "mish"),
    }
)

MODULES = frozenset(
    {
        *("keras", "keras.layers", "keras.models", "keras.initializers", "keras.regularizers", "keras.constraints"),
        *("keras.src.models.functional", "keras.src.models.sequential", "keras.src.models.model"),
    }
)

OPERATIONS = frozenset({"Add", "Multiply"})
"""Arithmetic between layers (`x + y`), which Keras writes as classes of `keras.src.ops.numpy`."""

_NAMES_A_FUNCTION = ("activation", "_initializer", "_regularizer", "_constraint")


def refuse_unsafe(path: Path) -> int:
    """Search a model file before it is loaded.

    Args:
        path: a Keras `.h5` file.

    Returns:
        How many numbers its arrays have, for `building_at_most`.

    Raises:
        ModelError: it is not one, or contains what is not on the lists of this module; the message names it.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise ModelError(f"{path.name} has {size:,} bytes, at most {LARGEST_FILE:,} are loaded")
        with h5py.File(path, "r") as file:
            dimensions, numbers = _check_datasets(file, size)
            stored = file.attrs["model_config"]
            if len(stored) > LARGEST_CONFIG:
                raise ModelError(f"its architecture has {len(stored):,} bytes, at most {LARGEST_CONFIG:,} are read")
            config = json.loads(stored)
        _check_config(config, dimensions)
        return numbers
    except ModelError as error:
        raise ModelError(f"{path.name} is not loaded: {error}") from None
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{path.name} is not a Keras .h5 model: {' '.join(str(error).split())[:200]}") from None
    except RecursionError:
        raise ModelError(f"{path.name} is not loaded: its architecture is nested too deeply") from None


@contextmanager
def building_at_most(keras: ModuleType, numbers: int) -> Iterator[None]:
    """Refuse, for as long as the block lasts, to make arrays for more numbers than a file has, or to join layers too large.

    Keras makes a network's arrays first and reads them from the file afterwards: two layers that are 60,000 wide would take
    14 GB whatever the file has. Keras has no hook for this, so two methods of its `Layer` are wrapped. No other thread may
    build a network meanwhile.

    Args:
        keras: the module.
        numbers: of the file, as `refuse_unsafe` returns them.

    Raises:
        ModelError: in the block, if Keras is about to exceed the limit.
    """
    layer = keras.Layer
    add_weight, call = layer.add_weight, layer.__call__
    left = numbers

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        nonlocal left
        shape = tuple(named.get("shape", given[0] if given else None) or ())
        left -= _count(shape)
        if left < 0:
            raise ModelError(f"its layer {self.name} needs an array of shape {shape}, more than the file has")
        return add_weight(self, *given, **named)

    def checked(self: Any, *given: Any, **named: Any) -> Any:
        for tensor in keras.tree.flatten((given, named)):
            _check_layer(self.name, getattr(tensor, "shape", ()))
        return call(self, *given, **named)

    layer.add_weight, layer.__call__ = counted, checked
    try:
        yield
    finally:
        layer.add_weight, layer.__call__ = add_weight, call


def check_answers(model: keras.Model) -> None:
    """Refuse a network that answers more numbers than a layer may have.

    Raises:
        ModelError: it does.
    """
    for tensor in model.outputs:
        _check_layer(model.name, tensor.shape)


def _check_layer(name: str, shape: Any) -> None:
    if _count(shape) > LARGEST_LAYER:
        raise ModelError(f"its layer {name} has {_count(shape):,} numbers for an image, at most {LARGEST_LAYER:,} are computed")


def _count(shape: Any) -> int:
    """Return how many numbers an array has for one image: a dimension that is open counts as 1."""
    return math.prod(abs(side) for side in shape or () if side is not None)


def _check_datasets(file: h5py.File, size: int) -> tuple[set[int], int]:
    """Refuse what leads out of the file, and arrays that promise more bytes than it has.

    Returns:
        The last dimension of every array, and how many numbers all have.
    """
    declared, numbers = 0, 0
    dimensions: set[int] = set()
    left: list[h5py.Group] = [file]
    seen: set[int] = set()
    while left:
        group = left.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ModelError(f"{group.name}/{name} is a link to another place")
            item = group[name]
            address = int(h5py.h5o.get_info(item.id).addr)
            if address in seen:
                raise ModelError(f"{group.name}/{name} is in the file twice")
            seen.add(address)
            if isinstance(item, h5py.Group):
                left.append(item)
                continue
            if not isinstance(item, h5py.Dataset):
                continue
            if item.external or item.is_virtual:
                raise ModelError(f"{item.name} keeps its numbers in another file")
            if item.chunks is not None or item.dtype.kind not in "fiub":
                raise ModelError(f"{item.name} is not a plain array of numbers")
            declared += item.nbytes
            numbers += item.size
            if declared > size:
                raise ModelError(f"its arrays promise {declared:,} bytes, and the file has {size:,}")
            dimensions.add(int(item.shape[-1]) if item.shape else 1)
    return dimensions, numbers


def _check_config(config: Any, dimensions: set[int]) -> None:
    for value in _every_object(config):
        name = value.get("class_name")
        if name is not None or "registered_name" in value:
            _check_class(name, value)
        for key, setting in value.items():
            _check_setting(str(key), setting, dimensions)
    if _count_calls(config) > MOST_CALLS:
        raise ModelError(f"it calls more than {MOST_CALLS:,} layers for one answer")


def _count_calls(model: Mapping[str, Any]) -> int:
    """Return how many layers a model calls for one answer: those of a model within it as often as it is called itself."""
    config = model.get("config")
    layers = config.get("layers") if isinstance(config, dict) else config
    calls = 0
    for layer in layers if isinstance(layers, list) else ():
        nodes = layer.get("inbound_nodes")
        times = max(1, len(nodes)) if isinstance(nodes, list) else 1
        calls += times * (_count_calls(layer) if layer.get("class_name") in MODELS else 1)
    return calls


def _check_class(name: Any, value: Mapping[str, Any]) -> None:
    known = isinstance(name, str) and name in MODELS | LAYERS | PARTS
    if not known:
        raise ModelError(f"the class {name!r} is not on the list of those that are loaded, since it may run code of its own")
    operation = name in OPERATIONS and value.get("module") == "keras.src.ops.numpy"
    if value.get("module") not in (None, *MODULES) and not operation:
        raise ModelError(f"the class {name} comes from the module {value['module']!r}, not from Keras")
    if value.get("registered_name") not in (None, name):
        raise ModelError(f"the class {name} is registered as {value['registered_name']!r}, which is not Keras' own")


def _check_setting(key: str, setting: Any, dimensions: set[int]) -> None:
    if isinstance(setting, str) and key == "activation" and setting not in ACTIVATIONS:
        raise ModelError(f"the activation {setting!r} is not one of Keras' own")
    if isinstance(setting, str) and key.endswith(_NAMES_A_FUNCTION[1:]) and _camel(setting) not in PARTS:
        raise ModelError(f"{key}: {setting!r} is not one of Keras' own")
    if key != "seed":
        for sizes in _lists_of_sizes(setting):
            for size in sizes:
                if abs(size) > LARGEST_NUMBER:
                    raise ModelError(f"{key}: {size} is larger than any size of a network ({LARGEST_NUMBER})")
            if key.endswith("shape") and _count(sizes) > LARGEST_LAYER:
                raise ModelError(f"{key}: {sizes} has more numbers than a layer may have ({LARGEST_LAYER:,})")
    # Keras makes a layer's arrays before it reads them: one of these without an array of its width could fill the memory.
    if key in ("units", "filters") and isinstance(setting, int) and setting not in dimensions:
        raise ModelError(f"{key}: the file has no array of the width {setting}")


def _lists_of_sizes(setting: Any) -> Iterator[list[int]]:
    """Yield the whole numbers of a setting, list by list: a padding has two lists, and a layer may have several shapes."""
    values = setting if isinstance(setting, list) else [setting]
    yield [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    for value in values:
        if isinstance(value, list):
            yield from _lists_of_sizes(value)


def _camel(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def _every_object(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every JSON object in a configuration; iteratively, so that depth costs no stack.

    Raises:
        ModelError: it is nested too deeply for Keras, which reads it recursively.
    """
    left: list[tuple[int, Any]] = [(0, config)]
    while left:
        level, value = left.pop()
        if level > DEEPEST:
            raise ModelError("its architecture is nested too deeply")
        if isinstance(value, dict):
            yield value
            left.extend((level + 1, inner) for inner in value.values())
        elif isinstance(value, list):
            left.extend((level + 1, inner) for inner in value)
