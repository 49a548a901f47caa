"""Publishing: what is in the run's folder afterwards, whatever was there before."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.content_findings import list_findings
from bcc_ops.exceptions import ArtifactError, ObjectChanged
from bcc_ops.report.figures import GalleryEntry, gallery_figure
from bcc_ops.report.publish import _explainer, _samples, earlier_runs, publish_report
from bcc_ops.runs.documents import ChecksDocument, Reference
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.record import RunRecord
from bcc_ops.runs.rows import ContentRow, SplitRow
from bcc_ops.runs.tables import write_rows
from tests.unit.report import samples

HANDED_IN = ("snapshot", "checks", "split", "training", "evaluation", "gate")
COLUMNS = samples.predictions(60)


def contents(findings: str) -> list[ContentRow]:
    """What the checks saw of the images that the run predicts on."""
    return [
        ContentRow(key, label, key, 9, 9, "L", 90.0, 9.0, False, key, "", findings=findings)
        for key, label in zip(COLUMNS["key"], COLUMNS["label"])
    ]


def put_contents(store: ObjectStore, rows: Sequence[ContentRow]) -> Reference:
    return store.put_referenced(samples.PATHS.document("contents.parquet"), write_rows(ContentRow, rows))


def put_run(store: ObjectStore, verdict: str = "rejected", **changes: Any) -> dict[str, dict[str, str] | None]:
    """Lay a run's documents down and return the references that its tasks would hand in."""
    predictions = store.put_referenced(samples.PATHS.document("predictions.parquet"), samples.predictions_parquet(COLUMNS))
    weights = samples.split_document(table=None)
    evaluation = samples.evaluation_document(COLUMNS, predictions=predictions, model=None)
    documents: dict[str, Any] = {"split__json": weights, "evaluation__json": evaluation}
    if "checks__json" not in changes:
        documents["checks__json"] = samples.checks_document(contents=put_contents(store, contents("1t")))
    run = samples.whole_run(verdict, **{**documents, **changes})
    run.pop("predictions.parquet")
    references = {name: store.put_referenced(samples.PATHS.document(name), content).to_xcom() for name, content in run.items()}
    return {f"{name}.json": references.get(f"{name}.json") for name in HANDED_IN}


@pytest.fixture(autouse=True)
def small_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw fewer pixels: what is on the plots is test_figures' matter."""
    monkeypatch.setattr("bcc_ops.report.figures.PIXELS_PER_INCH", 40)


