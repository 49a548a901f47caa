"""What an evaluation takes from its run: the answers of the folds' models, and the images of an external test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.pseudonyms import passing_pseudonyms
from bcc_ops.dataset.sync import sync_images
from bcc_ops.evaluation.run_evaluation import RunInputs, evaluate_run
from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import FOLDS, FoldSummary
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import AssignmentRow, ContentRow, SplitRow
from bcc_ops.runs.tables import write_answers, write_rows
from tests.unit.report.samples import (
    CLASSES,
    PATHS,
    checks_document,
    snapshot_document,
    split_document,
    training_document,
)


@pytest.fixture
def inputs(store: ObjectStore, tmp_path: Path) -> RunInputs:
    """A run that looks at elsewhere/, with everything that was uploaded by then."""
    return RunInputs(
        config=RetrainingConfig.resolve({"external_prefixes": "elsewhere/"}),
        snapshot=snapshot_document(as_of=datetime.now(timezone.utc) + timedelta(days=1)),
        checks=checks_document(),
        split=split_document(),
        training=training_document(),
        images={},
        fetch=partial(sync_images, store, cache=ImageCache(tmp_path / "cache", 10**9)),
        memory_path=tmp_path / "contents.sqlite3",
        pseudonyms=passing_pseudonyms,
    )


class Undecided:
    """A classifier that gives every image the same answer."""

    image_size, classes_count = 256, 3

    def predict(self, paths: Any, batch_size: int = 32) -> np.ndarray:
        return np.tile([0.5, 0.3, 0.2], (len(paths), 1))


def a_whole_run(store: ObjectStore, inputs: RunInputs, answered: Sequence[SplitRow]) -> RunInputs:
    """The run with its tables in the store, and with out-of-fold answers about these images."""
    rows = [SplitRow(f"{label}-{fold}", f"{label}-{fold}", label, f"{label}-{fold}", fold) for fold in FOLDS for label in CLASSES]
    contents = [ContentRow(row.key, row.label, row.sha256, 99, 99, "L", 90.0, 40.0, False, row.group, "") for row in rows]
    answers = write_answers(answered or rows, CLASSES, np.tile([0.5, 0.3, 0.2], (len(answered or rows), 1)))
    model = store.put_referenced(PATHS.document("model.h5"), b"weights")
    folds = tuple(
        FoldSummary(fold=fold, images=12, held_out=3, epochs=1, seconds=1, resumed_after_epochs=(), host="h", model=model)
        for fold in FOLDS
    )
    return replace(
        inputs,
        config=RetrainingConfig.resolve({}),
        checks=checks_document(
            contents=store.put_referenced(PATHS.document("contents.parquet"), write_rows(ContentRow, contents))
        ),
        split=split_document(
            table=store.put_referenced(PATHS.document("split.parquet"), write_rows(SplitRow, rows)),
            assignments=store.put_referenced(PATHS.document("assignments.parquet"), write_rows(AssignmentRow, [])),
            previous_run=None,
        ),
        training=training_document(
            model=model, folds=folds, answers=store.put_referenced(PATHS.document("out_of_fold.parquet"), answers)
        ),
        images={row.key: Path(row.key) for row in rows},
    )


def test_a_run_is_evaluated_by_the_answers_that_its_folds_models_gave(
    store: ObjectStore, inputs: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcc_ops.models.classifier.load_classifier", lambda path, keep_aspect: Undecided())
    run = a_whole_run(store, inputs, [])
    document = evaluate_run(store, run, None, None, folder=tmp_path, say=lambda sentence: None).document
    assert (document.challenger.images, document.challenger.accuracy.value) == (15, pytest.approx(1 / 3))
    assert document.file_check is not None and document.file_check.agreement == 1


def test_answers_about_other_images_than_the_splits_are_refused(
    store: ObjectStore, inputs: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcc_ops.models.classifier.load_classifier", lambda path, keep_aspect: Undecided())
    run = a_whole_run(store, inputs, [SplitRow("benign-1", "benign-1", "benign", "benign-1", 1)])
    with pytest.raises(ArtifactError, match="not about the images of this run's split: clear train_model"):
        evaluate_run(store, run, None, None, folder=tmp_path, say=lambda sentence: None)
