"""The trigger that waits for a job of SageMaker, and what becomes of the job when the trigger is cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.jobs.triggerer_job_runner import _USER_ACTION_CANCEL_MSG, TriggerRunner
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from bcc_ops.dataset.arrivals import utc_now
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.triggers.training_job import TrainingJobTrigger
from local.s3_server import S3Server
from tests.services.sagemaker import Job, Refusal, SageMaker, sagemaker
from tests.services.waiting import fire
from tests.unit.training.test_sagemaker import PLACE, REQUEST, SETTINGS

JOB = "bcc-1"


@pytest.fixture
def service(store: ObjectStore, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SageMaker]:
    with sagemaker(store, tmp_path, trains=False) as service:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", service.connection(s3_server.airflow_connection))
        from bcc_ops.training.sagemaker import job_request

        service.answer("CreateTrainingJob", job_request(JOB, REQUEST, PLACE, SETTINGS, weights=False))
        yield service


@pytest.fixture
def job(service: SageMaker) -> Job:
    return service.jobs[JOB]


def _trigger(store: ObjectStore, **changes: Any) -> TrainingJobTrigger:
    given: dict[str, Any] = {
        "aws_conn_id": "aws_default",
        "job": JOB,
        "bucket": store.bucket,
        "history": "artifacts/checkpoints/history.csv",
        "progress": "artifacts/runs/x/fold-2.csv",
        "deadline": (utc_now() + timedelta(hours=1)).isoformat(),
        "poll_interval": 0.01,
    }
    return TrainingJobTrigger(**{**given, **changes})


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The state of the trigger's task, as the API server tells it."""
    monkeypatch.setenv("AIRFLOW_DISABLE_GREENBACK_PORTAL", "true")  # Airflow's greenlets and pytest do not go together
    states = {"train_model_1": "deferred"}

    def answer(**asked: Any) -> dict[str, dict[str, str]]:
        assert asked == {"dag_id": "d", "task_ids": ["train_model"], "run_ids": ["r"], "map_index": 1}
        return {"r": dict(states)}

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(answer))
    return states


def _of_a_task(trigger: TrainingJobTrigger) -> TrainingJobTrigger:
    trigger._task_instance = SimpleNamespace(
        id="i", dag_id="d", task_id="train_model", run_id="r", map_index=1, try_number=1, context_carrier=None
    )
    return trigger


def test_the_trigger_serialises_to_what_makes_it_again(store: ObjectStore) -> None:
    trigger = _trigger(store)
    path, arguments = trigger.serialize()
    assert path == "bcc_ops.triggers.training_job.TrainingJobTrigger"
    assert set(arguments) == {"aws_conn_id", "job", "bucket", "history", "progress", "deadline", "poll_interval"}
    assert TrainingJobTrigger(**arguments).serialize() == (path, arguments)


def test_it_fires_once_the_job_has_ended(store: ObjectStore, job: Job) -> None:
    job.finish("Failed", reason="InternalServerError")
    assert fire(_trigger(store)).payload == {"job": JOB}


def test_it_fires_if_the_job_has_ended_and_was_deleted(store: ObjectStore, service: SageMaker) -> None:
    service.jobs.clear()
    assert fire(_trigger(store)).payload == {"job": JOB}


def test_it_fires_when_the_job_is_late(store: ObjectStore, job: Job) -> None:
    assert fire(_trigger(store, deadline=utc_now().isoformat())).payload == {"job": JOB, "late": True}
    assert job.told["TrainingJobStatus"] == "InProgress"


def test_it_fires_if_it_may_not_look(store: ObjectStore, service: SageMaker) -> None:
    service.refusals = {"DescribeTrainingJob": [Refusal("AccessDeniedException", "not authorized")]}
    event = fire(_trigger(store)).payload
    assert (event["job"], event["error"]) == (JOB, "ConfigError")
    assert event["message"].startswith("AWS refuses sagemaker:DescribeTrainingJob: not authorized")


