"""The training task against a real S3 server: its documents, and what becomes of it when its process dies."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from airflow.sdk.exceptions import AirflowFailException
from PIL import Image

from bcc_ops.exceptions import StorageUnavailable, TrainingInterrupted
from bcc_ops.models.classifier import load_classifier
from bcc_ops.operators.combine_folds import CombineFoldsOperator
from bcc_ops.operators.train_model import TrainModelOperator
from bcc_ops.runs.documents import ConfigDocument, EpochRow, FoldDocument, SnapshotDocument, SplitDocument, TrainingDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths, checkpoint_folder
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import read_answers, read_rows
from local.s3_server import S3Server
from tests.integration.conftest import CONTEXT, Trained, be_worker, put_images
from tests.services.held_training import EPOCHS, HOLD

pytestmark = pytest.mark.slow

KILLED: Any = {"run_id": "manual__killed"}
TRAIN = f"""{HOLD}
import sys, json
from bcc_ops.operators.train_model import TrainModelOperator
TrainModelOperator(task_id="train_model", **json.loads(sys.argv[1])).execute({KILLED})
"""


def _paths(store: ObjectStore, references: dict[str, Any]) -> RunPaths:
    return RunPaths("artifacts", references["run"]["folder"])


def _rows(store: ObjectStore, paths: RunPaths) -> list[dict[str, float]]:
    lines = store.get(paths.document("fold-2.csv")).decode().splitlines()
    columns = lines[0].split(",")
    return [dict(zip(columns, map(float, line.split(",")))) for line in lines[1:]]


def _metrics(store: ObjectStore, paths: RunPaths) -> list[list[float]]:
    return [[value for name, value in row.items() if "second" not in name] for row in _rows(store, paths)]


def _checkpoints(store: ObjectStore, references: dict[str, Any]) -> str:
    snapshot = store.load_key(SnapshotDocument, _paths(store, references).document("snapshot.json"))
    config = store.load_key(ConfigDocument, _paths(store, references).document("config.json"))
    split = store.load(SplitDocument, references["split"])
    assert split.table is not None
    return checkpoint_folder(
        "artifacts", snapshot_digest=snapshot.digest, config_digest=config.digest, split_digest=split.table.sha256, fold=2
    )


def test_training_leaves_the_folds_documents_and_no_checkpoint(trained: Trained) -> None:
    place, references, reference, document = trained.store, trained.references, trained.folds[2], trained.document

    paths = _paths(place, references)
    assert reference["key"] == paths.document("fold-2.json")
    assert [row["epoch"] for row in _rows(place, paths)] == [1, 2, 3]
    assert {row["fold"] for row in _rows(place, paths)} == {2}
    assert set(_rows(place, paths)[0]) == set(EpochRow.model_fields)
    assert place.get_referenced(document.model).startswith(b"\x89HDF")
    assert (document.fold, document.epochs, document.resumed_after_epochs) == (2, 3, ())
    split = read_rows(SplitRow, place.get(paths.document("split.parquet")))
    asked, answers = read_answers(place.get_referenced(document.answers), document.classes)
    assert asked == [row for row in split if row.fold == 2]
    assert answers.sum(axis=1) == pytest.approx(1)
    assert (document.images, len(split)) == (36 - len(asked), 36)
    assert document.synthetic
    assert document.devices
    assert document.peak_memory_mb > 100
    assert list(place.list_objects(_checkpoints(place, references))) == []


@pytest.fixture
def worker(trained: Trained, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, as another worker on the bucket of the trained run."""
    be_worker(monkeypatch, trained.store.bucket, s3_server, tmp_path / "cache")


