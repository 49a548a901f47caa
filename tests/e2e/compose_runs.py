"""What the tests of the compose file's services share: tiny runs, images for them, and what may never be torn."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bcc_ops.config import NO_FINDINGS
from bcc_ops.dataset.synthetic import write_images
from bcc_ops.runs.documents import (
    ChecksDocument,
    ConfigDocument,
    Document,
    EvaluationDocument,
    FoldDocument,
    GateDocument,
    PromotionDocument,
    Reference,
    SnapshotDocument,
    SplitDocument,
    TrainingDocument,
)
from bcc_ops.runs.index import find_run
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths, fold_file
from local.compose_stack import ComposeStack

DAG_ID = "bcc_retraining"
ARTIFACTS = "artifacts"

TINY: dict[str, Any] = {
    "architecture": "cnn",
    "weights": "none",
    "image_size": 64,
    "batch_size": 8,
    "epochs": 2,
    "folds": 1,
    "settle_seconds": 0,
    "test_time_flip": False,
    "min_malignant_groups": 1,
    "min_balanced_accuracy": 0.0,
    "min_macro_auc": 0.0,
    "min_malignant_sensitivity": 0.0,
    "min_malignant_specificity": 0.0,
    "balanced_accuracy_margin": 1.0,
    "sensitivity_margin": 1.0,
    "content_findings": NO_FINDINGS,  # reading text takes some tenths of a second per image
}
"""Parameters of a run that takes seconds and passes the gate: what is tested here is not the model."""

DOCUMENTS: dict[str, type[Document]] = {
    "config.json": ConfigDocument,
    "snapshot.json": SnapshotDocument,
    "checks.json": ChecksDocument,
    "split.json": SplitDocument,
    "training.json": TrainingDocument,
    "evaluation.json": EvaluationDocument,
    "gate.json": GateDocument,
    "promotion.json": PromotionDocument,
}


def unpause(stack: ComposeStack, dag_id: str) -> None:
    """Let a DAG run, without the run that makes up for the last night: a DAG has one active run, and that one would wait."""
    stack.api.set_paused(dag_id, False)
    stack.await_("the nightly run", lambda: bool(stack.api.runs(dag_id)))
    (nightly,) = stack.api.runs(dag_id)
    stop_run(stack, dag_id, nightly["dag_run_id"])


def stop_run(stack: ComposeStack, dag_id: str, run_id: str) -> None:
    """Mark a run failed, as a person does in the UI to end it."""
    stack.api.call("PATCH", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}", json={"state": "failed"})


def upload_synthetic_images(store: ObjectStore, per_class: int, seed: int) -> None:
    """Draw images and put them where the pipeline looks for them."""
    with tempfile.TemporaryDirectory() as folder:
        for file in write_images(Path(folder), per_class, seed=seed):
            store.put_file(f"images/{file.parent.name}/{file.name}", file, "image/png")


def whole_documents(stack: ComposeStack, run_id: str, *, promoted: bool = True) -> dict[str, Any]:
    """Every document of a run, each read as what it is, and each reference in it followed to the bytes that it promises.

    Args:
        promoted: whether the run must have come to a promotion; else it may have ended with its verdict.

    Raises:
        AssertionError: the run has no folder, or a document is missing.
        ArtifactError: a document is torn, or a reference leads to something else.
    """
    paths = find_run(stack.store, ARTIFACTS, run_id)
    assert isinstance(paths, RunPaths), f"{run_id} left no folder"
    documents = {name: stack.store.find(kind, paths.document(name)) for name, kind in DOCUMENTS.items()}
    if isinstance(training := documents["training.json"], TrainingDocument):
        names = [fold_file(summary.fold, "json") for summary in training.folds]
        documents |= {name: stack.store.find(FoldDocument, paths.document(name)) for name in names}
    if not promoted:
        documents.pop("promotion.json")
    assert not [name for name, document in documents.items() if document is None]
    for document in documents.values():
        for field in type(document).model_fields:  # type: ignore[union-attr]
            if isinstance(reference := getattr(document, field), Reference):
                stack.store.get_referenced(reference)
    return documents
