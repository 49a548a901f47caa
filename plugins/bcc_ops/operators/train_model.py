"""Train the challenger."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcc_ops.exceptions import ArtifactError, StorageUnavailable
from bcc_ops.operators.base import BccOperator, Run
from bcc_ops.runs.documents import ChecksDocument, Reference, SplitDocument
from bcc_ops.runs.paths import checkpoint_folder

if TYPE_CHECKING:
    from airflow.sdk import Context

    from bcc_ops.training.checkpoints import CheckpointFolder
    from bcc_ops.training.run_training import WarmStart


log = logging.getLogger(__name__)


class TrainModelOperator(BccOperator):
    """Train on this snapshot's train part, with its tuning part to pick the epoch.

    Goes on from a checkpoint where an earlier attempt left one, and trains nothing where one had finished. Writes
    `history.csv` as epochs end, `model.h5` and `training.json`; returns the reference to the latter.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        checks, split: references to this run's documents.
    """

    template_fields: Sequence[str] = ("run", "checks", "split")

    def __init__(self, *, run: Any, checks: Any, split: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.checks = checks
        self.split = split
        self._stop: threading.Event | None = None

    def work(self, context: Context) -> dict[str, str]:
        """Train, unless an earlier attempt did, and write what comes of it."""
        from bcc_ops.training.checkpoints import CheckpointFolder
        from bcc_ops.training.completed import describe_preprocessing, find_completed

        self._stop = threading.Event()
        run = self.load_run(self.run, context)
        split, split_reference = self.load_document(SplitDocument, run, self.split), Reference.model_validate(dict(self.split))
        if split.table is None:
            raise ArtifactError("split.json names no split.parquet: there is nothing to train on")
        folder = checkpoint_folder(
            run.paths.artifacts_prefix,
            snapshot_digest=run.snapshot.digest,
            config_digest=run.config_document.digest,
            split_digest=split.table.sha256,
        )
        checkpoints = CheckpointFolder(self.settings.cache_dir, folder, self.store, context.get("task_state_store"))
        reference = find_completed(
            self.store,
            run.paths,
            snapshot_digest=run.snapshot.digest,
            config_digest=run.config_document.digest,
            split=split_reference,
            preprocessing=describe_preprocessing(run.config, run.snapshot.positive_class),
        )
        if reference is None:
            reference = self._train(run, split, split_reference, checkpoints)
        checkpoints.clear()  # not before training.json is there: until then a retry needs them
        return reference.to_xcom()

    def _train(self, run: Run, split: SplitDocument, split_reference: Reference, checkpoints: CheckpointFolder) -> Reference:
        from bcc_ops.runs.tables import SplitRow, read_rows
        from bcc_ops.training.pretrained import backbone_weights
        from bcc_ops.training.run_training import RunInputs, train_run

        assert split.table is not None and self._stop is not None
        cache = self.settings.cache_dir
        checks = self.load_document(ChecksDocument, run, self.checks)
        refused = {image.key for image in checks.refused}
        inputs = RunInputs(
            config=run.config,
            config_digest=run.config_document.digest,
            snapshot=run.snapshot,
            split=split,
            split_reference=split_reference,
            rows=read_rows(SplitRow, self.store.get_referenced(split.table)),
            synthetic=checks.synthetic > 0,
            images=partial(self.local_images, run.snapshot, without=refused),
            weights=partial(backbone_weights, run.config.architecture, run.config.weights, cache, self.store),
            warm_start=self._champion,
            scratch=cache / "pixels",
        )
        key = run.paths.document
        trained = train_run(run.paths, inputs, checkpoints, stop=self._stop, publish=partial(self._publish, key("history.csv")))
        self.store.put(key("model.h5"), trained.model)
        self.store.put(key("history.csv"), trained.history, content_type="text/csv")
        return self.store.save(key("training.json"), trained.document)

    def _publish(self, key: str, history: bytes) -> None:
        """Show how far training is. The whole history is written again at the end, by when the store may be back."""
        try:
            self.store.put(key, history, content_type="text/csv")
        except StorageUnavailable as error:
            log.warning("history.csv is behind by now, training goes on: %s", error)

    def _champion(self) -> WarmStart | None:
        from bcc_ops.models.champion import load_champion
        from bcc_ops.models.classifier import Classifier
        from bcc_ops.models.registry import ModelRegistry
        from bcc_ops.training.run_training import WarmStart

        with tempfile.TemporaryDirectory(prefix="bcc-champion-") as folder:
            champion = load_champion(ModelRegistry(self.store, self.settings.models_prefix), Path(folder))
        if champion is None or not isinstance(champion.model, Classifier):
            log.warning("there is no champion to start from: %s", champion.problem if champion else "none was promoted yet")
            return None
        return WarmStart(champion.version, champion.model.model)

    def on_kill(self) -> None:
        """Ask training to stop: Airflow kills the process some ten seconds after this, wherever it is."""
        if self._stop is not None:
            self._stop.set()
