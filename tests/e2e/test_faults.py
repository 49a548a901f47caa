"""Parts of the compose file's services die in the middle of a training; each run ends well all the same.

make e2e-faults

Prints, for docs/operations.md, one line per fault: what happened, and the seconds until work went on.
"""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from bcc_ops.exceptions import StorageError
from bcc_ops.runs.documents import ConfigDocument, SnapshotDocument, SplitDocument
from bcc_ops.runs.index import find_run
from bcc_ops.runs.paths import RunPaths, checkpoint_folder, fold_file
from bcc_ops.training.checkpoints import CheckpointFolder
from local.airflow_api import AirflowError
from local.compose_stack import ComposeStack
from tests.e2e.compose_runs import ARTIFACTS, DAG_ID, TINY, unpause, upload_synthetic_images, whole_documents

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

LONG: dict[str, Any] = {**TINY, "folds": 1, "epochs": 80, "ema": False}
"""One training of some fifteen seconds where nothing else runs, so that there is a middle in which to be hit.

All have one seed, so that each one's metrics must be those of the undisturbed run.
"""
TRAINING, TRAINED = "train_model[0]", fold_file(1, "json")
"""The instance of the task, and the document that it ends with."""
OUTAGE = 60.0
JOBS = {"scheduler": "SchedulerJob", "dag-processor": "DagProcessorJob", "triggerer": "TriggererJob"}
"""Service -> what Airflow's table of jobs calls it. Each start is a new job."""


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
        upload_synthetic_images(stack.store, per_class=16, seed=1)
        unpause(stack, DAG_ID)
        yield stack


@pytest.fixture(scope="module")
def measured() -> Iterator[Measured]:
    measured = Measured()
    yield measured
    print("\n" + "\n".join(measured.lines))


class Training:
    """A run in the middle of its training."""

    def __init__(self, stack: ComposeStack, name: str) -> None:
        self.stack = stack
        self.run_id = stack.api.trigger(DAG_ID, LONG, run_id=name)
        stack.await_("a checkpoint", lambda: self.checkpointed() is not None, within=900)
        paths = find_run(stack.store, ARTIFACTS, self.run_id)
        assert isinstance(paths, RunPaths)
        self.paths = paths

    def checkpointed(self) -> datetime | None:
        """When the last checkpoint was written; None if there is none."""
        moments = [entry["LastModified"] for entry in self.stack.store.list_objects(f"{ARTIFACTS}/checkpoints/")]
        return max(moments, default=None)

    def kept_epochs(self) -> int:
        """The epochs in the checkpoint that a retry on the GPU worker will find, in its cache or in the bucket."""
        snapshot = self.stack.store.load_key(SnapshotDocument, self.paths.document("snapshot.json"))
        config = self.stack.store.load_key(ConfigDocument, self.paths.document("config.json"))
        weights = self.stack.store.load_key(SplitDocument, self.paths.document("split.json"))
        assert weights.table is not None
        folder = checkpoint_folder(
            ARTIFACTS, snapshot_digest=snapshot.digest, config_digest=config.digest, split_digest=weights.table.sha256, fold=1
        )
        found = CheckpointFolder(self.stack.volume("cache-gpu"), folder, self.stack.store).load()
        assert found is not None
        assert 1 <= found.epochs < LONG["epochs"], "it was not hit in the middle"
        return found.epochs

    def goes_on(self) -> None:
        """Wait until training has written another checkpoint, or is done."""
        last = self.checkpointed()

        def moved() -> bool:
            now = self.checkpointed()
            return now not in (None, last) or self.stack.store.head(self.paths.document(TRAINED)) is not None

        self.stack.await_("training to go on", moved, within=900)

    def ends_well(self, undisturbed: Training | None) -> dict[str, Any]:
        """Wait for the run's end, read every document, compare it with the undisturbed run, and return the tasks."""
        run = self.stack.api.wait_for_run(DAG_ID, self.run_id, within=900)
        tasks = self.stack.api.tasks(DAG_ID, self.run_id)
        assert run["state"] == "success", {name: task["state"] for name, task in tasks.items()}
        # The second of two equal models is approved and the third is not, as the gate then asks for a better one.
        self.documents = whole_documents(self.stack, self.run_id, promoted=tasks["upload_model"]["state"] == "success")
        written = self.stack.store.client.list_object_versions(
            Bucket=self.stack.store.bucket, Prefix=self.paths.document(TRAINED)
        )["Versions"]
        assert len(written) == 1, "a training that was done was done again"
        if undisturbed is not None:
            assert self.metrics() == undisturbed.metrics()
        return tasks

    @property
    def resumed(self) -> tuple[int, ...]:
        """The epochs after which it was taken up again."""
        epochs: tuple[int, ...] = self.documents[TRAINED].resumed_after_epochs
        return epochs

    def metrics(self) -> dict[str, Any]:
        """All that the seed decides: each epoch's metrics, the model's bytes, and what the evaluation makes of it."""
        text = self.stack.store.get_referenced(self.documents[TRAINED].history).decode()
        rows = [{name: value for name, value in row.items() if "second" not in name} for row in csv.DictReader(text.splitlines())]
        assert len(rows) == LONG["epochs"]
        return {
            "history": rows,
            "model": self.documents["training.json"].model.sha256,
            "evaluation": self.documents["evaluation.json"].challenger,
        }


