from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.input_pipeline import Pixels
from bcc_ops.exceptions import DivergedError, OutOfMemory, TrainingInterrupted
from bcc_ops.models.probabilities import cross_entropies
from bcc_ops.runs.documents import EpochRow
from bcc_ops.runs.epochs import history_csv
from bcc_ops.training.architectures import build_classifier
from bcc_ops.training.checkpoints import CheckpointFolder
from bcc_ops.training.devices import Devices, prepare_devices
from bcc_ops.training.fit import (
    TrainingRecord,
    accuracies,
    describe_progress,
    is_worse,
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
    tuning: Pixels | None = None,
    stop: threading.Event | None = None,
    on_epoch: Callable[[Sequence[EpochRow]], None] = lambda rows: None,
    warm_started_from: str | None = None,
    network: Callable[[float], keras.Model] = _classifier,
    **parameters: Any,
) -> TrainingRecord:
    config = RetrainingConfig.resolve({**PARAMS, **parameters})
    devices = prepare_devices(config.seed, config.deterministic, config.mixed_precision)
    return train(
        network(config.dropout),
        _pixels(18, seed=0),
        tuning or _pixels(9, seed=1),
        warm_started_from=warm_started_from,
        class_weights={"benign": 1.0, "malignant": 2.0, "normal": 0.5},
        config=config,
        devices=devices,
        checkpoints=CheckpointFolder(folder, "checkpoints/one", None),
        stop=stop or threading.Event(),
        on_epoch=on_epoch,
    )


def _metrics(record: TrainingRecord) -> list[tuple[float, ...]]:
    return [(r.loss, r.accuracy, r.tuning_loss, r.tuning_balanced_accuracy, r.learning_rate) for r in record.rows]


def _same_weights(one: TrainingRecord, other: TrainingRecord) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.weights, other.weights))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainingRecord:
    return _train(tmp_path_factory.mktemp("undisturbed"))


def test_the_same_seed_gives_the_same_figures_and_weights(undisturbed: TrainingRecord, tmp_path: Path) -> None:
    again = _train(tmp_path)

    assert _metrics(again) == _metrics(undisturbed)
    assert _same_weights(again, undisturbed)


def test_another_seed_gives_others(undisturbed: TrainingRecord, tmp_path: Path) -> None:
    assert _metrics(_train(tmp_path, seed=8)) != _metrics(undisturbed)


class _Dies(Exception):
    pass


def test_a_training_that_died_ends_with_the_figures_of_an_undisturbed_one(undisturbed: TrainingRecord, tmp_path: Path) -> None:
    def die(rows: Sequence[EpochRow]) -> None:
        if len(rows) in (1, 3):
            raise _Dies

    for _ in range(2):
        with pytest.raises(_Dies):
            _train(tmp_path, on_epoch=die)
    resumed = _train(tmp_path)

    assert resumed.resumed_after == (1, 3)
    assert _metrics(resumed) == _metrics(undisturbed)
    assert resumed.best_epoch == undisturbed.best_epoch
    assert _same_weights(resumed, undisturbed)


def test_training_stops_within_a_batch_and_keeps_its_checkpoint(undisturbed: TrainingRecord, tmp_path: Path) -> None:
    stop = threading.Event()

    with pytest.raises(TrainingInterrupted):
        _train(tmp_path, stop=stop, on_epoch=lambda rows: stop.set() if len(rows) == 2 else None)

    resumed = _train(tmp_path)
    assert resumed.resumed_after == (2,)
    assert _metrics(resumed) == _metrics(undisturbed)


def test_a_resumed_training_names_the_champion_that_its_first_attempt_started_with(tmp_path: Path) -> None:
    def die(rows: Sequence[EpochRow]) -> None:
        if len(rows) == 1:
            raise _Dies

    with pytest.raises(_Dies):
        _train(tmp_path, warm_started_from="v1", on_epoch=die)

    assert _train(tmp_path, warm_started_from="v2").warm_started_from == "v1"


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


LOSSES = [
    [0.9, 0.9, 0.9, 0.9],
    [0.4, 0.4, 0.4, 0.4],  # the lowest
    [0.1, 0.1, 0.1, 1.7],  # higher by 0.1, on one image alone: chance
    [0.5, 0.6, 0.5, 0.6],  # higher by 0.15 on all: the interval of the difference is 0.10 to 0.20
]
"""What each of four tuning images loses in each of four epochs."""


