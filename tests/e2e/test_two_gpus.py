"""Two folds side by side on two GPU workers, and one of them killed.

make e2e-faults
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bcc_ops.runs.documents import EvaluationDocument, FoldDocument, TrainingDocument
from bcc_ops.runs.index import find_run
from bcc_ops.runs.paths import RunPaths, fold_file
from local.airflow_api import parse_moment
from local.compose_stack import ComposeStack
from tests.e2e.compose_runs import ARTIFACTS, DAG_ID, TINY, unpause, upload_synthetic_images, whole_documents

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

LONG: dict[str, Any] = {**TINY, "folds": 2, "epochs": 60, "ema": False}
"""Trainings that are long enough to overlap, and to be hit in the middle."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    with ComposeStack(tmp_path_factory.mktemp("two-gpus") / "stack", gpus=2) as stack:
        upload_synthetic_images(stack.store, per_class=16, seed=1)
        unpause(stack, DAG_ID)
        yield stack


def folder_of(stack: ComposeStack, run_id: str) -> RunPaths:
    stack.await_("the run's folder", lambda: isinstance(find_run(stack.store, ARTIFACTS, run_id), RunPaths), within=600)
    paths = find_run(stack.store, ARTIFACTS, run_id)
    assert isinstance(paths, RunPaths)
    return paths


def ended(stack: ComposeStack, run_id: str) -> dict[str, dict[str, Any]]:
    run = stack.api.wait_for_run(DAG_ID, run_id, within=1200)
    tasks = stack.api.tasks(DAG_ID, run_id)
    assert run["state"] == "success", {name: task["state"] for name, task in tasks.items()}
    whole_documents(stack, run_id)
    return tasks


def what_the_seed_decides(stack: ComposeStack, paths: RunPaths) -> dict[str, Any]:
    """Each epoch's metrics, the model's bytes, and what the evaluation makes of them."""
    rows = [
        [
            {name: value for name, value in row.items() if "second" not in name}
            for row in csv.DictReader(stack.store.get(paths.document(fold_file(fold, "csv"))).decode().splitlines())
        ]
        for fold in (1, 2)
    ]
    assert [len(of_fold) for of_fold in rows] == [LONG["epochs"]] * 2
    training = stack.store.load_key(TrainingDocument, paths.document("training.json"))
    evaluation = stack.store.load_key(EvaluationDocument, paths.document("evaluation.json"))
    return {"history": rows, "folds": [fold.model.sha256 for fold in training.folds], "challenger": evaluation.challenger}


@pytest.fixture(scope="module")
def undisturbed(stack: ComposeStack) -> tuple[RunPaths, dict[str, dict[str, Any]]]:
    """A run that nothing happened to, and its tasks."""
    run_id = stack.api.trigger(DAG_ID, LONG, run_id="undisturbed")
    paths = folder_of(stack, run_id)
    return paths, ended(stack, run_id)


def test_two_folds_train_side_by_side_on_two_workers(undisturbed: tuple[RunPaths, dict[str, dict[str, Any]]]) -> None:
    first, second = (undisturbed[1][f"train_model[{index}]"] for index in (0, 1))
    assert {first["hostname"], second["hostname"]} == {"worker-gpu.compose", "worker-gpu-1.compose"}
    starts, ends = ([parse_moment(task[name]) for task in (first, second)] for name in ("start_date", "end_date"))
    assert max(starts) < min(ends), "one trained after the other"
    together = (min(ends) - max(starts)).total_seconds()
    print(f"\nside by side for {together:.0f} s of {(max(ends) - min(starts)).total_seconds():.0f} s")


def test_a_killed_fold_resumes_alone_and_all_ends_as_if_nothing_had_happened(
    stack: ComposeStack, undisturbed: tuple[RunPaths, dict[str, dict[str, Any]]]
) -> None:
    run_id = stack.api.trigger(DAG_ID, LONG, run_id="killed")
    paths = folder_of(stack, run_id)
    history = paths.document(fold_file(1, "csv"))
    stack.await_("epochs of the first fold", lambda: stack.store.head(history) is not None, within=900)
    service = stack.api.tasks(DAG_ID, run_id)["train_model[0]"]["hostname"].removesuffix(".compose")
    _training_process(stack, service).kill()
    tasks = ended(stack, run_id)
    assert (tasks["train_model[0]"]["try_number"], tasks["train_model[1]"]["try_number"]) == (2, 1)
    killed, other = (stack.store.load_key(FoldDocument, paths.document(fold_file(fold, "json"))) for fold in (1, 2))
    assert len(killed.resumed_after_epochs) == 1 and 1 <= killed.resumed_after_epochs[0] < LONG["epochs"]
    assert other.resumed_after_epochs == ()
    assert what_the_seed_decides(stack, paths) == what_the_seed_decides(stack, undisturbed[0])
    print(f"\nthe first fold went on after epoch {killed.resumed_after_epochs[0]} of {LONG['epochs']}")


def _training_process(stack: ComposeStack, service: str) -> psutil.Process:
    """The one process of a worker that has TensorFlow in it."""
    (found,) = (
        process
        for process in stack.supervisor.processes(service)
        if "tensorflow" in Path(f"/proc/{process.pid}/maps").read_text()
    )
    return found