@pytest.fixture(scope="module")
def undisturbed(stack: ComposeStack) -> Training:
    """A run that nothing happened to."""
    training = Training(stack, "undisturbed")
    assert training.ends_well(None)[TRAINING]["try_number"] == 1
    assert training.resumed == ()
    return training


def training_process(stack: ComposeStack) -> psutil.Process:
    """The one process of the GPU worker that has TensorFlow in it."""
    (found,) = (
        process
        for process in stack.supervisor.processes("worker-gpu")
        if "tensorflow" in Path(f"/proc/{process.pid}/maps").read_text()
    )
    return found


def healthy(stack: ComposeStack) -> bool:
    try:
        health = stack.api.health()
        return bool(health) and set(health.values()) == {"healthy"} and bool(stack.api.call("GET", "/pools"))
    except AirflowError:
        return False


def tries(tasks: dict[str, Any]) -> str:
    number = tasks[TRAINING]["try_number"]
    return f"{number} {'try' if number == 1 else 'tries'}"


def answers(call: Callable[[], Any]) -> bool:
    """Whether the store answers at all."""
    with suppress(StorageError):
        call()
        return True
    return False


@pytest.mark.parametrize("service", ["s3", "api-server"])
def test_server_that_is_away_for_a_minute_costs_that_minute_at_most(
    stack: ComposeStack, measured: Measured, undisturbed: Training, service: str
) -> None:
    training = Training(stack, service)
    with stack.down(service):
        time.sleep(OUTAGE)
    begin = time.monotonic()
    stack.await_(f"{service} to answer", lambda: answers(stack.store.is_versioned) if service == "s3" else healthy(stack))
    done = stack.store.head(training.paths.document(TRAINED)) is not None
    training.goes_on()
    seconds = time.monotonic() - begin
    tasks = training.ends_well(undisturbed)
    what = (
        f"training {'was done by then' if done else 'went on'}; train_model needed {tries(tasks)}, "
        f"resumed {len(training.resumed)} times; not trained twice"
    )
    measured.say(f"{service} away for {OUTAGE:.0f} s", what, seconds)


def is_another(stack: ComposeStack, service: str, pid: int) -> bool:
    return stack.supervisor.pid(service) != pid


def test_restarted_redis_and_postgres_interrupt_no_training(
    stack: ComposeStack, measured: Measured, undisturbed: Training
) -> None:
    training = Training(stack, "redis-and-postgres")
    # "fast" shutdown of PostgreSQL is SIGINT: it does not wait for connections to end
    for service, number in (("redis", signal.SIGTERM), ("postgres", signal.SIGINT)):
        begin, stopped = time.monotonic(), stack.supervisor.pid(service)
        stack.signal(service, number)
        stack.await_("the server to be restarted", partial(is_another, stack, service, stopped))
        stack.await_("all to be healthy", lambda: healthy(stack))
        measured.say(f"restart of {service}", "training did not notice", time.monotonic() - begin)
    tasks = training.ends_well(undisturbed)
    assert tasks[TRAINING]["try_number"] == 1 and training.resumed == ()


def test_killed_training_process_is_taken_up_again_at_the_epoch_that_it_had_reached(
    stack: ComposeStack, measured: Measured, undisturbed: Training
) -> None:
    training = Training(stack, "training-process")
    training_process(stack).kill()
    begin, epochs = time.monotonic(), training.kept_epochs()
    training.goes_on()
    seconds = time.monotonic() - begin
    tasks = training.ends_well(undisturbed)
    assert training.resumed == (epochs,)
    assert tasks[TRAINING]["try_number"] == 2
    what = f"tried again, went on after epoch {epochs} of {LONG['epochs']}"
    measured.say("kill -9 of the training process", what, seconds)


