"""From a task to the report of its run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

KEY = SimpleNamespace(dag_id="bcc_retraining", run_id="manual__2026-11-22T02:00:00+00:00", task_id="gate_model")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("http://here:8080", "http://here:8080"),
        ("http://here:8080/airflow/", "http://here:8080/airflow"),
        ("", ""),
    ],
)
def test_link_leads_to_the_tab_of_the_run(base: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bcc_ops.links.model_report import ModelReportLink

    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base)
    link = ModelReportLink().get_link(None, ti_key=KEY)  # type: ignore[arg-type]
    run = "manual__2026-11-22T02%3A00%3A00%2B00%3A00"
    assert link == f"{expected}/dags/bcc_retraining/runs/{run}/plugin/model-report"
