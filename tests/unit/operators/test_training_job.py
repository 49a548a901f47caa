"""What becomes of a fold's jobs over the attempts of its task. They end as the tests say; whole ones are in tests/integration."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk.exceptions import TaskDeferralTimeout, TaskDeferred
from airflow.triggers.base import BaseTrigger

from bcc_ops.exceptions import DivergedError, TrainingFailed, TrainingInterrupted, TrainingUnavailable
from bcc_ops.operators.train_model import TrainModelOperator
from bcc_ops.runs.documents import FOLDS, FoldDocument, Reference, SageMakerJobs
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import ImageRow, SplitRow
from bcc_ops.runs.tables import write_answers, write_rows
from local.s3_server import S3Server
from tests.factories.tasks import context, in_bucket
from tests.services.sagemaker import Dropped, Job, Refusal, SageMaker, sagemaker
from tests.unit.report.samples import (
    PATHS,
    checks_document,
    config_document,
    fold_document,
    run_handle,
    snapshot_document,
    split_document,
)

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/bcc-retraining:"
KEYS = ("images/benign/benign (1).png", "images/benign/ü.png", "images/normal/only for the checks.png")

ANSWERS = write_answers(
    [SplitRow(KEYS[1], "sha1", "benign", KEYS[1], 2)], ("benign", "malignant", "normal"), np.full((1, 3), 1 / 3)
)


@pytest.fixture
def service(store: ObjectStore, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SageMaker]:
    with sagemaker(store, tmp_path / "sagemaker", trains=False) as service:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", service.connection(s3_server.airflow_connection))
        yield service


class Fold:
    """The task of the second fold, attempt by attempt."""

    def __init__(self, store: ObjectStore, service: SageMaker, cache: Path) -> None:
        self.store = store
        self.service = service
        self.settings: dict[str, Any] = {
            "train_on": "sagemaker",
            "sagemaker_role_arn": "arn:aws:iam::123456789012:role/bcc",
            "sagemaker_image_uri": f"{IMAGE}1",
            "sagemaker_instance_type": "ml.g5.xlarge",
            "cache_dir": cache,
        }
        rows = []
        for key in KEYS:
            etag = store.put(key, key.encode())
            rows.append(ImageRow(key, key.split("/")[1], len(key.encode()), etag, "", datetime(2026, 1, 1, tzinfo=timezone.utc)))
        images = store.put_referenced(PATHS.document("images.parquet"), write_rows(ImageRow, rows))
        self.config = config_document(architecture="cnn", weights="none")
        self.snapshot = snapshot_document(bucket=store.bucket, images=images, versioned=False)
        table = store.put_referenced(
            PATHS.document("split.parquet"),
            write_rows(SplitRow, [SplitRow(key, f"sha{n}", "benign", key, 1 + n) for n, key in enumerate(KEYS[:2])]),
        )
        self.run = run_handle(store, self.config, self.snapshot)
        self.split = store.save(PATHS.document("split.json"), split_document(table=table))
        self.checks = store.save(PATHS.document("checks.json"), checks_document())

    def task(self, number: int = 2) -> Any:
        """The task of a new attempt; this test's fold is the second."""
        task = TrainModelOperator(
            task_id="train_model", run=self.run, checks=self.checks.to_xcom(), split=self.split.to_xcom(), fold=number
        )
        return in_bucket(task, self.store, **self.settings)

    def begin(self, number: int = 2) -> TaskDeferred:
        """What a new attempt waits for."""
        with pytest.raises(TaskDeferred) as deferred:
            self.task(number).execute(context())
        return deferred.value

    def resume(self, deferred: TaskDeferred, **event: Any) -> dict[str, str]:
        """Go on once the trigger has fired."""
        arguments = {**(deferred.kwargs or {}), "event": {"job": deferred.trigger.job, **event}}  # type: ignore[attr-defined]
        done: dict[str, str] = self.task().resume_execution(deferred.method_name, arguments, context())
        return done

    def job(self, number: int = 1) -> Job:
        """The job of this number."""
        return list(self.service.jobs.values())[number - 1]

    def complete(self, job: Job, answers: bytes = ANSWERS, **files: bytes) -> None:
        """Let a job end well, with these files by their endings, or with those that it should put out."""
        contents = {"csv": b"epoch", "h5": b"model", "parquet": answers}
        named = {
            name: Reference.of(PATHS.document(f"fold-2.{ending}"), contents[ending])
            for name, ending in (("history", "csv"), ("model", "h5"), ("answers", "parquet"))
        }
        digests = {"snapshot_digest": self.snapshot.digest, "config_digest": self.config.digest}
        document = fold_document(2, split=self.split, **digests, **named)
        job.put_out({f"fold-2.{ending}": data for ending, data in {**contents, "json": document.to_json(), **files}.items()})
        job.finish("Completed")

    def asked(self, operation: str) -> int:
        """How often SageMaker was asked for something."""
        return sum(name == operation for name, _ in self.service.calls)


