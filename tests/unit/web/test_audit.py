"""Who looked is kept, and nobody looks unseen."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from bcc_ops.runs.object_store import ObjectStore
from tests.unit.report import samples
from tests.unit.web.routes import RUN, Client

# Who looked, and who may see pictures ---------------------------------------------------------------------------------


def audit_events(since: int = 0) -> list[tuple[str, str | None, str | None]]:
    """(event, user, run) of the audit log's rows with a larger id, oldest first."""
    return [(row.event, row.owner, row.run_id) for row in audit_rows(since)]


def audit_rows(since: int) -> list[Any]:
    """The rows of this project's events with a larger id, oldest first."""
    from airflow.models.log import Log
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        rows = session.scalars(select(Log).where(Log.id > since, Log.event.like("bcc_%")).order_by(Log.id)).all()
        session.expunge_all()
        return list(rows)


def newest_event() -> int:
    from airflow.models.log import Log
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    with create_session() as session:
        return session.scalar(select(func.max(Log.id))) or 0


def test_each_view_is_an_event_with_the_readers_name_and_once_however_often_the_page_refreshes(
    make_client: Client, shared_store: ObjectStore
) -> None:
    before = newest_event()
    client = make_client(shared_store)
    for address in (f"{RUN}/report", f"{RUN}/report", f"{RUN}/plots/roc.png", f"{RUN}/files/gate.json", "/bcc/models"):
        assert client.get(address).status_code == 200
    assert audit_events(before) == [
        ("bcc_view_report", "ada", samples.RUN_ID),
        ("bcc_view_plot", "ada", samples.RUN_ID),
        ("bcc_download", "ada", samples.RUN_ID),
        ("bcc_view_models", "ada", None),
    ]


def test_an_event_names_the_run_that_was_shown_whatever_else_the_request_names(
    make_client: Client, shared_store: ObjectStore
) -> None:
    before = newest_event()
    client = make_client(shared_store)
    other = {"dag_id": "other", "run_id": "other", "dag_run_id": "other", "name": "other"}
    answers = [
        client.request("GET", f"{RUN}/report", json=other),
        client.get(f"{RUN}/plots/roc.png", params=other),
        client.request("GET", f"{RUN}/files/gate.json", json=other, params=other),
        client.request("GET", "/bcc/models", json=other, params=other),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [run for _, _, run in audit_events(before)] == [samples.RUN_ID] * 3 + [None]
    assert [(row.dag_id, json.loads(row.extra)) for row in audit_rows(before)] == [
        ("bcc_retraining", {"method": "GET"}),
        ("bcc_retraining", {"method": "GET", "name": "roc.png"}),
        ("bcc_retraining", {"method": "GET", "name": "gate.json"}),
        (None, {"method": "GET"}),
    ]


def test_nobody_looks_unseen(make_client: Client, shared_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**given: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("bcc_ops.web.audit.Log", refuse)
    answer = make_client(shared_store).get(f"{RUN}/report")
    assert answer.status_code == 503
    assert "could not be recorded" in answer.text and samples.RUN_ID not in answer.text


@pytest.mark.parametrize("role", [None, "none"])
def test_who_is_turned_away_leaves_no_event(make_client: Client, shared_store: ObjectStore, role: str | None) -> None:
    before = newest_event()
    make_client(shared_store, role=role).get(f"{RUN}/report")
    assert audit_events(before) == []


def test_the_write_does_not_hold_up_the_event_loop(
    make_client: Client, shared_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may wait for a lock, and whoever has the lock needs the loop to give it back."""
    loops: list[asyncio.AbstractEventLoop | None] = []

    def row(*_: Any) -> None:
        try:
            loops.append(asyncio.get_running_loop())
        except RuntimeError:
            loops.append(None)
        raise OSError("the test ends here")

    monkeypatch.setattr("bcc_ops.web.audit._row", row)
    assert make_client(shared_store).get(f"{RUN}/report").status_code == 503
    assert loops == [None]
