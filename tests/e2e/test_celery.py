"""The compose file's services as processes: PostgreSQL, Redis, S3, Airflow with two Celery workers, and a run through them."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from local.airflow_api import parse_moment
from local.compose_stack import AIRFLOW_SERVICES, ComposeStack
from tests.e2e.compose_runs import DAG_ID, TINY, stop_run, unpause, upload_synthetic_images, whole_documents

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SECOND = "second_retraining"
SECOND_FILE = f"""# The same DAG under another name: Airflow reads each file in a process of its own.
import bcc_ops.instances

bcc_ops.instances.RETRAINING = {SECOND!r}
from bcc_ops.dags import retraining_dags

globals().update(retraining_dags())
"""
"""A second pipeline on the same workers: one DAG has one active run, so that two trainings at once take two DAGs."""
GPU_TASKS = ("train_model[0]", "train_model[1]", "evaluate_model")


class StatsdServer:
    """Keeps the names of the pipeline's own metrics that arrive on a port of loopback."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.2)
        self.port = self.socket.getsockname()[1]
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._receive)

    def _receive(self) -> None:
        while not self.ended.is_set():
            with suppress(TimeoutError):
                name = self.socket.recv(65536).decode().split(":")[0]
                if name.startswith("airflow.bcc."):
                    self.names.add(name)

    def __enter__(self) -> StatsdServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.socket.close()


@pytest.fixture(scope="module")
def statsd() -> Iterator[StatsdServer]:
    with StatsdServer() as server:
        yield server


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, statsd: StatsdServer) -> Iterator[ComposeStack]:
    folder = tmp_path_factory.mktemp("compose")
    second = folder / f"{SECOND}.py"
    second.write_text(SECOND_FILE)
    metrics = {"STATSD_ON": "true", "STATSD_HOST": "127.0.0.1", "STATSD_PORT": str(statsd.port)}
    with ComposeStack(folder / "stack", variables=metrics, extra_dags=[second]) as stack:
        upload_synthetic_images(stack.store, per_class=16, seed=1)
        yield stack


@dataclass
class Runs:
    """Two runs that were started together, each of a DAG of its own."""

    first: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Its tasks, at its end."""
    second: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Its tasks. It was stopped as soon as its training was done: more of it is not looked at."""


@pytest.fixture(scope="module")
def runs(stack: ComposeStack) -> Runs:
    for dag_id in (DAG_ID, SECOND):
        unpause(stack, dag_id)
    runs = Runs()
    stack.api.ensure_pool("gpu", 0)  # until both are ready to train: on a quick machine the first would be done by then
    stack.api.trigger(DAG_ID, {**TINY, "folds": 2}, run_id="first")
    stack.api.trigger(SECOND, {**TINY, "seed": 2}, run_id="second")

    def look() -> None:
        runs.first, runs.second = stack.api.tasks(DAG_ID, "first"), stack.api.tasks(SECOND, "second")

    def ready() -> bool:
        look()
        trainings = (run.get("train_model[0]") for run in (runs.first, runs.second))
        return all(training is not None and training["state"] == "scheduled" for training in trainings)

    def trained() -> bool:
        look()
        return bool(runs.second["train_model[0]"]["state"] == "success")

    stack.await_("both trainings to wait for a slot", ready, within=600)
    stack.api.ensure_pool("gpu", 1)
    stack.await_("the second training", trained, within=1200)
    stop_run(stack, SECOND, "second")
    assert stack.api.wait_for_run(DAG_ID, "first", within=1200)["state"] == "success"
    look()
    return runs


def test_training_and_evaluation_ran_on_the_gpu_worker_and_all_else_on_the_other(runs: Runs) -> None:
    ran = {name: task for name, task in runs.first.items() if task["state"] == "success"}
    assert {"snapshot_dataset", "upload_model", "publish_plots", *GPU_TASKS} <= set(ran)
    on_gpu = {name for name, task in ran.items() if task["hostname"] == "worker-gpu.compose"}
    assert on_gpu == set(GPU_TASKS)
    assert {task["hostname"] for name, task in ran.items() if name not in on_gpu} <= {"worker.compose", "triggerer.compose"}
    assert {task["pool"] for name, task in ran.items() if name in on_gpu} == {"gpu"}


def test_second_training_waited_for_the_one_gpu_slot(runs: Runs) -> None:
    tasks = [run[name] for run in (runs.first, runs.second) for name in GPU_TASKS if name in run]
    # What waits for a slot of its pool is not even queued: from then on, and to its end, a task holds one.
    held = sorted(
        (parse_moment(task["queued_when"]), parse_moment(task["end_date"]))
        for task in tasks
        if task["queued_when"] and task["end_date"]
    )
    assert len(held) >= 4
    for one, other in itertools.pairwise(held):
        assert one[1] <= other[0], f"two tasks held the one slot: {one} and {other}"


def test_each_worker_fetched_the_images_into_a_cache_of_its_own(stack: ComposeStack, runs: Runs) -> None:
    def images(volume: str) -> set[Path]:
        folder = stack.volume(volume)
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000}

    common = images("cache") & images("cache-gpu")
    assert len(common) >= 40, "48 images, less a tolerance for what a cache keeps beside them"
    assert stack.volume("cache").resolve() != stack.volume("cache-gpu").resolve()


