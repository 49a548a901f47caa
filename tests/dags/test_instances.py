"""Several models in one Airflow: the DAGs of each, and what a mistake in one of them does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.common.compat.sdk import AirflowFailException

from tests.conftest import REPOSITORY

TEXTURES = {
    "title": "Woven textures",
    "bucket": "textures",
    "classes": ["finding", "no_finding"],
    "positive_class": "finding",
    "schedule": "30 3 * * *",
    "gpu_pool": "small",
    "parameters": {"min_malignant_groups": 30},
}
BREAST = {"title": "Breast ultrasound"}


class Bags:
    """Writes the deployment's file and loads the repository's DAG folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, instances: Any) -> dict[str, Any]:
        self.path.write_text(yaml.safe_dump({"instances": instances}))
        bag = DagBag(REPOSITORY / "dags")
        assert not bag.import_errors
        return dict(bag.dags)


@pytest.fixture
def bags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bags:
    path = tmp_path / "deployment.yaml"
    monkeypatch.setenv("BCC_PARAMETERS", str(path))
    return Bags(path)


def test_each_instance_has_both_dags_and_what_is_its_own(bags: Bags) -> None:
    dags = bags.load({"breast": BREAST, "textures": TEXTURES})
    kinds = ("bcc_retraining", "bcc_set_champion")
    assert set(dags) == {f"{kind}__{name}" for kind in kinds for name in ("breast", "textures")}
    breast, textures = dags["bcc_retraining__breast"], dags["bcc_retraining__textures"]
    assert {task.task_id: task.downstream_task_ids for task in textures.tasks} == {
        task.task_id: task.downstream_task_ids for task in breast.tasks
    }
    for dag_id, dag in dags.items():
        for task in dag.tasks:
            assert f"{dag_id.split('__')[0]}__{_instance_of(task)}" == dag_id, task.task_id
    assert {task.pool for task in textures.tasks} == {"small", "default_pool"}
    assert (textures.params["min_malignant_groups"], breast.params["min_malignant_groups"]) == (30, 23)
    assert [outlet.name for outlet in dags["bcc_set_champion__textures"].get_task("set_champion").outlets] == [
        "bcc_champion__textures"
    ]
    assert [inlet.uri for inlet in textures.get_task("snapshot_dataset").inlets] == ["s3://textures/images"]


def _instance_of(task: Any) -> str:
    """The instance that a task works for, as its worker has it: a mapped task is one only then."""
    mapped_over = {"train_model": {"fold": 1}, "inspect_images": {"part": [0, 1]}}.get(task.task_id)
    return str((task.unmap(mapped_over) if mapped_over else task).instance)


def test_only_the_title_of_an_instance_says_breast_and_its_texts_name_its_positive_class(bags: Bags) -> None:
    dags = bags.load({"breast": BREAST, "textures": TEXTURES})
    for dag_id in ("bcc_retraining__textures", "bcc_set_champion__textures"):
        dag = dags[dag_id]
        form = [str(dag.params.get_param(name).serialize()) for name in dag.params]
        shown = " ".join([dag.doc_md, *dag.tags, *form]).lower()
        assert "woven textures" in shown
        assert "breast" not in shown and "malignant" not in shown
    assert "Finding sensitivity at least" in str(
        dags["bcc_retraining__textures"].params.get_param("min_malignant_sensitivity").serialize()
    )
    assert "Breast ultrasound: retraining" in dags["bcc_retraining__breast"].doc_md


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"classes": ["one"]}, "classes: at least two different names"),
        ({"schedule": "every night"}, "schedule: 'every night'"),
        ({"timezone": "Mars/Base"}, "'Mars/Base'"),
        ({"bucket": "breast-images"}, "overlap in the bucket"),
    ],
)
def test_a_mistake_is_on_the_page_of_its_own_dag_whose_first_task_fails_with_it(bags: Bags, mistake: Any, said: str) -> None:
    dags = bags.load({"breast": {"bucket": "other"}, "again": {}, "textures": {**TEXTURES, **mistake}})
    refused = dags["bcc_retraining__textures"]
    assert refused.doc_md.startswith("**No run can start.**") and said in refused.doc_md
    (task,) = refused.tasks
    assert task.task_id == "wait_for_new_images"
    with pytest.raises(AirflowFailException, match=r"BCC_PARAMETERS|schedule"):
        task.execute({})
    assert "snapshot_dataset" in dags["bcc_retraining__breast"].task_ids


def test_a_mistake_in_an_instances_parameters_is_on_its_own_page(bags: Bags) -> None:
    dags = bags.load({"breast": BREAST, "textures": {**TEXTURES, "parameters": {"epoch": 3}}})
    assert "did you mean epochs?" in dags["bcc_retraining__textures"].doc_md.splitlines()[0]
    assert "No run can start" not in dags["bcc_retraining__breast"].doc_md
