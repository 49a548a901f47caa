"""What the plugin registers, as Airflow reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"


SEEN = """
import json, sys
from airflow import plugins_manager as manager
plugins, errors = manager._get_plugins()
assert not errors, errors
loaded = sorted(name for name in sys.modules if name.startswith(("bcc_ops", "matplotlib", "tensorflow")))
views = [[view["destination"], view["href"]] for view in manager._get_ui_plugins()[0] if "/bcc" in view["href"]]
links = [link for link in manager.get_operator_extra_links() if "bcc" in str(link.operators)]
print(json.dumps({
    "loaded": loaded,
    "plugins": [plugin.name for plugin in plugins if "bcc" in plugin.name],
    "views": views,
    "links": [[link.name, sorted(operator.__name__ for operator in link.operators)] for link in links],
}))
"""


@cache
def seen(base_url: str) -> dict[str, Any]:
    """What a fresh Airflow with this repository's plugins folder sees in it."""
    environment = {**os.environ, "AIRFLOW__CORE__PLUGINS_FOLDER": str(PLUGINS), "AIRFLOW__API__BASE_URL": base_url}
    done = subprocess.run([sys.executable, "-c", SEEN], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def test_loading_plugins_imports_neither_the_app_nor_the_operators() -> None:
    assert seen("http://here:8080")["loaded"] == ["bcc_ops", "bcc_ops.exceptions", "bcc_ops.installation", "bcc_ops.plugin"]


def test_no_module_of_the_package_is_run_as_a_plugin() -> None:
    assert seen("http://here:8080")["plugins"] == ["bcc"]


def test_ui_gets_the_tab_and_the_navigation_page() -> None:
    tab, page = ["dag_run", "/bcc/runs/{DAG_ID}/{RUN_ID}/report"], ["nav", "/bcc/models"]
    assert seen("http://here:8080")["views"] == [tab, page]


def test_a_base_path_is_kept() -> None:
    assert seen("https://here/some/airflow/")["views"][1][1] == "/some/airflow/bcc/models"


def test_three_tasks_carry_the_link() -> None:
    tasks = ["EvaluateModelOperator", "GateModelOperator", "PublishPlotsOperator"]
    assert seen("http://here:8080")["links"] == [["Model report", tasks]]
