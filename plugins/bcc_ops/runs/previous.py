"""What earlier runs left to a run: the folds of the images, and the tables that it compares itself with."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bcc_ops.exceptions import ArtifactError, ObjectNotFound
from bcc_ops.runs.documents import FOLDS, OLDER_TRAINING, ChecksDocument, GateDocument, SnapshotDocument, SplitDocument
from bcc_ops.runs.index import assessed_runs
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.rows import AssignmentRow, ContentRow, SplitRow
from bcc_ops.runs.tables import read_rows
from bcc_ops.runs.upgrade import OLDER_FILES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assigned:
    """The folds that images have before a run gives any.

    Attributes:
        rows: one row per content that has a fold; `OLDER_TRAINING` for what an older release trained on.
        previous_run: folder of the newest run that they come from; None if there is none.
        ancestors: folders of all runs that they come from.
    """

    rows: tuple[AssignmentRow, ...] = ()
    previous_run: str | None = None
    ancestors: tuple[str, ...] = ()


def read_contents(store: ObjectStore, checks: ChecksDocument) -> list[ContentRow]:
    """Read contents.parquet of a run, by its checks.json.

    Raises:
        ArtifactError: the document names none (it is one of a folder, not of a run), or it is not what it was.
    """
    if checks.contents is None:
        raise ArtifactError("this checks.json names no contents.parquet")
    return read_rows(ContentRow, store.get_referenced(checks.contents))


def assigned_before(store: ObjectStore, own: RunPaths) -> Assigned:
    """Return every fold that an assessed run gave to an image.

    The assessed run with the newest images holds those of the runs before it. A run about older images that came after it (a
    backfill) is merged in; if both gave a fold to the same content, the newest run's counts.

    Args:
        store: the bucket.
        own: the run that asks, which does not count.

    Raises:
        ArtifactError: an assessed run is there but its split is not, or is not the one that its documents name. Drawing another
            split instead would ask models about what they were trained on, so only a person can decide.
    """
    assessed = [paths for paths in assessed_runs(store, own.artifacts_prefix) if paths != own]
    if not assessed:
        return Assigned()
    newest = assessed[-1]
    ancestors, rows = _assignments_of(store, newest)
    held = {newest.folder_name, *(ancestors or ())}
    # A document of before version 3 does not name its ancestors, and runs about older images were not merged then.
    others = [paths for paths in assessed if paths.folder_name not in held] if ancestors is not None else []
    merged = merge_assignments(rows, [_assignments_of(store, paths)[1] for paths in others])
    names = {paths.folder_name for paths in assessed} | held - {own.folder_name}
    return Assigned(merged, newest.folder_name, tuple(sorted(names)))


def merge_assignments(newest: Sequence[AssignmentRow], others: Iterable[Sequence[AssignmentRow]]) -> tuple[AssignmentRow, ...]:
    """Merge the assignments of several runs; `newest` decides about a content (its bytes or its pixels) that several know.

    If that is a run of an older release, which only says that it trained on a content, the fold that another run drew for it
    counts, unless it is the one that the older release held out.
    """
    by_bytes = {row.sha256: row for row in newest}
    by_pixels = {row.pixels: row for row in newest if row.pixels}
    for rows in others:
        for row in rows:
            known = by_bytes.get(row.sha256) or by_pixels.get(row.pixels)
            merged = row
            if known:
                drawn_since = known.fold == OLDER_TRAINING and row.fold in FOLDS[1:]
                fold = row.fold if drawn_since else known.fold
                patient = known.patient or row.patient
                by_bytes[known.sha256] = known._replace(fold=fold, patient=patient)
                merged = row._replace(fold=fold, decisions=max(known.decisions, row.decisions), patient=patient)
            by_bytes[row.sha256] = merged
            if row.pixels:
                by_pixels[row.pixels] = merged
    return tuple(by_bytes[sha256] for sha256 in sorted(by_bytes))


def _assignments_of(store: ObjectStore, run: RunPaths) -> tuple[tuple[str, ...] | None, list[AssignmentRow]]:
    """Return the folders of an assessed run's ancestors (None if it does not tell), and its assignments.

    The tables are read by the digests that split.json states, and that document by the digest in gate.json. The chain starts
    there: a listing finds gate.json, and nothing pins it.
    """
    way_out = "restore it, or remove that run's gate.json so that it no longer counts as assessed"
    try:
        gate = store.load_key(GateDocument, run.document("gate.json"))
        if gate.split is None:  # written by an older release
            document = store.load_key(SplitDocument, run.document(OLDER_FILES["split.json"]))
        else:
            document = store.load(SplitDocument, gate.split)
        if document.assignments is not None:
            return document.ancestors, read_rows(AssignmentRow, store.get_referenced(document.assignments))
        if document.table is None:
            raise ArtifactError(f"{store.uri(run.document('split.json'))} names no split.parquet: {way_out}")
        rows = read_rows(SplitRow, store.get_referenced(document.table))
    except ObjectNotFound as error:
        raise ArtifactError(f"{error}; without it images would change folds: {way_out}") from None
    reuse = round(gate.holdout_reuse)
    return document.ancestors, [
        AssignmentRow(row.key, row.sha256, row.pixels, row.label, row.group, row.fold, reuse if row.fold == 1 else 0)
        for row in rows
    ]


def previous_contents(store: ObjectStore, paths: RunPaths, snapshot: SnapshotDocument) -> list[ContentRow] | None:
    """Read contents.parquet of the snapshot's previous run; None if there is none that can be read (drift only warns)."""
    if snapshot.previous_run is None:
        return None
    earlier = RunPaths(paths.artifacts_prefix, snapshot.previous_run)
    try:
        checks = store.find(ChecksDocument, earlier.document("checks.json"))
        if checks is None:
            checks = store.load_key(ChecksDocument, earlier.document(OLDER_FILES["checks.json"]))
        return read_contents(store, checks)
    except (ObjectNotFound, ArtifactError) as error:
        log.warning("no comparison with the previous run's images: %s", error)
        return None