@pytest.fixture(scope="module")
def wide_images(synthetic_images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The synthetic images, twice as wide as high."""
    wide = []
    for path in synthetic_images:
        wide.append(tmp_path_factory.getbasetemp() / "wide" / path.parent.name / path.name)
        wide[-1].parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.crop((0, 0, image.width, image.width // 2)).save(wide[-1])
    return wide


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_a_folds_model_is_trained_and_asked_on_squares_of_the_kind_that_its_document_names(
    place: ObjectStore,
    start: Callable[..., dict[str, Any]],
    wide_images: list[Path],
    tmp_path: Path,
    keep_aspect: bool,
) -> None:
    put_images(place, wide_images)
    file_of = {f"images/{path.parent.name}/{path.name}": path for path in wide_images}
    references = start(epochs=1, keep_aspect=keep_aspect, test_time_flip=False)

    document = place.load(FoldDocument, TrainModelOperator(task_id="train_model", **references).execute(CONTEXT))

    assert document.keep_aspect == keep_aspect
    assert ("padded" in document.preprocessing) == keep_aspect
    asked, answers = read_answers(place.get_referenced(document.answers), document.classes)
    (tmp_path / "model.h5").write_bytes(place.get_referenced(document.model))
    pictures = [file_of[row.key] for row in asked]
    kinds = (keep_aspect, not keep_aspect)
    kept, other = (load_classifier(tmp_path / "model.h5", keep_aspect=kind).predict(pictures) for kind in kinds)
    np.testing.assert_allclose(answers, kept, atol=1e-5)
    assert np.abs(answers - other).max() > 1e-3
    truth = [document.classes.index(row.label) for row in asked]
    (epoch,) = _rows(place, _paths(place, references))
    assert epoch["held_out_loss"] == pytest.approx(-np.log(answers[np.arange(len(truth)), truth]).mean(), abs=1e-3)


@pytest.mark.usefixtures("worker")
def test_folds_models_become_one_file_and_a_table_of_answers_about_every_image(trained: Trained, tmp_path: Path) -> None:
    place, paths = trained.store, _paths(trained.store, trained.references)

    reference = _combine(trained, [trained.folds[fold] for fold in (1, 2, 3)])

    training = place.load(TrainingDocument, reference)
    assert [fold.fold for fold in training.folds] == [1, 2, 3]
    assert training.combined == "mean of the answers of 3 models"  # they began with random weights
    assert training.answers is not None
    rows, answers = read_answers(place.get_referenced(training.answers), training.classes)
    split = read_rows(SplitRow, place.get(paths.document("split.parquet")))
    assert sorted(rows) == sorted(row for row in split if row.fold in (1, 2, 3))
    assert training.images == 36
    files = [place.get_referenced(fold.model) for fold in training.folds]
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / "one.png"
    picture.write_bytes(place.get(rows[0].key))
    asked = []
    for number, content in enumerate([place.get_referenced(training.model), *files]):
        (tmp_path / f"{number}.h5").write_bytes(content)
        asked.append(load_classifier(tmp_path / f"{number}.h5", keep_aspect=True).predict([picture])[0])
    assert asked[0] == pytest.approx(np.mean(asked[1:], axis=0), abs=1e-5)
    assert asked[rows[0].fold] == pytest.approx(answers[0], abs=1e-5)


def _combine(trained: Trained, folds: list[dict[str, Any]]) -> dict[str, Any]:
    given = {"run": trained.references["run"], "split": trained.references["split"]}
    combined: dict[str, Any] = CombineFoldsOperator(task_id="combine_folds", folds=folds, **given).execute(CONTEXT)
    return combined


@pytest.mark.usefixtures("worker")
def test_models_that_do_not_belong_together_become_no_file(trained: Trained) -> None:
    one, two, three = (trained.folds[fold] for fold in (1, 2, 3))
    document = trained.document
    assert document.split is not None
    other = document.model_copy(update={"split": document.split.model_copy(update={"sha256": "0" * 64})})
    whole = trained.store.get(two["key"])
    of_another_split = trained.store.save(two["key"], other).to_xcom()
    path = _paths(trained.store, trained.references).document("training.json")
    trained.store.delete(path)  # another test may have combined those that belong together

    try:
        with pytest.raises(AirflowFailException, match="2 models of 3 folds"):
            _combine(trained, [one, three])
        with pytest.raises(AirflowFailException, match="each fold must occur once"):
            _combine(trained, [one, one, three])
        with pytest.raises(AirflowFailException, match="with another split"):
            _combine(trained, [one, of_another_split, three])
    finally:
        trained.store.put(two["key"], whole)

    assert trained.store.head(path) is None


def test_a_training_killed_in_mid_epoch_resumes_on_another_worker_with_the_same_figures(
    place: ObjectStore,
    start: Callable[..., dict[str, Any]],
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = _metrics(trained.store, _paths(trained.store, trained.references))

    killed = start(KILLED["run_id"], epochs=3, folds=3)
    history = _paths(place, killed).document("fold-2.csv")
    process = subprocess.Popen([sys.executable, "-c", TRAIN, json.dumps(killed)], stderr=subprocess.DEVNULL)
    try:
        while place.head(history) is None or len(_rows(place, _paths(place, killed))) < EPOCHS:
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert list(place.list_objects(_checkpoints(place, killed))), "the bucket has its checkpoint"

    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "another-worker"))
    reference = TrainModelOperator(task_id="train_model", **killed).execute(KILLED)

    document = place.load(FoldDocument, reference)
    assert document.resumed_after_epochs == (EPOCHS,)
    assert document.epochs == 3
    assert _metrics(place, _paths(place, killed)) == expected


@pytest.mark.usefixtures("worker")
def test_a_training_that_was_done_and_not_reported_is_handed_on_by_the_retry(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, references = trained.store, trained.references
    # the worker is lost between the document and the end of its attempt: its checkpoint is still there
    place.put(f"{_checkpoints(place, references)}/checkpoint.npz", b"of the last epoch")

    def train(*arguments: Any, **named: Any) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr("bcc_ops.training.run_training.train", train)
    assert TrainModelOperator(task_id="train_model", **references).execute(CONTEXT) == trained.folds[2]
    assert list(place.list_objects(_checkpoints(place, references))) == []


class _AwayForProgress(ObjectStore):
    """A store that does not answer to the first writes of a history, of one epoch each."""

    refused = 0

    def put(self, key: str, content: bytes, **named: Any) -> str:
        if key.endswith("fold-2.csv") and self.refused < 2:
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

    assert caplog.text.count("the history is behind by now") == 2
    assert [row["epoch"] for row in _rows(place, _paths(place, references))] == [1, 2]
    place.get_referenced(place.load(FoldDocument, reference).history)


def test_on_kill_stops_training_and_keeps_the_checkpoint(place: ObjectStore, start: Callable[..., dict[str, Any]]) -> None:
    references = start(epochs=200)
    operator = TrainModelOperator(task_id="train_model", **references)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            operator.execute(CONTEXT)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while place.head(_paths(place, references).document("fold-2.csv")) is None:
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
    assert place.load(FoldDocument, reference).resumed_after_epochs == ()


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
