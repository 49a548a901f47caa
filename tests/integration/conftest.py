"""A run up to its training, on a real S3 server."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bcc_ops.operators.check_images import CheckImagesOperator
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.operators.split_dataset import SplitDatasetOperator
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.sensors.new_images import NewImagesSensor
from local.s3_server import S3Server

PARAMS = {"architecture": "cnn", "weights": "none", "image_size": 96, "batch_size": 4, "epochs": 6, "learning_rate": 0.001}


@pytest.fixture
def place(
    store: ObjectStore, s3_server: S3Server, synthetic_images: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ObjectStore:
    """A bucket with synthetic images, set up as the place that the pipeline runs in."""
    monkeypatch.setenv("BCC_BUCKET", store.bucket)
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.airflow_connection)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["plugins", "."]))
    for path in synthetic_images:
        store.put(f"images/{path.parent.name}/{path.name}", path.read_bytes())
    return store


@pytest.fixture
def start(place: ObjectStore) -> Callable[..., dict[str, Any]]:
    """Play the tasks before training for a run with some parameters; what the training of the second fold is given."""

    def play(run_id: str = "manual__1", **parameters: Any) -> dict[str, Any]:
        now = datetime.now(timezone.utc)
        context: Any = {
            "run_id": run_id,
            "dag_run": SimpleNamespace(run_type="manual", run_after=now),
            "params": {**PARAMS, **parameters},
        }
        arrivals = NewImagesSensor(task_id="wait").execute(context)
        run = SnapshotDatasetOperator(task_id="snapshot", arrivals=arrivals).execute(context)
        checks = CheckImagesOperator(task_id="validate", run=run).execute(context)
        pushed: dict[str, Any] = {}
        context["ti"] = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
        folds = SplitDatasetOperator(task_id="split", run=run, checks=checks).execute(context)
        assert folds == [1, 2, 3, 4, 5][: parameters.get("folds", 5)]
        return {"run": run, "checks": checks, **pushed, "fold": 2}

    return play
