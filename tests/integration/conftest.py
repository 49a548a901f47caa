"""A run up to its training, on a real S3 server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from bcc_ops.config import Settings
from bcc_ops.models.keras_import import import_keras
from bcc_ops.operators.check_images import CheckImagesOperator
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.operators.split_dataset import SplitDatasetOperator
from bcc_ops.operators.train_model import TrainModelOperator
from bcc_ops.runs.documents import FoldDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.sensors.new_images import NewImagesSensor
from local.s3_server import S3Server

CONTEXT: Any = {"run_id": "manual__1"}
PARAMS = {"architecture": "cnn", "weights": "none", "image_size": 48, "batch_size": 4, "epochs": 6, "learning_rate": 0.001}


class Trained(NamedTuple):
    """A run that is trained.

    Attributes:
        store: its bucket.
        references: what the training of the second fold was given.
        folds: fold -> the reference to its document.
    """

    store: ObjectStore
    references: dict[str, Any]
    folds: dict[int, dict[str, str]]

    @property
    def document(self) -> FoldDocument:
        """Of the second fold."""
        return self.store.load(FoldDocument, self.folds[2])


def train_as_worker(references: dict[str, Any], fold: int = 2, context: Any = CONTEXT) -> dict[str, str]:
    """Train a fold as a worker's task does, which is a process of its own: Keras numbers its layers anew."""
    import_keras().utils.clear_session()
    trained: dict[str, str] = TrainModelOperator(task_id="train_model", **{**references, "fold": fold}).execute(context)
    return trained


@pytest.fixture(scope="session")
def known_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for what the first run's checks leave in a worker's cache: all others look at the same images."""
    return tmp_path_factory.mktemp("known") / "images"


def be_worker(patch: pytest.MonkeyPatch, bucket: str, s3_server: S3Server, cache: Path) -> None:
    """Set this process up as a worker on this bucket."""
    patch.setenv("BCC_BUCKET", bucket)
    patch.setenv("BCC_CACHE_DIR", str(cache))
    patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.airflow_connection)
    patch.setenv("PYTHONPATH", os.pathsep.join(["plugins", "."]))


def put_images(store: ObjectStore, images: list[Path]) -> None:
    """Upload images as a person would."""
    for path in images:
        store.put(f"images/{path.parent.name}/{path.name}", path.read_bytes())


def play(known_images: Path, run_id: str, **parameters: Any) -> dict[str, Any]:
    """Play the tasks before training; what the training of the second fold is given."""
    cache = Settings.from_environment().cache_dir
    if known_images.exists():
        shutil.copytree(known_images, cache, dirs_exist_ok=True)
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
    if not known_images.exists():
        shutil.copytree(cache, known_images)
    return {"run": run, "checks": checks, **pushed, "fold": 2}


@pytest.fixture
def place(
    store: ObjectStore, s3_server: S3Server, synthetic_images: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ObjectStore:
    """A bucket with synthetic images, set up as the place that the pipeline runs in."""
    be_worker(monkeypatch, store.bucket, s3_server, tmp_path / "cache")
    put_images(store, synthetic_images)
    return store


@pytest.fixture
def start(place: ObjectStore, known_images: Path) -> Callable[..., dict[str, Any]]:
    """Play the tasks before training for a run with some parameters: `start("manual__2", epochs=3)`."""

    def start(run_id: str = "manual__1", **parameters: Any) -> dict[str, Any]:
        return play(known_images, run_id, **parameters)

    return start


@pytest.fixture(scope="module")
def trained(
    make_store: Callable[..., ObjectStore],
    s3_server: S3Server,
    synthetic_images: list[Path],
    known_images: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    """A run whose three folds the worker has trained, in a bucket of its own."""
    store = make_store()
    put_images(store, synthetic_images)
    with pytest.MonkeyPatch.context() as patch:
        be_worker(patch, store.bucket, s3_server, tmp_path_factory.mktemp("trained"))
        references = play(known_images, "manual__1", epochs=3, folds=3)
        return Trained(store, references, {fold: train_as_worker(references, fold) for fold in (1, 2, 3)})
