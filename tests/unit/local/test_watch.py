"""What is said of a run while it goes on, and at its end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, cast

import pytest

from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from local.airflow_api import AirflowApi
from local.watch import RunWatcher, describe_failure, describe_task, epochs_so_far, fetch_run, last_error
from tests.unit.report import samples

PATHS = RunPaths.of("artifacts", datetime(2026, 11, 22, 2, tzinfo=timezone.utc), "mine")


class FakeAirflow:
    """Answers as Airflow would; the runs' states are the test's to set."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, str | None]] = {"mine": {}}
        self.run_states = {"mine": "running"}
        self.run_types = {"mine": "manual", "scheduled__x": "scheduled"}
        self.marked: list[tuple[str, str, str]] = []

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        return {name: _task(name, state) for name, state in self.states[run_id].items()}

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int = -1) -> list[dict[str, Any]]:
        return [{"event": f"{task_id}, {map_index}, try {try_number}: no memory", "level": "error"}]

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return {"dag_run_id": run_id, "state": self.run_states[run_id], "run_type": self.run_types[run_id]}

    def runs(self, dag_id: str, **filters: list[str]) -> list[dict[str, Any]]:
        runs = [self.run(dag_id, run_id) for run_id in self.run_states]
        return [run for run in runs if all(run[name] in wanted for name, wanted in filters.items())]

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        self.marked.append((run_id, task_id, state))


def _task(name: str, state: str | None, tries: int = 1) -> dict[str, Any]:
    task_id, _, index = name.rstrip("]").partition("[")
    return {
        **{"task_id": task_id, "map_index": int(index or -1), "state": state, "try_number": tries},
        **{"duration": 4.2, "start_date": "2026", "end_date": None},
    }


@pytest.fixture
def airflow() -> FakeAirflow:
    return FakeAirflow()


@pytest.fixture
def watch(airflow: FakeAirflow, store: ObjectStore) -> tuple[RunWatcher, list[str]]:
    lines: list[str] = []
    api = cast(AirflowApi, airflow)
    return RunWatcher(api, "dag", "mine", store=store, artifacts_prefix="artifacts", say=lines.append), lines


def test_each_change_is_told_once(airflow: FakeAirflow, watch: tuple[RunWatcher, list[str]]) -> None:
    watcher, lines = watch
    for state in (None, "scheduled", "queued", "running", "running", "success", "success"):
        airflow.states["mine"]["check_images"] = state
        watcher()
    assert lines == ["  check_images …", "  check_images done in 4 s"]


