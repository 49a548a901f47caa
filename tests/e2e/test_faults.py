"""Parts of the compose file's services die in the middle of a training; each run ends well all the same.

make e2e-faults

Prints, for docs/operations.md, a line a fault: what happened, and the seconds until work went on.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from bcc_ops.run_index import find_run
from local.airflow_api import AirflowError
from local.compose_stack import ComposeStack
from tests.e2e.compose_runs import ARTIFACTS, DAG_ID, TINY, unpause, upload_made_up_images, whole_documents

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

LONG: dict[str, Any] = {**TINY, "epochs": 60, "early_stopping_patience": 0, "ema": False}
"""A training of half a minute where nothing else runs, so that there is a middle in which to be hit."""
OUTAGE = 60.0


@dataclass
class Measured:
    """What the faults did."""

    lines: list[str] = field(default_factory=list)

    def say(self, fault: str, what: str, seconds: float) -> None:
        """Keep and print a line of the table in docs/operations.md."""
        self.lines.append(f"| {fault} | {what} | {seconds:.0f} s |")
        print("\n" + self.lines[-1])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    with ComposeStack(tmp_path_factory.mktemp("faults") / "stack") as stack:
        upload_made_up_images(stack.store, per_class=16, seed=1)
        unpause(stack, DAG_ID)
        yield stack


@pytest.fixture(scope="module")
def measured() -> Iterator[Measured]:
    measured = Measured()
    yield measured
    print("\n" + "\n".join(measured.lines))


class Training:
    """A run in the middle of its training."""

    def __init__(self, stack: ComposeStack, name: str, seed: int) -> None:
        self.stack = stack
        self.run_id = stack.api.trigger(DAG_ID, {**LONG, "seed": seed}, run_id=name)
        stack.await_("a checkpoint", lambda: self.checkpointed() is not None, within=600)

    def checkpointed(self) -> datetime | None:
        """When the last checkpoint was written; None where there is none."""
        moments = [entry["LastModified"] for entry in self.stack.store.list_objects(f"{ARTIFACTS}/checkpoints/")]
        return max(moments, default=None)

    def goes_on(self) -> float:
        """Wait until training has written another checkpoint, or is done, and return the seconds that this took."""
        last, begin = self.checkpointed(), time.monotonic()

        def moved() -> bool:
            now = self.checkpointed()
            if now is not None and now != last:
                return True
            paths = find_run(self.stack.store, ARTIFACTS, self.run_id)
            return paths is not None and self.stack.store.head(paths.document("training.json")) is not None

        self.stack.await_("training to go on", moved, within=600)
        return time.monotonic() - begin

    def ends_well(self) -> dict[str, Any]:
        """Wait for the run's end, read every document, and return the tasks."""
        run = self.stack.api.wait_for_run(DAG_ID, self.run_id, within=900)
        tasks = self.stack.api.tasks(DAG_ID, self.run_id)
        assert run["state"] == "success", {name: task["state"] for name, task in tasks.items()}
        self.documents = whole_documents(self.stack, self.run_id)
        return tasks


def healthy(stack: ComposeStack) -> bool:
    try:
        health = stack.api.health()
        return bool(health) and set(health.values()) == {"healthy"} and bool(stack.api.call("GET", "/pools"))
    except AirflowError:
        return False


def test_killed_gpu_worker_and_another_goes_on_at_the_checkpoint(stack: ComposeStack, measured: Measured) -> None:
    training = Training(stack, "gpu-worker", seed=11)
    # The restart policy's worker is another one: its container is new, and its cache may be.
    with stack.down("worker-gpu"):
        for checkpoint in stack.volume("cache-gpu").rglob("checkpoint.npz"):
            checkpoint.unlink()
    seconds = training.goes_on()
    tasks = training.ends_well()
    resumed = training.documents["training.json"].resumed_after_epochs
    assert len(resumed) == 1 and resumed[0] >= 1, "the training began anew instead of going on at the checkpoint"
    assert tasks["train_model"]["try_number"] == 2
    measured.say(
        "kill -9 of the GPU worker in mid-training", f"tried again, went on after epoch {resumed[0]} from the bucket", seconds
    )


