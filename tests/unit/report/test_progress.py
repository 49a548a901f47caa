"""How far a run is, in a word."""

from __future__ import annotations

import pytest

from bcc_ops.report.progress import PIPELINE, RunProgress, TaskProgress
from tests.unit.report import samples


def progress(state: str, **tasks: str) -> RunProgress:
    return RunProgress.of("bcc_retraining", samples.RUN_ID, state, [TaskProgress(name, tasks.get(name)) for name in PIPELINE])


def test_failed_run_names_the_first_task_that_failed() -> None:
    run = progress("failed", train_model="failed", evaluate_model="upstream_failed", publish_plots="failed")
    assert run.culprit == "train_model"
    assert run.headline == "train_model failed"


def folds(*states: str | None) -> list[TaskProgress]:
    return [TaskProgress("train_model", state, map_index=index) for index, state in enumerate(states)]


@pytest.mark.parametrize(
    ("states", "state", "word"),
    [
        (("success", "success", "running", "queued", None), "running", "2 of 5 done"),
        (("success", "queued", None), "queued", "queued, 1 of 3 done"),
        (("success", "up_for_retry", "running"), "running", "1 of 3 done"),
        (("success", "failed", "running"), "failed", "failed, 1 of 3 done"),
        (("upstream_failed", "upstream_failed"), "upstream_failed", "not reached, 0 of 2 done"),
        (("success", "success"), "success", ""),
    ],
)
def test_instances_of_a_mapped_task_are_one_line(states: tuple[str | None, ...], state: str, word: str) -> None:
    others = [TaskProgress("evaluate_model", None), TaskProgress("combine_folds", None), TaskProgress("split_dataset", "success")]
    run = RunProgress.of("bcc_retraining", samples.RUN_ID, "running", [*others, *reversed(folds(*states))])
    assert [task.task_id for task in run.tasks] == ["split_dataset", "train_model", "combine_folds", "evaluate_model"]
    assert (run.tasks[1].state, run.tasks[1].word) == (state, word)
    assert (run.headline == "Running: train_model (2 of 5 done)") == (word == "2 of 5 done")
