"""From a task to the report of its run.

The API server builds these links, and an exception in one answers 500 for all links of the task: the address comes from
the task's key and the configured base address, and nothing else is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

from bcc_ops.airflow_names import conf

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

URL_ROUTE = "model-report"
"""Last part of the tab's address in the UI."""


class ModelReportLink(BaseOperatorLink):
    """Opens the *Model report* tab of the task's run."""

    name = "Model report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address of the tab, in the UI."""
        base = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
        dag_id, run_id = quote(ti_key.dag_id, safe=""), quote(ti_key.run_id, safe="")
        return f"{base}/dags/{dag_id}/runs/{run_id}/plugin/{URL_ROUTE}"
