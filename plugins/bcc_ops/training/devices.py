"""What training runs on: accelerators, precision, determinism, compilation; each as it is, not as it was hoped for."""

from __future__ import annotations

import logging
import platform
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from bcc_ops.exceptions import GpuMissing, OutOfMemory

log = logging.getLogger(__name__)

_TENSOR_CORES = (7, 0)  # compute capability from which 16 bits are faster than 32


@dataclass(frozen=True)
class Devices:
    """Where and how a training computes.

    Attributes:
        names: the GPUs, or the processor if there is none.
        strategy: over several GPUs `MirroredStrategy`, else TensorFlow's default.
        mixed_precision: whether layers compute in 16 bits.
        jit_compile: whether the training step is compiled by XLA.
        xla: a sentence about that.
        determinism_note: why two runs may differ although they were asked not to; None if they do not.
    """

    names: tuple[str, ...]
    strategy: tf.distribute.Strategy
    mixed_precision: bool
    jit_compile: bool
    xla: str
    determinism_note: str | None


def require_gpu() -> None:
    """Make sure that there is a GPU.

    Raises:
        GpuMissing: there is none.
    """
    if not tf.config.list_physical_devices("GPU"):
        raise GpuMissing(
            f"require_gpu is on and TensorFlow sees no GPU on {platform.node()}: run the task on a GPU worker (BCC_GPU_QUEUE), "
            "install tensorflow[and-cuda] there, or switch require_gpu off"
        )


def prepare_devices(seed: int, deterministic: bool, mixed_precision: bool) -> Devices:
    """Set seeds, determinism, precision and memory growth for this process.

    Args:
        seed: of Python's, NumPy's and TensorFlow's generators.
        deterministic: ask for ops that give the same metrics each time.
        mixed_precision: compute in float16 on GPUs with tensor cores; on a processor it is slower, and stays off.
    """
    keras.utils.set_random_seed(seed)
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        # Else the first task on a GPU takes all its memory, and a second one beside it fails.
        tf.config.experimental.set_memory_growth(gpu, True)
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    mixed = mixed_precision and bool(gpus) and all(d.get("compute_capability", (0, 0)) >= _TENSOR_CORES for d in details)
    keras.config.set_dtype_policy("mixed_float16" if mixed else "float32")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    jit = bool(gpus) and not deterministic
    devices = Devices(
        names=tuple(d.get("device_name", gpu.name) for d, gpu in zip(details, gpus)) or (f"CPU: {_processor()}",),
        strategy=tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy(),
        mixed_precision=mixed,
        jit_compile=jit,
        xla=_xla(bool(gpus), deterministic),
        determinism_note=None if deterministic else "deterministic is off: the order of sums may differ from run to run",
    )
    log.info("training on %s; %s; %s", ", ".join(devices.names), "float16" if mixed else "float32", devices.xla)
    return devices


def _xla(gpu: bool, deterministic: bool) -> str:
    if not gpu:
        return "XLA off: on a processor it is many times slower (docs/training-trials.md)"
    return "XLA off: it does not promise determinism" if deterministic else "XLA on"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            named = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    except OSError:
        named = None
    return named.group(1) if named else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of what the metrics depend on."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def peak_memory_mb() -> float:
    """Return the most memory that this process had resident so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


@contextmanager
def telling_out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn TensorFlow's report of exhausted memory into one line with a batch size to try."""
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        way_out = f"try batch_size {batch_size // 2}" if batch_size > 1 else "try a smaller image_size"
        raise OutOfMemory(f"a batch of {batch_size} images does not fit into the memory of the device: {way_out}") from None
