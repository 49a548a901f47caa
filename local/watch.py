"""What a run is doing, line by line: tasks as they start and end, epochs as they are trained, the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bcc_ops.exceptions import ObjectNotFound, StorageError
from bcc_ops.runs.documents import (
    ChecksDocument,
    ConfigDocument,
    EpochRow,
    EvaluationDocument,
    GateDocument,
    PromotionDocument,
)
from bcc_ops.runs.epochs import describe_epoch, parse_history
from bcc_ops.runs.index import find_run
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.record import HISTORIES
from local.airflow_api import AirflowApi

SENSOR, TRAINING = "wait_for_new_images", "train_model"
_ENDED_WELL = {"success": "done", "skipped": "skipped"}


class RunWatcher:
    """Follows one run. Call it between two looks at the run's state.

    Args:
        api, dag_id, run_id: the run.
        store, artifacts_prefix: where its documents are stored.
        say: takes a line for people.
    """

    def __init__(
        self, api: AirflowApi, dag_id: str, run_id: str, *, store: ObjectStore, artifacts_prefix: str, say: Callable[[str], None]
    ) -> None:
        self._api, self._dag_id, self._run_id = api, dag_id, run_id
        self._store, self._prefix, self._say = store, artifacts_prefix, say
        self._told: dict[str, tuple[str | None, int]] = {}
        self._epochs_told: dict[int, int] = {}
        self._config: ConfigDocument | None = None
        self._paths: RunPaths | None = None
        self._next_look = 0.0

    def __call__(self) -> None:
        """Report what is new since the last call."""
        tasks = self._api.tasks(self._dag_id, self._run_id)
        training = [name for name, task in tasks.items() if task["task_id"] == TRAINING and self._state_told(name) == "running"]
        if training:
            self._tell_epochs(last=any(tasks[name]["state"] != "running" for name in training))
        for name, task in sorted(tasks.items(), key=lambda item: item[1]["end_date"] or item[1]["start_date"] or "~"):
            news = (task["state"], task["try_number"])
            if self._told.get(name) != news:
                self._told[name] = news
                if line := describe_task(task):
                    self._say(f"  {line}")
        if not any(state == "running" for state, _ in self._told.values()):
            self._give_way()

    def _state_told(self, name: str) -> str | None:
        return self._told.get(name, (None, 0))[0]

    @property
    def paths(self) -> RunPaths | None:
        """The paths of the run's documents; None before its snapshot."""
        if self._paths is None:
            self._paths = find_run(self._store, self._prefix, self._run_id)
        return self._paths

    def _tell_epochs(self, last: bool) -> None:
        if (time.monotonic() < self._next_look and not last) or self.paths is None:
            return
        self._next_look = time.monotonic() + 3
        self._config = self._config or self._store.find(ConfigDocument, self.paths.document("config.json"))
        planned = self._config.config if self._config else None
        for row in epochs_so_far(self._store, self.paths):
            if row.epoch > self._epochs_told.get(row.fold, 0):
                self._epochs_told[row.fold] = row.epoch
                line = describe_epoch(row, epochs=planned.epochs if planned else None, folds=planned.folds if planned else None)
                self._say(f"    {line}")

    def _give_way(self) -> None:
        """Let a nightly run that only waits for images make room: one run at a time is active, and a person waits for this one.

        Airflow makes up for the last missed night as soon as the DAG may run, and such a run may wait for hours. A
        run of any other kind is left alone: an event's waits for its images to settle and no longer, and the days of a
        backfill, which are active beside this run, block nobody.
        """
        if self._api.run(self._dag_id, self._run_id)["state"] != "queued":
            return
        for other in self._api.runs(self._dag_id, state=["running"], run_type=["scheduled"]):
            waiting = self._api.tasks(self._dag_id, other["dag_run_id"])[SENSOR]["state"]
            if waiting not in ("success", "skipped", "failed"):
                self._api.set_task_state(self._dag_id, other["dag_run_id"], SENSOR, "skipped")
                self._say(f"  {other['dag_run_id']} was only waiting for new images, and gives way to this run")


def epochs_so_far(store: ObjectStore, paths: RunPaths) -> Iterator[EpochRow]:
    """Yield the rows of a run's histories, fold by fold; none before its first epoch."""
    for name in HISTORIES:
        try:
            content = store.get(paths.document(name))
        except (ObjectNotFound, StorageError):
            continue
        yield from parse_history(content, name)


