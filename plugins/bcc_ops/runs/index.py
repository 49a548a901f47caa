"""Which runs there are in the bucket, which of them were assessed, and which count."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import ApprovalDocument, ConfigDocument, GateDocument, PromotionDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths, older_run_slug, parse_run_folder, run_slug, runs_root

log = logging.getLogger(__name__)

_AT_ONCE = 16


def list_runs(store: ObjectStore, artifacts_prefix: str) -> list[RunPaths]:
    """Return all runs' folders, oldest as_of first."""
    folders = store.list_folders(runs_root(artifacts_prefix))
    return [paths for paths in (parse_run_folder(artifacts_prefix, folder) for folder in folders) if paths]


def find_run(store: ObjectStore, artifacts_prefix: str, run_id: str) -> RunPaths | None:
    """Return the folder of the run `run_id`, or None if it has none yet.

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
                    "wrote into it. Check the bucket's access log, then move the folder away and run again"
                )
        elif named is not None or paths.slug == slug:
            own.append(paths)
    return next((paths for paths in own if store.head(paths.document("snapshot.json"))), own[0] if own else None)


def assessed_runs(store: ObjectStore, artifacts_prefix: str) -> list[RunPaths]:
    """List the runs that have a gate.json, oldest as_of first."""
    runs = list_runs(store, artifacts_prefix)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        assessed = pool.map(lambda paths: store.head(paths.document("gate.json")) is not None, runs)
    return [paths for paths, is_assessed in zip(runs, assessed) if is_assessed]


def last_that_counts(store: ObjectStore, artifacts_prefix: str, before: datetime) -> RunPaths | None:
    """Find the run with the latest as_of earlier than `before` whose outcome counts; None if there is none.

    What is new is new since that run. A run counts if it used the deployment's own parameters and reached a final outcome: the
    gate rejected the model, a person turned it down, or it came into use. An experiment with other parameters does not use up a
    night's images, and neither does an approved model whose upload failed or a question that nobody answered.
    """
    for paths in reversed(list_runs(store, artifacts_prefix)):
        if paths.as_of < before and _counts(store, paths):
            return paths
    return None


def _counts(store: ObjectStore, paths: RunPaths) -> bool:
    try:
        gate = store.find(GateDocument, paths.document("gate.json"))
        if gate is None:
            return False
        config = store.find(ConfigDocument, paths.document("config.json"))
        if config is not None and not config.uses_deployment_parameters:
            return False
        if gate.verdict == "rejected":
            return True
        promotion = store.find(PromotionDocument, paths.document("promotion.json"))
        if promotion is not None and promotion.promoted:
            return True
        approval = store.find(ApprovalDocument, paths.document("approval.json"))
        return approval is not None and approval.approved is False and not approval.timed_out
    except ArtifactError as error:
        log.warning("%s does not count as an earlier run: %s", paths.folder_name, error)
        return False
