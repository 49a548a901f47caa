"""Pages: what they show, what they refuse, and what they do when the store is away."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import create_server
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from bcc_ops.config import Settings
from bcc_ops.report.page import CONTENT_SECURITY_POLICY
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from local.s3_server import S3Server
from tests.unit.report import samples
from tests.unit.web.conftest import FAILED, FOLD_FAILED, RUNNING, SKIPPED

Client = Callable[..., TestClient]
RUN = f"/bcc/runs/bcc_retraining/{samples.RUN_ID}"
ATTACK = "<script>alert(1)</script>"


def every_route() -> list[APIRoute]:
    """The app's routes, as the framework has them: one that is not an API route would have no guard, and fails here."""
    from bcc_ops.web.app import create_app

    routes = create_app().routes
    strangers = [route for route in routes if not isinstance(route, APIRoute)]
    assert not strangers, f"routes that no guard protects: {strangers}"
    return [route for route in routes if isinstance(route, APIRoute)]


def addresses(route: APIRoute, dag_id: str = "bcc_retraining", run_id: str = samples.RUN_ID) -> list[str]:
    """Addresses of a route that a viewer gets 200 from."""
    names = {"plots": ["roc.png"], "files": ["gate.json", "model.h5", "report.html"]}
    wanted = next((found for part, found in names.items() if f"/{part}/" in route.path), [""])
    return ["/bcc" + route.path.format(dag_id=dag_id, run_id=run_id, name=name) for name in wanted]


ROUTES = [address for route in every_route() if "{instance}" not in route.path for address in addresses(route)]
RUN_ROUTES = [route for route in every_route() if "{dag_id}" in route.path]


@pytest.mark.parametrize("address", ROUTES)
def test_every_route_asks_for_a_login(make_client: Client, shared_store: ObjectStore, address: str) -> None:
    assert make_client(shared_store, role=None).get(address).status_code == 401
    stranger = make_client(shared_store, role=None, Authorization="Bearer made.up.token")
    assert stranger.get(address).status_code in (401, 403)


@pytest.mark.parametrize("address", ROUTES)
def test_every_route_asks_for_permission_on_the_dag(make_client: Client, shared_store: ObjectStore, address: str) -> None:
    assert make_client(shared_store, role="none").get(address).status_code == 403


@pytest.mark.parametrize("address", ROUTES)
def test_every_route_answers_a_viewer(make_client: Client, shared_store: ObjectStore, address: str) -> None:
    answer = make_client(shared_store).get(address)
    assert answer.status_code == 200, answer.text
    assert answer.content


@pytest.mark.parametrize("address", ROUTES)
def test_every_route_takes_the_ui_cookie(make_client: Client, shared_store: ObjectStore, address: str) -> None:
    bearer = make_client(shared_store).headers["Authorization"].removeprefix("Bearer ")
    client = make_client(shared_store, role=None)
    client.cookies.set("_token", bearer)
    assert client.get(address).status_code == 200


@pytest.mark.parametrize("role", [None, "viewer"])
@pytest.mark.parametrize("address", [*ROUTES, "/bcc/nothing"])
def test_every_answer_carries_the_security_headers(
    make_client: Client, shared_store: ObjectStore, address: str, role: str | None
) -> None:
    headers = make_client(shared_store, role=role).get(address).headers
    assert headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("route", RUN_ROUTES, ids=lambda route: route.path)
@pytest.mark.parametrize("dag_id", ["another_dag", "no_such_dag", "~", ATTACK.replace("/", "%2F")])
def test_every_route_of_a_run_is_closed_to_other_dags(
    make_client: Client, shared_store: ObjectStore, route: APIRoute, dag_id: str
) -> None:
    for address in addresses(route, dag_id=dag_id):
        answer = make_client(shared_store).get(address)
        assert answer.status_code == 404
        assert ATTACK not in answer.text


@pytest.mark.parametrize("route", RUN_ROUTES, ids=lambda route: route.path)
@pytest.mark.parametrize("run_id", ["manual__nobody", "..", "%2e%2e", ATTACK.replace("/", "%2F"), "a%00b", "*"])
def test_every_route_of_a_run_answers_404_for_an_unknown_run(
    make_client: Client, shared_store: ObjectStore, route: APIRoute, run_id: str
) -> None:
    for address in addresses(route, run_id=run_id):
        answer = make_client(shared_store).get(address)
        assert answer.status_code == 404
        assert ATTACK not in answer.text


