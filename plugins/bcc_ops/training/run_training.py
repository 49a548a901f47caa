"""Train a run's challenger: its documents in, the contents of training.json, history.csv and model.h5 out."""

from __future__ import annotations

import logging
import platform
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.input_pipeline import Pixels, decode_images, read_as_notebook
from bcc_ops.runs.documents import PARTITIONS, Partition, Reference, SnapshotDocument, SplitDocument, TrainingDocument
from bcc_ops.runs.epochs import history_csv
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.tables import SplitRow
from bcc_ops.training.architectures import (
    build_classifier,
    copy_matching_weights,
    drop_class_biases,
    scale_odds,
    with_mirror_image,
)
from bcc_ops.training.checkpoints import CheckpointFolder
from bcc_ops.training.completed import describe_preprocessing
from bcc_ops.training.devices import Devices, peak_memory_mb, prepare_devices, require_gpu, versions
from bcc_ops.training.fit import TrainingRecord, train

if TYPE_CHECKING:
    from bcc_ops.dataset.sync import LocalImage

log = logging.getLogger(__name__)

PIXELS_IN_MEMORY = 1_000_000_000
"""Bytes of decoded images kept in memory, for each partition; more are in a file in the cache."""


@dataclass(frozen=True)
class WarmStart:
    """The champion that training starts from."""

    version: str
    model: keras.Model


Weights = Mapping[str, np.ndarray] | Path | str | None


@dataclass(frozen=True)
class RunInputs:
    """What a run has to be trained with.

    Attributes:
        config, config_digest, snapshot, split: the run's documents.
        split_reference: names the latter in training.json.
        rows: the run's split.parquet.
        synthetic: whether images that the project drew itself are among them.
        images: brings the snapshot's images to this worker; called once it is clear that training can start.
        weights: loads the backbone's weights, as `pretrained.backbone_weights` does.
        warm_start: loads the champion to start from, or None if there is none; called if the run asks for it.
        scratch: folder of this worker, for pixels that memory does not hold.
    """

    config: RetrainingConfig
    config_digest: str
    snapshot: SnapshotDocument
    split: SplitDocument
    split_reference: Reference
    rows: Sequence[SplitRow]
    synthetic: bool
    images: Callable[[], Sequence[LocalImage]]
    weights: Callable[[], Weights]
    warm_start: Callable[[], WarmStart | None]
    scratch: Path


@dataclass(frozen=True)
class Trained:
    """What a training ends with: the contents of training.json, history.csv and model.h5."""

    document: TrainingDocument
    history: bytes
    model: bytes


