"""How often a validation set has been decided on: each look at it makes a lucky winner likelier."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import GateDocument
from bcc_ops.runs.index import list_runs
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths

_AT_ONCE = 16


def count_holdout_reuse(store: ObjectStore, own: RunPaths, validation_digest: str) -> int:
    """Gate decisions of other runs against this validation set.

    Args:
        store: the bucket.
        own: this run, which does not count: it may be cleared and decided again.
        validation_digest: names the set.
    """

    def looked(paths: RunPaths) -> bool:
        try:
            gate = store.find(GateDocument, paths.document("gate.json"))
        except ArtifactError:  # of another schema: it decided on something, but nobody can tell on what
            return False
        return gate is not None and gate.validation_digest == validation_digest

    others = [paths for paths in list_runs(store, own.artifacts_prefix) if paths != own]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return sum(pool.map(looked, others))
