"""Which runs there are in the bucket, and which of them were assessed."""

from __future__ import annotations

from datetime import datetime

from bcc_ops.run_paths import RunPaths, parse_run_folder, run_slug, runs_root
from bcc_ops.storage import ObjectStore


def list_runs(store: ObjectStore, artifacts_prefix: str) -> list[RunPaths]:
    """All runs' folders, oldest as_of first."""
    folders = store.list_folders(runs_root(artifacts_prefix))
    return [paths for paths in (parse_run_folder(artifacts_prefix, folder) for folder in folders) if paths]


def find_run(store: ObjectStore, artifacts_prefix: str, run_id: str) -> RunPaths | None:
    """The folder of the run `run_id`, or None where it has none yet.

    Where a run left several (it was cleared before its first snapshot was whole), the one with a snapshot is it.
    """
    slug = run_slug(run_id)
    own = [paths for paths in list_runs(store, artifacts_prefix) if paths.slug == slug]
    return next((paths for paths in own if store.head(paths.document("snapshot.json"))), own[0] if own else None)


def last_assessed(store: ObjectStore, artifacts_prefix: str, before: datetime) -> RunPaths | None:
    """The run with the latest as_of earlier than `before` that has a `gate.json`; None where there is none."""
    for paths in reversed(list_runs(store, artifacts_prefix)):
        if paths.as_of < before and store.head(paths.document("gate.json")):
            return paths
    return None