@pytest.fixture
def one_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one plot instead of nine, where a test is about the page or about pictures: drawing takes most of the time."""
    monkeypatch.setattr("bcc_ops.report.publish.draw_plots", lambda run, predictions, runs: {"roc": b"png"})


@pytest.fixture
def fetch(tmp_path: Path) -> Any:
    def fetch(keys: Iterable[str]) -> Mapping[str, Path]:
        files = {}
        for number, key in enumerate(sorted(keys)):
            files[key] = tmp_path / f"{number}.png"
            Image.fromarray(np.full((40, 50, 3), number % 255, np.uint8)).save(files[key])
        return files

    return fetch


def publish(store: ObjectStore, references: dict[str, dict[str, str] | None], fetch: Any) -> str:
    say = logging.getLogger("test").info
    published = publish_report(store, samples.PATHS, samples.RUN_ID, references, fetch=fetch, say=say)
    for name, png in published.plots.items():
        store.put(samples.PATHS.plot(name), png)
    return published.page.decode()


def plots_in(store: ObjectStore) -> set[str]:
    return {entry["Key"].rsplit("/", 1)[-1] for entry in store.list_objects(f"{samples.PATHS.folder}/plots/")}


def test_a_whole_run_gets_its_plots_and_a_page_that_stands_alone(store: ObjectStore, fetch: Any) -> None:
    page = publish(store, put_run(store), fetch)
    expected = {"history", "class_counts", "confusion_matrix", "roc", "precision_recall", "reliability", "difference", "drift"}
    assert plots_in(store) >= {f"{name}.png" for name in expected} | {"missed_cancers.png", "false_alarms.png"}
    assert page.count('<img src="data:image/png;base64,') == len(plots_in(store))
    assert 'href="gate.json"' in page
    assert 'http-equiv="Content-Security-Policy"' in page
    assert "Rejected" in page


def test_publishing_again_leaves_the_same(store: ObjectStore, fetch: Any) -> None:
    references = put_run(store, "approved", promotion__json=None)
    publish(store, references, fetch)
    first = {entry["Key"]: entry["ETag"] for entry in store.list_objects(samples.PATHS.folder)}
    promotion = samples.PATHS.document("promotion.json")
    store.put(promotion, samples.promotion_document().to_json())
    publish(store, references, fetch)
    again = {entry["Key"]: entry["ETag"] for entry in store.list_objects(samples.PATHS.folder)}
    assert again.pop(promotion)
    assert again == first


def test_a_run_without_an_evaluation_gets_what_it_has(store: ObjectStore, fetch: Any) -> None:
    page = publish(store, put_run(store, evaluation__json=None, gate__json=None), fetch)
    assert plots_in(store) == {"history.png", "class_counts.png", "drift.png"}
    assert "it ended before its model was judged" in page


@pytest.mark.usefixtures("one_plot")
def test_a_document_that_is_not_the_one_that_was_handed_in_is_left_out_and_told(store: ObjectStore, fetch: Any) -> None:
    references = put_run(store)
    store.put(samples.PATHS.document("gate.json"), samples.gate_document("approved").to_json())
    page = publish(store, references, fetch)
    assert "gate.json cannot be read" in page
    assert "Approved" not in page


@pytest.mark.usefixtures("one_plot")
def test_images_that_changed_since_cost_the_pictures_only(store: ObjectStore) -> None:
    def changed(keys: Iterable[str]) -> Mapping[str, Path]:
        raise ObjectChanged("images/benign/a.png is no longer the one that the snapshot lists")

    publish(store, put_run(store), changed)
    assert "missed_cancers.png" not in plots_in(store)
    assert "roc.png" in plots_in(store)


def test_synthetic_images_mark_every_plot_and_the_page(store: ObjectStore, fetch: Any) -> None:
    references = put_run(store, checks__json=samples.checks_document(synthetic=60))
    assert "Synthetic images." in publish(store, references, fetch)
    for name in plots_in(store):
        content = store.get(f"{samples.PATHS.folder}/plots/{name}")
        assert Image.open(io.BytesIO(content)).getpixel((3, 3)) == (255, 227, 163), name


def test_the_sample_of_a_class_is_an_image_that_a_model_was_trained_on() -> None:
    """Of one model, the images of the first fold are none."""
    rows = [SplitRow(f"{label}-{fold}", f"{fold}", label, "g", fold) for label in samples.CLASSES for fold in (1, 2)]
    assert _samples(rows, samples.CLASSES) == {label: f"{label}-2" for label in samples.CLASSES}


class Explained:
    """Stands in for Grad-CAM: the heat is the number in the model's file."""

    def __init__(self, model: bytes) -> None:
        self.heat = float(model)

    def __call__(self, paths: Sequence[Path], classes: Sequence[int]) -> np.ndarray:
        return np.full((len(paths), 2, 2), self.heat, np.float32)


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcc_ops.evaluation.grad_cam.GradCam", Explained)
    monkeypatch.setattr("bcc_ops.models.classifier.load_classifier", lambda path, keep_aspect: path.read_bytes())


@pytest.mark.usefixtures("explained")
def test_an_answer_is_explained_by_the_model_that_gave_it(store: ObjectStore) -> None:
    models = {fold: store.put_referenced(samples.PATHS.document(f"fold-{fold}.h5"), b"%d" % fold) for fold in (1, 3)}
    whole = store.put_referenced(samples.PATHS.document("model.h5"), b"9")
    run = RunRecord(
        training=samples.training_document(folds=tuple(samples.fold_summary(fold, model=one) for fold, one in models.items())),
        evaluation=samples.evaluation_document(COLUMNS, model=whole),
    )
    folds: dict[Path, int | None] = {Path("a"): 3, Path("b"): 1, Path("c"): None}
    explain, why_not = _explainer(store, run, folds)
    assert explain is not None and why_not == ""
    assert explain(list(folds), [0, 1, 2])[:, 0, 0].tolist() == [3, 1, 9]
    older = replace(run, training=samples.training_document(folds=()))
    explain, _ = _explainer(store, older, folds)
    assert explain is not None and explain(list(folds), [0, 1, 2])[:, 0, 0].tolist() == [9, 9, 9]


def found_in(store: ObjectStore) -> ChecksDocument:
    """A run's checks with two images that hold calipers, one of them with text that may be a name."""
    rows = [
        ContentRow(f"images/benign/{name}.png", "benign", name, 9, 9, "L", 90.0, 9.0, False, name, "", findings=findings)
        for name, findings in (("marked", "1t calipers"), ("named", "1t unknown_text calipers"), ("plain", "1t"))
    ]
    table = put_contents(store, rows)
    return samples.checks_document(contents=table, findings=list_findings(rows, RetrainingConfig.resolve({})))


@pytest.mark.usefixtures("one_plot")
@pytest.mark.parametrize("without", [{}, {"evaluation__json": None, "gate__json": None}])
def test_content_findings_are_shown_also_of_a_run_that_ended_before_its_evaluation(
    store: ObjectStore, fetch: Any, without: dict[str, Any]
) -> None:
    asked: set[str] = set()

    def fetch_and_tell(keys: Iterable[str]) -> Mapping[str, Path]:
        asked.update(keys)
        return dict(fetch(keys))

    page = publish(store, put_run(store, checks__json=found_in(store), **without), fetch_and_tell)
    assert "content_findings.png" in plots_in(store)
    assert "measuring marks: 2 images" in page and "Images with text of unknown meaning are not shown" in page
    assert "images/benign/marked.png" in asked and "images/benign/named.png" not in asked