def test_epochs_are_told_fold_by_fold_as_they_end_and_the_last_before_its_task_is_done(
    airflow: FakeAirflow, watch: tuple[RunWatcher, list[str]], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, lines = watch
    paths = RunPaths.of("artifacts", samples.AS_OF, "mine")
    store.put(paths.document("snapshot.json"), b"{}")
    store.save(paths.document("config.json"), samples.config_document("mine", epochs=3))
    airflow.states["mine"] = {"train_model[0]": "running", "train_model[1]": "queued"}
    watcher()
    watcher()  # no history yet
    store.put(paths.document("fold-1.csv"), samples.histories(2)["fold-1.csv"])
    monkeypatch.setattr("local.watch.time.monotonic", lambda: 1e9)
    watcher()
    store.put(paths.document("fold-1.csv"), samples.histories(3)["fold-1.csv"])
    airflow.states["mine"] = {"train_model[0]": "success", "train_model[1]": "running"}
    watcher()
    store.put(paths.document("fold-2.csv"), samples.histories(3)["fold-2.csv"])
    airflow.states["mine"] = {"train_model[0]": "success", "train_model[1]": "success", "combine_folds": "running"}
    watcher()
    watcher()
    told = [line.partition(": loss")[0].strip() for line in lines]
    assert told == [
        "train_model (fold 1) …",
        *(f"fold 1 of 5: epoch {epoch} of 3" for epoch in (1, 2, 3)),
        "train_model (fold 1) done in 4 s",
        "train_model (fold 2) …",
        *(f"fold 2 of 5: epoch {epoch} of 3" for epoch in (1, 2, 3)),
        "train_model (fold 2) done in 4 s",
        "combine_folds …",
    ]


def test_a_fold_that_fails_is_named_with_its_own_log(airflow: FakeAirflow, tmp_path: Any) -> None:
    airflow.states["mine"] = {"train_model[0]": "success", "train_model[2]": "failed", "combine_folds": "upstream_failed"}
    assert describe_failure(cast(AirflowApi, airflow), "dag", "mine", tmp_path) == [
        "train_model (fold 3) failed: train_model, 2, try 1: no memory",
        f"  its log: {tmp_path}/dag_id=dag/run_id=mine/task_id=train_model/map_index=2",
    ]


def test_a_nightly_run_that_only_waits_gives_way(airflow: FakeAirflow, watch: tuple[RunWatcher, list[str]]) -> None:
    watcher, lines = watch
    airflow.run_states = {"mine": "queued", "scheduled__x": "running"}
    airflow.states["scheduled__x"] = {"wait_for_new_images": "deferred"}
    watcher()
    assert airflow.marked == [("scheduled__x", "wait_for_new_images", "skipped")]
    assert "scheduled__x was only waiting" in lines[0]


@pytest.mark.parametrize("run_type", ["asset_triggered", "manual", "operator_triggered", "backfill"])
def test_a_waiting_run_of_another_kind_is_left_alone(
    airflow: FakeAirflow, watch: tuple[RunWatcher, list[str]], run_type: str
) -> None:
    """A night that a backfill does again keeps its id: only its type tells."""
    airflow.run_states = {"mine": "queued", "scheduled__x": "running"}
    airflow.run_types["scheduled__x"] = run_type
    airflow.states["scheduled__x"] = {"wait_for_new_images": "deferred"}
    watch[0]()
    assert airflow.marked == []


def test_a_run_that_begins_meanwhile_does_not_give_way_to_itself(
    airflow: FakeAirflow, watch: tuple[RunWatcher, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow.states["mine"] = {"wait_for_new_images": "queued"}
    airflow.run_states = {"mine": "queued"}
    look = airflow.run

    def look_before_it_begins(dag_id: str, run_id: str) -> dict[str, Any]:
        seen = look(dag_id, run_id)
        airflow.run_states["mine"] = "running"
        return seen

    monkeypatch.setattr(airflow, "run", look_before_it_begins)
    watch[0]()
    assert airflow.marked == []


@pytest.mark.parametrize(
    ("mine", "sensor"), [("queued", "success"), ("queued", "skipped"), ("running", "deferred")], ids=["works", "over", "no-need"]
)
def test_a_nightly_run_that_works_or_is_in_nobodys_way_is_left_alone(
    airflow: FakeAirflow, watch: tuple[RunWatcher, list[str]], mine: str, sensor: str
) -> None:
    airflow.run_states = {"mine": mine, "scheduled__x": "running"}
    airflow.states["scheduled__x"] = {"wait_for_new_images": sensor}
    watch[0]()
    assert airflow.marked == []


@pytest.mark.parametrize(
    ("state", "tries", "line"),
    [
        ("failed", 3, "train_model failed, try 3"),
        ("up_for_retry", 1, "train_model failed and is tried again"),
        ("skipped", 1, "train_model skipped"),
        ("awaiting_input", 1, "train_model waits for an answer in the UI"),
        ("queued", 1, ""),
    ],
)
def test_a_task_is_described_by_its_state(state: str, tries: int, line: str) -> None:
    assert describe_task(_task("train_model", state, tries)) == line


def test_the_last_exception_of_a_log_is_told_in_one_line() -> None:
    events: list[dict[str, Any]] = [
        {"event": "trying", "level": "info"},
        {
            "event": "Task failed",
            "level": "error",
            "error_detail": [{"exc_type": "DataError", "exc_value": "no image\nin any class"}],
        },
        {"event": "bye", "level": "info"},
    ]
    assert last_error(events) == "no image"
    assert last_error([{"event": "killed", "level": "critical"}]) == "killed"
    assert last_error([{"event": "fine", "level": "info"}]) == "its log names no error"


def test_a_runs_folder_is_copied_and_only_what_is_new_again(store: ObjectStore, tmp_path: Any) -> None:
    store.put(PATHS.document("gate.json"), b"{}")
    store.put(PATHS.plot("history"), b"png")
    store.put("artifacts/runs/20261122T020000Z__mine-too/gate.json", b"another run's")
    folder = fetch_run(store, PATHS, tmp_path / "runs")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        f"runs/{PATHS.folder_name}/gate.json",
        f"runs/{PATHS.folder_name}/plots/history.png",
    }
    gets: list[str] = []
    get: Callable[[str], bytes] = store.get
    store.get = lambda key, version_id=None: gets.append(key) or get(key)  # type: ignore[method-assign, assignment, func-returns-value]
    store.put(PATHS.document("gate.json"), b"{ }")
    fetch_run(store, PATHS, tmp_path / "runs")
    assert gets == [PATHS.document("gate.json")]
    assert (folder / "gate.json").read_bytes() == b"{ }"


def test_a_key_that_leads_out_of_the_folder_is_not_followed(
    store: ObjectStore, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SeaweedFS refuses such a key; another store may not."""
    listed = [{"Key": f"{PATHS.folder}/../../escaped", "Size": 2, "LastModified": None}]
    monkeypatch.setattr(store, "list_objects", lambda prefix: listed)
    fetch_run(store, PATHS, tmp_path / "runs")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_history_that_is_not_there_is_no_epoch(store: ObjectStore) -> None:
    assert list(epochs_so_far(store, PATHS)) == []
