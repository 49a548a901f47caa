"""Upload the approved challenger and let it be the champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from bcc_ops.artifacts import (
    ClassWeightsDocument,
    EvaluationDocument,
    GateDocument,
    SnapshotDocument,
    TrainingDocument,
    ValidationDocument,
)
from bcc_ops.config import Settings
from bcc_ops.operators.assets import announce, champion_asset
from bcc_ops.operators.base import BccOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class UploadModelOperator(BccOperator):
    """Write the version, test the file as uploaded, move the champion's pointer; returns the reference to promotion.json.

    Updates the asset of the champion, on which other DAGs can be scheduled.

    Args:
        snapshot, training, evaluation, gate: references to this run's documents.
        approval: the XCom of the task that asked a person; None where none was asked.
    """

    template_fields: Sequence[str] = ("snapshot", "training", "evaluation", "gate", "approval")

    def __init__(self, *, snapshot: Any, training: Any, evaluation: Any, gate: Any, approval: Any = None, **kwargs: Any) -> None:
        super().__init__(outlets=[champion_asset(Settings.from_environment())], **kwargs)
        self.snapshot = snapshot
        self.training = training
        self.evaluation = evaluation
        self.gate = gate
        self.approval = approval

    def work(self, context: Context) -> dict[str, str]:
        """Upload, promote, announce."""
        from bcc_ops.dataset.sync import sync_images
        from bcc_ops.promotion.model_card import RunDocuments
        from bcc_ops.promotion.registry import ModelRegistry
        from bcc_ops.promotion.run_upload import upload_run

        run = self.run_documents(self.snapshot)
        documents = RunDocuments(
            snapshot=self.store.load(SnapshotDocument, self.snapshot),
            validation=self.store.load_key(ValidationDocument, run.paths.document("validation.json")),
            class_weights=self.store.load_key(ClassWeightsDocument, run.paths.document("class_weights.json")),
            training=self.store.load(TrainingDocument, self.training),
            evaluation=self.store.load(EvaluationDocument, self.evaluation),
            gate=self.store.load(GateDocument, self.gate),
        )
        registry = ModelRegistry(self.store, self.settings.models_prefix)
        promotion = upload_run(
            registry,
            run.paths,
            documents,
            template=self.settings.model_card_template,
            fetch=partial(sync_images, self.store, cache=self.image_cache),
            by=approver(self.approval),
            now=datetime.now(timezone.utc),
        )
        announce(context, champion_asset(self.settings), promotion.version, promotion.model.sha256)
        self.log.info("Champion is now %s, after %s", promotion.version, promotion.previous_champion or "none")
        return self.store.save(run.paths.document("promotion.json"), promotion).to_xcom()


def approver(approval: Mapping[str, Any] | None) -> str:
    """Who approved, from the approval task's XCom."""
    user = (approval or {}).get("responded_by_user")
    return f"{user['name']} (asked in the UI)" if user else "the gate"
