"""The task that makes the challenger: it takes its own run's models, all of them, and nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import h5py
import numpy as np
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG

from bcc_ops.operators.combine_folds import CombineFoldsOperator
from bcc_ops.runs.documents import Reference, TrainingDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import fold_file
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import read_answers, write_answers
from tests.factories.tasks import context, in_bucket
from tests.unit.report.samples import (
    CLASSES,
    PATHS,
    config_document,
    fold_document,
    promotion_document,
    run_handle,
    snapshot_document,
    split_document,
)

FOLDS = (1, 2, 3)
Combine = Callable[..., dict[str, str]]


def put_fold(store: ObjectStore, fold: int, split: Reference, **changes: Any) -> dict[str, str]:
    """Leave what `train_model` leaves of a fold: a file with one weight, and one answer."""
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened.attrs["model_config"] = "{}"
        opened["dense/kernel"] = np.array([fold], "f4")
    row = SplitRow(f"{fold}.png", f"bytes-{fold}", "benign", "g", fold)
    contents = {"h5": file.getvalue(), "csv": b"", "parquet": write_answers([row], CLASSES, np.array([[0.5, 0.25, 0.25]]))}
    stored = {ending: store.put_referenced(PATHS.document(fold_file(fold, ending)), held) for ending, held in contents.items()}
    files = {"history": stored["csv"], "answers": stored["parquet"], "model": stored["h5"]}
    document = fold_document(fold, **{"split": split, **files, **changes})
    return store.save(PATHS.document(fold_file(fold, "json")), document).to_xcom()


@pytest.fixture
def split(store: ObjectStore) -> Reference:
    return store.save(PATHS.document("split.json"), split_document())


@pytest.fixture
def combine(store: ObjectStore, split: Reference) -> Combine:
    """Do the task for a run with three fold models, whose weights are averaged unless it asks for an ensemble."""

    def do(*folds: dict[str, str], ensemble: bool = False) -> dict[str, str]:
        config = config_document(folds=len(FOLDS), ensemble=ensemble)
        run = run_handle(store, config, snapshot_document(bucket=store.bucket))
        with DAG("bcc_retraining", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
            task = CombineFoldsOperator(task_id="combine_folds", run=run, split=split.to_xcom(), folds=list(folds))
        done: dict[str, str] = in_bucket(task, store).execute(context())
        return done

    return do


def test_the_challenger_its_answers_and_its_document_are_in_the_runs_folder(
    store: ObjectStore, split: Reference, combine: Combine
) -> None:
    """Whatever order the mapped task's instances are handed in."""
    folds = {fold: put_fold(store, fold, split) for fold in FOLDS}

    reference = Reference.model_validate(combine(folds[3], folds[1], folds[2]))

    assert reference.key == PATHS.document("training.json")
    document = store.load(TrainingDocument, reference)
    assert [fold.fold for fold in document.folds] == [1, 2, 3]
    assert document.model.key == PATHS.document("model.h5") and document.answers is not None
    with h5py.File(io.BytesIO(store.get_referenced(document.model)), "r") as file:
        assert file["dense/kernel"][()].tolist() == [2]
    assert [row.fold for row in read_answers(store.get_referenced(document.answers), CLASSES)[0]] == [1, 2, 3]


def test_a_run_that_asks_for_an_ensemble_gets_one(
    store: ObjectStore, split: Reference, combine: Combine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcc_ops.training.combine.mean_of_answers", lambda files: b"mean of %d" % len(files))
    reference = combine(*(put_fold(store, fold, split) for fold in FOLDS), ensemble=True)
    document = store.load(TrainingDocument, Reference.model_validate(reference))
    assert store.get_referenced(document.model) == b"mean of 3"


def test_a_fold_that_is_missing_or_there_twice_is_refused(store: ObjectStore, split: Reference, combine: Combine) -> None:
    folds = [put_fold(store, fold, split) for fold in FOLDS]
    with pytest.raises(AirflowFailException, match="2 models of 3 folds were handed in: clear train_model"):
        combine(*folds[:2])
    with pytest.raises(AirflowFailException, match="each fold must occur once"):
        combine(folds[0], folds[0], folds[1])
    assert store.head(PATHS.document("training.json")) is None


def test_a_model_that_was_trained_with_another_split_is_refused(store: ObjectStore, split: Reference, combine: Combine) -> None:
    before = Reference(key=split.key, sha256="0" * 64)
    folds = [put_fold(store, 1, split), put_fold(store, 2, before), put_fold(store, 3, split)]
    with pytest.raises(AirflowFailException, match="trained with another split than this run's: clear train_model"):
        combine(*folds)


def test_the_model_of_another_run_is_refused(store: ObjectStore, split: Reference, combine: Combine) -> None:
    folds = [put_fold(store, fold, split) for fold in FOLDS]
    foreign = store.put_referenced("artifacts/runs/20261101T020000Z__other/fold-2.json", store.get(folds[1]["key"]))
    with pytest.raises(AirflowFailException, match="which is not the run's own fold-"):
        combine(folds[0], foreign.to_xcom(), folds[2])


def test_a_fold_whose_model_was_replaced_is_refused(store: ObjectStore, split: Reference, combine: Combine) -> None:
    folds = [put_fold(store, fold, split) for fold in FOLDS]
    store.put(PATHS.document("fold-2.h5"), b"another")
    with pytest.raises(AirflowFailException, match="has changed"):
        combine(*folds)


def test_a_run_whose_model_came_into_use_keeps_its_challenger(store: ObjectStore, split: Reference, combine: Combine) -> None:
    folds = [put_fold(store, fold, split) for fold in FOLDS]
    first = combine(*folds)
    store.save(PATHS.document("promotion.json"), promotion_document(promoted=True))
    put_fold(store, 2, split, host="worker-2")
    assert combine(*folds) == first
