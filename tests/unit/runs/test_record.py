"""What is read of a run's folder, and what may be downloaded of it."""

from __future__ import annotations

import json

from bcc_ops.report.page import render_report
from bcc_ops.runs.documents import OLDER_TRAINING, Document
from bcc_ops.runs.record import FILES, RUN_DOCUMENTS, read_record
from tests.unit.report import samples


def test_the_epochs_of_all_folds_are_read_fold_by_fold() -> None:
    record = read_record(samples.whole_run().get)
    assert record.unreadable == {}
    assert [(row.fold, row.epoch) for row in record.epochs] == [(fold, epoch) for fold in range(1, 6) for epoch in range(1, 13)]


def test_a_damaged_history_hides_no_other() -> None:
    record = read_record({**samples.histories(2, folds=3), "fold-2.csv": b"fold,epoch\n2,none\n"}.get)
    assert [row.fold for row in record.epochs] == [1, 1, 3, 3]
    assert list(record.unreadable) == ["fold-2.csv"]


def test_a_run_of_the_release_before_is_still_read() -> None:
    """It had one model and the parts train, tuning and validation: schema 3."""
    header = "epoch,loss,accuracy,tuning_loss,tuning_accuracy,tuning_balanced_accuracy,learning_rate,seconds,images_per_second"
    rows = "".join(f"{epoch},1.0,0.5,0.9,0.5,0.45,0.001,2.0,30.0\n" for epoch in (1, 2))
    record = read_record(
        {
            "snapshot.json": of_schema_3(samples.snapshot_document()),
            "history.csv": f"{header}\n{rows}".encode(),
            "split.json": of_schema_3(
                samples.split_document(),
                "held_out_digest",
                counts={"train": {"benign": 7}, "tuning": {"benign": 2}, "validation": {"benign": 3}},
                **{"validation_digest": "v", "validation_fraction": 0.2, "tuning_fraction": 0.15},
            ),
            "training.json": of_schema_3(
                samples.training_document(),
                *("folds", "combined", "answers", "epochs"),
                images={"train": 7, "tuning": 2, "validation": 3},
                **{"epochs_planned": 16, "epochs_run": 12, "best_epoch": 8, "stopped_early": True, "resumed_after_epochs": [5]},
                **{"seconds_per_epoch": 41.5, "images_per_second": 10.1, "history": samples.reference("history.csv").to_xcom()},
            ),
            "evaluation.json": of_schema_3(
                samples.evaluation_document(),
                *("held_out_digest", "anchor", "file_check"),
                validation_digest="v",
                external=samples.evaluation_document().challenger.model_dump(mode="json"),
            ),
        }.get
    )
    assert record.unreadable == {}
    assert [(row.fold, row.epoch, row.held_out_loss) for row in record.epochs] == [(1, 1, 0.9), (1, 2, 0.9)]
    assert record.split is not None and record.split.counts == {OLDER_TRAINING: {"benign": 9}, 1: {"benign": 3}}
    assert record.training is not None and (record.training.folds, record.training.images) == ((), 9)
    assert record.evaluation is not None and [one.champion for one in record.evaluation.external] == [None]
    page = render_report(record, run_id=samples.RUN_ID, plots={}, files={})
    assert "trained on (older release)" in page and "External test set external" in page


def of_schema_3(document: Document, *removed: str, **changes: object) -> bytes:
    """A document as the release before wrote it."""
    fields = {name: value for name, value in json.loads(document.to_json()).items() if name not in removed}
    return json.dumps({**fields, **changes, "schema_version": 3}).encode()


def test_the_folds_files_may_be_downloaded_and_only_their_histories_are_read_for_a_page() -> None:
    assert {f"fold-{fold}.{ending}" for fold in range(1, 6) for ending in ("json", "csv", "h5", "parquet")} <= set(FILES)
    assert {name for name in RUN_DOCUMENTS if "fold" in name} == {f"fold-{fold}.csv" for fold in range(1, 6)}
