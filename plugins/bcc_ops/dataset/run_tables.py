"""Tables that a run reads: what validation saw of its own images, and what the last assessed earlier run left behind."""

from __future__ import annotations

import logging

from bcc_ops.artifacts import SnapshotDocument, ValidationDocument
from bcc_ops.exceptions import ArtifactError, ObjectNotFound
from bcc_ops.run_paths import RunPaths
from bcc_ops.storage import ObjectStore
from bcc_ops.tables import ContentRow, SplitRow, read_rows

log = logging.getLogger(__name__)


def read_contents(store: ObjectStore, validation: ValidationDocument) -> list[ContentRow]:
    """contents.parquet of a run, by its validation.json.

    Raises:
        ArtifactError: the document names none (it is one of a folder, not of a run), or it is not what it was.
    """
    if validation.contents is None:
        raise ArtifactError("this validation.json names no contents.parquet")
    return read_rows(ContentRow, store.get_referenced(validation.contents))


def previous_split(store: ObjectStore, paths: RunPaths, snapshot: SnapshotDocument) -> list[SplitRow]:
    """split.parquet of the last assessed earlier run; empty where there is no such run.

    Raises:
        ArtifactError: the run is there and its split is not, or cannot be read. Drawing another split instead would mix
            up train and validation, so that nothing but an answer by a person helps.
    """
    if snapshot.previous_run is None:
        return []
    key = RunPaths(paths.artifacts_prefix, snapshot.previous_run).document("split.parquet")
    try:
        return read_rows(SplitRow, store.get(key))
    except ObjectNotFound:
        raise ArtifactError(
            f"{store.uri(key)} is missing, and without it images would change sides: restore it, or remove that run's "
            "gate.json so that it no longer counts as assessed"
        ) from None


def previous_contents(store: ObjectStore, paths: RunPaths, snapshot: SnapshotDocument) -> list[ContentRow] | None:
    """contents.parquet of the last assessed earlier run; None where there is none that can be read (drift only warns)."""
    if snapshot.previous_run is None:
        return None
    key = RunPaths(paths.artifacts_prefix, snapshot.previous_run).document("contents.parquet")
    try:
        return read_rows(ContentRow, store.get(key))
    except (ObjectNotFound, ArtifactError) as error:
        log.warning("no comparison with the previous run's images: %s", error)
        return None
