"""Tables that a run reads: what checks saw of its own images, and what the last assessed earlier run left behind."""

from __future__ import annotations

import logging

from bcc_ops.exceptions import ArtifactError, ObjectNotFound
from bcc_ops.runs.documents import ChecksDocument, GateDocument, SnapshotDocument, SplitDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.tables import ContentRow, SplitRow, read_rows
from bcc_ops.runs.upgrade import OLDER_FILES

log = logging.getLogger(__name__)


def read_contents(store: ObjectStore, checks: ChecksDocument) -> list[ContentRow]:
    """contents.parquet of a run, by its checks.json.

    Raises:
        ArtifactError: the document names none (it is one of a folder, not of a run), or it is not what it was.
    """
    if checks.contents is None:
        raise ArtifactError("this checks.json names no contents.parquet")
    return read_rows(ContentRow, store.get_referenced(checks.contents))


def previous_split(store: ObjectStore, artifacts_prefix: str, previous_run: str | None) -> list[SplitRow]:
    """split.parquet of the last assessed earlier run; empty if there is no such run.

    The table is read by the digest that the earlier run's split.json states, and that document by the digest in its
    gate.json. The chain starts there: a listing finds gate.json, and nothing pins it.

    Args:
        store: the bucket.
        artifacts_prefix: where runs are stored.
        previous_run: folder of the last assessed earlier run; None if there is none.

    Raises:
        ArtifactError: the run is there and its split is not, or is not the one that its documents name. Drawing another
            split instead would mix up train and validation, so only a person can decide.
    """
    if previous_run is None:
        return []
    earlier = RunPaths(artifacts_prefix, previous_run)
    way_out = "restore it, or remove that run's gate.json so that it no longer counts as assessed"
    try:
        gate = store.load_key(GateDocument, earlier.document("gate.json"))
        if gate.split is None:  # written by an older release
            document = store.load_key(SplitDocument, earlier.document(OLDER_FILES["split.json"]))
        else:
            document = store.load(SplitDocument, gate.split)
        if document.table is None:
            raise ArtifactError(f"{store.uri(earlier.document('split.json'))} names no split.parquet: {way_out}")
        return read_rows(SplitRow, store.get_referenced(document.table))
    except ObjectNotFound as error:
        raise ArtifactError(f"{error}; without it images would change sides: {way_out}") from None


def previous_contents(store: ObjectStore, paths: RunPaths, snapshot: SnapshotDocument) -> list[ContentRow] | None:
    """contents.parquet of the last assessed earlier run; None if there is none that can be read (drift only warns)."""
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
