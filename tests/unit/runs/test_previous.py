"""The sides that earlier runs leave to a run."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.previous import Assigned, assigned_before, merge_assignments
from bcc_ops.runs.tables import AssignmentRow, write_rows
from tests.unit.report.samples import gate_document, split_document

DAY = datetime(2026, 11, 20, 2, tzinfo=timezone.utc)
NEXT = RunPaths.of("artifacts", DAY + timedelta(days=30), "next")


def row(name: str, side: str = "train", *, pixels: str = "", decisions: int = 0) -> AssignmentRow:
    return AssignmentRow(f"images/benign/{name}.png", f"sha-{name}", pixels, "benign", "g", side, decisions)


def leave(store: ObjectStore, day: int, *rows: AssignmentRow, ancestors: tuple[str, ...] = (), assessed: bool = True) -> RunPaths:
    """Leave the split of a run, and its verdict if it came to one."""
    paths = RunPaths.of("artifacts", DAY + timedelta(days=day), f"run-{day}")
    table = store.put_referenced(paths.document("assignments.parquet"), write_rows(AssignmentRow, rows))
    split = store.save(paths.document("split.json"), split_document(assignments=table, ancestors=ancestors))
    if assessed:
        store.save(paths.document("gate.json"), gate_document(split=split))
    return paths


def sides(assigned: Assigned) -> dict[str, str]:
    return {row.sha256: row.partition for row in assigned.rows}


def test_a_first_run_finds_no_sides(store: ObjectStore) -> None:
    leave(store, 0, row("a"), assessed=False)
    assert assigned_before(store, NEXT) == Assigned()


def test_the_run_about_the_newest_images_holds_the_sides_of_those_before_it(store: ObjectStore) -> None:
    first = leave(store, 0, row("of-long-ago"))
    second = leave(store, 1, row("a"), row("b", "validation"), ancestors=(first.folder_name,))
    assigned = assigned_before(store, NEXT)
    assert sides(assigned) == {"sha-a": "train", "sha-b": "validation"}
    assert assigned.previous_run == second.folder_name
    assert assigned.ancestors == (first.folder_name, second.folder_name)


def test_a_backfill_that_ran_later_is_merged_in(store: ObjectStore) -> None:
    """An image that only the backfill's date had is back tonight: it must not be drawn anew, since a model was trained on it."""
    night = leave(store, 5, row("a", "validation", decisions=3))
    backfill = leave(store, 2, row("only-then"), row("a", "train", decisions=1))
    assigned = assigned_before(store, NEXT)
    assert sides(assigned) == {"sha-a": "validation", "sha-only-then": "train"}
    assert assigned.previous_run == night.folder_name
    assert set(assigned.ancestors) == {night.folder_name, backfill.folder_name}


def test_a_backfill_of_an_earlier_date_keeps_the_sides_that_later_nights_gave(store: ObjectStore) -> None:
    leave(store, 5, row("a", "validation"))
    backfill = RunPaths.of("artifacts", DAY, "backfill")
    assert sides(assigned_before(store, backfill)) == {"sha-a": "validation"}


def test_a_run_that_is_done_again_does_not_count_itself(store: ObjectStore) -> None:
    own = leave(store, 5, row("a"))
    assert assigned_before(store, own) == Assigned()


def test_of_two_runs_that_know_a_content_the_newest_decides_whatever_its_bytes() -> None:
    newest = [row("a", "validation", pixels="p", decisions=2)]
    merged = merge_assignments(newest, [[row("a-stripped", "train", pixels="p", decisions=5), row("b", "tuning")]])
    assert {one.sha256: (one.partition, one.decisions) for one in merged} == {
        "sha-a": ("validation", 2),
        "sha-a-stripped": ("validation", 5),
        "sha-b": ("tuning", 0),
    }


def test_a_split_that_is_gone_or_was_changed_stops_the_run(store: ObjectStore) -> None:
    run = leave(store, 0, row("a"))
    store.put(run.document("assignments.parquet"), write_rows(AssignmentRow, [row("a", "validation")]))
    with pytest.raises(ArtifactError, match="has changed"):
        assigned_before(store, NEXT)
    store.client.delete_object(Bucket=store.bucket, Key=run.document("assignments.parquet"))
    with pytest.raises(ArtifactError, match="images would change sides: restore it"):
        assigned_before(store, NEXT)