def _tell(monkeypatch: pytest.MonkeyPatch, losses: Sequence[Sequence[float]]) -> Pixels:
    """A tuning part of benign images, about which each epoch's answers are such that they lose this much."""

    def predict(classifier: keras.Model, pixels: Pixels) -> np.ndarray:
        right = np.exp(-np.array(next(epochs)))
        return np.stack([right, (1 - right) / 2, (1 - right) / 2], axis=1)

    epochs, count = iter(losses), len(losses[0])
    monkeypatch.setattr("bcc_ops.training.fit.predict", predict)
    return Pixels(np.zeros((count, SIDE, SIDE, 3), np.uint8), np.zeros(count, np.int64), CLASSES)


def test_the_best_epoch_is_the_latest_that_is_not_worse_than_the_lowest_loss_with_confidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _train(tmp_path, tuning=_tell(monkeypatch, LOSSES))

    assert [row.tuning_loss for row in record.rows] == pytest.approx([0.9, 0.4, 0.5, 0.55])
    assert record.best_epoch == 3
    assert not record.stopped_early


def test_a_resumed_training_knows_what_was_lost_in_the_lowest_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(rows: Sequence[EpochRow]) -> None:
        if len(rows) == 3:
            raise _Dies

    tuning = _tell(monkeypatch, LOSSES)
    with pytest.raises(_Dies):
        _train(tmp_path, tuning=tuning, on_epoch=die)
    assert _train(tmp_path, tuning=tuning).best_epoch == 3


@pytest.mark.parametrize(
    ("differences", "worse"),
    [
        # mean 1, standard error sqrt(0.5) / sqrt(4): 1 - 1.96 * 0.354 is above 0
        ([0.0, 1.0, 1.0, 2.0], True),
        # mean 1, standard error sqrt(3) / sqrt(4): 1 - 1.96 * 0.866 is below
        ([0.0, 0.0, 0.0, 4.0], False),
        ([0.0, 0.0, 0.0, 0.0], False),
        ([-1.0, -1.0, -1.0, -1.0], False),
    ],
)
def test_a_loss_is_worse_where_the_interval_of_the_difference_says_so(differences: list[float], worse: bool) -> None:
    lowest = np.array([0.3, 0.1, 0.2, 0.4])
    assert is_worse(lowest + differences, lowest) is worse


def test_patience_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance, worse = LOSSES[2], LOSSES[3]
    tuning = _tell(monkeypatch, [LOSSES[1], worse, chance, worse, worse, worse])

    record = _train(tmp_path, tuning=tuning, epochs=6, early_stopping_patience=2)

    assert record.stopped_early
    assert (record.best_epoch, len(record.rows)) == (3, 5)


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
    tuning = _tell(monkeypatch, [LOSSES[0], [math.nan] * 4])

    with pytest.raises(DivergedError, match="after epoch 2: try a lower learning_rate"):
        _train(tmp_path, tuning=tuning)


def test_history_grows_with_each_epoch(tmp_path: Path) -> None:
    seen: list[int] = []

    _train(tmp_path, epochs=2, on_epoch=lambda rows: seen.append(len(history_csv(rows).decode().splitlines())))

    assert seen == [2, 3]


def test_each_epoch_is_one_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="bcc_ops.training.fit"):
        _train(tmp_path, epochs=2)

    lines = [record.message for record in caplog.records if record.name == "bcc_ops.training.fit"]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]


def test_exhausted_memory_is_one_line_with_a_batch_size_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*args: object, **kwargs: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[4,46,46,16]")

    monkeypatch.setattr(keras.Model, "fit", exhausted)

    with pytest.raises(OutOfMemory, match=r"batch of 4 images.*try batch_size 2"):
        _train(tmp_path)


def test_tuning_figures_are_unweighted() -> None:
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
        tuning_loss=0.625,
        tuning_accuracy=0.7,
        tuning_balanced_accuracy=0.65,
        learning_rate=0.001,
        seconds=30.0,
        images_per_second=40.0,
    )

    line = describe_progress(row, epochs=16, best_epoch=2)

    assert line == (
        "epoch 3/16: loss 0.500, accuracy 0.750; tuning loss 0.625, accuracy 0.700, balanced 0.650; "
        "40 images/s, 30 s; best epoch 2, at most 6 min to go"
    )


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
