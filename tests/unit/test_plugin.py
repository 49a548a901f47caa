"""What the plugin adds to Airflow's UI."""

from __future__ import annotations

from typing import Any, cast

from bcc_ops.plugin import BccPlugin, icon


def test_a_tab_shows_the_report_of_the_run_that_is_open_and_a_page_lists_the_models() -> None:
    tab, page = cast(Any, BccPlugin.external_views)
    assert (tab["destination"], tab["href"]) == ("dag_run", "/bcc/runs/{DAG_ID}/{RUN_ID}/report")
    assert (page["destination"], page["href"], page["name"]) == ("nav", "/bcc/models", "Models")


def test_the_icon_is_drawn_in_the_colour_that_is_asked_for() -> None:
    assert icon("#3c5a7d").startswith("data:image/svg+xml,") and "%233c5a7d" in icon("#3c5a7d")


def test_the_pages_are_mounted_where_the_tab_looks_for_them() -> None:
    [app] = BccPlugin().fastapi_apps
    assert app["url_prefix"] == "/bcc"


def test_the_tasks_whose_outcome_the_report_shows_link_to_it() -> None:
    [link] = BccPlugin().operator_extra_links
    assert {operator.__name__ for operator in link.operators} == {
        "EvaluateModelOperator",
        "GateModelOperator",
        "PublishPlotsOperator",
    }
