"""The pages of a deployment with several models: each shows its own documents, to those who may read its own DAG."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from fastapi.testclient import TestClient

from bcc_ops.runs.object_store import ObjectStore
from tests.unit.report import samples
from tests.unit.web.test_audit import audit_rows, newest_event

Client = Callable[..., TestClient]

TEXTURES = {
    "title": "Woven textures",
    **{f"{folder}_prefix": f"textures/{folder}" for folder in ("images", "artifacts", "models")},
    "classes": ["finding", "no_finding"],
    "positive_class": "finding",
}
RUNS = {name: f"/bcc/runs/bcc_retraining__{name}/{samples.RUN_ID}" for name in ("breast", "textures")}


@pytest.fixture
def open_client(make_client: Client, shared_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client as `make_client` makes it, of a deployment with three models: one has a run, one none, one a mistake."""
    instances = {"breast": {"title": "Breast ultrasound"}, "textures": TEXTURES, "wrong": {"bucket": "b", "classes": ["one"]}}
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump({"instances": instances}))
    monkeypatch.setenv("BCC_PARAMETERS", str(tmp_path / "deployment.yaml"))
    monkeypatch.setenv("BCC_BUCKET", shared_store.bucket)
    return lambda role="viewer": make_client(shared_store, role=role, settings=None)


ADDRESSES = ["/bcc/models", "/bcc/models/textures", "/bcc/models/nothing", *(f"{run}/report" for run in RUNS.values())]


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_page_asks_for_a_login_and_for_permission(open_client: Client, address: str) -> None:
    assert open_client(role=None).get(address).status_code == 401
    assert open_client(role="none").get(address).status_code == 403


def test_the_list_names_each_model_and_what_is_wrong_with_one(open_client: Client) -> None:
    page = open_client().get("/bcc/models").text
    for text in ("Breast ultrasound", "Woven textures", "finding, no_finding", 'href="models/textures"'):
        assert text in page
    assert "at least two different names are needed, not one" in page


def test_each_model_has_a_page_of_its_own_with_links_to_its_own_runs(open_client: Client) -> None:
    client = open_client()
    breast, textures = (client.get(f"/bcc/models/{name}").text for name in ("breast", "textures"))
    assert f'href="../runs/bcc_retraining__breast/{quote(samples.RUN_ID, safe="")}/report"' in breast
    assert "Woven textures" in textures and "No run has left a document" in textures
    assert "breast" not in textures.lower() and "malignant" not in textures.lower()


def test_a_run_is_looked_for_only_where_its_own_model_keeps_its_documents(open_client: Client) -> None:
    client = open_client()
    assert client.get(f"{RUNS['breast']}/files/gate.json").status_code == 200
    assert client.get(f"{RUNS['textures']}/files/gate.json").status_code == 404
    assert samples.PATHS.folder not in client.get(f"{RUNS['textures']}/report").text


@pytest.mark.parametrize("address", ["/bcc/models/nothing", f"/bcc/runs/bcc_retraining/{samples.RUN_ID}/report"])
def test_what_is_none_of_the_models_is_not_found(open_client: Client, address: str) -> None:
    assert open_client().get(address).status_code == 404


def test_the_page_of_one_with_a_mistake_says_what_it_is(open_client: Client) -> None:
    answer = open_client().get("/bcc/models/wrong")
    assert answer.status_code == 503 and "at least two different names" in answer.text


def test_who_may_read_one_model_sees_nothing_of_another(open_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    def only_textures(self: Any, *, details: Any = None, **given: Any) -> bool:
        return details is not None and details.id == "bcc_retraining__textures"

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_dag", only_textures)
    client = open_client()
    page = client.get("/bcc/models")
    assert page.status_code == 200 and "Woven textures" in page.text and "Breast" not in page.text
    assert client.get("/bcc/models/textures").status_code == 200
    for address in ("/bcc/models/breast", f"{RUNS['breast']}/report", f"{RUNS['breast']}/files/gate.json"):
        assert client.get(address).status_code == 403


def test_the_audit_log_says_whose_page_was_viewed(open_client: Client) -> None:
    before = newest_event()
    client = open_client()
    for name in ("breast", "textures"):
        assert client.get(f"/bcc/models/{name}").status_code == 200
    assert [json.loads(row.extra)["instance"] for row in audit_rows(before)] == ["breast", "textures"]