@pytest.fixture
def fold(store: ObjectStore, service: SageMaker, tmp_path: Path) -> Fold:
    return Fold(store, service, tmp_path / "cache")


def test_the_first_attempt_writes_the_input_and_waits_for_its_job(fold: Fold) -> None:
    deferred = fold.begin()

    (name,) = fold.service.jobs
    trigger: Any = deferred.trigger
    assert (trigger.job, trigger.bucket, trigger.progress) == (name, fold.store.bucket, PATHS.document("fold-2.csv"))
    assert deferred.kwargs == {"joined": False}
    assert 300 < deferred.timeout.total_seconds() / 60 < 330  # type: ignore[union-attr]
    run, images = (channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in fold.job().asked["InputDataConfig"])
    prefix = run.split("/", 3)[3]
    given = {entry["Key"][len(prefix) :]: fold.store.get(entry["Key"]) for entry in fold.store.list_objects(prefix)}
    assert sorted(given) == ["config.json", "images.json", "snapshot.json", "split.json", "split.parquet"]
    assert given["split.json"] == fold.store.get_referenced(fold.split)
    copy = f"{images.split('/', 3)[3].rpartition('/')[0]}/images/sha1"
    assert json.loads(fold.store.get(images.split("/", 3)[3])) == [{"prefix": f"s3://{fold.store.bucket}/"}, KEYS[0], copy]
    assert fold.store.get(copy) == KEYS[1].encode()
    assert json.loads(given["images.json"]) == {KEYS[0]: KEYS[0], KEYS[1]: copy}


def test_a_job_that_has_trained_leaves_the_folds_files_and_nothing_else(fold: Fold, caplog: pytest.LogCaptureFixture) -> None:
    fold.settings["sagemaker_price_per_hour"] = 1.2
    fold.begin()
    fold.job().finish("Failed", reason="InternalServerError")
    deferred = fold.begin()
    fold.complete(fold.job(2))
    with caplog.at_level(logging.INFO):
        done = fold.resume(deferred)

    assert fold.store.reference(PATHS.document("fold-2.json")).to_xcom() == done
    stored = {ending: fold.store.get(PATHS.document(f"fold-2.{ending}")) for ending in ("csv", "h5", "parquet")}
    assert stored == {"csv": b"epoch", "h5": b"model", "parquet": ANSWERS}
    assert list(fold.store.list_objects("artifacts/checkpoints")) == []
    document = fold.store.load_key(FoldDocument, PATHS.document("fold-2.json"))
    assert document.sagemaker == SageMakerJobs(
        jobs=2, instance_types=("ml.g5.xlarge",), billed_seconds=1200, saved_seconds=600, without_bill=0
    )
    assert f"{fold.job(2).name} has trained: AWS bills 600 s, 0.20 at 1.2 an hour" in caplog.text
    assert list((fold.settings["cache_dir"] / "training").iterdir()) == []


def test_five_folds_have_a_job_each_at_once_and_files_of_their_own(fold: Fold) -> None:
    waiting = [fold.begin(number) for number in FOLDS]
    names = [deferred.trigger.job for deferred in waiting]  # type: ignore[attr-defined]
    assert names == list(fold.service.jobs) and [name.split("-")[4] for name in names] == ["1", "2", "3", "4", "5"]
    assert {job.told["TrainingJobStatus"] for job in fold.service.jobs.values()} == {"InProgress"}
    addresses = [re.findall(r"s3://[^'\"]+", str(job.asked)) for job in fold.service.jobs.values()]
    assert len({address for job in addresses for address in job}) == sum(len(job) for job in addresses)
    fold.complete(fold.job(2))
    fold.resume(waiting[1])
    assert [job.told["TrainingJobStatus"] for job in fold.service.jobs.values()].count("InProgress") == 4
    left = "".join(entry["Key"] for entry in fold.store.list_objects("artifacts/checkpoints"))
    assert all(f"-{number}/sagemaker/input/run/split.json" in left for number in (1, 3, 4, 5))


