"""The mapped task that trains a fold's model, and which folds it takes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG

from bcc_ops.operators.train_model import TrainModelOperator
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import fold_file
from tests.factories.tasks import context, in_bucket
from tests.unit.report.samples import (
    PATHS,
    config_document,
    fold_document,
    promotion_document,
    reference,
    run_handle,
    snapshot_document,
    split_document,
)

Train = Callable[[Any], dict[str, str]]


@pytest.fixture
def train(store: ObjectStore, tmp_path: Path) -> Train:
    """Do the task for a fold, as `split_dataset` handed it on."""
    run = run_handle(store, config_document(), snapshot_document(bucket=store.bucket))
    split = store.save(PATHS.document("split.json"), split_document()).to_xcom()

    def do(fold: Any) -> dict[str, str]:
        with DAG("bcc_retraining", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
            task = TrainModelOperator(task_id="train_model", run=run, checks={}, split=split, fold=fold)
        done: dict[str, str] = in_bucket(task, store, cache_dir=tmp_path).execute(context())
        return done

    return do


@pytest.mark.parametrize("fold", [0, 6, -1])
def test_a_fold_that_a_split_does_not_have_is_refused_before_anything_is_trained(train: Train, fold: int) -> None:
    with pytest.raises(AirflowFailException, match=f"split_dataset handed on the fold {fold}, and there are only 1 to 5"):
        train(fold)


def test_a_fold_of_a_run_whose_model_came_into_use_is_kept_as_it_is(train: Train, store: ObjectStore) -> None:
    """Its document is of other parameters than the run's by now, so that it would be trained again."""
    kept = store.save(PATHS.document(fold_file(2, "json")), fold_document(2))
    store.save(PATHS.document("promotion.json"), promotion_document(promoted=True))
    assert train(2) == kept.to_xcom()


@pytest.mark.parametrize(("promoted", "of_fold"), [(False, 2), (True, 3)], ids=["not promoted", "another fold's document"])
def test_a_fold_that_no_promotion_rests_on_is_trained(
    train: Train, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, promoted: bool, of_fold: int
) -> None:
    store.save(PATHS.document(fold_file(of_fold, "json")), fold_document(of_fold))
    store.save(PATHS.document("promotion.json"), promotion_document(promoted=promoted))
    monkeypatch.setattr(TrainModelOperator, "_train", lambda *given: reference("trained"))
    assert train(2) == reference("trained").to_xcom()
