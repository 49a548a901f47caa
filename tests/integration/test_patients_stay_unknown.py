"""From a bucket of DICOM files and a table that name patients to a report: nothing that a run leaves tells who they are."""

from __future__ import annotations

import gzip
import io
import sqlite3
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import DownstreamTasksSkipped
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.decoding import decode_rgb
from bcc_ops.dataset.snapshot import ImageRules, list_images
from bcc_ops.operators.check_images import CheckImagesOperator
from bcc_ops.operators.download_images import DownloadImagesOperator
from bcc_ops.operators.evaluate_model import EvaluateModelOperator
from bcc_ops.operators.gate_model import GateModelOperator
from bcc_ops.operators.publish_plots import PublishPlotsOperator
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.operators.split_dataset import SplitDatasetOperator
from bcc_ops.operators.upload_model import UploadModelOperator
from bcc_ops.report.progress import RunProgress
from bcc_ops.runs.documents import FOLDS, ChecksDocument, EvaluationDocument, PromotionDocument, Reference, SplitDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import PLOTS, RunPaths
from bcc_ops.runs.record import FILES
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import read_rows, write_answers
from local.s3_server import S3Server
from tests.factories.dicom_files import dicom_file
from tests.factories.images import scan_pixels, scan_png
from tests.factories.planted import everything_in, everything_stored, places_of
from tests.unit.report import samples

MARKER = "Planted"
"""Begins everything that tells who a patient is: names, identifiers, institutions, comments, private tags, columns."""

UNKNOWN = (MARKER, "1970-01-02", "1.2.3.4.5")
"""The markers, and of the DICOM files the day of birth and the UIDs."""

CLASSES = ("benign", "malignant", "normal")
RUN_ID = "manual__patients"
TOLD_BY_DICOM = ("PatientName", "OtherPatientNames", "ReferringPhysicianName", "StudyDescription", "ImageComments")
PARAMETERS = {
    "min_malignant_groups": 5,
    "external_prefixes": "elsewhere/",
    **dict.fromkeys(
        ("min_balanced_accuracy", "min_macro_auc", "min_malignant_sensitivity", "min_malignant_specificity"),
        0,
    ),
}


def scan(number: int, label: str, patient: int) -> bytes:
    """A DICOM file that names its patient wherever one can."""
    names: dict[str, Any] = {name: f"{MARKER}^{name}^{patient}" for name in TOLD_BY_DICOM}
    pixels = np.asarray(scan_pixels(1000 + number, label).convert("L")) if label != "page" else np.full((200, 300), 250, np.uint8)
    return dicom_file(
        pixels, **names, PatientID=f"{MARKER}-{patient}", InstitutionName=f"{MARKER} Hospital", OperatorsName=MARKER
    )


def fill(store: ObjectStore) -> None:
    """Put two thirds of the images as PNG and one as DICOM, two per patient, and a table; likewise elsewhere."""
    for prefix, start, per_class in (("images", 0, 9), ("elsewhere", 100, 3)):
        rows = ["key,patient_id,patient_name,age,site"]
        for place, label in enumerate(CLASSES):
            for number in range(per_class):
                patient = start + 10 * place + number // 2
                seed = start + 40 * place + number
                if number % 3 == 0:
                    store.put(f"{prefix}/{label}/{number}.dcm", scan(seed, label, patient))
                else:
                    store.put(f"{prefix}/{label}/{number}.png", scan_png(seed, label))
                    rows.append(f"{label}/{number}.png,{MARKER}-{patient},{MARKER} Name {patient},45,North")
        rows += [f"normal/{MARKER} gone.png,{MARKER}-1,{MARKER},45,North", f",{MARKER}"]
        store.put(f"{prefix}/metadata.csv", "\n".join(rows).encode())
    store.put("images/normal/page.dcm", scan(0, "page", 99))


class AsItIsSeen:
    """Stands in for a trained model: its answers follow from the pixels and are right by chance. It explains nothing."""

    image_size, classes_count = 32, 3

    def predict(self, paths: Any, batch_size: int = 32) -> np.ndarray:
        draw = (np.random.default_rng(int(decode_rgb(path).sum())).dirichlet(np.ones(3)) for path in paths)
        return np.array(list(draw), np.float64)

    def __call__(self, paths: Any, classes: Any) -> np.ndarray:
        return np.ones((len(paths), 4, 4), np.float32)


