"""Folds that SageMaker trains: real trainings in the service of tests/services/sagemaker.py, and what they ask AWS for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from bcc_ops.operators import train_model
from bcc_ops.operators.train_model import TrainModelOperator
from bcc_ops.runs.documents import FoldDocument
from bcc_ops.runs.epochs import parse_history
from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import S3Server
from tests.conftest import REPOSITORY
from tests.integration.conftest import CONTEXT, train_as_worker
from tests.integration.test_training_process import OF_THE_ATTEMPT
from tests.services.sagemaker import SageMaker, sagemaker
from tests.services.waiting import fire

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each fold starts TensorFlow

SETTINGS = {
    "BCC_TRAIN_ON": "sagemaker",
    "BCC_SAGEMAKER_ROLE_ARN": "arn:aws:iam::123456789012:role/bcc-training",
    "BCC_SAGEMAKER_IMAGE_URI": "123456789012.dkr.ecr.us-east-1.amazonaws.com/bcc-retraining:0.1.0",
    "BCC_SAGEMAKER_INSTANCE_TYPE": "ml.g5.xlarge",
    "BCC_SAGEMAKER_SPOT_WAIT_MINUTES": "60",
}


@pytest.fixture
def service(place: ObjectStore, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SageMaker]:
    """SageMaker, with the deployment set up for it."""
    with sagemaker(place, tmp_path / "sagemaker", trains=True) as service:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", service.connection(s3_server.airflow_connection))
        for name, value in SETTINGS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(train_model, "SECONDS_BETWEEN_LOOKS", 0.05)
        yield service


def _begin(references: dict[str, Any], fold: int) -> tuple[TrainModelOperator, TaskDeferred]:
    task = TrainModelOperator(task_id="train_model", **{**references, "fold": fold})
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(CONTEXT)
    return task, deferred.value


def _end(task: TrainModelOperator, deferred: TaskDeferred) -> Any:
    event = fire(deferred.trigger).payload
    return task.resume_execution(deferred.method_name, {**(deferred.kwargs or {}), "event": event}, CONTEXT)


def _metrics(history: bytes) -> list[dict[str, Any]]:
    return [row.model_dump(exclude={"seconds", "images_per_second"}) for row in parse_history(history)]


def test_a_job_whose_spot_instance_is_taken_away_ends_with_the_workers_model(
    place: ObjectStore, start: Callable[..., dict[str, Any]], service: SageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = start(image_size=64)
    service.interrupt_after = {2: 2}

    document = place.load(FoldDocument, _end(*_begin(references, 2)))

    assert [job.interruptions for job in service.jobs.values()] == [1]
    assert (document.fold, document.epochs, len(document.resumed_after_epochs)) == (2, 6, 1)
    assert list(place.list_objects("artifacts/checkpoints")) == []
    monkeypatch.delenv("BCC_TRAIN_ON")
    _require_the_workers_model(place, document, start)
    _require_least_privilege(service)


def _require_the_workers_model(place: ObjectStore, found: FoldDocument, start: Callable[..., dict[str, Any]]) -> None:
    references = start("manual__2", image_size=64)
    expected = place.load(FoldDocument, train_as_worker(references, context={"run_id": "manual__2"}))
    assert place.get_referenced(found.model) == place.get_referenced(expected.model)
    assert place.get_referenced(found.answers) == place.get_referenced(expected.answers)
    assert _metrics(place.get_referenced(found.history)) == _metrics(place.get_referenced(expected.history))
    of_the_run = {"config_digest", "split", "model", "answers", "resumed_after_epochs", "sagemaker", *OF_THE_ATTEMPT}
    assert found.model_dump(exclude=of_the_run) == expected.model_dump(exclude=of_the_run)


def _require_least_privilege(service: SageMaker) -> None:
    """The two policies allow what was asked for, and no action that nothing needs."""
    connection, role = (
        json.loads((REPOSITORY / "deploy" / f"iam-policy-{name}.json").read_text())["Statement"]
        for name in ("sagemaker", "sagemaker-role")
    )
    asked = {f"sagemaker:{operation}" for operation, _ in service.calls}
    assert any("Tags" in given for operation, given in service.calls if operation == "CreateTrainingJob")
    asked |= {"sagemaker:AddTags", "iam:PassRole", "sagemaker:StopTrainingJob"}  # with tags and a role; the next test stops one
    assert set(_actions(connection)) == asked
    (jobs,) = [one["Resource"] for one in connection if one["Sid"] == "TrainFolds"]
    assert all(fnmatchcase(f"arn:aws:sagemaker:REGION:ACCOUNT:training-job/{name}", jobs) for name in service.jobs)
    for action, key in set(service.role_calls):
        assert any(_allows(statement, action, key) for statement in role), (action, key)
    assert {action for action in _actions(role) if action.startswith("s3:")} == {action for action, _ in service.role_calls}


def _actions(statements: list[dict[str, Any]]) -> list[str]:
    return [action for one in statements for action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])]


def _allows(statement: dict[str, Any], action: str, key: str) -> bool:
    if action not in _actions([statement]):
        return False
    if action == "s3:ListBucket":
        return fnmatchcase(key, statement["Condition"]["StringLikeIfExists"]["s3:prefix"])
    resources = statement["Resource"]
    patterns = [resources] if isinstance(resources, str) else resources
    return any(fnmatchcase(f"arn:aws:s3:::breast-images/{key}", pattern) for pattern in patterns)


async def test_a_task_that_is_cleared_stops_its_job_and_the_next_attempt_goes_on_from_the_checkpoint(
    place: ObjectStore, start: Callable[..., dict[str, Any]], service: SageMaker
) -> None:
    references = start(image_size=64, epochs=500)
    _, deferred = _begin(references, 2)
    (job,) = service.jobs.values()
    history = deferred.trigger.history
    while place.head(history) is None:
        assert not job.ended.is_set(), job.told
        await asyncio.sleep(0.02)
    trigger: Any = deferred.trigger
    trigger.task_instance = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=1)

    await trigger.on_kill()
    job.ended.wait()

    assert job.told["TrainingJobStatus"] == "Stopped"
    assert any(entry["Key"].endswith("/checkpoint.npz") for entry in place.list_objects("artifacts/checkpoints"))
    _, again = _begin(references, 2)
    second = service.jobs[again.trigger.job]
    assert (list(service.jobs)[1], job.name[:-1]) == (second.name, second.name[:-1])
    assert second.asked["CheckpointConfig"] == job.asked["CheckpointConfig"]
