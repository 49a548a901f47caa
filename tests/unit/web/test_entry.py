"""What is mounted if the pages do not fit the Airflow that they are in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from bcc_ops.web import entry

ADDRESSES = ["/models", "/runs/bcc_retraining/manual__1/report", "/runs/bcc_retraining/manual__1/files/model.h5", "/"]
INTERNALS = [
    "airflow.api_fastapi.app",
    "airflow.api_fastapi.auth.managers.models.resource_details",
    "airflow.api_fastapi.common.db.common",
    "airflow.api_fastapi.core_api.security",
    "airflow.models.dagrun",
]


@pytest.fixture(autouse=True)
def pages_not_imported() -> Iterator[None]:
    """Let the next import of the pages and the DAGs look at Airflow again, and nothing of it stay."""
    imported = {name: module for name, module in sys.modules.items() if name.startswith(("bcc_ops.web.", "bcc_ops.dags"))}
    for name in imported.keys() - {"bcc_ops.web.entry"}:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.startswith(("bcc_ops.web.", "bcc_ops.dags"))]:
        del sys.modules[name]
    sys.modules.update(imported)
    for name, module in imported.items():  # a package has its modules as attributes too
        package, _, own = name.rpartition(".")
        setattr(sys.modules[package], own, module)


def closed(addresses: list[str] = ADDRESSES) -> str:
    """Return what a person reads, the same at every address and whoever asks."""
    client = TestClient(entry.pages_app())
    answers = [client.get(address) for address in addresses]
    assert {answer.status_code for answer in answers} == {503}
    assert len({answer.text for answer in answers}) == 1
    assert "default-src 'none'" in answers[0].headers["Content-Security-Policy"]
    return answers[0].text


@pytest.mark.parametrize("module", INTERNALS)
def test_pages_are_closed_where_airflow_lacks_an_internal_module(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    page = closed()
    assert "The pages do not fit Airflow" in page and module in page
    assert "The DAGs work." in page


def test_pages_are_closed_where_airflow_no_longer_knows_the_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow.api_fastapi.auth.managers.models.resource_details.DagAccessEntity", SimpleNamespace(RUN="RUN"))
    assert "AttributeError" in closed()


def test_pages_are_closed_in_an_airflow_that_nobody_tested_them_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "AIRFLOW_VERSION", "3.4.0")
    assert "This is Airflow 3.4.0, and this release of bcc_ops was tested with 3.1 to 3.3: upgrade bcc_ops." in closed()


def test_dags_need_no_internal_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc_ops.web.airflow_internals", None)
    from bcc_ops.dags import all_dags

    assert "bcc_retraining" in all_dags()


def test_pages_are_open_in_the_airflow_of_this_environment() -> None:
    assert {getattr(route, "path", None) for route in entry.pages_app().routes} >= {"/models", "/runs/{dag_id}/{run_id}/report"}