def test_a_retry_joins_the_job_of_an_attempt_whose_worker_was_lost(fold: Fold) -> None:
    fold.begin()
    deferred = fold.begin()
    assert deferred.kwargs == {"joined": True}
    assert fold.asked("CreateTrainingJob") == 1
    fold.complete(fold.job())
    fold.resume(deferred)
    assert fold.store.head(PATHS.document("fold-2.h5")) is not None


def test_a_retry_takes_the_output_of_a_job_that_ended_meanwhile(fold: Fold) -> None:
    fold.begin()
    fold.complete(fold.job())
    fold.task().execute(context())
    assert fold.store.get(PATHS.document("fold-2.h5")) == b"model"
    assert fold.asked("CreateTrainingJob") == 1


def test_a_job_is_found_although_earlier_ones_were_deleted_in_the_console(fold: Fold) -> None:
    for _ in range(2):
        fold.begin()
        list(fold.service.jobs.values())[-1].finish("Failed", reason="InternalServerError")
    third = fold.begin().trigger.job  # type: ignore[attr-defined]
    for deleted in list(fold.service.jobs)[:2]:
        del fold.service.jobs[deleted]
    assert third.endswith("-try-3") and fold.begin().trigger.job == third  # type: ignore[attr-defined]
    assert fold.asked("CreateTrainingJob") == 3
    fold.job().finish("Failed", reason="InternalServerError")
    assert fold.begin().trigger.job == third.replace("-try-3", "-try-4")  # type: ignore[attr-defined]


def test_a_job_with_another_image_is_stopped_before_another_one_starts(fold: Fold) -> None:
    fold.begin()
    fold.settings["sagemaker_image_uri"] = f"{IMAGE}2"
    deferred = fold.begin()
    assert (fold.job().told["TrainingJobStatus"], len(fold.service.jobs)) == ("Stopped", 1)
    with pytest.raises(TaskDeferred) as again:
        fold.resume(deferred)
    assert again.value.kwargs == {"joined": False}
    assert fold.job(2).asked["AlgorithmSpecification"]["TrainingImage"] == f"{IMAGE}2"
    assert again.value.trigger.job == fold.job(2).name == fold.job().name.replace("try-1", "try-2")


def test_a_model_of_another_image_is_not_taken(fold: Fold) -> None:
    fold.begin()
    fold.complete(fold.job())
    fold.settings["sagemaker_image_uri"] = f"{IMAGE}2"
    assert fold.begin().trigger.job == fold.job(2).name  # type: ignore[attr-defined]


def test_a_job_that_is_stopping_with_its_cleared_attempt_is_followed_by_another(fold: Fold) -> None:
    fold.begin()
    deferred = fold.begin()
    fold.job().stop()
    with pytest.raises(TaskDeferred) as again:
        fold.resume(deferred)
    assert again.value.trigger.job == fold.job(2).name


def test_a_job_that_a_person_stopped_is_not_started_again_until_the_task_is_cleared(fold: Fold) -> None:
    deferred = fold.begin()
    fold.job().stop()
    with pytest.raises(AirflowFailException, match=r"TrainingStopped: somebody stopped bcc-.*: clear the task to go on"):
        fold.resume(deferred)
    assert fold.begin().trigger.job == fold.job(2).name  # type: ignore[attr-defined]


def test_the_reason_of_a_failed_job_is_the_tasks_and_a_retry_starts_another(fold: Fold) -> None:
    deferred = fold.begin()
    fold.job().finish("Failed", reason="AlgorithmError: , exit code: 137")
    with pytest.raises(TrainingFailed, match=r"the memory of ml\.g5\.xlarge"):
        fold.resume(deferred)
    deferred = fold.begin()
    fold.job(2).finish("Failed", reason=f"AlgorithmError: {DivergedError.__name__}: the loss is NaN, exit code: 1")
    with pytest.raises(AirflowFailException, match="DivergedError: the loss is NaN"):
        fold.resume(deferred)


