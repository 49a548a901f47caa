"""What training runs on, and how it says that this is not enough."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from bcc_ops.exceptions import GpuMissing, OutOfMemory
from bcc_ops.training.devices import peak_memory_mb, prepare_devices, require_gpu, telling_out_of_memory, versions


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The GPUs that TensorFlow sees."""
    seen: list[str] = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: seen)
    return seen


def test_a_gpu_that_was_asked_for_and_is_not_there_is_one_clear_line(gpus: list[str]) -> None:
    with pytest.raises(GpuMissing, match=r"TensorFlow sees no GPU on .*switch require_gpu off"):
        require_gpu()
    gpus.append("gpu")
    require_gpu()


def test_a_processor_computes_in_32_bits_and_without_xla(gpus: list[str]) -> None:
    devices = prepare_devices(1, deterministic=True, mixed_precision=True)
    assert (devices.mixed_precision, devices.jit_compile, devices.determinism_note) == (False, False, None)
    assert devices.names[0].startswith("CPU: ") and devices.xla.startswith("XLA off: on a processor")
    assert keras.config.dtype_policy().name == "float32"


def test_the_seed_is_that_of_every_generator(gpus: list[str]) -> None:
    def draw(seed: int) -> tuple[float, float]:
        prepare_devices(seed, deterministic=True, mixed_precision=False)
        return float(np.random.rand()), float(tf.random.uniform(()))

    first = draw(1)
    assert draw(1) == first
    other = draw(2)
    assert other[0] != first[0] and other[1] != first[1]


@pytest.mark.parametrize(("batch_size", "way_out"), [(16, "try batch_size 8"), (1, "try a smaller image_size")])
def test_exhausted_memory_is_one_line_with_what_to_try(batch_size: int, way_out: str) -> None:
    with pytest.raises(OutOfMemory, match=f"a batch of {batch_size} images does not fit .*: {way_out}$"):
        with telling_out_of_memory(batch_size):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    with pytest.raises(ValueError, match="another"):
        with telling_out_of_memory(batch_size):
            raise ValueError("another")


def test_what_the_metrics_depend_on_is_told() -> None:
    assert versions()["keras"] == keras.__version__ and set(versions()) == {"python", "tensorflow", "keras", "numpy"}
    assert 50 < peak_memory_mb() < 200_000
