"""What the operators share."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.utils.types import DagRunType

from bcc_ops.airflow_names import AirflowFailException
from bcc_ops.operators.base import airflow_errors, run_kind

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