def train_run(
    paths: RunPaths,
    inputs: RunInputs,
    checkpoints: CheckpointFolder,
    *,
    stop: threading.Event,
    publish: Callable[[bytes], None],
) -> Trained:
    """Train a run's challenger.

    Args:
        paths: of the run's documents, to refer to them.
        inputs: the run.
        checkpoints: where each epoch is kept, and where an earlier attempt may have kept some.
        stop: training stops within a batch once this is set.
        publish: takes history.csv after each epoch.

    Raises:
        GpuMissing: one was asked for and is not there; nothing was downloaded.
        WeightsUnavailable: the backbone's weights are not available; nothing was downloaded.
        DivergedError, OutOfMemory, TrainingInterrupted: see `fit.train`.
    """
    config = inputs.config
    if config.require_gpu:
        require_gpu()
    devices = prepare_devices(config.seed, config.deterministic, config.mixed_precision)
    # Loading a model starts the GPUs, which must have been prepared before.
    champion = inputs.warm_start() if config.warm_start else None
    classifier = _build(inputs, devices, champion)
    parts = _decode(inputs)
    record = train(
        classifier,
        parts["train"],
        parts["tuning"],
        warm_started_from=champion.version if champion else None,
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
        classifier = _build(inputs, devices, champion=None)
    history, model = history_csv(record.rows), _model_file(classifier, record, inputs)
    document = _describe(
        inputs,
        devices,
        record,
        parameters=classifier.count_params(),
        history=Reference.of(paths.document("history.csv"), history),
        model=Reference.of(paths.document("model.h5"), model),
    )
    log.info("trained in %.0f s, best epoch %d of %d", record.seconds, record.best_epoch, len(record.rows))
    return Trained(document, history, model)


def _model_file(classifier: keras.Model, record: TrainingRecord, inputs: RunInputs) -> bytes:
    config = inputs.config
    odds_factor = odds_factors(config, inputs.split.classes, inputs.snapshot.positive_class)
    with tempfile.TemporaryDirectory(prefix="bcc-train-") as folder:
        path = Path(folder) / "model.h5"
        save_model(classifier, record.weights, path, test_time_flip=config.test_time_flip, odds_factor=odds_factor)
        return path.read_bytes()


def _build(inputs: RunInputs, devices: Devices, champion: WarmStart | None) -> keras.Model:
    config, classes = inputs.config, inputs.split.classes
    weights = inputs.weights()
    with devices.strategy.scope():
        classifier = build_classifier(
            config.architecture,
            config.image_size,
            len(classes),
            dropout=config.dropout,
            weights=weights,
            frozen_part=config.frozen_part,
        )
        if champion is not None:
            copied = copy_matching_weights(champion.model, classifier)
            drop_class_biases(classifier)  # the champion's own; a model that starts with it would have it twice
            log.info("%d layers start with the weights of the champion %s", copied, champion.version)
    return classifier


def _decode(inputs: RunInputs) -> dict[Partition, Pixels]:
    side_of = {row.key: row.partition for row in inputs.rows}
    images = inputs.images()
    read = read_as_notebook if inputs.config.preset == "notebook" else decode_images
    parts: dict[Partition, Pixels] = {}
    for partition in ("train", "tuning"):
        parts[partition] = read(
            [image for image in images if side_of.get(image.key) == partition],
            inputs.split.classes,
            side=inputs.config.image_size,
            scratch=inputs.scratch,
            budget_bytes=PIXELS_IN_MEMORY,
        )
    return parts


def odds_factors(config: RetrainingConfig, classes: Sequence[str], positive_class: str) -> list[float]:
    """Of each class, the factor on its odds that the run's parameters ask for."""
    return [config.malignant_odds_factor if name == positive_class else 1.0 for name in classes]


def save_model(
    classifier: keras.Model, weights: Sequence[np.ndarray], path: Path, *, test_time_flip: bool, odds_factor: Sequence[float]
) -> Path:
    """Write the model file: what it takes to predict, and nothing of training (no optimizer, no augmentation).

    Args:
        classifier: the network, in float32.
        weights: of the best epoch.
        path: where it is written, as `.h5`.
        test_time_flip: whether the file answers the mean over the image and its mirror image.
        odds_factor: of each class, the factor on its odds.
    """
    classifier.set_weights(list(weights))
    scale_odds(classifier, odds_factor)
    model = with_mirror_image(classifier) if test_time_flip else classifier
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)  # Keras warns that the format is legacy; it is the one that this project promises
    try:
        model.save(path, include_optimizer=False)
    finally:
        absl.setLevel(level)
    return path


def _describe(
    inputs: RunInputs,
    devices: Devices,
    record: TrainingRecord,
    *,
    parameters: int,
    history: Reference,
    model: Reference,
) -> TrainingDocument:
    config = inputs.config
    return TrainingDocument(
        preset=config.preset,
        architecture=config.architecture,
        weights=config.weights,
        warm_started_from=record.warm_started_from,
        classes=inputs.split.classes,
        image_size=config.image_size,
        preprocessing=describe_preprocessing(config, inputs.snapshot.positive_class),
        parameters=parameters,
        seed=config.seed,
        deterministic=config.deterministic,
        determinism_note=devices.determinism_note,
        mixed_precision=devices.mixed_precision,
        xla=devices.xla,
        versions=versions(),
        devices=devices.names,
        host=platform.node(),
        images=_counts(inputs.split),
        epochs_planned=config.epochs,
        epochs_run=len(record.rows),
        best_epoch=record.best_epoch,
        stopped_early=record.stopped_early,
        resumed_after_epochs=record.resumed_after,
        seconds=record.seconds,
        seconds_per_epoch=record.seconds / len(record.rows),
        images_per_second=sum(row.images_per_second for row in record.rows) / len(record.rows),
        peak_memory_mb=peak_memory_mb(),
        snapshot_digest=inputs.snapshot.digest,
        config_digest=inputs.config_digest,
        split=inputs.split_reference,
        synthetic=inputs.synthetic,
        history=history,
        model=model,
    )


def _counts(document: SplitDocument) -> dict[Partition, int]:
    return {partition: sum(document.counts.get(partition, {}).values()) for partition in PARTITIONS}