@pytest.mark.usefixtures("one_plot")
def test_what_else_is_missing_for_the_pictures_fails_the_task(store: ObjectStore) -> None:
    def lost(keys: Iterable[str]) -> Mapping[str, Path]:
        raise ArtifactError("images.parquet is gone")

    with pytest.raises(ArtifactError, match=r"images\.parquet is gone"):
        publish(store, put_run(store), lost)


@pytest.mark.usefixtures("one_plot")
@pytest.mark.parametrize("table", ["with names", "gone"])
def test_no_picture_shows_an_image_whose_text_may_name_a_patient(store: ObjectStore, fetch: Any, table: str) -> None:
    asked: set[str] = set()

    def fetch_and_tell(keys: Iterable[str]) -> Mapping[str, Path]:
        asked.update(keys)
        return dict(fetch(keys))

    references = put_run(store)
    if table == "gone":
        store.client.delete_object(Bucket=store.bucket, Key=samples.PATHS.document("contents.parquet"))
    else:
        named = put_contents(store, contents("1t unknown_text"))
        references = put_run(store, checks__json=samples.checks_document(contents=named))
    publish(store, references, fetch_and_tell)
    assert asked == set() and plots_in(store) == {"roc.png"}


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_the_explained_model_sees_images_as_it_was_trained(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, keep_aspect: bool
) -> None:
    monkeypatch.setattr("bcc_ops.evaluation.grad_cam.GradCam", Explained)
    monkeypatch.setattr("bcc_ops.models.classifier.load_classifier", lambda path, keep_aspect: b"%d" % keep_aspect)
    whole = store.put_referenced(samples.PATHS.document("model.h5"), b"weights")
    evaluation = samples.evaluation_document(COLUMNS, model=whole)
    run = RunRecord(training=samples.training_document(folds=(), keep_aspect=keep_aspect), evaluation=evaluation)
    explain, _ = _explainer(store, run, {Path("a"): None})
    assert explain is not None and explain([Path("a")], [0]).max() == keep_aspect
    assert _explainer(store, RunRecord(evaluation=evaluation), {Path("a"): None})[0] is None


@pytest.mark.usefixtures("one_plot")
@pytest.mark.parametrize("keep_aspect", [True, False])
def test_pictures_are_drawn_as_the_model_saw_them(
    store: ObjectStore, fetch: Any, monkeypatch: pytest.MonkeyPatch, keep_aspect: bool
) -> None:
    drawn: list[GalleryEntry] = []

    def draw(entries: Sequence[GalleryEntry], *told: str) -> Any:
        drawn.extend(entries)
        return gallery_figure(entries, *told)

    monkeypatch.setattr("bcc_ops.report.figures.gallery_figure", draw)
    publish(store, put_run(store, training__json=samples.training_document(keep_aspect=keep_aspect)), fetch)
    black = {(entry.thumbnail[:22].max() == 0, entry.thumbnail[202:].max() == 0) for entry in drawn if entry.thumbnail.any()}
    assert black == {(keep_aspect, keep_aspect)}  # 50 x 40 pixels: 179 of 224 rows


@pytest.mark.usefixtures("explained")
def test_a_fold_whose_model_is_gone_costs_the_explanation_and_says_so(store: ObjectStore) -> None:
    run = RunRecord(training=samples.training_document(), evaluation=samples.evaluation_document(COLUMNS))
    explain, why_not = _explainer(store, run, {Path("a"): 3})
    assert explain is None and "fold-3.h5" in why_not


@pytest.mark.slow
@pytest.mark.usefixtures("one_plot")
def test_augmentations_are_drawn_of_a_train_image_a_class(store: ObjectStore, fetch: Any) -> None:
    rows = [SplitRow(f"images/{label}/t.png", "0", label, "g", 2) for label in samples.CLASSES]
    split = store.put_referenced(samples.PATHS.document("split.parquet"), write_rows(SplitRow, rows))
    references = put_run(store, split__json=samples.split_document(table=split))
    publish(store, references, fetch)
    assert "augmentations.png" in plots_in(store)


def test_trend_takes_assessed_runs_up_to_this_one(store: ObjectStore) -> None:
    for days, name in ((-3, "gate.json"), (-2, "snapshot.json"), (-1, "gate.json"), (0, "gate.json"), (1, "gate.json")):
        paths = RunPaths.of("artifacts", samples.AS_OF + timedelta(days=days), f"run{days + 3}" if days else samples.RUN_ID)
        store.put(paths.document(name), samples.whole_run()[name])
    found = earlier_runs(store, samples.PATHS)
    assert [(summary.as_of - samples.AS_OF).days for summary in found] == [-3, -1, 0]
