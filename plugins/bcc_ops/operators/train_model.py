"""Train the model of a fold."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bcc_ops.exceptions import ArtifactError, StorageUnavailable
from bcc_ops.operators.base import BccOperator, Run
from bcc_ops.runs.documents import FOLDS, ChecksDocument, Reference, SplitDocument
from bcc_ops.runs.paths import checkpoint_folder, fold_file

if TYPE_CHECKING:
    from airflow.sdk import Context

    from bcc_ops.dataset.sync import LocalImage
    from bcc_ops.training.checkpoints import CheckpointFolder
    from bcc_ops.training.job_folder import TrainedFold


log = logging.getLogger(__name__)


class _Fold(NamedTuple):
    """The fold that is held out, and the run's split that says of which images."""

    run: Run
    number: int
    split: SplitDocument
    split_reference: Reference


class TrainModelOperator(BccOperator):
    """Train on the images of all folds but one, and ask the model about that one.

    Goes on from a checkpoint if an earlier attempt left one, and trains nothing if one had finished, or if the run's model came
    into use. The setting `training_python` lets another Python train. Writes `fold-<n>.csv` as
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
            reference = self._train(_Fold(run, fold, split, split_reference), checkpoints)
        checkpoints.clear()  # not before the fold's document is there: until then a retry needs them
        return reference.to_xcom()

    def _train(self, of: _Fold, checkpoints: CheckpointFolder) -> Reference:
        def key(ending: str) -> str:
            return of.run.paths.document(fold_file(of.number, ending))

        train = self._train_elsewhere if self.settings.training_python else self._train_here
        checks = self.load_document(ChecksDocument, of.run, self.checks)
        trained = train(of, checks, checkpoints, partial(self._publish, key("csv")))
        self.store.put(key("h5"), trained.model)
        self.store.put(key("parquet"), trained.answers)
        self.store.put(key("csv"), trained.history, content_type="text/csv")
        return self.store.save(key("json"), trained.document)

    def _train_here(
        self, of: _Fold, checks: ChecksDocument, checkpoints: CheckpointFolder, publish: Callable[[bytes], None]
    ) -> TrainedFold:
        from bcc_ops.runs.rows import SplitRow
        from bcc_ops.runs.tables import read_rows
        from bcc_ops.training.pretrained import backbone_weights
        from bcc_ops.training.run_training import FoldInputs, train_fold

        assert of.split.table is not None and self._stop is not None
        run, cache = of.run, self.settings.cache_dir
        inputs = FoldInputs(
            fold=of.number,
            config=run.config,
            config_digest=run.config_document.digest,
            snapshot=run.snapshot,
            split=of.split,
            split_reference=of.split_reference,
            rows=read_rows(SplitRow, self.store.get_referenced(of.split.table)),
            synthetic=checks.synthetic > 0,
            images=partial(self._images, of.run, checks),
            weights=partial(backbone_weights, run.config.architecture, run.config.weights, cache, self.store),
            scratch=cache / "pixels",
        )
        return train_fold(run.paths, inputs, checkpoints, stop=self._stop, publish=publish)

    def _train_elsewhere(
        self, of: _Fold, checks: ChecksDocument, checkpoints: CheckpointFolder, publish: Callable[[bytes], None]
    ) -> TrainedFold:
        """Train with the Python that the deployment names: this process loads no TensorFlow."""
        from bcc_ops.training.job_folder import TrainingRequest, job_of_attempt
        from bcc_ops.training.pretrained import fetch_weights_file, names_file
        from bcc_ops.training.process import train_elsewhere

        assert of.split.table is not None and self._stop is not None
        run, cache = of.run, self.settings.cache_dir
        weights = None
        if names_file(run.config.architecture, run.config.weights):
            weights = fetch_weights_file(run.config.weights, cache, self.store)
        references = {**run.references, "split": of.split_reference}
        documents = {f"{name}.json": self.store.get_referenced(reference) for name, reference in references.items()}
        documents["split.parquet"] = self.store.get_referenced(of.split.table)
        request = TrainingRequest.of(run.paths, of.number, references, synthetic=checks.synthetic > 0)
        with job_of_attempt(cache / "training", request) as job:
            job.write_input(request, documents, self._images(run, checks), weights)
            python = self.settings.training_python
            return train_elsewhere(python, job, of.number, checkpoints, stop=self._stop, publish=publish)

    def _images(self, run: Run, checks: ChecksDocument) -> list[LocalImage]:
        return self.local_images(run.snapshot, without={image.key for image in checks.refused})

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