def test_it_goes_on_looking_where_sagemaker_gives_no_answer(
    store: ObjectStore, service: SageMaker, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own, which take seconds
    service.refusals = {"DescribeTrainingJob": [Refusal("InternalFailure", "oops", 500)]}
    job.finish("Completed")
    assert fire(_trigger(store)).payload == {"job": JOB}
    assert len([one for one, _ in service.calls if one == "DescribeTrainingJob"]) == 2


async def test_the_history_is_shown_as_it_grows(store: ObjectStore, job: Job) -> None:
    trigger = _trigger(store)
    store.put(trigger.history, b"epoch 1")
    waiting = asyncio.ensure_future(anext(trigger.run()))
    for content in (b"epoch 1", b"epoch 1\nepoch 2"):
        store.put(trigger.history, content)
        while store.head(trigger.progress) is None or store.get(trigger.progress) != content:
            assert not waiting.done(), waiting
            await asyncio.sleep(0.01)
    job.finish("Completed")
    assert (await waiting).payload == {"job": JOB}
    assert store.client.head_object(Bucket=store.bucket, Key=trigger.progress)["ContentType"] == "text/csv"


async def _cancel_in_airflows_runner(trigger: TrainingJobTrigger, service: SageMaker, *message: str) -> None:
    """As the triggerer does it: with the message if a person acted on the task, without when it ends itself."""
    runner = TriggerRunner()
    runner.triggers[1] = {"task": None, "is_watcher": False, "name": "the trigger", "events": 0}  # type: ignore[typeddict-item]
    task = asyncio.ensure_future(runner.run_trigger(1, trigger))
    while "DescribeTrainingJob" not in {operation for operation, _ in service.calls}:
        assert not task.done(), task
        await asyncio.sleep(0.01)
    task.cancel(*message)
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("state", ["failed", "success", "scheduled", "running"])
async def test_the_job_of_a_task_that_is_cleared_or_marked_is_stopped(
    store: ObjectStore, service: SageMaker, job: Job, states: dict[str, str], state: str
) -> None:
    states["train_model_1"] = state
    await _cancel_in_airflows_runner(_of_a_task(_trigger(store)), service, _USER_ACTION_CANCEL_MSG)
    assert job.told["TrainingJobStatus"] == "Stopped"


async def test_the_job_is_stopped_although_airflow_cancels_the_trigger_again_meanwhile(
    store: ObjectStore, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answered = threading.Event(), threading.Event()

    def answer_late(**given: Any) -> dict[str, dict[str, str]]:
        asked.set()
        answered.wait()
        return {"r": {"train_model_1": "failed"}}

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(answer_late))
    killing = asyncio.ensure_future(_of_a_task(_trigger(store)).on_kill())
    await asyncio.to_thread(asked.wait)
    killing.cancel(_USER_ACTION_CANCEL_MSG)
    with pytest.raises(asyncio.CancelledError):
        await killing
    answered.set()
    await asyncio.to_thread(job.ended.wait)
    assert job.told["TrainingJobStatus"] == "Stopped"


async def test_the_job_goes_on_when_the_triggerer_ends(
    store: ObjectStore, service: SageMaker, job: Job, states: dict[str, str]
) -> None:
    states["train_model_1"] = "failed"
    await _cancel_in_airflows_runner(_of_a_task(_trigger(store)), service)
    assert job.told["TrainingJobStatus"] == "InProgress"


async def test_the_job_goes_on_when_another_triggerer_has_taken_over(
    store: ObjectStore, service: SageMaker, job: Job, states: dict[str, str]
) -> None:
    await _cancel_in_airflows_runner(_of_a_task(_trigger(store)), service, _USER_ACTION_CANCEL_MSG)
    assert job.told["TrainingJobStatus"] == "InProgress"


async def test_the_job_is_stopped_if_nobody_tells_the_state_of_its_task(
    store: ObjectStore, job: Job, states: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(**asked: Any) -> None:
        raise ConnectionError("the API server is away")

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(away))
    await _of_a_task(_trigger(store)).on_kill()
    assert job.told["TrainingJobStatus"] == "Stopped"


async def test_a_job_that_cannot_be_stopped_is_named(
    store: ObjectStore, service: SageMaker, states: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    states.clear()
    service.refusals = {"StopTrainingJob": [Refusal("AccessDeniedException", "not authorized")]}
    await _of_a_task(_trigger(store)).on_kill()
    assert f"{JOB} was not stopped: AWS refuses sagemaker:StopTrainingJob" in capsys.readouterr().out
