"""A real stack for the end-to-end tests: Airflow's components, an S3 server, and about ninety images.

make e2e
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from bcc_ops.config import NO_FINDINGS
from bcc_ops.dataset.synthetic import write_images
from bcc_ops.runs.paths import RunPaths
from local.airflow_api import AirflowApi
from local.images import read_folder, upload
from local.stack import DAG_ID, LocalStack
from local.watch import RunWatcher
from tests.conftest import REAL_IMAGES
from tests.factories.hostile_images import hostile_files

T = TypeVar("T")

CLASSES = ("benign", "malignant", "normal")
PER_CLASS = 30
TINY = {
    "architecture": "cnn",
    "weights": "none",
    "image_size": 64,
    "epochs": 2,
    "folds": 1,
    "min_balanced_accuracy": 0,
    "min_macro_auc": 0,
    "min_malignant_sensitivity": 0,
    "min_malignant_specificity": 0,
    "max_refused_fraction": 0.2,
    "content_findings": NO_FINDINGS,  # reading text takes some tenths of a second per image
}
"""Parameters of a training that takes seconds and that the gate, with its floors down, approves."""


@dataclass
class FinishedRun:
    """A run that has ended, and what was seen on the way."""

    run_id: str
    run: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    paths: RunPaths
    mapped_tensorflow: dict[str, set[int]] = field(default_factory=dict)
    """Component -> process ids of it, tasks aside, that had TensorFlow mapped at some moment."""
    tasks_mapped_tensorflow: set[int] = field(default_factory=set)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with thirty images a class: real ones with their masks if they are there, else synthetic ones."""
    folder = tmp_path_factory.mktemp("images")
    if not REAL_IMAGES.is_dir():
        write_images(folder, PER_CLASS)
        return folder
    for label in CLASSES:
        (folder / label).mkdir()
        chosen = sorted(path for path in (REAL_IMAGES / label).glob("*.png") if "_mask" not in path.name)
        # spread over the folder, since neighbours are often near-duplicates of one another
        for image in chosen[:: len(chosen) // PER_CLASS][:PER_CLASS]:
            for file in (image, *image.parent.glob(f"{image.stem.replace('[', '[[]')}_mask*.png")):
                shutil.copy(file, folder / label)
    return folder


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    """Settings of the stack; a module that needs some has a fixture of this name."""
    return {}


@pytest.fixture(scope="module")
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, images: Path, variables: dict[str, str]
) -> Iterator[LocalStack]:
    """The running stack with the images in its bucket. One a module: two at once would share two cores."""
    with LocalStack(tmp_path_factory.mktemp("stack"), bucket="e2e-images", variables=variables, wait=False) as running:
        upload(running.store, running.settings.images_prefix, read_folder(images, CLASSES))
        for name, content, _ in hostile_files() if request.module.__name__.endswith("test_first_run") else ():
            running.store.put(f"{running.settings.images_prefix}/normal/{name}", content)
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def follow_run(stack: LocalStack) -> Callable[..., FinishedRun]:
    """Wait for the end of a run that was asked for: `follow_run(run_id)`."""

    def follow(run_id: str, within: float = 1200) -> FinishedRun:
        api: AirflowApi = stack.api
        prefix = stack.settings.artifacts_prefix
        watcher = RunWatcher(api, DAG_ID, run_id, store=stack.store, artifacts_prefix=prefix, say=print)
        finished = FinishedRun(run_id, {}, {}, RunPaths(prefix, ""))

        def watch() -> None:
            stack.supervisor.check()
            watcher()
            look_at_processes(stack, finished)

        finished.run = api.wait_for_run(DAG_ID, run_id, within, watch)
        finished.tasks = api.tasks(DAG_ID, run_id)
        assert watcher.paths is not None, "the run left no folder in the bucket"
        finished.paths = watcher.paths
        return finished

    return follow


@pytest.fixture(scope="module")
def run_pipeline(stack: LocalStack, follow_run: Callable[..., FinishedRun]) -> Callable[..., FinishedRun]:
    """Run the pipeline by hand with the given parameters and wait for its end: `run_pipeline({"epochs": 2})`."""

    def run(parameters: dict[str, Any], within: float = 1200) -> FinishedRun:
        run_id = stack.api.trigger(DAG_ID, parameters)
        stack.api.set_paused(DAG_ID, False)
        return follow_run(run_id, within)

    return run


@pytest.fixture(scope="module")
def first_run(run_pipeline: Callable[..., FinishedRun]) -> FinishedRun:
    """The first run ever, with two tiny trainings."""
    return run_pipeline({**TINY, "folds": 2})


def wait_until(moment: datetime) -> None:
    """Wait for a moment of the clock, which a schedule goes by."""
    while (left := (moment - datetime.now(timezone.utc)).total_seconds()) > 0:
        time.sleep(min(left, 5))


def wait_for(look: Callable[[], T | None], problem: str, within: float = 240) -> T:
    """Return what `look` finds, as soon as it finds something; fails with `problem`."""
    deadline = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < deadline, problem
        time.sleep(0.5)
    return found


def look_at_processes(stack: LocalStack, finished: FinishedRun) -> None:
    """Note which processes have TensorFlow mapped."""
    for name in stack.supervisor.names():
        members = stack.supervisor.processes(name)
        tasks = task_processes(stack.supervisor.pid("scheduler"), members) if name == "scheduler" else set()
        for process in members:
            try:
                if not _maps_tensorflow(process.pid):
                    continue
            except (psutil.Error, OSError):
                continue  # it has ended meanwhile
            if process.pid in tasks:
                finished.tasks_mapped_tensorflow.add(process.pid)
            else:
                finished.mapped_tensorflow.setdefault(name, set()).add(process.pid)


def task_processes(scheduler: int, members: Sequence[psutil.Process]) -> set[int]:
    """The processes of tasks: whatever the LocalExecutor's workers, which are the scheduler's children, have forked."""
    parents = {}
    for process in members:
        try:
            parents[process.pid] = process.ppid()
        except psutil.Error:
            continue
    return {pid for pid, parent in parents.items() if pid != scheduler and parent != scheduler}


def _maps_tensorflow(pid: int) -> bool:
    return "tensorflow" in Path(f"/proc/{pid}/maps").read_text()
