"""What a run leaves in its folder, without the tasks that would take minutes to make it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from bcc_ops.operators.base import Run
from bcc_ops.runs.documents import GateDocument, SnapshotDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import PLOTS
from tests.unit.report import samples


def give_verdict(store: ObjectStore, handle: Mapping[str, str]) -> SnapshotDocument:
    """Reject the model that a run would have trained: to the runs after it, it is assessed.

    Args:
        store: the bucket.
        handle: of the run, as its first task hands it on.

    Returns:
        The run's snapshot.
    """
    run = Run.load(store, "artifacts", handle)
    gate = GateDocument(
        verdict="rejected",
        reasons=("no model was trained",),
        rules=(),
        as_of=run.snapshot.as_of,
        synthetic=True,
        champion_version=None,
        champion_etag=None,
        held_out_digest="",
        holdout_reuse=1,
        evaluation=run.references["snapshot"],
    )
    store.save(run.paths.document("gate.json"), gate)
    return run.snapshot


def put_large_run(store: ObjectStore) -> None:
    """Put a run with 10,000 out-of-fold answers, of 50,000, with thousands of refused, alike and left-out ones."""
    keys = [f"images/benign/site-0042/patient-{number // 3:06d}/image ({number}).png" for number in range(50_000)]
    refused = tuple({"key": key, "reason": "damaged", "detail": "image file is truncated"} for key in keys[:2500])
    groups = tuple(
        {"group": f"g{n}", "keys": tuple(keys[n : n + 2]), "labels": ("benign",), "how": ("pixels",)} for n in range(0, 10_000, 2)
    )
    left_out = tuple({"key": key, "reason": "near-duplicate of images in folds 1 and 3"} for key in keys[:1000])
    run = samples.whole_run(
        images=10_000,
        checks__json=samples.checks_document(checked=50_000, refused=refused, groups=groups),
        split__json=samples.split_document(left_out=left_out),
    )
    run |= samples.histories(200)
    for name, content in run.items():
        store.put(samples.PATHS.document(name), content)
    for plot in PLOTS:
        store.put(samples.PATHS.plot(plot), os.urandom(300_000))