NAMES = [
    *("../gate.json", "..%2Fgate.json", "%2e%2e%2fgate.json", "%252e%252e%252fgate.json", "..%5Cgate.json"),
    *("%2Fetc%2Fpasswd", "/etc/passwd", "roc.png%00.json", "secret.txt", "images%2Fbenign%2Fa.png", "roc", "ROC.PNG", "."),
    *("../../../../champion.json", "plots%2Froc.png", "s3:%2F%2Fbucket%2Fsecret.txt", ATTACK.replace("/", "%2F")),
]


@pytest.mark.parametrize("kind", ["plots", "files"])
@pytest.mark.parametrize("name", NAMES)
def test_only_names_from_the_list_are_served(make_client: Client, shared_store: ObjectStore, kind: str, name: str) -> None:
    answer = make_client(shared_store).get(f"{RUN}/{kind}/{name}")
    assert answer.status_code == 404
    assert b"SECRET" not in answer.content
    assert ATTACK not in answer.text


def test_a_folder_that_only_begins_with_the_runs_name_is_not_its_folder(make_client: Client, filled_store: ObjectStore) -> None:
    filled_store.put(f"{samples.PATHS.folder}-other/promotion.json", b"SECRET")
    assert make_client(filled_store).get(f"{RUN}/files/promotion.json").status_code == 404


def test_script_in_keys_reasons_and_parameters_is_shown_as_text(make_client: Client, store: ObjectStore) -> None:
    document = samples.checks_document(
        refused=({"key": f"images/{ATTACK}.png", "reason": ATTACK, "detail": f'"onmouseover={ATTACK}'},), warnings=(ATTACK,)
    )
    run = samples.whole_run(
        checks__json=document,
        gate__json=samples.gate_document(reasons=(ATTACK,)),
        config__json=samples.config_document(patient_pattern=f"({ATTACK})"),
    )
    for name, content in run.items():
        store.put(samples.PATHS.document(name), content)
    store.put(samples.PATHS.document("fold-1.csv"), f"epoch,loss\n{ATTACK},1\n".encode())
    page = make_client(store).get(f"{RUN}/report")
    assert page.status_code == 200
    assert ATTACK not in page.text
    assert page.text.count("&lt;script&gt;alert(1)") >= 6
    assert page.text.count("<script>") == 1


def test_script_in_a_model_card_is_shown_as_text(make_client: Client, store: ObjectStore) -> None:
    for name, content in samples.whole_run("approved").items():
        store.put(samples.PATHS.document(name), content)
    card = f"# Card\n\n{ATTACK}\n\n[click](javascript:alert(1))\n\n![x](https://elsewhere.example/x.png)"
    store.put("models/20261122T020000Z-9a8b7c6d/model_card.md", card.encode())
    page = make_client(store).get(f"{RUN}/report").text
    assert "<h3>Card</h3>" in page
    assert ATTACK not in page
    assert 'href="javascript' not in page
    assert "<img" not in page.split('id="card"')[1].split("</section>")[0]


def test_report_begins_with_the_verdict_and_its_reasons(make_client: Client, filled_store: ObjectStore) -> None:
    page = make_client(filled_store).get(f"{RUN}/report").text
    order = [
        "<h2>Rejected",
        "<li>Malignant sensitivity fell",
        "<h2>Against the champion",
        'alt="ROC curves',
        "Left out",
        "<h2>Downloads",
    ]
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert '<img src="plots/roc.png"' in page
    assert 'href="files/model.h5"' in page
    assert "3.0 MB" in page
    assert "promotion.json" not in page.split("<h2>Downloads")[1]


def test_downloads_are_never_opened_by_the_browser(make_client: Client, filled_store: ObjectStore) -> None:
    client = make_client(filled_store)
    page = client.get(f"{RUN}/files/report.html")
    assert page.headers["Content-Disposition"] == 'attachment; filename="report.html"'
    model = client.get(f"{RUN}/files/model.h5")
    assert model.content == b"H" * 3_000_000
    assert model.headers["Content-Length"] == "3000000"


def test_running_report_shows_the_task_and_refreshes(make_client: Client, store: ObjectStore) -> None:
    paths = RunPaths.of("artifacts", samples.AS_OF, RUNNING)
    for name in ("config.json", "snapshot.json"):
        store.put(paths.document(name), samples.whole_run()[name].replace(samples.RUN_ID.encode(), RUNNING.encode()))
    for name, content in (samples.histories(12, folds=2) | {"fold-3.csv": samples.histories(4)["fold-3.csv"]}).items():
        store.put(paths.document(name), content)
    page = make_client(store).get(f"/bcc/runs/bcc_retraining/{RUNNING}/report").text
    assert "Running: train_model (2 of 4 done)" in page
    assert '<meta http-equiv="refresh" content="10">' in page
    assert [f"fold {fold} of 5: epoch {epoch} of 12" in page for fold, epoch in ((1, 12), (2, 12), (3, 4))] == [True] * 3
    assert "<polyline" in page