def test_stopped_gpu_worker_writes_a_checkpoint_and_gives_the_training_back(stack: ComposeStack, measured: Measured) -> None:
    training = Training(stack, "gpu-worker-stop", seed=12)
    stopped = stack.supervisor.pid("worker-gpu")
    stack.signal("worker-gpu", signal.SIGTERM)
    ended = stack.await_("the worker to end by itself", lambda: stack.supervisor.pid("worker-gpu") != stopped, within=180)
    seconds = ended + training.goes_on()
    training.ends_well()
    resumed = training.documents["training.json"].resumed_after_epochs
    assert len(resumed) == 1 and resumed[0] >= 1
    measured.say(
        "stop of the GPU worker in mid-training", f"it ended after {ended:.0f} s; went on after epoch {resumed[0]}", seconds
    )


@pytest.mark.parametrize("service", ["scheduler", "dag-processor"])
def test_killed_component_is_restarted_and_training_does_not_notice(
    stack: ComposeStack, measured: Measured, service: str
) -> None:
    training = Training(stack, service, seed=20 + len(service))
    stack.kill(service)
    on = training.goes_on()
    tasks = training.ends_well()
    assert tasks["train_model"]["try_number"] == 1
    measured.say(f"kill -9 of the {service}", "restarted; training did not notice", on)


@pytest.mark.parametrize("service", ["redis", "postgres"])
def test_restarted_server_interrupts_nothing(stack: ComposeStack, measured: Measured, service: str) -> None:
    training = Training(stack, service, seed=30 + len(service))
    begin = time.monotonic()
    # "fast" shutdown of PostgreSQL is SIGINT: it does not wait for connections to end
    stack.signal(service, signal.SIGINT if service == "postgres" else signal.SIGTERM)
    on = training.goes_on()
    stack.await_("all to be healthy", lambda: healthy(stack), within=180)
    back = time.monotonic() - begin
    tasks = training.ends_well()
    measured.say(
        f"restart of {service}",
        f"all healthy after {back:.0f} s; train_model needed {tasks['train_model']['try_number']} try",
        on,
    )


@pytest.mark.parametrize("service", ["s3", "api-server"])
def test_server_that_is_away_for_a_minute_costs_that_minute_at_most(
    stack: ComposeStack, measured: Measured, service: str
) -> None:
    training = Training(stack, service, seed=40 + len(service))
    with stack.down(service):
        time.sleep(OUTAGE)
    if service == "s3":
        stack.await_("S3", lambda: answers(stack.store.is_versioned), within=60)
    on = training.goes_on()
    tasks = training.ends_well()
    measured.say(
        f"{service} away for {OUTAGE:.0f} s",
        f"train_model needed {tasks['train_model']['try_number']} try, "
        f"resumed {len(training.documents['training.json'].resumed_after_epochs)} times",
        on,
    )


def answers(call: Callable[[], Any]) -> bool:
    """Whether the store answers at all."""
    from bcc_ops.exceptions import StorageError

    try:
        call()
    except StorageError:
        return False
    return True


def test_killed_triggerer_and_the_sensor_goes_on_waiting(stack: ComposeStack, measured: Measured) -> None:
    (asset,) = [a for a in stack.api.call("GET", "/assets")["assets"] if a["name"] == "breast_images"]
    stack.api.call("POST", "/assets/events", json={"asset_id": asset["id"], "extra": {}})
    stack.await_("the event's run", lambda: bool(event_runs(stack)), within=120)
    run_id = event_runs(stack)[0]["dag_run_id"]

    def sensor() -> dict[str, Any]:
        task: dict[str, Any] = stack.api.tasks(DAG_ID, run_id)["wait_for_new_images"]
        return task

    stack.await_("the sensor to wait", lambda: sensor()["state"] == "deferred", within=180)
    before = sensor()["triggerer_job"]
    stack.kill("triggerer")
    seconds = stack.await_(
        "another triggerer to wait on",
        lambda: (sensor()["triggerer_job"] or before)["id"] != before["id"] and healthy(stack),
        within=180,
    )
    assert sensor()["state"] == "deferred"
    upload_made_up_images(stack.store, per_class=4, seed=2)
    stack.await_("the new images to be seen", lambda: sensor()["state"] == "success", within=300)
    measured.say("kill -9 of the triggerer", "the sensor went on waiting, and saw the images that came then", seconds)
    stack.api.wait_for_run(DAG_ID, run_id, within=900)


def event_runs(stack: ComposeStack) -> list[dict[str, Any]]:
    """The runs that an asset event started."""
    return [run for run in stack.api.runs(DAG_ID) if run["run_type"] == "asset_triggered"]
