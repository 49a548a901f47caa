"""The web app as the API server mounts it: real authentication, a real metadata database, a real S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import insert

from bcc_ops.config import Settings
from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import S3Server
from tests.unit.report import samples

RUNNING, FAILED, FOLD_FAILED, SKIPPED = "manual__running", "manual__failed", "manual__fold_failed", "scheduled__skipped"


@pytest.fixture(scope="session")
def known_runs(airflow_database: None) -> None:
    """The metadata database with the pipeline's DAG, another DAG, and a few runs."""
    _fill_database()


def _fill_database() -> None:
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    done = dict.fromkeys(("wait_for_new_images", "snapshot_dataset", "download_images", "check_images"), "success")
    trained = {"train_model[0]": "success", "train_model[1]": "success", "train_model[2]": "running", "train_model[3]": "queued"}
    runs: dict[str, tuple[str, dict[str, str | None]]] = {
        samples.RUN_ID: ("success", {**done, "gate_model": "success", "upload_model": "skipped"}),
        RUNNING: ("running", {**done, "split_dataset": "success", **trained, "combine_folds": None, "evaluate_model": None}),
        FAILED: ("failed", {**done, "split_dataset": "failed", "train_model": "upstream_failed"}),
        FOLD_FAILED: ("failed", {**done, "split_dataset": "success", "train_model[0]": "success", "train_model[1]": "failed"}),
        SKIPPED: ("success", {"wait_for_new_images": "skipped", "snapshot_dataset": "skipped"}),
    }
    with create_session() as session:
        session.merge(DagBundleModel(name="tests"))
        session.flush()
        for dag_id in ("bcc_retraining", "another_dag"):
            session.add(DagModel(dag_id=dag_id, bundle_name="tests", fileloc=f"/{dag_id}.py"))
        session.flush()
        for number, (run_id, (state, _)) in enumerate(runs.items()):
            for dag_id in ("bcc_retraining", "another_dag"):
                moment = datetime(2026, 11, 22, number, tzinfo=timezone.utc)
                run = DagRun(
                    dag_id=dag_id,
                    run_id=run_id,
                    run_type=DagRunType.MANUAL,
                    run_after=moment,
                    logical_date=moment,
                    state=state,
                    triggered_by=DagRunTriggeredByType.TEST,
                    conf={"preset": "<script>alert('conf')</script>"},
                )
                session.add(run)
        session.flush()
        rows = [
            {"id": uuid.UUID(int=100 * number + place), **_instance(task), "run_id": run_id, "state": task_state}
            for number, (run_id, (_, tasks)) in enumerate(runs.items())
            for place, (task, task_state) in enumerate(tasks.items())
        ]
        session.execute(
            insert(TaskInstance.__table__),
            [{**row, "dag_id": "bcc_retraining", "pool": "default_pool", "pool_slots": 1} for row in rows],
        )


def _instance(task: str) -> dict[str, object]:
    """The columns that name a task instance: `train_model[1]` is one of a mapped task."""
    task_id, _, index = task.rstrip("]").partition("[")
    return {"task_id": task_id, "map_index": int(index or -1)}


@pytest.fixture
def settings() -> Settings:
    return Settings(bucket="bucket")


@pytest.fixture
def make_client(known_runs: None, settings: Settings) -> Callable[..., TestClient]:
    """A client of the API server's app with the pages in it: `make_client(store, role="viewer")`; role None: no login."""

    def make(
        open_store: Callable[[], ObjectStore] | ObjectStore,
        role: str | None = "viewer",
        settings: Settings = settings,
        **headers: str,
    ) -> TestClient:
        from airflow.api_fastapi.app import create_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

        from bcc_ops.web.app import create_app
        from bcc_ops.web.entry import URL_PREFIX

        manager = create_auth_manager()
        root = FastAPI()
        root.state.auth_manager = manager
        opened = (lambda: open_store) if isinstance(open_store, ObjectStore) else open_store
        root.mount(URL_PREFIX, create_app(settings, opened))
        if role is not None:
            user: Any = SimpleAuthManagerUser(username="ada", role=None if role == "none" else role)
            headers["Authorization"] = f"Bearer {manager.generate_jwt(user)}"
        return TestClient(root, headers=headers, raise_server_exceptions=False)

    return make


def fill(store: ObjectStore) -> ObjectStore:
    """Put one whole run into the bucket, plots and report included."""
    for name, content in samples.whole_run().items():
        store.put(samples.PATHS.document(name), content)
    for name in ("roc", "history"):
        store.put(samples.PATHS.plot(name), b"\x89PNG\r\n\x1a\n")
    store.put(samples.PATHS.document("report.html"), b"<!doctype html>")
    store.put(samples.PATHS.document("model.h5"), b"H" * 3_000_000)
    return store


@pytest.fixture
def filled_store(store: ObjectStore) -> ObjectStore:
    """A fresh bucket with one whole run."""
    return fill(store)


@pytest.fixture(scope="session")
def shared_store(s3_server: S3Server) -> ObjectStore:
    """One bucket for all tests that only read: a whole run, and beside it what must never be served."""
    store = ObjectStore(s3_server.client(), "shared-by-web-tests")
    store.client.create_bucket(Bucket=store.bucket)
    for key in ("secret.txt", "secret.png", "plots/secret.png"):
        store.put(samples.PATHS.document(key), b"SECRET")
    store.put("images/benign/a.png", b"SECRET")
    store.put("models/champion.json", samples.champion_document(reason="SECRET").to_json())
    return fill(store)
