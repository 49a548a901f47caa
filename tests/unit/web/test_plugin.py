"""What the plugin registers, as Airflow reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"
KEY = SimpleNamespace(dag_id="bcc_retraining", run_id="manual__2026-11-22T02:00:00+00:00", task_id="gate_model")


def run_airflow(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter with this repository's plugins folder."""
    environment = {**os.environ, "AIRFLOW__CORE__PLUGINS_FOLDER": str(PLUGINS), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


LOAD = "from airflow import plugins_manager as m; plugins, errors = m._get_plugins(); assert not errors, errors; "


def test_loading_plugins_imports_neither_the_app_nor_the_operators() -> None:
    code = f"import sys; {LOAD} print(sorted(n for n in sys.modules if n.startswith(('bcc_ops', 'matplotlib', 'tensorflow'))))"
    assert run_airflow(code) == "[]"


def test_no_module_of_the_package_is_run_as_a_plugin() -> None:
    assert run_airflow(f"{LOAD} print([p.name for p in plugins if 'bcc' in p.name])") == "['bcc']"


def test_ui_gets_the_tab_and_the_navigation_page() -> None:
    code = f"{LOAD} print([(v['destination'], v['href']) for v in m._get_ui_plugins()[0] if '/bcc' in v['href']])"
    tab, page = ("dag_run", "/bcc/runs/{DAG_ID}/{RUN_ID}/report"), ("nav", "/bcc/models")
    assert run_airflow(code, AIRFLOW__API__BASE_URL="http://here:8080") == str([tab, page])


def test_a_base_path_is_kept() -> None:
    code = f"{LOAD} print([v['href'] for v in m._get_ui_plugins()[0] if '/bcc' in v['href']][1])"
    assert run_airflow(code, AIRFLOW__API__BASE_URL="https://here/some/airflow/") == "/some/airflow/bcc/models"


def test_three_tasks_carry_the_link() -> None:
    code = f"{LOAD} links = [l for l in m.get_operator_extra_links() if 'bcc' in str(l.operators)]; "
    code += "print([(l.name, sorted(o.__name__ for o in l.operators)) for l in links])"
    assert run_airflow(code) == str([("Model report", ["EvaluateModelOperator", "GateModelOperator", "PublishPlotsOperator"])])


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