def test_a_run_that_left_nothing_yet_has_a_page(make_client: Client, store: ObjectStore) -> None:
    page = make_client(store).get(f"/bcc/runs/bcc_retraining/{RUNNING}/report")
    assert page.status_code == 200
    assert "Running: train_model" in page.text


def test_failed_report_names_the_task_to_look_at(make_client: Client, store: ObjectStore) -> None:
    paths = RunPaths.of("artifacts", samples.AS_OF, FAILED)
    store.put(paths.document("snapshot.json"), samples.whole_run()["snapshot.json"])
    page = make_client(store).get(f"/bcc/runs/bcc_retraining/{FAILED}/report").text
    assert "split_dataset failed" in page
    assert f'href="/dags/bcc_retraining/runs/{FAILED}/tasks/split_dataset"' in page
    assert "http-equiv" not in page


def test_a_report_links_the_log_of_the_fold_that_failed(make_client: Client, store: ObjectStore) -> None:
    page = make_client(store).get(f"/bcc/runs/bcc_retraining/{FOLD_FAILED}/report").text
    assert "train_model failed" in page and "failed, 1 of 2 done" in page
    assert f'href="/dags/bcc_retraining/runs/{FOLD_FAILED}/tasks/train_model/mapped/1"' in page
    assert "mapped/0" not in page


def test_skipped_report_says_that_nothing_is_new(make_client: Client, store: ObjectStore) -> None:
    page = make_client(store).get(f"/bcc/runs/bcc_retraining/{SKIPPED}/report").text
    assert "Skipped: nothing new" in page


def test_a_damaged_document_hides_nothing_but_itself(make_client: Client, filled_store: ObjectStore) -> None:
    filled_store.put(samples.PATHS.document("gate.json"), b"{")
    page = make_client(filled_store).get(f"{RUN}/report")
    assert page.status_code == 200
    assert "gate.json cannot be read" in page.text
    assert "Against the champion" in page.text


def test_a_rewritten_document_is_read_anew(make_client: Client, filled_store: ObjectStore) -> None:
    client = make_client(filled_store)
    assert "Rejected" in client.get(f"{RUN}/report").text
    filled_store.put(samples.PATHS.document("gate.json"), samples.gate_document("approved").to_json())
    assert "Rejected" not in client.get(f"{RUN}/report").text


def test_models_page_lists_champion_runs_and_versions(make_client: Client, filled_store: ObjectStore) -> None:
    filled_store.put("models/champion.json", samples.champion_document().to_json())
    filled_store.put("models/20261115T020000Z-3f9c2a1b/model.json", samples.model_document().to_json())
    filled_store.put("models/20261116T020000Z-unfinished/model.h5", b"H")
    client = make_client(filled_store)
    page = client.get("/bcc/models").text
    assert "20261115T020000Z-3f9c2a1b" in page
    assert "its upload was not finished" in page
    assert "✗ rejected" in page
    link = f"runs/bcc_retraining/{samples.RUN_ID.replace(':', '%3A').replace('+', '%2B')}/report"
    assert f'href="{link}"' in page
    assert client.get(f"/bcc/{link}").status_code == 200


def test_models_page_leads_to_older_runs(make_client: Client, store: ObjectStore) -> None:
    for day in range(1, 29):
        moment = samples.AS_OF.replace(day=day)
        store.put(
            RunPaths.of("artifacts", moment, f"run{day:02d}").document("config.json"),
            samples.config_document(f"run{day:02d}").to_json(),
        )
    client = make_client(store)
    first = client.get("/bcc/models").text
    assert first.count("/report") == 25
    older = first.split('href="models?')[1].split('"')[0]
    assert client.get(f"/bcc/models?{older}").text.count("/report") == 3


def test_an_empty_bucket_has_a_models_page(make_client: Client, store: ObjectStore) -> None:
    page = make_client(store).get("/bcc/models")
    assert page.status_code == 200
    assert "There is none yet" in page.text


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with create_server(("127.0.0.1", 0)) as server:
        held: list[Any] = []
        stopped = threading.Event()

        def accept() -> None:
            while not stopped.is_set():
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            stopped.set()
            for connection in held:
                connection.close()


