"""Publishing: what is in the run's folder afterwards, whatever was there before."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcc_ops.exceptions import ObjectChanged
from bcc_ops.report.publish import earlier_runs, publish_report
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.tables import SplitRow, write_rows
from tests.unit.report import samples

HANDED_IN = ("snapshot", "checks", "split", "training", "evaluation", "gate")
COLUMNS = samples.predictions(60)


def put_run(store: ObjectStore, verdict: str = "rejected", **changes: Any) -> dict[str, dict[str, str] | None]:
    """Lay a run's documents down and return the references that its tasks would hand in."""
    predictions = store.put_referenced(samples.PATHS.document("predictions.parquet"), samples.predictions_parquet(COLUMNS))
    weights = samples.split_document(table=None)
    evaluation = samples.evaluation_document(COLUMNS, predictions=predictions, model=None)
    run = samples.whole_run(verdict, **{"split__json": weights, "evaluation__json": evaluation, **changes})
    run.pop("predictions.parquet")
    references = {name: store.put_referenced(samples.PATHS.document(name), content).to_xcom() for name, content in run.items()}
    return {f"{name}.json": references.get(f"{name}.json") for name in HANDED_IN}


@pytest.fixture(autouse=True)
def small_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw fewer pixels: what is on the plots is test_figures' matter."""
    monkeypatch.setattr("bcc_ops.report.figures.PIXELS_PER_INCH", 40)


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


def test_a_document_that_is_not_the_one_that_was_handed_in_is_left_out_and_told(store: ObjectStore, fetch: Any) -> None:
    references = put_run(store)
    store.put(samples.PATHS.document("gate.json"), samples.gate_document("approved").to_json())
    page = publish(store, references, fetch)
    assert "gate.json cannot be read" in page
    assert "Approved" not in page


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


@pytest.mark.slow
def test_augmentations_are_drawn_of_a_train_image_a_class(store: ObjectStore, fetch: Any) -> None:
    rows = [SplitRow(f"images/{label}/t.png", "0", label, "g", "train") for label in samples.CLASSES]
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
