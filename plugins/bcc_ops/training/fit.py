"""Train a fold's model: images in, the last epoch's weights and the record of its training out.

The held-out fold decides nothing here, or its answers would not be out-of-fold: no epoch is chosen and nothing ends early. Its
loss after each epoch is shown to people. The learning rate falls along a cosine, so that the last epoch is the one to keep.

After each epoch, the whole state of the training is in a checkpoint. What an epoch does is a function of that and of (seed,
epoch), so a resumed training ends with the metrics of an undisturbed one.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.input_pipeline import Augmentation, Pixels, plain_batches, training_batches
from bcc_ops.exceptions import DivergedError, TrainingInterrupted
from bcc_ops.models.probabilities import cross_entropies
from bcc_ops.runs.documents import EpochRow
from bcc_ops.runs.epochs import describe_epoch
from bcc_ops.training.checkpoints import Checkpoint, CheckpointFolder
from bcc_ops.training.devices import Devices, telling_out_of_memory

log = logging.getLogger(__name__)

_EXPLODED = 10.0
_EMA_MOMENTUM = 0.98
_HELD_OUT_BATCH = 32


@dataclass(frozen=True)
class TrainingRecord:
    """What came of a training.

    Attributes:
        weights: of the classifier after the last epoch, in the order of `classifier.weights`.
        rows: one row per epoch.
        resumed_after: for each resumption, how many epochs were done by then.
        seconds: spent on epochs, over all attempts.
    """

    weights: tuple[np.ndarray, ...]
    rows: tuple[EpochRow, ...]
    resumed_after: tuple[int, ...]
    seconds: float


def train(
    classifier: keras.Model,
    pixels: Pixels,
    held_out: Pixels,
    *,
    fold: int,
    class_weights: Mapping[str, float],
    config: RetrainingConfig,
    devices: Devices,
    checkpoints: CheckpointFolder,
    stop: threading.Event,
    on_epoch: Callable[[Sequence[EpochRow]], None],
) -> TrainingRecord:
    """Train until the epochs are done.

    Args:
        classifier: the network, built under `devices.strategy`; afterwards it has the last epoch's weights.
        pixels: the images of the other folds.
        held_out: those of the model's own fold, which are only looked at.
        fold: its number, for the record.
        class_weights: class -> weight of its images in the loss.
        config: the run's parameters.
        devices: as `prepare_devices` gave them.
        checkpoints: where to go on from, and where each epoch is kept.
        stop: training stops within a batch once this is set.
        on_epoch: called with all rows so far, after each epoch.

    Raises:
        DivergedError: the loss became NaN or exploded.
        TrainingInterrupted: `stop` was set; the checkpoint is kept.
        OutOfMemory: a batch does not fit into the device's memory.
    """
    trainer = _Trainer.prepare(
        classifier, pixels, held_out, fold=fold, class_weights=class_weights, config=config, devices=devices, stop=stop
    )
    reached = trainer.resume(checkpoints.load()) or Checkpoint((), (), (), (), 0.0)
    while reached.epochs < config.epochs:
        reached = trainer.run_epoch(reached)
        checkpoints.save(reached)
        on_epoch(reached.rows)
        log.info("%s", describe_progress(reached.rows[-1], config.epochs))
    return TrainingRecord(reached.weights, reached.rows, reached.resumed_after, reached.seconds)


@dataclass(frozen=True)
class _Trainer:
    """A compiled network and its images: takes training from one epoch's end to the next.

    Attributes:
        class_weights: number of the class -> weight of its images in the loss.
        watch: ends an epoch that was stopped or that diverges.
    """

    classifier: keras.Model
    optimizer: keras.Optimizer
    pixels: Pixels
    held_out: Pixels
    fold: int
    class_weights: Mapping[int, float]
    config: RetrainingConfig
    watch: _Watch

    @classmethod
    def prepare(
        cls,
        classifier: keras.Model,
        pixels: Pixels,
        held_out: Pixels,
        *,
        fold: int,
        class_weights: Mapping[str, float],
        config: RetrainingConfig,
        devices: Devices,
        stop: threading.Event,
    ) -> _Trainer:
        """Compile the network; arguments as in `train`."""
        with devices.strategy.scope():
            optimizer = _compile(classifier, config, devices, steps_per_epoch=math.ceil(len(pixels) / config.batch_size))
        weights = {position: class_weights[name] for position, name in enumerate(pixels.classes)}
        watch = _Watch(stop, limit=_EXPLODED * math.log(len(pixels.classes)) * max(weights.values()))
        return cls(classifier, optimizer, pixels, held_out, fold, weights, config, watch)

    @property
    def state(self) -> list[Any]:
        """The variables that make up training: of the model, and then of the optimizer."""
        return [*self.classifier.variables, *self.optimizer.variables]

    def resume(self, found: Checkpoint | None) -> Checkpoint | None:
        """Put what an earlier attempt reached into the model and the optimizer; None if there is nothing that fits."""
        if found is None:
            return None
        if not found.fits(self.state, self.classifier.weights):
            log.warning("the checkpoint after epoch %d is ignored: it is of a network of another shape", found.epochs)
            return None
        _assign(self.state, found.variables)
        log.info("going on after epoch %d, from a checkpoint", found.epochs)
        return replace(found, resumed_after=(*found.resumed_after, found.epochs))

    def run_epoch(self, reached: Checkpoint) -> Checkpoint:
        """Train one epoch more, and look at the held-out fold.

        Raises:
            DivergedError, TrainingInterrupted, OutOfMemory: see `train`.
        """
        epoch, began, rate = reached.epochs + 1, time.monotonic(), float(self.optimizer.learning_rate)
        logs = self._fit(epoch)
        trained = time.monotonic() - began
        averaged, raw = _averaged_weights(self.classifier, self.optimizer, self.config)
        probabilities = predict(self.classifier, self.held_out)
        losses = cross_entropies(probabilities, self.held_out.labels)
        if not np.isfinite(losses).all():  # no later batch of this epoch sees what its last batch's update did
            raise DivergedError(f"the network's answers are not numbers after epoch {epoch}: try a lower learning_rate")
        accuracy, balanced = accuracies(probabilities, self.held_out.labels)
        row = EpochRow(
            fold=self.fold,
            epoch=epoch,
            loss=logs["loss"][-1],
            accuracy=logs["accuracy"][-1],
            held_out_loss=float(losses.mean()),
            held_out_accuracy=accuracy,
            held_out_balanced_accuracy=balanced,
            learning_rate=max(rate, float(self.optimizer.learning_rate)),
            seconds=time.monotonic() - began,
            images_per_second=len(self.pixels) / trained,
        )
        _assign(self.classifier.trainable_variables, raw)
        return replace(
            reached,
            variables=_values(self.state),
            weights=averaged,
            rows=(*reached.rows, row),
            seconds=reached.seconds + row.seconds,
        )

    def _fit(self, epoch: int) -> Mapping[str, Sequence[float]]:
        config = self.config
        batches = training_batches(self.pixels, Augmentation.of(config), config.batch_size, config.seed, epoch)
        with telling_out_of_memory(config.batch_size):
            history: Mapping[str, Sequence[float]] = self.classifier.fit(
                batches, epochs=1, verbose=0, shuffle=False, class_weight=dict(self.class_weights), callbacks=[self.watch]
            ).history
        return history


def _compile(classifier: keras.Model, config: RetrainingConfig, devices: Devices, steps_per_epoch: int) -> keras.Optimizer:
    rate: Any = config.learning_rate
    warmup = config.warmup_epochs * steps_per_epoch
    if config.cosine_decay:
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else config.learning_rate,
            decay_steps=max(1, (config.epochs - config.warmup_epochs) * steps_per_epoch),
            warmup_target=config.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    elif warmup:
        rate = keras.optimizers.schedules.PolynomialDecay(config.learning_rate / warmup, warmup, config.learning_rate)
    optimizer = keras.optimizers.AdamW(
        rate, weight_decay=config.weight_decay, use_ema=config.ema, ema_momentum=_EMA_MOMENTUM, ema_overwrite_frequency=None
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    classifier.compile(
        optimizer,
        keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing),
        metrics=["accuracy"],
        jit_compile=devices.jit_compile,
    )
    # Under mixed precision Keras wraps the optimizer into one that scales the loss, which has variables of its own.
    classifier.optimizer.build(classifier.trainable_variables)
    return classifier.optimizer


def _values(variables: Sequence[Any]) -> tuple[np.ndarray, ...]:
    return tuple(variable.numpy() for variable in variables)


def _assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values):
        variable.assign(value)


def _averaged_weights(
    classifier: keras.Model, optimizer: keras.Optimizer, config: RetrainingConfig
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Put the weights' moving average into the model: all weights then, and the trainable ones as training left them."""
    raw = _values(classifier.trainable_variables)
    if config.ema:
        optimizer.finalize_variable_values(classifier.trainable_variables)
    return tuple(classifier.get_weights()), raw


