"""Register the pipeline's pages, links and tab with Airflow. Nothing else happens here.

Airflow imports this in every process, by the entry point of a wheel or by `bcc_plugin.py` in the plugins folder. What
only the API server asks for is a property, so that no other process imports it.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit

from airflow import __version__ as airflow_version
from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from bcc_ops.installation import require_suitable


def icon(colour: str, halo: str = "none") -> str:
    """Return a trend line in a frame, 24 x 24, as the UI's other icons are.

    `halo` keeps it visible while its page is open: the navigation then marks it in the very colour of its icons.
    """
    line = "M4 4v16h16M8 15l4-4 3 3 5-6"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke-linecap="round" '
        f'stroke-linejoin="round"><path stroke="{halo}" stroke-width="5" d="{line}"/>'
        f'<path stroke="{colour}" stroke-width="2" d="{line}"/></svg>'
    )
    return f"data:image/svg+xml,{quote(svg)}"


require_suitable(airflow_version)

BASE_PATH = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")


class BccPlugin(AirflowPlugin):
    """The *Model report* tab, the *Models* page and the links to them."""

    name = "bcc"

    external_views = [  # noqa: RUF012 - Airflow's own declaration
        {
            "name": "Model report",
            "href": f"{BASE_PATH}/bcc/runs/{{DAG_ID}}/{{RUN_ID}}/report",
            "destination": "dag_run",
            "url_route": "model-report",
        },
        {
            "name": "Models",  # the navigation is narrow: more than some eight letters are cut
            "href": f"{BASE_PATH}/bcc/models",
            "destination": "nav",
            "nav_top_level": True,
            "icon": icon("#3c5a7d", halo="#dbe6f4"),
            "icon_dark_mode": icon("#e4e4e7"),
            "url_route": "bcc-models",
        },
    ]

    @property
    def fastapi_apps(self) -> list[Any]:
        """The app behind the pages."""
        from bcc_ops.web.entry import URL_PREFIX, pages_app

        return [{"app": pages_app(), "url_prefix": URL_PREFIX, "name": "Models"}]

    @property
    def operator_extra_links(self) -> list[Any]:
        """The link to the report, on the tasks whose outcome it shows."""
        from bcc_ops.links.model_report import ModelReportLink
        from bcc_ops.operators.evaluate_model import EvaluateModelOperator
        from bcc_ops.operators.gate_model import GateModelOperator
        from bcc_ops.operators.publish_plots import PublishPlotsOperator

        class Link(ModelReportLink):
            operators = [EvaluateModelOperator, GateModelOperator, PublishPlotsOperator]  # noqa: RUF012

        return [Link()]
