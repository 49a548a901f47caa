"""What the operators share."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.utils.types import DagRunType

from bcc_ops.airflow_names import AirflowFailException
from bcc_ops.operators.base import BccOperator, airflow_errors, run_kind

KINDS = {
    "scheduled": "nightly",
    "asset_triggered": "event",
    "manual": "manual",
    "operator_triggered": "manual",
    "asset_materialization": "manual",
    "backfill": "backfill",
}


@pytest.mark.parametrize("run_type", DagRunType)
def test_every_run_type_of_airflow_is_of_a_kind(run_type: DagRunType) -> None:
    """Airflow may get another; that one's kind is to be decided, and no default's to take."""
    for written in (run_type, run_type.value):
        context = cast(Any, {"dag_run": SimpleNamespace(run_type=written)})
        assert run_kind(context) == KINDS[run_type.value]


def test_a_worker_without_the_extra_says_at_once_what_to_install() -> None:
    with (
        pytest.raises(AirflowFailException, match=r"lacks the package no_such_package: .*retraining\[worker\]"),
        airflow_errors(),
    ):
        importlib.import_module("no_such_package")


def test_an_operator_works_in_the_place_of_its_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text("instances:\n  breast: {bucket: one}\n  textures: {bucket: two, parameters: {epochs: 3}}\n")
    monkeypatch.setenv("BCC_PARAMETERS", str(file))
    task = BccOperator(task_id="a_task", instance="textures")
    assert task.settings.bucket == "two"
    assert task.deployment.values == {"epochs": 3}


def test_a_task_without_an_instance_does_nothing_where_there_are_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of before the deployment's file listed them, which is cleared now."""

    class Opens(BccOperator):
        def work(self, context: Any) -> Any:
            return self.store

    (tmp_path / "deployment.yaml").write_text("instances:\n  breast: {bucket: one}\n")
    monkeypatch.setenv("BCC_PARAMETERS", str(tmp_path / "deployment.yaml"))
    with pytest.raises(AirflowFailException, match="choose one of breast"):
        Opens(task_id="a_task").execute(cast(Any, {}))