def test_a_job_that_is_late_is_stopped(fold: Fold) -> None:
    deferred = fold.begin()
    with pytest.raises(TrainingUnavailable, match=r"did not end in its time \(Starting to the last\) and is stopped"):
        fold.resume(deferred, late=True)
    assert fold.job().told["TrainingJobStatus"] == "Stopped"


def test_a_job_that_ended_while_the_triggerer_was_late_is_taken(fold: Fold) -> None:
    deferred = fold.begin()
    fold.complete(fold.job())
    assert fold.resume(deferred, late=True)["key"] == PATHS.document("fold-2.json")


def test_the_job_of_a_trigger_that_was_not_heard_of_is_stopped(fold: Fold) -> None:
    fold.begin()
    with pytest.raises(TaskDeferralTimeout):
        fold.task().resume_execution("__fail__", {"error": "Trigger timeout"}, context())
    assert fold.job().told["TrainingJobStatus"] == "Stopped"


def test_what_the_trigger_was_refused_fails_the_task_and_leaves_no_job(fold: Fold) -> None:
    deferred = fold.begin()
    with pytest.raises(AirflowFailException, match="ConfigError: AWS refuses"):
        fold.resume(deferred, error="ConfigError", message="AWS refuses")
    assert fold.job().told["TrainingJobStatus"] == "Stopped"


def test_a_late_job_that_the_worker_may_not_look_at_is_stopped(fold: Fold) -> None:
    deferred = fold.begin()
    fold.service.refusals = {"DescribeTrainingJob": [Refusal("AccessDeniedException", "not authorized")]}
    with pytest.raises(AirflowFailException, match="ConfigError: AWS refuses sagemaker:DescribeTrainingJob"):
        fold.resume(deferred, late=True)
    assert fold.job().told["TrainingJobStatus"] == "Stopped"


