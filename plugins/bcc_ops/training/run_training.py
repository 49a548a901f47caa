"""Train a fold's model: a run's documents in, the contents of the fold's files out."""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.input_pipeline import Pixels, decode_images, read_as_notebook
from bcc_ops.models.classifier import Classifier
from bcc_ops.models.combination import model_file_of
from bcc_ops.runs.documents import FoldDocument, Reference, SnapshotDocument, SplitDocument
from bcc_ops.runs.epochs import history_csv
from bcc_ops.runs.paths import RunPaths, fold_file
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import write_answers
from bcc_ops.training.architectures import build_classifier, with_mirror_image
from bcc_ops.training.checkpoints import CheckpointFolder
from bcc_ops.training.completed import describe_preprocessing
from bcc_ops.training.devices import Devices, peak_memory_mb, prepare_devices, require_gpu, versions
from bcc_ops.training.fit import TrainingRecord, train
from bcc_ops.training.job_folder import TrainedFold

if TYPE_CHECKING:
    from bcc_ops.dataset.sync import LocalImage

log = logging.getLogger(__name__)

PIXELS_IN_MEMORY = 1_000_000_000
"""Bytes of decoded images kept in memory, of those to train on and of those held out each; more are in a file in the cache."""

Weights = Mapping[str, np.ndarray] | Path | str | None


@dataclass(frozen=True)
class FoldInputs:
    """What a fold's model is trained with.

    Attributes:
        fold: which one is held out.
        config, config_digest, snapshot, split: the run's documents.
        split_reference: names the latter in the fold's document.
        rows: the run's split.parquet.
        synthetic: whether images that the project drew itself are among them.
        images: brings the snapshot's images to this worker; called once it is clear that training can start.
        weights: loads the backbone's weights, as `pretrained.backbone_weights` does.
        scratch: folder of this worker, for pixels that memory does not hold.
    """

    fold: int
    config: RetrainingConfig
    config_digest: str
    snapshot: SnapshotDocument
    split: SplitDocument
    split_reference: Reference
    rows: Sequence[SplitRow]
    synthetic: bool
    images: Callable[[], Sequence[LocalImage]]
    weights: Callable[[], Weights]
    scratch: Path

    @property
    def trained_on(self) -> list[SplitRow]:
        """The images that the model learns from."""
        return [row for row in self.rows if row.fold != self.fold and row.trained_on]

    @property
    def held_out(self) -> list[SplitRow]:
        """The images that the model is asked about."""
        return [row for row in self.rows if row.fold == self.fold]


def train_fold(
    paths: RunPaths,
    inputs: FoldInputs,
    checkpoints: CheckpointFolder,
    *,
    stop: threading.Event,
    publish: Callable[[bytes], None],
) -> TrainedFold:
    """Train the model of a fold on the other folds, and ask it about its own.

    Args:
        paths: of the run's documents, to refer to them.
        inputs: the run, and the fold.
        checkpoints: where each epoch is kept, and where an earlier attempt may have kept some.
        stop: training stops within a batch once this is set.
        publish: takes the history after each epoch.

    Raises:
        GpuMissing: one was asked for and is not there; nothing was downloaded.
        WeightsUnavailable: the backbone's weights are not available; nothing was downloaded.
        DivergedError, OutOfMemory, TrainingInterrupted: see `fit.train`.
    """
    config = inputs.config
    if config.require_gpu:
        require_gpu()
    devices = prepare_devices(config.seed, config.deterministic, config.mixed_precision)
    classifier = _build(inputs, devices)
    images = {image.key: image for image in inputs.images()}
    record = train(
        classifier,
        _decode([images[row.key] for row in inputs.trained_on], inputs),
        _decode([images[row.key] for row in inputs.held_out], inputs),
        fold=inputs.fold,
        class_weights=inputs.split.weights,
        config=config,
        devices=devices,
        checkpoints=checkpoints,
        stop=stop,
        on_epoch=lambda rows: publish(history_csv(rows)),
    )
    if devices.mixed_precision:
        # A file that computes in float16 would be slow and less exact wherever there is no GPU.
        keras.config.set_dtype_policy("float32")
        classifier = _build(inputs, devices)
    classifier.set_weights(list(record.weights))
    model = with_mirror_image(classifier) if config.test_time_flip else classifier
    asked = Classifier(model, config.image_size, len(inputs.split.classes), config.keep_aspect)
    probabilities = asked.predict([images[row.key].path for row in inputs.held_out])
    history, content = history_csv(record.rows), model_file_of(model)
    answers = write_answers(inputs.held_out, inputs.split.classes, probabilities)
    references = {
        name: Reference.of(paths.document(fold_file(inputs.fold, ending)), stored)
        for name, ending, stored in (("history", "csv", history), ("model", "h5", content), ("answers", "parquet", answers))
    }
    document = _describe(inputs, devices, record, classifier.count_params(), references)
    log.info("fold %d trained in %.0f s, %d epochs", inputs.fold, record.seconds, len(record.rows))
    return TrainedFold(document, history, content, answers)


def _build(inputs: FoldInputs, devices: Devices) -> keras.Model:
    config = inputs.config
    weights = inputs.weights()
    # All folds' models must start alike, the random weights of the last layer included: their average is a model only then.
    keras.utils.set_random_seed(config.seed)
    with devices.strategy.scope():
        return build_classifier(
            config.architecture,
            config.image_size,
            len(inputs.split.classes),
            dropout=config.dropout,
            weights=weights,
            frozen_part=config.frozen_part,
            standardize=config.standardize,
        )


def _decode(images: Sequence[LocalImage], inputs: FoldInputs) -> Pixels:
    config, classes = inputs.config, inputs.split.classes
    place: dict[str, Any] = {"scratch": inputs.scratch, "budget_bytes": PIXELS_IN_MEMORY}
    if config.preset == "notebook" and not config.keep_aspect:
        return read_as_notebook(images, classes, side=config.image_size, **place)
    return decode_images(images, classes, side=config.image_size, keep_aspect=config.keep_aspect, **place)


def _describe(
    inputs: FoldInputs, devices: Devices, record: TrainingRecord, parameters: int, references: Mapping[str, Reference]
) -> FoldDocument:
    config = inputs.config
    return FoldDocument(
        fold=inputs.fold,
        preset=config.preset,
        architecture=config.architecture,
        weights=config.weights,
        classes=inputs.split.classes,
        image_size=config.image_size,
        keep_aspect=config.keep_aspect,
        preprocessing=describe_preprocessing(config),
        parameters=parameters,
        seed=config.seed,
        deterministic=config.deterministic,
        determinism_note=devices.determinism_note,
        mixed_precision=devices.mixed_precision,
        xla=devices.xla,
        versions=versions(),
        devices=devices.names,
        host=platform.node(),
        images=len(inputs.trained_on),
        epochs=len(record.rows),
        resumed_after_epochs=record.resumed_after,
        seconds=record.seconds,
        seconds_per_epoch=record.seconds / len(record.rows),
        images_per_second=sum(row.images_per_second for row in record.rows) / len(record.rows),
        peak_memory_mb=peak_memory_mb(),
        snapshot_digest=inputs.snapshot.digest,
        config_digest=inputs.config_digest,
        split=inputs.split_reference,
        synthetic=inputs.synthetic,
        **references,
    )
