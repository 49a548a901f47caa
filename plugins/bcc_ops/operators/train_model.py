"""Train the model of a fold."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from bcc_ops.exceptions import ArtifactError, StorageUnavailable, TrainingInterrupted, WeightsUnavailable
from bcc_ops.operators.base import BccOperator, Run, airflow_errors
from bcc_ops.runs.documents import FOLDS, ChecksDocument, Reference, SplitDocument
from bcc_ops.runs.paths import checkpoint_folder, fold_file

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.sdk import Context

    from bcc_ops.dataset.sync import LocalImage
    from bcc_ops.operators.training_job import TrainingJobs, Waiting
    from bcc_ops.training.checkpoints import CheckpointFolder
    from bcc_ops.training.job_folder import TrainedFold
    from bcc_ops.training.sagemaker import JobPlace


log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 30.0
"""At a SageMaker job."""

AROUND_TRAINING = timedelta(hours=1)
"""How long a job may take beside its longest runtime: for an instance, for its image and files, and for its output."""

TRIGGERER_LATENESS = timedelta(minutes=15)
"""How long after a job is late the triggerer may say so before the task fails."""


class _Fold(NamedTuple):
    """The fold that is held out, and the run's split that says of which images."""

    run: Run
    number: int
    split: SplitDocument
    split_reference: Reference

    @property
    def references(self) -> dict[str, Reference]:
        """To the run's documents, by their names in `job_folder.DOCUMENTS`."""
        return {**self.run.references, "split": self.split_reference}


