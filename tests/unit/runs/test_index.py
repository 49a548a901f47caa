"""Which runs use up what was new."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from bcc_ops.runs.documents import ApprovalDocument
from bcc_ops.runs.index import last_that_counts
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from tests.unit.report.samples import config_document, gate_document, promotion_document

DAY = datetime(2026, 11, 20, 2, tzinfo=timezone.utc)
LATER = DAY + timedelta(days=9)


def leave(store: ObjectStore, day: int, verdict: str | None = "rejected", *, given: str | None = None) -> RunPaths:
    """Leave the documents of a run that ended with a verdict (None: it ended before), with one parameter that was given."""
    run_id = f"run-{day}"
    paths = RunPaths.of("artifacts", DAY + timedelta(days=day), run_id)
    config = config_document()
    origins = {**dict.fromkeys(config.origins, "default"), **({given: "given"} if given else {})}
    store.save(paths.document("config.json"), config.model_copy(update={"run_id": run_id, "origins": origins}))
    if verdict:
        store.save(paths.document("gate.json"), gate_document(verdict=verdict))
    return paths


def approval(approved: bool | None, *, timed_out: bool = False) -> ApprovalDocument:
    return ApprovalDocument(approved=approved, by="ann", at=DAY, timed_out=timed_out, gate="0" * 64)


def test_a_night_that_ended_with_a_rejection_counts_and_only_for_later_ones(store: ObjectStore) -> None:
    first, second = leave(store, 0), leave(store, 1)
    assert last_that_counts(store, "artifacts", LATER) == second
    assert last_that_counts(store, "artifacts", second.as_of) == first
    assert last_that_counts(store, "artifacts", first.as_of) is None


@pytest.mark.parametrize("parameter", ["epochs", "folds", "min_macro_auc", "preset"])
def test_an_experiment_with_other_parameters_does_not_use_up_the_news(store: ObjectStore, parameter: str) -> None:
    night = leave(store, 0)
    leave(store, 1, given=parameter)
    assert last_that_counts(store, "artifacts", LATER) == night


@pytest.mark.parametrize("parameter", ["as_of", "require_approval"])
def test_a_manual_run_that_decides_as_the_nights_do_counts(store: ObjectStore, parameter: str) -> None:
    leave(store, 0)
    manual = leave(store, 1, given=parameter)
    assert last_that_counts(store, "artifacts", LATER) == manual


@pytest.mark.parametrize(
    ("left", "counts"),
    [
        ({}, False),  # its upload failed
        ({"promotion.json": promotion_document(promoted=True)}, True),
        ({"promotion.json": promotion_document(promoted=False)}, False),
        ({"approval.json": approval(False)}, True),
        ({"approval.json": approval(False, timed_out=True)}, False),
        ({"approval.json": approval(None)}, False),
        ({"approval.json": approval(True)}, False),
    ],
)
def test_an_approved_model_uses_up_the_news_once_its_fate_is_decided(store: ObjectStore, left: Any, counts: bool) -> None:
    night, approved = leave(store, 0), leave(store, 1, "approved")
    for name, document in left.items():
        store.save(approved.document(name), document)
    assert last_that_counts(store, "artifacts", LATER) == (approved if counts else night)


def test_a_run_that_ended_before_the_gate_and_one_that_cannot_be_read_do_not_count(store: ObjectStore) -> None:
    night = leave(store, 0)
    leave(store, 1, None)
    store.put(leave(store, 2).document("gate.json"), b"{")
    assert last_that_counts(store, "artifacts", LATER) == night
