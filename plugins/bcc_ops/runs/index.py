"""Which runs there are in the bucket, and which of them were assessed."""

from __future__ import annotations

from datetime import datetime

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import ConfigDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths, older_run_slug, parse_run_folder, run_slug, runs_root


def list_runs(store: ObjectStore, artifacts_prefix: str) -> list[RunPaths]:
    """All runs' folders, oldest as_of first."""
    folders = store.list_folders(runs_root(artifacts_prefix))
    return [paths for paths in (parse_run_folder(artifacts_prefix, folder) for folder in folders) if paths]


def find_run(store: ObjectStore, artifacts_prefix: str, run_id: str) -> RunPaths | None:
    """The folder of the run `run_id`, or None if it has none yet.

    If a run left several (it was cleared before its first snapshot was whole), the one with a snapshot is it. A folder whose
    name could be another run's (older releases wrote some without a digest) counts only if its config.json names this run.

    Raises:
        ArtifactError: the folder with this run's name holds the documents of another run.
    """
    slug, older = run_slug(run_id), older_run_slug(run_id)
    own: list[RunPaths] = []
    for paths in list_runs(store, artifacts_prefix):
        if paths.slug not in (slug, older):
            continue
        named = store.find(ConfigDocument, paths.document("config.json"))
        if named is not None and named.run_id != run_id:
            if paths.slug == slug:
                raise ArtifactError(
                    f"{store.uri(paths.folder)} holds the documents of the run {named.run_id!r}, not of {run_id!r}: somebody "
                    "wrote into it. Look into the bucket's access log, then move the folder away and run again"
                )
        elif named is not None or paths.slug == slug:
            own.append(paths)
    return next((paths for paths in own if store.head(paths.document("snapshot.json"))), own[0] if own else None)


def last_assessed(store: ObjectStore, artifacts_prefix: str, before: datetime) -> RunPaths | None:
    """The run with the latest as_of earlier than `before` that has a `gate.json`; None if there is none."""
    for paths in reversed(list_runs(store, artifacts_prefix)):
        if paths.as_of < before and store.head(paths.document("gate.json")):
            return paths
    return None