@pytest.mark.parametrize("when", ["before the job is there", "once it is there"])
def test_a_task_that_is_killed_while_its_job_begins_leaves_none_behind(
    fold: Fold, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    task, create = fold.task(), SageMaker._create

    def kill(service: SageMaker, asked: dict[str, Any]) -> dict[str, Any]:
        if when == "once it is there":
            create(service, asked)
        task.on_kill()
        return {} if asked["TrainingJobName"] in service.jobs else create(service, asked)

    monkeypatch.setattr(SageMaker, "_create", kill)
    with pytest.raises(TrainingInterrupted, match="the job is stopped too"):
        task.execute(context())
    assert [job.told["TrainingJobStatus"] for job in fold.service.jobs.values()] == ["Stopped"]


def test_a_task_that_is_killed_while_it_writes_the_input_creates_no_job(fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    task, copy = fold.task(), ObjectStore.copy

    def kill(store: ObjectStore, *arguments: Any) -> None:
        task.on_kill()
        copy(store, *arguments)

    monkeypatch.setattr(ObjectStore, "copy", kill)
    with pytest.raises(TrainingInterrupted, match="before its job began"):
        task.execute(context())
    assert fold.asked("CreateTrainingJob") == 0


def test_a_job_that_another_attempt_was_faster_to_create_is_joined(fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    create = SageMaker._create

    def first_another(service: SageMaker, asked: dict[str, Any]) -> dict[str, Any]:
        create(service, asked)
        return create(service, asked)

    monkeypatch.setattr(SageMaker, "_create", first_another)
    assert fold.begin().kwargs == {"joined": True}


def test_a_job_is_stopped_whose_creation_got_no_answer(fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    create = SageMaker._create

    def drop_the_connection(service: SageMaker, asked: dict[str, Any]) -> dict[str, Any]:
        create(service, asked)
        raise Dropped

    monkeypatch.setattr(SageMaker, "_create", drop_the_connection)
    with pytest.raises(TrainingUnavailable, match="gave no answer to CreateTrainingJob now"):
        fold.task().execute(context())
    assert fold.job().told["TrainingJobStatus"] == "Stopped"


def test_throttling_is_waited_out(fold: Fold) -> None:
    fold.service.refusals = {"CreateTrainingJob": [Refusal("ThrottlingException", "Rate exceeded")]}
    fold.begin()
    assert fold.asked("CreateTrainingJob") == 2


@pytest.mark.parametrize(
    ("operation", "refused", "error", "said"),
    [
        (
            "CreateTrainingJob",
            Refusal("AccessDeniedException", "not authorized"),
            AirflowFailException,
            "AWS refuses sagemaker:CreateTrainingJob: not authorized",
        ),
        (
            "DescribeTrainingJob",
            Refusal("AccessDeniedException", "not authorized"),
            AirflowFailException,
            "AWS refuses sagemaker:DescribeTrainingJob: not authorized",
        ),
        (
            "CreateTrainingJob",
            Refusal("ResourceLimitExceeded", "The limit is 0."),
            TrainingUnavailable,
            "may not have one more ml.g5.xlarge",
        ),
    ],
)
def test_a_refusal_is_one_sentence_and_leaves_no_job(
    fold: Fold, operation: str, refused: Refusal, error: type[Exception], said: str
) -> None:
    fold.service.refusals = {operation: [refused]}
    with pytest.raises(error, match=said):
        fold.task().execute(context())
    assert not fold.service.jobs


def test_a_type_of_instance_that_the_region_lacks_is_named(fold: Fold) -> None:
    fold.settings["sagemaker_instance_type"] = "ml.none.large"
    with pytest.raises(AirflowFailException, match=r"no training on ml\.none\.large in this region"):
        fold.task().execute(context())


def test_an_output_that_is_not_the_folds_is_refused_and_trained_again_only_in_another_attempt(
    fold: Fold, caplog: pytest.LogCaptureFixture
) -> None:
    deferred = fold.begin()
    fold.complete(fold.job(), h5=b"another")
    with pytest.raises(AirflowFailException, match=r"ArtifactError: fold-2\.h5 is not the file that fold-2\.json promises"):
        fold.resume(deferred)
    assert fold.store.head(PATHS.document("fold-2.h5")) is None
    assert fold.begin().trigger.job == fold.job(2).name  # type: ignore[attr-defined]
    assert "cannot be used, training again" in caplog.text


def test_a_table_with_other_than_an_answer_for_each_image_is_refused_before_it_is_read(fold: Fold) -> None:
    deferred = fold.begin()
    row = SplitRow(KEYS[1], "sha1", "benign", KEYS[1], 2)
    fold.complete(fold.job(), answers=write_answers([row] * 1200, ("benign", "malignant", "normal"), np.full((1200, 3), 1 / 3)))
    with pytest.raises(
        AirflowFailException, match=r"ArtifactError: fold-2\.parquet has 1,200 answers, and the fold has 1 images"
    ):
        fold.resume(deferred)
    assert fold.store.head(PATHS.document("fold-2.parquet")) is None


def test_an_airflow_that_does_not_tell_triggers_of_a_kill_trains_nothing(fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(BaseTrigger, "on_kill")
    with pytest.raises(AirflowFailException, match=r"ConfigError: BCC_TRAIN_ON=sagemaker needs Airflow 3\.3"):
        fold.task().execute(context())
    assert not fold.service.calls


def test_weights_that_a_job_would_have_to_download_are_refused_before_it_costs_anything(fold: Fold) -> None:
    fold.config = config_document(architecture="MobileNetV3Small", weights="imagenet")
    fold.run = run_handle(fold.store, fold.config, fold.snapshot)
    with pytest.raises(AirflowFailException, match="no network to fetch the weights of MobileNetV3Small with: name a file"):
        fold.task().execute(context())


def test_a_file_of_weights_is_a_channel_of_its_own(fold: Fold) -> None:
    fold.store.put("weights/own.weights.h5", b"weights")
    fold.config = config_document(architecture="MobileNetV3Small", weights=f"s3://{fold.store.bucket}/weights/own.weights.h5")
    fold.run = run_handle(fold.store, fold.config, fold.snapshot)
    fold.begin()
    uri = fold.job().asked["InputDataConfig"][2]["DataSource"]["S3DataSource"]["S3Uri"]
    (entry,) = fold.store.list_objects(uri.split("/", 3)[3])
    assert entry["Key"].endswith("own.weights.h5") and fold.store.get(entry["Key"]) == b"weights"