def describe_task(task: dict[str, Any]) -> str:
    """Return a line about a task instance whose state is new; "" for states that tell nothing."""
    name, state, tries = _spoken_name(task), task["state"], task["try_number"]
    again = f", try {tries}" if tries > 1 else ""
    if state == "running":
        return f"{name} …{again}"
    if state in _ENDED_WELL:
        took = f" in {task['duration']:.0f} s" if task["duration"] and state == "success" else ""
        return f"{name} {_ENDED_WELL[state]}{took}{again}"
    if state in ("failed", "up_for_retry"):
        return f"{name} failed" + (" and is tried again" if state == "up_for_retry" else "") + again
    return {"deferred": f"{name} waits", "awaiting_input": f"{name} waits for an answer in the UI"}.get(state, "")


def _spoken_name(task: dict[str, Any]) -> str:
    """Return a task's id; of an instance of the mapped task, with the fold that it holds out."""
    return str(task["task_id"]) if task["map_index"] < 0 else f"{task['task_id']} (fold {task['map_index'] + 1})"


def describe_verdict(store: ObjectStore, paths: RunPaths, models_prefix: str) -> list[str]:
    """Return the verdict, its reasons and the key metrics of an assessed run, as lines; the synthetic ones say so first."""
    gate = store.load_key(GateDocument, paths.document("gate.json"))
    evaluation = store.load_key(EvaluationDocument, paths.document("evaluation.json"))
    promotion = store.find(PromotionDocument, paths.document("promotion.json"))
    metrics = evaluation.challenger
    point = metrics.operating_point
    lines = ["The images are synthetic: no metric here says anything about real ones."] if gate.synthetic else []
    lines += [f"Verdict: {gate.verdict.replace('_', ' ')}", *(f"  - {reason}" for reason in gate.reasons)]
    lines.append(
        f"On {metrics.images} held-out images: balanced accuracy {metrics.balanced_accuracy}, "
        f"macro AUC {metrics.macro_auc}, {evaluation.positive_class} sensitivity {point.sensitivity} "
        f"at specificity {point.specificity}"
    )
    if promotion is not None:
        lines.append(f"Version {promotion.version}: {promotion.reason}")
    if promotion is not None and promotion.promoted:
        lines.append(f"  {store.uri(f'{models_prefix}/{promotion.version}/model.h5')}")
    return lines


def describe_failure(api: AirflowApi, dag_id: str, run_id: str, logs: Path) -> list[str]:
    """Return a line for each task that failed: its last line, and the path of its log."""
    lines = []
    for task in api.tasks(dag_id, run_id).values():
        if task["state"] != "failed":
            continue
        name, index = task["task_id"], task["map_index"]
        log = logs / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={name}"
        lines.append(f"{_spoken_name(task)} failed: {last_error(api.task_log(dag_id, run_id, name, task['try_number'], index))}")
        lines.append(f"  its log: {log if index < 0 else log / f'map_index={index}'}")
    return lines or [f"the run {run_id} failed without a failed task"]


def last_error(events: list[dict[str, Any]]) -> str:
    """Return the exception that a task's log ends with, in one line."""
    for event in reversed(events):
        if details := event.get("error_detail"):
            return str(details[-1].get("exc_value") or details[-1].get("exc_type")).splitlines()[0]
    errors = [str(event["event"]) for event in events if event.get("level") in ("error", "critical")]
    return errors[-1].splitlines()[0] if errors else "its log names no error"


def count_synthetic(store: ObjectStore, paths: RunPaths) -> int:
    """Return how many of a run's images are synthetic; 0 before checks."""
    checks = store.find(ChecksDocument, paths.document("checks.json"))
    return checks.synthetic if checks else 0


def fetch_run(store: ObjectStore, paths: RunPaths, folder: Path) -> Path:
    """Copy a run's documents, model and plots to `folder/<run's folder>`, to be looked at when the server is down."""
    target = folder / paths.folder_name
    for entry in store.list_objects(f"{paths.folder}/"):
        file = target / entry["Key"][len(paths.folder) + 1 :]
        if ".." in file.parts:  # a key may be anything; a path must stay below the folder
            continue
        if file.exists() and file.stat().st_size == entry["Size"] and file.stat().st_mtime >= entry["LastModified"].timestamp():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.partial")
        partial.write_bytes(store.get(entry["Key"]))
        partial.replace(file)
    return target
