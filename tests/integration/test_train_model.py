"""The training task against a real S3 server: its documents, and what becomes of it when its process dies."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from bcc_ops.exceptions import StorageUnavailable, TrainingInterrupted
from bcc_ops.operators.check_images import CheckImagesOperator
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.operators.split_dataset import SplitDatasetOperator
from bcc_ops.operators.train_model import TrainModelOperator
from bcc_ops.runs.documents import ConfigDocument, EpochRow, SnapshotDocument, SplitDocument, TrainingDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths, checkpoint_folder
from bcc_ops.sensors.new_images import NewImagesSensor
from local.s3_server import S3Server

pytestmark = pytest.mark.slow

PARAMS = {"architecture": "cnn", "weights": "none", "image_size": 96, "batch_size": 4, "epochs": 6, "learning_rate": 0.001}
CONTEXT: Any = {"run_id": "manual__1"}
KILLED: Any = {"run_id": "manual__killed"}
TRAIN = """
import sys, json
from bcc_ops.operators.train_model import TrainModelOperator
TrainModelOperator(task_id="train_model", **json.loads(sys.argv[1])).execute({"run_id": "manual__killed"})
"""


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
    """Play the tasks before training for a run with some parameters; what the training task is given."""

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
        weights = SplitDatasetOperator(task_id="weigh", run=run, checks=checks).execute(context)
        return {"run": run, "checks": checks, "split": weights}

    return play


def _paths(store: ObjectStore, references: dict[str, Any]) -> RunPaths:
    return RunPaths("artifacts", references["run"]["folder"])


def _rows(store: ObjectStore, paths: RunPaths) -> list[dict[str, float]]:
    lines = store.get(paths.document("history.csv")).decode().splitlines()
    columns = lines[0].split(",")
    return [dict(zip(columns, map(float, line.split(",")))) for line in lines[1:]]


def _metrics(store: ObjectStore, paths: RunPaths) -> list[list[float]]:
    return [[value for name, value in row.items() if "second" not in name] for row in _rows(store, paths)]


def _checkpoints(store: ObjectStore, references: dict[str, Any]) -> str:
    snapshot = store.load_key(SnapshotDocument, _paths(store, references).document("snapshot.json"))
    config = store.load_key(ConfigDocument, _paths(store, references).document("config.json"))
    weights = store.load(SplitDocument, references["split"])
    assert weights.table is not None
    return checkpoint_folder(
        "artifacts", snapshot_digest=snapshot.digest, config_digest=config.digest, split_digest=weights.table.sha256
    )


def test_training_leaves_its_documents_and_no_checkpoint(place: ObjectStore, start: Callable[..., dict[str, Any]]) -> None:
    references = start(epochs=2, malignant_odds_factor=2)

    reference = TrainModelOperator(task_id="train_model", **references).execute(CONTEXT)

    document = place.load(TrainingDocument, reference)
    assert document.preprocessing.endswith("its odds of malignant are multiplied by 2")
    paths = _paths(place, references)
    assert [row["epoch"] for row in _rows(place, paths)] == [1, 2]
    assert set(_rows(place, paths)[0]) == set(EpochRow.model_fields)
    assert place.get_referenced(document.model).startswith(b"\x89HDF")
    assert (document.epochs_run, document.resumed_after_epochs, document.stopped_early) == (2, (), False)
    assert document.synthetic
    assert document.images["train"] + document.images["tuning"] + document.images["validation"] == 36
    assert document.devices
    assert document.peak_memory_mb > 100
    assert list(place.list_objects(_checkpoints(place, references))) == []


def test_a_training_killed_in_mid_epoch_resumes_on_another_worker_with_the_same_figures(
    place: ObjectStore, start: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = start()
    TrainModelOperator(task_id="train_model", **undisturbed).execute(CONTEXT)
    expected = _metrics(place, _paths(place, undisturbed))

    killed = start(KILLED["run_id"])
    history = _paths(place, killed).document("history.csv")
    process = subprocess.Popen([sys.executable, "-c", TRAIN, json.dumps(killed)], stderr=subprocess.DEVNULL)
    try:
        while place.head(history) is None or len(_rows(place, _paths(place, killed))) < 2:
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert list(place.list_objects(_checkpoints(place, killed))), "the bucket has its checkpoint"

    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "another-worker"))
    reference = TrainModelOperator(task_id="train_model", **killed).execute(KILLED)

    document = place.load(TrainingDocument, reference)
    assert len(document.resumed_after_epochs) == 1
    assert document.resumed_after_epochs[0] >= 2
    assert document.epochs_run == 6
    assert _metrics(place, _paths(place, killed)) == expected


def test_a_training_that_was_done_and_not_reported_is_handed_on_by_the_retry(
    place: ObjectStore, start: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    references = start(epochs=1)
    first = TrainModelOperator(task_id="train_model", **references).execute(CONTEXT)
    # the worker is lost between the document and the end of its attempt: its checkpoint is still there
    place.put(f"{_checkpoints(place, references)}/checkpoint.npz", b"of the last epoch")

    def train(*arguments: Any, **named: Any) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr("bcc_ops.training.run_training.train", train)
    assert TrainModelOperator(task_id="train_model", **references).execute(CONTEXT) == first
    assert list(place.list_objects(_checkpoints(place, references))) == []


class _AwayForProgress(ObjectStore):
    """A store that does not answer to the first writes of a history, of one epoch each."""

    refused = 0

    def put(self, key: str, content: bytes, **named: Any) -> str:
        if key.endswith("history.csv") and self.refused < 2:
            self.refused += 1
            raise StorageUnavailable(f"writing {self.uri(key)}: no answer")
        return super().put(key, content, **named)


def test_a_store_that_is_away_for_the_progress_costs_a_warning_and_no_attempt(
    place: ObjectStore, start: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    references = start(epochs=2)
    operator = TrainModelOperator(task_id="train_model", **references)
    operator.__dict__["store"] = _AwayForProgress(place.client, place.bucket)

    reference = operator.execute(CONTEXT)

    assert caplog.text.count("history.csv is behind by now") == 2
    assert [row["epoch"] for row in _rows(place, _paths(place, references))] == [1, 2]
    place.get_referenced(place.load(TrainingDocument, reference).history)


def test_on_kill_stops_training_and_keeps_the_checkpoint(place: ObjectStore, start: Callable[..., dict[str, Any]]) -> None:
    references = start(epochs=200, early_stopping_patience=0)
    operator = TrainModelOperator(task_id="train_model", **references)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            operator.execute(CONTEXT)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while place.head(_paths(place, references).document("history.csv")) is None:
        assert thread.is_alive()
        time.sleep(0.05)
    operator.on_kill()
    thread.join()

    assert isinstance(ended[0], TrainingInterrupted)
    assert list(place.list_objects(_checkpoints(place, references)))


def test_a_damaged_checkpoint_costs_a_warning_and_nothing_else(
    place: ObjectStore, start: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    references = start(epochs=1)
    place.put(f"{_checkpoints(place, references)}/checkpoint.npz", b"PK\x03\x04 and then nothing")

    with caplog.at_level(logging.WARNING):
        reference = TrainModelOperator(task_id="train_model", **references).execute(CONTEXT)

    assert "is ignored" in caplog.text
    assert place.load(TrainingDocument, reference).resumed_after_epochs == ()


def test_a_gpu_that_was_asked_for_and_is_not_there_fails_before_any_download(
    place: ObjectStore, start: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    if tensorflow.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    references = start(require_gpu=True)
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "bare"))

    with pytest.raises(AirflowFailException, match="GpuMissing: require_gpu is on"):
        TrainModelOperator(task_id="train_model", **references).execute(CONTEXT)
    assert not (tmp_path / "bare").exists()


def test_weights_that_cannot_be_had_fail_before_any_download(
    place: ObjectStore, start: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = start(architecture="MobileNetV2", weights="/nowhere/weights.h5")
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "bare"))

    with pytest.raises(AirflowFailException, match=r"WeightsUnavailable.*/nowhere/weights\.h5"):
        TrainModelOperator(task_id="train_model", **references).execute(CONTEXT)
    assert not (tmp_path / "bare").exists()


def test_without_a_champion_a_warm_start_says_so_and_trains(
    place: ObjectStore, start: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    references = start(epochs=1, warm_start=True)

    with caplog.at_level(logging.WARNING):
        reference = TrainModelOperator(task_id="train_model", **references).execute(CONTEXT)

    assert "no champion to start from" in caplog.text
    assert place.load(TrainingDocument, reference).warm_started_from is None