def test_stopped_gpu_worker_writes_a_checkpoint_and_gives_the_training_back(
    stack: ComposeStack, measured: Measured, undisturbed: Training
) -> None:
    training = Training(stack, "gpu-worker-stop")
    stopped = stack.supervisor.pid("worker-gpu")
    begin = time.monotonic()
    stack.signal("worker-gpu", signal.SIGTERM)
    ended = stack.await_("the worker to end by itself", lambda: stack.supervisor.pid("worker-gpu") != stopped, within=180)
    training.goes_on()
    seconds = time.monotonic() - begin
    training.ends_well(undisturbed)
    assert len(training.resumed) == 1 and training.resumed[0] >= 1
    measured.say(
        "stop of the GPU worker in mid-training",
        f"it ended after {ended:.0f} s; went on after epoch {training.resumed[0]}",
        seconds,
    )


def newest_job(stack: ComposeStack, service: str) -> int:
    (job,) = stack.api.call("GET", "/jobs", params={"job_type": JOBS[service], "order_by": "-id", "limit": 1})["jobs"]
    return int(job["id"])


def has_newer_job(stack: ComposeStack, service: str, before: int) -> bool:
    return newest_job(stack, service) > before


def test_killed_scheduler_and_dag_processor_are_restarted_and_no_task_notices(
    stack: ComposeStack, measured: Measured, undisturbed: Training
) -> None:
    training = Training(stack, "scheduler-and-dag-processor")
    for service in ("scheduler", "dag-processor"):
        before = newest_job(stack, service)
        stack.kill(service)
        seconds = stack.await_(f"another {service}", partial(has_newer_job, stack, service, before))
        measured.say(f"kill -9 of the {service}", "restarted; no task noticed", seconds)
    tasks = training.ends_well(undisturbed)
    assert {name: task["try_number"] for name, task in tasks.items() if task["try_number"] > 1} == {}
    assert training.resumed == ()


def test_killed_gpu_worker_and_another_goes_on_at_the_checkpoint_in_the_bucket(
    stack: ComposeStack, measured: Measured, undisturbed: Training
) -> None:
    training = Training(stack, "gpu-worker")
    # The restart policy's worker is another one: its container is new, and its cache may be.
    with stack.down("worker-gpu"):
        begin = time.monotonic()
        for checkpoint in stack.volume("cache-gpu").rglob("checkpoint.npz"):
            checkpoint.unlink()
        epochs = training.kept_epochs()
    training.goes_on()
    seconds = time.monotonic() - begin
    tasks = training.ends_well(undisturbed)
    assert training.resumed == (epochs,)
    assert tasks[TRAINING]["try_number"] == 2
    what = f"tried again, went on after epoch {epochs} of {LONG['epochs']}, from the bucket"
    measured.say("kill -9 of the GPU worker in mid-training", what, seconds)


def test_killed_triggerer_and_the_sensor_goes_on_waiting(stack: ComposeStack, measured: Measured, undisturbed: Training) -> None:
    # Only a night waits for images; the one that was stopped to make room for the other runs is let go.
    (run_id,) = (run["dag_run_id"] for run in stack.api.runs(DAG_ID) if run["run_type"] == "scheduled")
    stack.api.call("POST", f"/dags/{DAG_ID}/dagRuns/{quote(run_id, safe='')}/clear", json={"dry_run": False})

    def sensor() -> dict[str, Any]:
        task: dict[str, Any] = stack.api.tasks(DAG_ID, run_id)["wait_for_new_images"]
        return task

    def waits_on() -> int | None:
        """The triggerer's job that holds the sensor's trigger."""
        job: int | None = (sensor()["trigger"] or {}).get("triggerer_id")
        return job

    stack.await_("the sensor to wait", lambda: sensor()["state"] == "deferred" and waits_on() is not None)
    before = waits_on()
    stack.kill("triggerer")
    seconds = stack.await_("another triggerer to wait on", lambda: waits_on() not in (None, before))
    assert sensor()["state"] == "deferred"
    upload_synthetic_images(stack.store, per_class=4, seed=2)
    stack.await_("the new images to be seen", lambda: sensor()["state"] == "success")
    # This run has the defaults for parameters: a night brings none. The gate asks more of it than sixty images can show.
    assert stack.api.wait_for_run(DAG_ID, run_id, within=1500)["state"] == "success"
    assert whole_documents(stack, run_id, promoted=False)["snapshot.json"].total == 60
    measured.say("kill -9 of the triggerer", "the sensor went on waiting, and saw the images that came then", seconds)
