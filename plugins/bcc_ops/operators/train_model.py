"""Train the model of a fold."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bcc_ops.exceptions import ArtifactError, StorageUnavailable
from bcc_ops.operators.base import BccOperator, Run
from bcc_ops.runs.documents import FOLDS, ChecksDocument, Reference, SplitDocument
from bcc_ops.runs.paths import checkpoint_folder, fold_file

if TYPE_CHECKING:
    from airflow.sdk import Context

    from bcc_ops.training.checkpoints import CheckpointFolder


log = logging.getLogger(__name__)


class TrainModelOperator(BccOperator):
    """Train on the images of all folds but one, and ask the model about that one.

    Goes on from a checkpoint if an earlier attempt left one, and trains nothing if one had finished, or if the run's model came
    into use. Writes `fold-<n>.csv` as
    epochs end, `fold-<n>.h5`, `fold-<n>.parquet` and `fold-<n>.json`; returns the reference to the latter.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        checks, split: references to this run's documents.
        fold: the one that is held out; the task is mapped over it.
    """

    template_fields: Sequence[str] = ("run", "checks", "split", "fold")

    def __init__(self, *, run: Any, checks: Any, split: Any, fold: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.checks = checks
        self.split = split
        self.fold = fold
        self._stop: threading.Event | None = None

    def work(self, context: Context) -> dict[str, str]:
        """Train, unless an earlier attempt did, and write what comes of it."""
        from bcc_ops.training.checkpoints import CheckpointFolder
        from bcc_ops.training.completed import describe_preprocessing, find_completed

        self._stop = threading.Event()
        run, fold = self.load_run(self.run, context), int(self.fold)
        if fold not in FOLDS:
            raise ArtifactError(
                f"split_dataset handed on the fold {fold}, and there are only {FOLDS[0]} to {FOLDS[-1]}: clear it"
            )
        trained = run.paths.document(fold_file(fold, "json"))
        if self.promoted(run.paths) is not None and self.store.head(trained) is not None:
            return self.store.reference(trained).to_xcom()
        split, split_reference = self.load_document(SplitDocument, run, self.split), Reference.model_validate(dict(self.split))
        if split.table is None:
            raise ArtifactError("split.json names no split.parquet: there is nothing to train on")
        folder = checkpoint_folder(
            run.paths.artifacts_prefix,
            snapshot_digest=run.snapshot.digest,
            config_digest=run.config_document.digest,
            split_digest=split.table.sha256,
            fold=fold,
        )
        checkpoints = CheckpointFolder(self.settings.cache_dir, folder, self.store, context.get("task_state_store"))
        reference = find_completed(
            self.store,
            run.paths,
            fold,
            snapshot_digest=run.snapshot.digest,
            config_digest=run.config_document.digest,
            split=split_reference,
            preprocessing=describe_preprocessing(run.config),
        )
        if reference is None:
            reference = self._train(run, fold, split, split_reference, checkpoints)
        checkpoints.clear()  # not before the fold's document is there: until then a retry needs them
        return reference.to_xcom()

    def _train(
        self, run: Run, fold: int, split: SplitDocument, split_reference: Reference, checkpoints: CheckpointFolder
    ) -> Reference:
        from bcc_ops.runs.rows import SplitRow
        from bcc_ops.runs.tables import read_rows
        from bcc_ops.training.pretrained import backbone_weights
        from bcc_ops.training.run_training import FoldInputs, train_fold

        assert split.table is not None and self._stop is not None
        cache = self.settings.cache_dir
        checks = self.load_document(ChecksDocument, run, self.checks)
        refused = {image.key for image in checks.refused}
        inputs = FoldInputs(
            fold=fold,
            config=run.config,
            config_digest=run.config_document.digest,
            snapshot=run.snapshot,
            split=split,
            split_reference=split_reference,
            rows=read_rows(SplitRow, self.store.get_referenced(split.table)),
            synthetic=checks.synthetic > 0,
            images=partial(self.local_images, run.snapshot, without=refused),
            weights=partial(backbone_weights, run.config.architecture, run.config.weights, cache, self.store),
            scratch=cache / "pixels",
        )

        def key(ending: str) -> str:
            return run.paths.document(fold_file(fold, ending))

        trained = train_fold(run.paths, inputs, checkpoints, stop=self._stop, publish=partial(self._publish, key("csv")))
        self.store.put(key("h5"), trained.model)
        self.store.put(key("parquet"), trained.answers)
        self.store.put(key("csv"), trained.history, content_type="text/csv")
        return self.store.save(key("json"), trained.document)

    def _publish(self, key: str, history: bytes) -> None:
        """Show how far training is. The whole history is written again at the end, by when the store may be back."""
        try:
            self.store.put(key, history, content_type="text/csv")
        except StorageUnavailable as error:
            log.warning("the history is behind by now, training goes on: %s", error)

    def on_kill(self) -> None:
        """Ask training to stop: Airflow kills the process some ten seconds after this, wherever it is."""
        if self._stop is not None:
            self._stop.set()
