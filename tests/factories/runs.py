"""What a run leaves in its folder, without the tasks that would take minutes to make it."""

from __future__ import annotations

from collections.abc import Mapping

from bcc_ops.artifacts import GateDocument, Reference, SnapshotDocument
from bcc_ops.storage import ObjectStore


def give_verdict(store: ObjectStore, snapshot: Mapping[str, str]) -> SnapshotDocument:
    """Reject the model that a run would have trained: to the runs after it, it is assessed.

    Args:
        store: the bucket.
        snapshot: the reference to the run's `snapshot.json`, as the task hands it on.

    Returns:
        The run's snapshot.
    """
    reference = Reference.model_validate(dict(snapshot))
    document = store.load(SnapshotDocument, reference)
    gate = GateDocument(
        verdict="rejected",
        reasons=("no model was trained",),
        rules=(),
        as_of=document.as_of,
        made_up=True,
        champion_version=None,
        champion_etag=None,
        validation_digest="",
        looks=1,
        evaluation=reference,
    )
    store.save(store.key_of(reference).replace("snapshot.json", "gate.json"), gate)
    return document