class TrainModelOperator(BccOperator):
    """Train on the images of all folds but one, and ask the model about that one.

    Goes on from a checkpoint if an earlier attempt left one, and trains nothing if one had finished, or if the run's model came
    into use. The setting `training_python` lets another Python train, and `train_on` SageMaker, for which the task is deferred.
    Writes `fold-<n>.csv` as epochs end, `fold-<n>.h5`, `fold-<n>.parquet` and `fold-<n>.json`; returns the reference to the
    latter.

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
        self._jobs: TrainingJobs | None = None
        self._waited_for: tuple[Mapping[str, Any] | None, bool] = (None, False)

    def work(self, context: Context) -> dict[str, str]:
        """Train, unless an earlier attempt did, and write what comes of it."""
        from bcc_ops.training.checkpoints import CheckpointFolder
        from bcc_ops.training.completed import describe_preprocessing, find_completed

        self._stop = threading.Event()
        run, fold = self._run_and_fold(context)
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

    def _run_and_fold(self, context: Context) -> tuple[Run, int]:
        run, fold = self.load_run(self.run, context), int(self.fold)
        if fold not in FOLDS:
            raise ArtifactError(
                f"split_dataset handed on the fold {fold}, and there are only {FOLDS[0]} to {FOLDS[-1]}: clear it"
            )
        return run, fold

    def _train(self, of: _Fold, checkpoints: CheckpointFolder) -> Reference:
        def key(ending: str) -> str:
            return of.run.paths.document(fold_file(of.number, ending))

        train = self._train_elsewhere if self.settings.training_python else self._train_here
        if self.settings.train_on == "sagemaker":
            train = self._train_on_sagemaker
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
        from bcc_ops.training.job_folder import TrainingRequest, files_of_run, job_of_attempt
        from bcc_ops.training.process import train_elsewhere

        assert of.split.table is not None and self._stop is not None
        run, cache = of.run, self.settings.cache_dir
        weights = self._weights_file(run)
        files = files_of_run(of.references, of.split.table)
        documents = {name: self.store.get_referenced(reference) for name, reference in files.items()}
        request = TrainingRequest.of(run.paths, of.number, of.references, synthetic=checks.synthetic > 0)
        with job_of_attempt(cache / "training", request) as job:
            job.write_input(request, documents, self._images(run, checks), weights)
            python = self.settings.training_python
            return train_elsewhere(python, job, of.number, checkpoints, stop=self._stop, publish=publish)

    def _train_on_sagemaker(
        self, of: _Fold, checks: ChecksDocument, checkpoints: CheckpointFolder, publish: Callable[[bytes], None]
    ) -> TrainedFold:
        """Take the model that a job of SageMaker trained, or wait for the job in the triggerer.

        `publish` is not needed: the trigger shows how far the job is.
        """
        from bcc_ops.operators.training_job import JobInput, TrainingJobs, Waiting, require_triggers_that_are_told
        from bcc_ops.training.job_folder import TrainingRequest
        from bcc_ops.training.pretrained import needs_download
        from bcc_ops.training.sagemaker import JobPlace

        require_triggers_that_are_told()
        config = of.run.config
        if needs_download(config.architecture, config.weights):
            raise WeightsUnavailable(
                f"a job of SageMaker has no network to fetch the weights of {config.architecture} with: name a file in `weights`"
            )
        assert of.split.table is not None and self._stop is not None
        given = JobInput(
            snapshot=of.run.snapshot,
            table=of.split.table,
            config_digest=of.run.config_document.digest,
            references=of.references,
            weights=partial(self._weights_file, of.run),
        )
        request = TrainingRequest.of(of.run.paths, of.number, of.references, synthetic=checks.synthetic > 0)
        place = JobPlace(self.store.bucket, checkpoints.folder)
        self._jobs = TrainingJobs(self.store, self.settings, request, place)
        event, joined = self._waited_for
        result = self._jobs.go_on(given, event, joined=joined)
        if not isinstance(result, Waiting):
            return result
        if self._stop.is_set():
            self._jobs.stop(result.job)
            raise TrainingInterrupted("the task was stopped from outside while its job began; the job is stopped too")
        return self._wait(result, place, of.run.paths.document(fold_file(of.number, "csv")))

    def _wait(self, waiting: Waiting, place: JobPlace, progress: str) -> NoReturn:
        from bcc_ops.dataset.arrivals import utc_now
        from bcc_ops.triggers.training_job import TrainingJobTrigger

        minutes = self.settings.sagemaker_max_runtime_minutes + self.settings.sagemaker_spot_wait_minutes
        longest = timedelta(minutes=minutes) + AROUND_TRAINING
        trigger = TrainingJobTrigger(
            aws_conn_id=self.settings.aws_conn_id,
            job=waiting.job,
            bucket=place.bucket,
            history=place.history,
            progress=progress,
            deadline=(utc_now() + longest).isoformat(),
            poll_interval=SECONDS_BETWEEN_LOOKS,
        )
        raise self.defer(
            trigger=trigger, method_name="resume", kwargs={"joined": waiting.joined}, timeout=longest + TRIGGERER_LATENESS
        )

    def resume(self, context: Context, event: Mapping[str, Any], joined: bool = False) -> dict[str, str]:
        """Take up from the trigger: the job has ended, or is late."""
        self._waited_for = (event, joined)
        with airflow_errors():
            return self.work(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Stop the job if the trigger failed or was not heard of in time: the task fails then."""
        if next_method == "__fail__":
            self._stop_job(context)
        return super().resume_execution(next_method, next_kwargs, context)

    def _stop_job(self, context: Context) -> None:
        from bcc_ops.operators.training_job import TrainingJobs
        from bcc_ops.training.job_folder import TrainingRequest
        from bcc_ops.training.sagemaker import JobPlace

        run, fold = self._run_and_fold(context)
        references = {**run.references, "split": Reference.model_validate(dict(self.split))}
        request = TrainingRequest.of(run.paths, fold, references, synthetic=False)  # a job's name does not depend on that
        TrainingJobs(self.store, self.settings, request, JobPlace(self.store.bucket, "")).stop_last()

    def _weights_file(self, run: Run) -> Path | None:
        """Return the backbone's file; None if the parameters name none."""
        from bcc_ops.training.pretrained import fetch_weights_file, names_file

        if not names_file(run.config.architecture, run.config.weights):
            return None
        return fetch_weights_file(run.config.weights, self.settings.cache_dir, self.store)

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
        if self._jobs is not None:
            self._jobs.give_up()
