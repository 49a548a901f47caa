"""The place that the pipeline runs in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import S3Server


@pytest.fixture(params=[False, True], ids=["last_modified", "versions"])
def bucket(request: pytest.FixtureRequest, make_store: Callable[..., ObjectStore]) -> ObjectStore:
    """A fresh bucket of either kind."""
    return make_store(versioned=request.param)


@pytest.fixture
def place(bucket: ObjectStore, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectStore:
    """The bucket, set up as the place that the pipeline runs in."""
    monkeypatch.setenv("BCC_BUCKET", bucket.bucket)
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.airflow_connection)
    return bucket