def predict(classifier: keras.Model, pixels: Pixels) -> np.ndarray:
    """Probabilities for every image, float32 (n, classes)."""
    probabilities: np.ndarray = classifier.predict(plain_batches(pixels, _HELD_OUT_BATCH), verbose=0)
    return probabilities


def accuracies(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return accuracy, and balanced accuracy over the classes that occur.

    Args:
        probabilities: (n, classes).
        labels: (n,) indices of the true classes.
    """
    right = probabilities.argmax(axis=1) == labels
    return float(right.mean()), float(np.mean([right[labels == name].mean() for name in np.unique(labels)]))


def describe_progress(row: EpochRow, epochs: int) -> str:
    """Describe an epoch and what is left, in one line."""
    left = (epochs - row.epoch) * row.seconds
    return f"{describe_epoch(row, epochs)}; {left / 60:.0f} min to go"


class _Watch(keras.callbacks.Callback):
    """After each batch: was it stopped from outside, did it diverge?"""

    def __init__(self, stop: threading.Event, limit: float) -> None:
        super().__init__()
        self._stop = stop
        self._limit = limit

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._stop.is_set():
            raise TrainingInterrupted("training was stopped from outside; its checkpoint is kept, and a retry goes on from there")
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise DivergedError(f"the loss became {loss} in batch {batch + 1}: try a lower learning_rate")
        if loss > self._limit:
            raise DivergedError(f"the loss exploded to {loss:.1f} in batch {batch + 1}: try a lower learning_rate")
