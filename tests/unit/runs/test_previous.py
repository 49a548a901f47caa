"""The folds that earlier runs leave to a run."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import OLDER_TRAINING
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.previous import Assigned, assigned_before, merge_assignments
from bcc_ops.runs.rows import AssignmentRow
from bcc_ops.runs.tables import write_rows
from tests.unit.report.samples import gate_document, split_document

DAY = datetime(2026, 11, 20, 2, tzinfo=timezone.utc)
NEXT = RunPaths.of("artifacts", DAY + timedelta(days=30), "next")


def row(name: str, fold: int = 2, *, pixels: str = "", decisions: int = 0) -> AssignmentRow:
    return AssignmentRow(f"images/benign/{name}.png", f"sha-{name}", pixels, "benign", "g", fold, decisions)


def leave(store: ObjectStore, day: int, *rows: AssignmentRow, ancestors: tuple[str, ...] = (), assessed: bool = True) -> RunPaths:
    """Leave the split of a run, and its verdict if it came to one."""
    paths = RunPaths.of("artifacts", DAY + timedelta(days=day), f"run-{day}")
    table = store.put_referenced(paths.document("assignments.parquet"), write_rows(AssignmentRow, rows))
    split = store.save(paths.document("split.json"), split_document(assignments=table, ancestors=ancestors))
    if assessed:
        store.save(paths.document("gate.json"), gate_document(split=split))
    return paths


def folds(assigned: Assigned) -> dict[str, int]:
    return {row.sha256: row.fold for row in assigned.rows}


def test_a_first_run_finds_no_folds(store: ObjectStore) -> None:
    leave(store, 0, row("a"), assessed=False)
    assert assigned_before(store, NEXT) == Assigned()


def test_the_run_about_the_newest_images_holds_the_folds_of_those_before_it(store: ObjectStore) -> None:
    first = leave(store, 0, row("of-long-ago"))
    second = leave(store, 1, row("a"), row("b", 1), ancestors=(first.folder_name,))
    assigned = assigned_before(store, NEXT)
    assert folds(assigned) == {"sha-a": 2, "sha-b": 1}
    assert assigned.previous_run == second.folder_name
    assert assigned.ancestors == (first.folder_name, second.folder_name)


def test_a_backfill_that_ran_later_is_merged_in(store: ObjectStore) -> None:
    """An image that only the backfill's date had is back tonight: it must not be drawn anew, since a model was trained on it."""
    night = leave(store, 5, row("a", 1, decisions=3))
    backfill = leave(store, 2, row("only-then", 4), row("a", 2, decisions=1))
    assigned = assigned_before(store, NEXT)
    assert folds(assigned) == {"sha-a": 1, "sha-only-then": 4}
    assert assigned.previous_run == night.folder_name
    assert set(assigned.ancestors) == {night.folder_name, backfill.folder_name}


def test_a_backfill_of_an_earlier_date_keeps_the_folds_that_later_nights_gave(store: ObjectStore) -> None:
    leave(store, 5, row("a", 3))
    backfill = RunPaths.of("artifacts", DAY, "backfill")
    assert folds(assigned_before(store, backfill)) == {"sha-a": 3}


def test_a_run_that_is_done_again_does_not_count_itself(store: ObjectStore) -> None:
    own = leave(store, 5, row("a"))
    assert assigned_before(store, own) == Assigned()


def test_of_two_runs_that_know_a_content_the_newest_decides_whatever_its_bytes() -> None:
    newest = [row("a", 1, pixels="p", decisions=2)]
    merged = merge_assignments(newest, [[row("a-stripped", 2, pixels="p", decisions=5), row("b", 5)]])
    assert {one.sha256: (one.fold, one.decisions) for one in merged} == {
        "sha-a": (1, 2),
        "sha-a-stripped": (1, 5),
        "sha-b": (5, 0),
    }


def test_a_backfill_keeps_the_folds_that_it_drew_for_what_an_older_release_trained_on() -> None:
    """The newest run is of the older release: it says that images were trained on, and the backfill in which folds they are."""
    of_older_release = [row("a", OLDER_TRAINING, pixels="p"), row("b", OLDER_TRAINING), row("c", 1)]
    merged = merge_assignments(of_older_release, [[row("a-stripped", 4, pixels="p"), row("b", 3), row("c", 1)]])
    assert [(row.sha256, row.fold) for row in merged] == [("sha-a", 4), ("sha-a-stripped", 4), ("sha-b", 3), ("sha-c", 1)]


def test_what_an_older_release_trained_on_never_becomes_its_held_out_part() -> None:
    merged = merge_assignments([row("a", OLDER_TRAINING)], [[row("a", 1)]])
    assert [row.fold for row in merged] == [OLDER_TRAINING]


def test_a_split_that_is_gone_or_was_changed_stops_the_run(store: ObjectStore) -> None:
    run = leave(store, 0, row("a"))
    store.put(run.document("assignments.parquet"), write_rows(AssignmentRow, [row("a", 1)]))
    with pytest.raises(ArtifactError, match="has changed"):
        assigned_before(store, NEXT)
    store.client.delete_object(Bucket=store.bucket, Key=run.document("assignments.parquet"))
    with pytest.raises(ArtifactError, match="images would change folds: restore it"):
        assigned_before(store, NEXT)