@pytest.mark.parametrize("service", ["worker", "worker-gpu"])
def test_no_process_of_a_worker_holds_the_secrets_of_other_services(stack: ComposeStack, runs: Runs, service: str) -> None:
    kept_from_workers = ("POSTGRES_PASSWORD", "FERNET_KEY", "JWT_SECRET", "API_SECRET_KEY", "LOGIN_ADMIN", "LOGIN_VIEWER")
    processes = stack.supervisor.processes(service)
    assert processes
    held = ""
    for process in processes:
        with suppress(psutil.Error):  # a task's, which has ended meanwhile
            held += " ".join(process.environ().values())
    assert stack.env["BCC_BUCKET"] in held
    assert [name for name in kept_from_workers if stack.env[name] in held] == []


def test_services_wrote_to_their_volumes_alone_and_for_their_own_user(stack: ComposeStack, runs: Runs) -> None:
    for name in ("cache", "cache-gpu", "logs"):
        written = list(stack.volume(name).rglob("*"))
        assert [path for path in written if path.is_file()]
        assert [path for path in written if not path.is_symlink() and path.stat().st_mode & 0o077] == []
    of_the_image = {"airflow.cfg", "cache", "dags", "deploy", "logins", "logs", "plugins"}
    for service in AIRFLOW_SERVICES:
        assert {path.name for path in stack.home(service).iterdir()} <= of_the_image
        assert (stack.home(service) / "airflow.cfg").read_bytes() == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a file system read-only for a process")
def test_files_of_the_image_cannot_be_written(stack: ComposeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    target = stack.home("worker") / "plugins" / "planted.py"
    monkeypatch.setitem(stack.services["worker"]["healthcheck"], "test", ["CMD", "touch", str(target)])
    answer = stack.check_health("worker")
    assert answer.returncode != 0 and "Read-only file system" in answer.stderr
    assert not target.exists()


def test_logs_of_every_task_are_read_from_the_shared_volume(stack: ComposeStack, runs: Runs) -> None:
    for name in ("wait_for_new_images", "train_model[1]", "publish_plots"):
        task = runs.first[name]
        log = stack.api.task_log(DAG_ID, "first", task["task_id"], task["try_number"], task["map_index"])
        events = [line["event"] for line in log]
        assert len(events) > 5
        assert [event for event in events if "secret_key" in event or "served logs" in event] == []


def test_documents_of_the_run_are_whole(stack: ComposeStack, runs: Runs) -> None:
    documents = whole_documents(stack, "first")
    assert documents["training.json"].host
    assert documents["promotion.json"].promoted


def test_metrics_of_the_run_reached_the_configured_server(statsd: StatsdServer, runs: Runs) -> None:
    stages = {f"airflow.bcc.stage.{name}" for name in ("snapshot_dataset", "train_model", "gate_model", "upload_model")}
    assert {"airflow.bcc.new_images", *stages} <= statsd.names
    assert statsd.names & {"airflow.bcc.verdict.approved_without_champion", "airflow.bcc.verdict.approved"}
    assert any(name.startswith("airflow.bcc.gate.") for name in statsd.names)


@pytest.mark.parametrize("service", AIRFLOW_SERVICES)
def test_health_check_of_a_service_at_work_passes(stack: ComposeStack, service: str) -> None:
    answer = stack.check_health(service)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_health_checks_of_what_is_not_there_fail(stack: ComposeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(stack.services["worker"]["environment"], "CELERY_NODE", "nobody")
        assert stack.check_health("worker").returncode != 0
    with stack.down("scheduler"):
        assert stack.check_health("scheduler").returncode != 0


def test_init_can_be_run_again(stack: ComposeStack) -> None:
    said = stack.init()
    assert "keeps versions" in said
    (pool,) = [pool for pool in stack.api.call("GET", "/pools")["pools"] if pool["name"] == "gpu"]
    assert pool["slots"] == 1


def test_backup_of_the_database_can_be_restored(stack: ComposeStack, runs: Runs, tmp_path: Path) -> None:
    dump = str(tmp_path / "airflow.dump")
    count = ("--tuples-only", "--no-align", "--command", "SELECT count(*) FROM task_instance")
    for arguments in (
        ("pg_dump", "--format", "custom", "--file", dump),
        ("createdb", "restored"),
        ("pg_restore", "--dbname", "restored", "--no-owner", "--exit-on-error", dump),
    ):
        done = stack.postgres(*arguments)
        assert done.returncode == 0, done.stderr
    kept, restored = stack.postgres("psql", *count).stdout, stack.postgres("psql", "--dbname", "restored", *count).stdout
    assert int(restored) >= len(runs.first) and abs(int(kept) - int(restored)) <= len(runs.first)


def test_only_loopback_is_listened_on(stack: ComposeStack) -> None:
    listening = {
        (name, connection.laddr.ip)
        for name in stack.supervisor.names()
        for process in stack.supervisor.processes(name)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address for _, address in listening} <= {"127.0.0.1", "::1"}, listening
