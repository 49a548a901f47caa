from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag

from bcc_ops import dags
from bcc_ops.config import RetrainingConfig
from tests.conftest import REPOSITORY

EDGES = {
    "wait_for_new_images": {"snapshot_dataset"},
    "snapshot_dataset": {
        *("download_images", "inspect_images", "check_images", "split_dataset", "train_model", "combine_folds", "evaluate_model"),
        *("gate_model", "publish_plots", "approve_model", "upload_model"),
    },
    "download_images": {"inspect_images", "check_images"},
    "inspect_images": {"check_images"},
    "check_images": {"split_dataset", "train_model", "evaluate_model", "publish_plots", "upload_model"},
    "split_dataset": {"train_model", "combine_folds", "evaluate_model", "gate_model", "publish_plots", "upload_model"},
    "train_model": {"combine_folds"},
    "combine_folds": {"evaluate_model", "publish_plots", "upload_model"},
    "evaluate_model": {"gate_model", "publish_plots", "upload_model"},
    "gate_model": {"publish_plots", "approve_model", "upload_model"},
    "publish_plots": set(),
    "approve_model": {"upload_model"},
    "upload_model": set(),
}


@pytest.fixture(scope="module")
def bag() -> DagBag:
    return DagBag(REPOSITORY / "dags")


@pytest.fixture(scope="module")
def dag(bag: DagBag) -> Any:
    return bag.dags["bcc_retraining"]


def test_every_dag_file_loads(bag: DagBag) -> None:
    assert not bag.import_errors
    assert set(bag.dags) == {"bcc_retraining", "bcc_set_champion"}


def test_a_file_of_two_lines_gives_the_same_dags(bag: DagBag, tmp_path: Path) -> None:
    """The way of a deployment that installed the package and has a DAG folder of its own."""
    lines = [line.strip() for line in (dags.__doc__ or "").splitlines() if line.startswith("    ")]
    (tmp_path / "bcc.py").write_text("\n".join(lines[:2]))
    other = DagBag(tmp_path, bundle_path=tmp_path)
    assert not other.import_errors
    assert {dag_id: shape(dag) for dag_id, dag in other.dags.items()} == {dag_id: shape(dag) for dag_id, dag in bag.dags.items()}


def shape(dag: Any) -> dict[str, tuple[str, set[str]]]:
    return {task.task_id: (task.task_type, task.downstream_task_ids) for task in dag.tasks}


def test_the_tasks_hang_together_as_the_diagram_says(dag: Any) -> None:
    assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == EDGES


def test_the_champions_asset_is_an_outlet_of_both_tasks_that_move_it(bag: DagBag) -> None:
    tasks = [bag.dags["bcc_retraining"].get_task("upload_model"), bag.dags["bcc_set_champion"].get_task("set_champion")]
    assert [[outlet.name for outlet in task.outlets] for task in tasks] == [["bcc_champion"]] * 2


def test_one_run_at_a_time_and_nothing_synthetic_for_the_past(dag: Any) -> None:
    assert dag.max_active_runs == 1
    assert dag.catchup is False


def test_every_task_ends_by_itself_has_an_owner_and_retries(dag: Any) -> None:
    for task in dag.tasks:
        assert task.owner == "ml-platform"
        assert task.retries > 0
        # The approval's own time-out is a parameter of the run, set when it is asked for.
        assert task.execution_timeout or task.task_id == "approve_model", task.task_id


def test_the_form_offers_every_parameter_with_a_default_that_it_accepts(dag: Any) -> None:
    assert set(dag.params) == set(RetrainingConfig.model_fields) - {"patient_pattern"}
    dag.params.validate()


def test_the_form_starts_with_the_deployments_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text("require_approval: true\nmin_malignant_groups: 30\n")
    monkeypatch.setenv("BCC_PARAMETERS", str(path))
    dag = DagBag(REPOSITORY / "dags").dags["bcc_retraining"]
    assert dag.params["require_approval"] is True and dag.params["min_malignant_groups"] == 30
    dag.params.validate()


def test_a_mistake_in_the_deployments_file_is_on_the_dags_page_and_breaks_no_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text("requires_approval: true\n")
    monkeypatch.setenv("BCC_PARAMETERS", str(path))
    bag = DagBag(REPOSITORY / "dags")
    assert not bag.import_errors
    assert "did you mean require_approval?" in bag.dags["bcc_retraining"].doc_md.splitlines()[0]


def test_only_what_loads_tensorflow_to_compute_takes_a_gpu_slot(dag: Any) -> None:
    assert {task.task_id for task in dag.tasks if task.pool == "gpu"} == {"train_model", "evaluate_model"}


def test_the_sensor_holds_no_worker_slot_while_it_waits(dag: Any) -> None:
    assert dag.get_task("wait_for_new_images").deferrable is True


def test_the_dag_of_the_run_kinds_story_is_made_of_the_same_parts(dag: Any) -> None:
    """The end-to-end test of the kinds of runs has a DAG of its own, without a training: what it shows must hold here."""
    story = DagBag(REPOSITORY / "tests" / "e2e" / "dags").dags["run_kinds"]
    assert type(story.timetable) is type(dag.timetable)
    assert story.timetable.asset_condition == dag.timetable.asset_condition
    assert (story.max_active_runs, story.catchup) == (dag.max_active_runs, dag.catchup)
    assert set(story.params) == set(dag.params)
    for task_id in ("wait_for_new_images", "snapshot_dataset", "download_images"):
        one, other = story.get_task(task_id), dag.get_task(task_id)
        assert (type(one), one.retries) == (type(other), other.retries)
    assert story.get_task("wait_for_new_images").deferrable is True