@pytest.fixture
def place(store: ObjectStore, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The place that a run works in, where no network is trained: what it answers does not matter here."""
    monkeypatch.setenv("BCC_BUCKET", store.bucket)
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.airflow_connection)
    monkeypatch.setattr("bcc_ops.models.classifier.load_classifier", lambda path, keep_aspect: AsItIsSeen())
    monkeypatch.setattr("bcc_ops.evaluation.grad_cam.GradCam", lambda model: model)
    monkeypatch.setattr("bcc_ops.promotion.run_upload.run_smoke_test", lambda *given, **named: None)
    monkeypatch.setattr("bcc_ops.report.figures.PIXELS_PER_INCH", 40)
    fill(store)
    return store


def train(store: ObjectStore, paths: RunPaths, split: SplitDocument, cache: Path) -> dict[str, str]:
    """Leave what training leaves, of a model for each fold."""

    def put(name: str, content: bytes) -> Reference:
        return store.put_referenced(paths.document(name), content)

    rows = read_rows(SplitRow, store.get(paths.document("split.parquet")))
    files = {path.name: path for path in (cache / "files").rglob("*") if path.is_file()}
    answers = AsItIsSeen().predict([files[row.sha256] for row in rows])
    folds = tuple(
        samples.fold_summary(fold, held_out=sum(row.fold == fold for row in rows), model=put(f"fold-{fold}.h5", b"model"))
        for fold in FOLDS
    )
    for name, content in samples.histories().items():
        put(name, content)
    table = put("out_of_fold.parquet", write_answers(rows, CLASSES, answers))
    training = samples.training_document(
        model=put("model.h5", b"model"), image_size=32, folds=folds, answers=table, classes=split.classes
    )
    return store.save(paths.document("training.json"), training).to_xcom()


def play(store: ObjectStore, cache: Path) -> RunPaths:
    """Do a whole run, from the snapshot to the version that comes into use and the report."""
    pushed: dict[str, Any] = {}
    events: dict[Any, Any] = {}

    class Outlets(dict[Any, Any]):
        def __missing__(self, asset: Any) -> Any:
            return events.setdefault(asset, SimpleNamespace(extra={}))

    as_of = datetime.now(timezone.utc) + timedelta(minutes=1)
    context: Any = {
        "run_id": RUN_ID,
        "params": PARAMETERS,
        "dag_run": SimpleNamespace(run_type="manual", run_after=as_of, triggering_user_name="ana"),
        "outlet_events": Outlets(),
    }

    def do(task: Any) -> Any:
        ti = SimpleNamespace(task=task, map_index=-1, xcom_push=lambda key, value: pushed.update({key: value}))
        return task.execute({**context, "ti": ti})

    listing = list_images(store, ImageRules.of(Settings.from_environment(), RetrainingConfig.resolve({})), as_of)
    arrivals = {"as_of": as_of.isoformat(), "images": len(listing.images), "digest": listing.digest, "change": None}
    run = do(SnapshotDatasetOperator(task_id="snapshot", arrivals=arrivals))
    do(DownloadImagesOperator(task_id="download_images", run=run))
    checks = do(CheckImagesOperator(task_id="check_images", run=run))
    do(SplitDatasetOperator(task_id="split_dataset", run=run, checks=checks))
    paths = RunPaths("artifacts", run["folder"])
    split = pushed["split"]
    training = train(store, paths, store.load(SplitDocument, Reference.model_validate(split)), cache)
    made = {"run": run, "checks": checks, "split": split, "training": training}
    evaluation = do(EvaluateModelOperator(task_id="evaluate_model", **made))
    with DAG("tests", schedule=None, start_date=datetime(2026, 11, 1, tzinfo=timezone.utc)):
        gate = GateModelOperator(
            task_id="gate_model",
            run=run,
            split=split,
            evaluation=evaluation,
            approve_task_id="approve_model",
            upload_task_id="upload_model",
        )
        gate >> [EmptyOperator(task_id="approve_model"), EmptyOperator(task_id="upload_model")]
    with suppress(DownstreamTasksSkipped):
        do(gate)
    key = paths.document("gate.json")
    made |= {"evaluation": evaluation, "gate": Reference.of(key, store.get(key)).to_xcom()}
    do(UploadModelOperator(task_id="upload_model", **made))
    do(PublishPlotsOperator(task_id="publish_plots", **made))
    return paths


def served(store: ObjectStore) -> list[tuple[str, bytes]]:
    """Everything that the plugin serves about the run: its pages, its plots and its downloads."""
    from bcc_ops.instances import find_instance
    from bcc_ops.web.app import Pages

    pages = Pages(Settings.from_environment, lambda: store)
    progress = RunProgress.of("bcc_retraining", RUN_ID, "success", ())
    found = [
        ("report", pages.report(progress, "", pictures=True).encode()),
        ("models", pages.models(find_instance(""), None, "").encode()),
    ]
    there = {entry["Key"].rpartition("/")[2] for entry in store.list_objects("artifacts/")}
    plots = sorted({f"{name}.png" for name in PLOTS} & there)
    found += [(name, pages.plot(RUN_ID, name, pictures=True)) for name in plots]
    found += [(name, b"".join(pages.download(RUN_ID, name)[1])) for name in sorted(set(FILES) & there)]
    return found


def test_nothing_that_a_run_leaves_tells_who_a_patient_is(
    place: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    paths = play(place, tmp_path / "cache")

    checks = place.load_key(ChecksDocument, paths.document("checks.json"))
    assert (checks.dicom, checks.patients) == (10, 15), "the patients are told apart, also those whom a file and a row name"
    assert "not_ultrasound" in [found.finding for found in checks.findings]
    assert place.load_key(PromotionDocument, paths.document("promotion.json")).promoted
    (external,) = place.load_key(EvaluationDocument, paths.document("evaluation.json")).external
    assert external.note is not None and external.note.startswith("9 images in 6 patients under elsewhere/")

    left = [
        *everything_stored(place, "artifacts/"),
        *everything_stored(place, "models/"),
        *everything_in(tmp_path),
        *served(place),
        ("the log", caplog.text.encode()),
    ]
    names = " ".join(name for name, _ in left)
    for kind in (
        "model_card.md",
        "report.html",
        "false_alarms.png",
        "content_findings.png",
        "contents.sqlite3",
        "file-metadata",
    ):
        assert kind in names
    for marker in UNKNOWN:
        assert places_of(marker, left) == []
    assert places_of(MARKER, everything_stored(place, "images/")), "the markers were there to be found"


def test_an_identifier_in_a_field_that_is_kept_is_found(
    place: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the device an identifier, it would be in the cache's PNG files and in tables: the search can fail."""
    monkeypatch.setattr("bcc_ops.dataset.dicom._MANUFACTURER", 0x00100020)
    play(place, tmp_path / "cache")
    found = places_of(MARKER, [*everything_stored(place, "artifacts/"), *everything_in(tmp_path)])
    assert any("/files/" in where for where in found) and any("contents.sqlite3" in where for where in found)


def _sqlite(text: str) -> bytes:
    database: Any = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE kept (cell)")
    database.execute("INSERT INTO kept VALUES (?)", (gzip.compress(text.encode()),))
    database.commit()
    return bytes(database.serialize())


def _parquet(text: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"column": [text] * 3}), file, compression="zstd")
    return file.getvalue()


def _png(text: str) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    info.add_itxt("note", text, zip=True)
    Image.new("L", (4, 4)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.mark.parametrize(
    "pack", [_sqlite, _parquet, _png, lambda text: text.encode("utf-16"), lambda text: gzip.compress(text.encode())]
)
def test_the_search_looks_into_what_is_packed(pack: Any) -> None:
    hidden, harmless = pack(f"a note about {MARKER.upper()}, which is long enough to be compressed " * 9), pack("a note " * 99)
    assert places_of(MARKER, [("hidden", hidden)])
    assert places_of(MARKER, [("harmless", harmless)]) == []
