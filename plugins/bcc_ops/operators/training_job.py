"""Lets SageMaker train a fold: writes a job's input, creates the job or finds the one of an earlier attempt, takes its output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bcc_ops import exceptions
from bcc_ops.config import Settings
from bcc_ops.exceptions import ArtifactError, BccError, ConfigError, ObjectNotFound, TrainingInterrupted, TrainingUnavailable
from bcc_ops.runs.documents import Reference, SnapshotDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.training.job_answers import (
    RUNNING,
    console_link,
    count_jobs,
    describe_cost,
    failure_of,
    is_missing,
    refusal,
    refusal_to_create,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bcc_ops.training.job_folder import TrainedFold, TrainingRequest
    from bcc_ops.training.sagemaker import JobPlace

log = logging.getLogger(__name__)

COPIES_AT_ONCE = 16

LOOKS_PAST_THE_LAST = 3
"""Unused numbers in a row after which no job has a higher one: a person may have deleted jobs that have ended."""


def require_triggers_that_are_told() -> None:
    """Make sure that the job of a task that is cleared while it waits can be stopped.

    Raises:
        ConfigError: this Airflow does not tell a trigger that its task was stopped.
    """
    from airflow.triggers.base import BaseTrigger

    if not hasattr(BaseTrigger, "on_kill"):
        raise ConfigError(
            "BCC_TRAIN_ON=sagemaker needs Airflow 3.3: an older one does not tell a waiting task that it was stopped, and its "
            "job would go on. Upgrade Airflow, or leave the setting out"
        )


def open_sagemaker(settings: Settings, **client: Any) -> Any:
    """Return a client of SageMaker, through the configured Airflow connection; `client` goes to the hook.

    Raises:
        ConfigError: the connection names no region.
    """
    from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook

    with _telling("DescribeTrainingJob"):
        return SageMakerHook(aws_conn_id=settings.aws_conn_id, **client).get_conn()


def describe_job(client: Any, name: str) -> Mapping[str, Any] | None:
    """Return what SageMaker tells of a job; None if there is none of this name.

    Raises:
        ConfigError: it may not be asked.
        TrainingUnavailable: SageMaker gave no answer.
    """
    from botocore.exceptions import ClientError

    with _telling("DescribeTrainingJob"):
        try:
            found: Mapping[str, Any] = client.describe_training_job(TrainingJobName=name)
        except ClientError as error:
            if is_missing(error):
                return None
            raise
    return None if found["TrainingJobStatus"] == "Deleting" else found


class JobInput(NamedTuple):
    """What a job is trained with.

    Attributes:
        snapshot: of the run.
        table: reference to split.parquet.
        config_digest: of its parameters.
        references: to the run's documents, by the names in `job_folder.DOCUMENTS`.
        weights: gives the backbone's file, None if the parameters name none. Only a new job needs it.
    """

    snapshot: SnapshotDocument
    table: Reference
    config_digest: str
    references: Mapping[str, Reference]
    weights: Callable[[], Path | None]


class Waiting(NamedTuple):
    """A job that has not ended. `joined`: this attempt of the task did not create it."""

    job: str
    joined: bool


class TrainingJobs:
    """The jobs of one fold, numbered in the order in which they were created; only the last one may go on.

    Args:
        store: the run's bucket.
        settings: of the deployment; complete for SageMaker.
        request: the fold of the run.
        place: where its jobs have their files.
    """

    def __init__(self, store: ObjectStore, settings: Settings, request: TrainingRequest, place: JobPlace) -> None:
        self.store = store
        self.settings = settings
        self.request = request
        self.place = place
        self._created: str | None = None
        self._given_up = False

    @cached_property
    def client(self) -> Any:
        """SageMaker, through the configured Airflow connection."""
        return open_sagemaker(self.settings)

    def go_on(self, given: JobInput, event: Mapping[str, Any] | None, *, joined: bool) -> TrainedFold | Waiting:
        """Return what the last job put out; or wait for it if it goes on, or for a new one if it has no output.

        Args:
            given: for a new job.
            event: of the trigger that waited for a job; None at the beginning of an attempt.
            joined: whether the job that was waited for was created by an earlier attempt.

        Raises:
            TrainingUnavailable: the job was late, and is stopped; or SageMaker takes none now.
            ConfigError: SageMaker refuses the job.
            BccError: why the job that was waited for failed.
        """
        try:
            if event and "error" in event:
                raise getattr(exceptions, event["error"], TrainingUnavailable)(event["message"])
            jobs = self._known()
        except BccError as error:
            if event and not error.retryable:  # then no other attempt will look after the job
                self.stop(event["job"])
            raise
        if not jobs:
            return self._start(1, given)
        job = jobs[-1]
        name, status = job["TrainingJobName"], job["TrainingJobStatus"]
        new = int(name.rpartition("-")[2]) + 1
        awaited = event is not None and event["job"] == name
        if status in RUNNING:
            if event and awaited and event.get("late"):
                self.stop(name)
                raise TrainingUnavailable(
                    f"{name} did not end in its time ({job.get('SecondaryStatus')} to the last) and is stopped; a retry goes on "
                    "from its checkpoint"
                )
            return Waiting(name, joined) if awaited else self._join(job)
        if status == "Completed":
            output = self._output(job, given, of_this_attempt=awaited and not joined)
            if output is None:
                return self._start(new, given)
            # Whatever the job itself has written there: AWS alone knows.
            return replace(output, document=output.document.model_copy(update={"sagemaker": count_jobs(jobs)}))
        if awaited and not (joined and job.get("SecondaryStatus") == "Stopped"):  # then it was stopped with the earlier attempt
            log.info("%s: %s", name, describe_cost(job, self.settings.sagemaker_price_per_hour))
            raise failure_of(job, self.settings)
        return self._start(new, given)

    def stop(self, name: str) -> None:
        """Stop a job; one that has ended already is left as it is."""
        try:
            with _telling("StopTrainingJob"):
                self.client.stop_training_job(TrainingJobName=name)
        except BccError as error:
            log.warning("%s was not stopped: %s", name, error)
        else:
            log.info("%s is stopped", name)

    def give_up(self) -> None:
        """Create no more jobs, and stop the one that this attempt of the task has created: the task is killed."""
        self._given_up = True
        if self._created is not None:
            self.stop(self._created)

    def stop_last(self) -> None:
        """Stop the last job, if it goes on."""
        jobs = self._known()
        if jobs and jobs[-1]["TrainingJobStatus"] == "InProgress":
            self.stop(jobs[-1]["TrainingJobName"])

    def _known(self) -> list[Mapping[str, Any]]:
        """Return the fold's jobs. Their names find them, so that no permission to list the account's jobs is needed."""
        from bcc_ops.training.sagemaker import job_name

        known: list[Mapping[str, Any]] = []
        number = missing = 0
        while missing < LOOKS_PAST_THE_LAST:
            number += 1
            job = describe_job(self.client, job_name(self.store.bucket, self.request, number))
            missing = missing + 1 if job is None else 0
            if job is not None:
                known.append(job)
        return known

    def _asked(self, number: int, *, weights: bool = False) -> dict[str, Any]:
        from bcc_ops.training.sagemaker import job_name, job_request

        name = job_name(self.store.bucket, self.request, number)
        return job_request(name, self.request, self.place, self.settings, weights=weights)

    def _is_same(self, job: Mapping[str, Any]) -> bool:
        from bcc_ops.training.sagemaker import is_same_request

        return is_same_request(self._asked(1), job)

    def _join(self, job: Mapping[str, Any]) -> Waiting:
        """Wait for a job of an earlier attempt: for its model, or for its end if it trains something else or is stopping."""
        name = job["TrainingJobName"]
        if not self._is_same(job):
            log.info(
                "%s is of other documents or another image than this run's by now: it is stopped before another one starts", name
            )
            self.stop(name)
        else:
            log.info("%s goes on from an earlier attempt: waiting for it", name)
        return Waiting(name, joined=True)

    def _start(self, number: int, given: JobInput) -> Waiting:
        from botocore.exceptions import BotoCoreError, ClientError

        weights = given.weights()
        asked = self._asked(number, weights=weights is not None)
        name = asked["TrainingJobName"]
        self._write_input(given, weights)
        self._created = name  # before the question, so that whoever kills the task after it knows the job
        if self._given_up:
            raise TrainingInterrupted("the task was stopped from outside before its job began")
        try:
            self.client.create_training_job(**asked)
        except (BotoCoreError, ClientError) as error:
            answer = getattr(error, "response", None) or {}  # botocore's errors of the connection have one that is None
            if answer.get("Error", {}).get("Code") == "ResourceInUse":
                return Waiting(name, joined=True)  # another attempt was faster
            refused = refusal_to_create(error, self.settings)
            if refused.retryable and not answer:
                self.stop(name)  # without an answer the job may be there all the same, and this may be the last attempt
            raise refused from error
        link = console_link(self.client.meta.region_name, name)
        log.info("%s trains on %s: %s", name, self.settings.sagemaker_instance_type, link)
        return Waiting(name, joined=False)

    def _write_input(self, given: JobInput, weights: Path | None) -> None:
        from bcc_ops.dataset.snapshot import read_images
        from bcc_ops.runs.rows import SplitRow
        from bcc_ops.runs.tables import read_rows
        from bcc_ops.training.job_folder import files_of_run
        from bcc_ops.training.sagemaker import image_channel

        files = files_of_run(given.references, given.table)
        contents = {name: self.store.get_referenced(reference) for name, reference in files.items()}
        for name, content in contents.items():
            self.store.put(self.place.key(f"input/run/{name}"), content)
        if weights is not None:
            self.store.put_file(self.place.key(f"input/weights/{weights.name}"), weights)
        rows = read_rows(SplitRow, contents["split.parquet"])
        digests = {row.key: row.sha256 for row in rows if row.trained_on or row.fold == self.request.fold}
        images = [row for row in read_images(self.store, given.snapshot) if row.key in digests]
        entries = self.store.list_objects(f"{given.snapshot.prefix}/")
        listed = {one["Key"]: (one["ETag"].strip('"'), one["Size"]) for one in entries if one["Key"] in digests}
        channel = image_channel(images, digests, listed, self.place)
        there = {entry["Key"] for entry in self.store.list_objects(self.place.key("input/images/"))}
        missing = {to: image for image, to in channel.copies if to not in there}
        with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
            list(pool.map(lambda copy: self.store.copy(copy[1].key, copy[0], copy[1].version_id or None), missing.items()))
        self.store.put(self.place.key("input/run/images.json"), channel.places)
        self.store.put(self.place.key("input/images.manifest"), channel.manifest)
        log.info("%d images go into the job, %d of them as copies", len(images), len(channel.copies))

    def _output(self, job: Mapping[str, Any], given: JobInput, *, of_this_attempt: bool) -> TrainedFold | None:
        """Return what a job put out; None if it is of another request, or of an earlier attempt and cannot be used."""
        name = job["TrainingJobName"]
        if not self._is_same(job):
            return None
        log.info("%s has trained: %s", name, describe_cost(job, self.settings.sagemaker_price_per_hour))
        try:
            return self._read_output(name, given)
        except (ArtifactError, ObjectNotFound) as error:
            if of_this_attempt:
                raise
            log.warning("what %s put out cannot be used, training again: %s", name, error)
            return None

    def _read_output(self, name: str, given: JobInput) -> TrainedFold:
        from bcc_ops.runs.rows import SplitRow
        from bcc_ops.runs.tables import read_rows
        from bcc_ops.training.job_folder import job_of_attempt
        from bcc_ops.training.sagemaker import require_an_answer_each, require_asked_for, unpack_output

        with job_of_attempt(self.settings.cache_dir / "training", self.request) as folder:
            unpack_output(self.store.stream(self.place.output(name)), folder, self.request.fold)
            trained = folder.read_trained(self.request.fold)
        digests = {"snapshot_digest": given.snapshot.digest, "config_digest": given.config_digest}
        require_asked_for(trained.document, self.request, **digests)
        require_an_answer_each(trained.answers, read_rows(SplitRow, self.store.get_referenced(given.table)), self.request.fold)
        return trained


@contextmanager
def _telling(action: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise refusal(error, action) from error
