from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.input_pipeline import Pixels
from bcc_ops.exceptions import DivergedError, OutOfMemory, TrainingInterrupted
from bcc_ops.models.probabilities import cross_entropies
from bcc_ops.runs.documents import EpochRow
from bcc_ops.runs.epochs import describe_epoch, history_csv
from bcc_ops.training.architectures import build_classifier
from bcc_ops.training.checkpoints import CheckpointFolder
from bcc_ops.training.devices import Devices, prepare_devices
from bcc_ops.training.fit import (
    TrainingRecord,
    accuracies,
    describe_progress,
    train,
)

CLASSES = ("benign", "malignant", "normal")
SIDE = 46
PARAMS: dict[str, Any] = {
    "architecture": "cnn",
    "weights": "none",
    "image_size": SIDE,
    "batch_size": 4,
    "epochs": 4,
    "learning_rate": 0.002,
    "dropout": 0.3,
    "seed": 7,
}


def _pixels(count: int, seed: int) -> Pixels:
    """Noise whose brightness tells its class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 100, (count, SIDE, SIDE, 3)) + 70 * labels[:, None, None, None]
    return Pixels(images.astype(np.uint8), labels, CLASSES)


def _classifier(dropout: float) -> keras.Model:
    """A network with everything that training treats specially, and little else: what takes time is tracing its variables."""
    layers = [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(4, 3, strides=4, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dropout(dropout),
        keras.layers.Dense(3, activation="softmax", dtype="float32", name="probabilities"),
    ]
    return keras.Sequential([keras.Input((SIDE, SIDE, 3)), *layers])


def _deep(dropout: float) -> keras.Model:
    """The notebook's network, which nothing keeps from diverging."""
    return build_classifier("cnn", SIDE, 3, dropout=dropout, weights=None, frozen_part=0.0)


def _train(
    folder: Path,
    *,
    held_out: Pixels | None = None,
    fold: int = 4,
    stop: threading.Event | None = None,
    on_epoch: Callable[[Sequence[EpochRow]], None] = lambda rows: None,
    network: Callable[[float], keras.Model] = _classifier,
    **parameters: Any,
) -> TrainingRecord:
    config = RetrainingConfig.resolve({**PARAMS, **parameters})
    devices = prepare_devices(config.seed, config.deterministic, config.mixed_precision)
    return train(
        network(config.dropout),
        _pixels(18, seed=0),
        held_out or _pixels(9, seed=1),
        fold=fold,
        class_weights={"benign": 1.0, "malignant": 2.0, "normal": 0.5},
        config=config,
        devices=devices,
        checkpoints=CheckpointFolder(folder, "checkpoints/one", None),
        stop=stop or threading.Event(),
        on_epoch=on_epoch,
    )


def _metrics(record: TrainingRecord) -> list[tuple[float, ...]]:
    return [(r.loss, r.accuracy, r.held_out_loss, r.held_out_balanced_accuracy, r.learning_rate) for r in record.rows]


def _same_weights(one: TrainingRecord, other: TrainingRecord) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.weights, other.weights))


class Seen(NamedTuple):
    """What is seen of a training while it goes on: the lines of its history after each epoch, and of its log."""

    record: TrainingRecord
    history: list[int]
    log: list[str]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """An uninterrupted training."""
    history: list[int] = []
    log, lines = logging.getLogger("bcc_ops.training.fit"), BufferingHandler(capacity=100)
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    try:
        record = _train(
            tmp_path_factory.mktemp("undisturbed"),
            on_epoch=lambda rows: history.append(len(history_csv(rows).decode().splitlines())),
        )
    finally:
        log.removeHandler(lines)
        log.setLevel(logging.NOTSET)
    return Seen(record, history, [line.getMessage() for line in lines.buffer])


@pytest.fixture(scope="module")
def undisturbed(seen: Seen) -> TrainingRecord:
    return seen.record


def test_the_same_seed_gives_the_same_metrics_and_weights(undisturbed: TrainingRecord, tmp_path: Path) -> None:
    again = _train(tmp_path)

    assert _metrics(again) == _metrics(undisturbed)
    assert _same_weights(again, undisturbed)


