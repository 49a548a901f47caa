"""What the operators share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.utils.types import DagRunType

from bcc_ops.operators.base import run_kind

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