@pytest.mark.parametrize("address", ROUTES)
@pytest.mark.parametrize("away", ["refused", "silent"])
def test_a_store_that_is_away_is_told(make_client: Client, monkeypatch: pytest.MonkeyPatch, address: str, away: str) -> None:
    from bcc_ops.config import Settings
    from bcc_ops.web.airflow_metadata import ConnectedStore

    monkeypatch.setattr("bcc_ops.web.airflow_metadata.READ_SECONDS", 0.2)
    with silent_server() as silent:
        endpoint = silent if away == "silent" else "http://127.0.0.1:9"
        extra = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        client = make_client(ConnectedStore(Settings))
        answer = client.get(address)
    assert answer.status_code == 503
    assert "The store does not answer" in answer.text
    assert 'http-equiv="refresh"' in answer.text, "a store that comes back shows its page by itself"
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY


def test_a_store_that_is_away_is_noticed_within_five_seconds_and_long_before_a_page_takes_too_long(
    shared_store: ObjectStore, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcc_ops.config import Settings
    from bcc_ops.web.airflow_metadata import ConnectedStore
    from bcc_ops.web.app import DEADLINE_SECONDS

    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.airflow_connection)
    patience: Any = ConnectedStore(lambda: Settings(bucket=shared_store.bucket))().client.meta.config
    assert patience.connect_timeout + patience.read_timeout <= 5 < DEADLINE_SECONDS / 10
    assert patience.retries["total_max_attempts"] == 1


def test_a_page_that_takes_too_long_does_not_blame_the_store(make_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("bcc_ops.web.app.DEADLINE_SECONDS", 0.1)

    def take_long() -> ObjectStore:
        release.wait(60)
        raise AssertionError

    try:
        answer = make_client(take_long).get(f"{RUN}/report")
    finally:
        release.set()
    assert answer.status_code == 504
    assert "store does not answer" not in answer.text
    assert 'http-equiv="refresh"' in answer.text


def test_pages_of_a_store_that_hangs_leave_others_alone(make_client: Client) -> None:
    release = threading.Event()

    def hang() -> ObjectStore:
        release.wait(60)
        raise AssertionError

    client = make_client(hang)
    root: FastAPI = client.app  # type: ignore[assignment]
    root.get("/other")(lambda: "here")
    waiting = [threading.Thread(target=client.get, args=(f"{RUN}/report",)) for _ in range(12)]
    for thread in waiting:
        thread.start()
    try:
        assert client.get("/other").text == '"here"'
        assert all(thread.is_alive() for thread in waiting), "the other page waited for them"
    finally:
        release.set()
        for thread in waiting:
            thread.join()


def test_a_wrong_setting_is_told_in_a_page(make_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from bcc_ops.config import Settings
    from bcc_ops.web.airflow_metadata import ConnectedStore

    monkeypatch.setenv("BCC_POSITIVE_CLASS", "nothing")
    answer = make_client(ConnectedStore(Settings.from_environment)).get(f"{RUN}/report")
    assert answer.status_code == 503
    assert "positive_class" in answer.text


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


@pytest.mark.parametrize("run_id", ["a%00b", "x" * 300])
def test_a_run_id_that_the_database_cannot_hold_never_reaches_it(
    make_client: Client, shared_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, run_id: str
) -> None:
    monkeypatch.setattr("bcc_ops.web.app.find_progress", lambda *given: pytest.fail("PostgreSQL would raise here"))
    assert make_client(shared_store).get(f"/bcc/runs/bcc_retraining/{run_id}/report").status_code == 404


def test_a_reader_without_pictures_sees_the_report_and_neither_pictures_nor_downloads(
    make_client: Client, filled_store: ObjectStore, settings: Settings
) -> None:
    filled_store.put(samples.PATHS.plot("missed_cancers"), b"\x89PNG\r\n\x1a\n")
    closed = Settings(bucket="bucket", pictures="triggerers")
    viewer, user = (make_client(filled_store, role=role, settings=closed) for role in ("viewer", "user"))
    page = viewer.get(f"{RUN}/report").text
    assert "Pictures of patients and downloads are left out" in page
    assert "plots/roc.png" in page and "missed_cancers.png" not in page and "files/" not in page
    for address in (f"{RUN}/plots/missed_cancers.png", f"{RUN}/files/gate.json", f"{RUN}/files/report.html"):
        assert viewer.get(address).status_code == 403
        assert user.get(address).status_code == 200
    assert "missed_cancers.png" in user.get(f"{RUN}/report").text