def test_another_seed_gives_others(undisturbed: TrainingRecord, tmp_path: Path) -> None:
    assert _metrics(_train(tmp_path, seed=8)) != _metrics(undisturbed)


class _Dies(Exception):
    pass


def test_a_training_that_died_and_then_was_stopped_within_a_batch_ends_with_the_metrics_of_an_undisturbed_one(
    undisturbed: TrainingRecord, tmp_path: Path
) -> None:
    stop = threading.Event()

    def die(rows: Sequence[EpochRow]) -> None:
        raise _Dies

    with pytest.raises(_Dies):
        _train(tmp_path, on_epoch=die)
    with pytest.raises(TrainingInterrupted):
        _train(tmp_path, stop=stop, on_epoch=lambda rows: stop.set() if len(rows) == 3 else None)
    resumed = _train(tmp_path)

    assert resumed.resumed_after == (1, 3)
    assert _metrics(resumed) == _metrics(undisturbed)
    assert _same_weights(resumed, undisturbed)


def test_a_checkpoint_of_another_network_is_ignored_with_a_warning(
    undisturbed: TrainingRecord, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def die(rows: Sequence[EpochRow]) -> None:
        raise _Dies

    with pytest.raises(_Dies):
        _train(tmp_path, on_epoch=die, ema=False)

    record = _train(tmp_path)

    assert "another shape" in caplog.text
    assert record.resumed_after == ()
    assert _metrics(record) == _metrics(undisturbed)


HELD_OUT_LOSSES = [
    [0.4, 0.4, 0.4, 0.4],  # the lowest
    [0.9, 0.9, 0.9, 0.9],
    [0.1, 0.1, 0.1, 1.7],
    [2.5, 2.6, 2.5, 2.6],
]
"""What each of four held-out images loses in each of four epochs."""


def _tell(monkeypatch: pytest.MonkeyPatch, losses: Sequence[Sequence[float]]) -> Pixels:
    """A held-out fold of benign images, about which each epoch's answers are such that they lose this much."""

    def predict(classifier: keras.Model, pixels: Pixels) -> np.ndarray:
        right = np.exp(-np.array(next(epochs)))
        return np.stack([right, (1 - right) / 2, (1 - right) / 2], axis=1)

    epochs, count = iter(losses), len(losses[0])
    monkeypatch.setattr("bcc_ops.training.fit.predict", predict)
    return Pixels(np.zeros((count, SIDE, SIDE, 3), np.uint8), np.zeros(count, np.int64), CLASSES)


def test_the_held_out_fold_is_looked_at_and_decides_nothing(
    undisturbed: TrainingRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers would not be out-of-fold if an epoch were chosen by them, or if training ended by them."""
    record = _train(tmp_path, held_out=_tell(monkeypatch, HELD_OUT_LOSSES))

    assert [row.held_out_loss for row in record.rows] == pytest.approx([0.4, 0.9, 0.5, 2.55])
    assert [row.loss for row in record.rows] == [row.loss for row in undisturbed.rows]
    assert _same_weights(record, undisturbed)


def test_the_weights_are_those_of_the_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the epoch with the lowest held-out loss, and without an average those that the optimizer left."""
    kept: list[list[np.ndarray]] = []

    def network(dropout: float) -> keras.Model:
        built.append(_classifier(dropout))
        return built[-1]

    built: list[keras.Model] = []
    record = _train(
        tmp_path,
        held_out=_tell(monkeypatch, HELD_OUT_LOSSES),
        on_epoch=lambda rows: kept.append(built[-1].get_weights()),
        network=network,
        ema=False,
    )

    assert all(np.array_equal(weight, last) for weight, last in zip(record.weights, kept[-1]))
    assert not all(np.array_equal(weight, lowest) for weight, lowest in zip(record.weights, kept[0]))


def test_every_epoch_is_of_the_fold_that_is_held_out(undisturbed: TrainingRecord) -> None:
    assert [(row.fold, row.epoch) for row in undisturbed.rows] == [(4, 1), (4, 2), (4, 3), (4, 4)]


def test_the_learning_rate_rises_over_the_warm_up_and_falls_along_a_cosine(undisturbed: TrainingRecord) -> None:
    # 5 steps an epoch, 1 of 4 epochs of warm-up: then a cosine over 15 steps, of which 5, 10 and 15 are done.
    def cosine(done: float) -> float:
        return 0.002 * (1 + math.cos(math.pi * done)) / 2

    # A row names the highest rate of its epoch, which in a falling schedule is that of its first step.
    assert [row.learning_rate for row in undisturbed.rows] == pytest.approx(
        [0.002, 0.002, cosine(1 / 3), cosine(2 / 3)], rel=1e-4
    )


def test_a_loss_that_is_no_number_ends_with_no_model(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="learning_rate"):
        _train(tmp_path, network=_deep, learning_rate=1.0, weight_decay=0.0, warmup_epochs=0, epochs=20)


def test_weights_that_the_last_batch_of_an_epoch_spoils_end_with_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = _tell(monkeypatch, [HELD_OUT_LOSSES[0], [math.nan] * 4])

    with pytest.raises(DivergedError, match="after epoch 2: try a lower learning_rate"):
        _train(tmp_path, held_out=held_out)


def test_history_grows_with_each_epoch(seen: Seen) -> None:
    assert seen.history == [2, 3, 4, 5]


def test_each_epoch_is_one_line_of_the_log(seen: Seen) -> None:
    assert len(seen.log) == 4
    assert all("loss" in line and "held-out loss" in line and "\n" not in line for line in seen.log)


def test_exhausted_memory_is_one_line_with_a_batch_size_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*args: object, **kwargs: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[4,46,46,16]")

    monkeypatch.setattr(keras.Model, "fit", exhausted)

    with pytest.raises(OutOfMemory, match=r"batch of 4 images.*try batch_size 2"):
        _train(tmp_path)


def test_held_out_metrics_are_unweighted() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.5, 0.25, 0.25], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    labels = np.array([0, 0, 1, 2])

    # -ln 0.8, -ln 0.5, -ln 0.3, -ln 0.6
    assert cross_entropies(probabilities, labels) == pytest.approx([0.22314, 0.69315, 1.20397, 0.51083], abs=1e-5)
    # Three of four are right, and of the classes 1, 0 and 1.
    assert accuracies(probabilities, labels) == (0.75, pytest.approx(2 / 3))


def test_an_epochs_line_says_what_a_person_waits_for() -> None:
    row = EpochRow(
        epoch=3,
        loss=0.5,
        accuracy=0.75,
        held_out_loss=0.625,
        held_out_accuracy=0.7,
        held_out_balanced_accuracy=0.65,
        learning_rate=0.001,
        seconds=30.0,
        images_per_second=40.0,
    )

    line = describe_progress(row, epochs=16)

    # 13 epochs of 30 s
    assert line == f"{describe_epoch(row, 16)}; 6 min to go"


def test_training_in_16_bits_resumes_as_it_would_have_gone_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor this is slow and of no use, but the optimizer that scales the loss is the one of a GPU."""

    def die(rows: Sequence[EpochRow]) -> None:
        raise _Dies

    prepare = prepare_devices

    def in_16_bits(*args: Any) -> Devices:
        devices = prepare(*args)
        keras.config.set_dtype_policy("mixed_float16")
        return devices

    monkeypatch.setattr(sys.modules[__name__], "prepare_devices", in_16_bits)
    try:
        undisturbed = _train(tmp_path / "undisturbed", epochs=2)
        with pytest.raises(_Dies):
            _train(tmp_path / "killed", epochs=2, on_epoch=die)
        resumed = _train(tmp_path / "killed", epochs=2)
    finally:
        keras.config.set_dtype_policy("float32")

    assert resumed.resumed_after == (1,)
    assert _metrics(resumed) == _metrics(undisturbed)
    assert all(array.dtype == np.float32 for array in resumed.weights)


@pytest.mark.slow
def test_training_over_several_devices_works_and_keeps_its_checkpoint_whole(tmp_path: Path) -> None:
    """Two virtual processors take the place of two GPUs, in a process of its own: devices are made at its start."""
    script = Path(__file__).with_name("train_on_two_devices.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["plugins", "."])}

    answer = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, env=environment, timeout=280, check=False
    )

    assert answer.returncode == 0, answer.stderr[-2000:]
    assert json.loads(answer.stdout.splitlines()[-1]) == {"replicas": 2, "resumed_after": [1], "rows": 2}
