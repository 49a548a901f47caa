"""Upload the approved challenger and let it be the champion."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from bcc_ops.exceptions import PromotionLost
from bcc_ops.operators.assets import announce, champion_asset
from bcc_ops.operators.base import BccOperator, Run
from bcc_ops.runs.documents import (
    ApprovalDocument,
    ChecksDocument,
    EvaluationDocument,
    GateDocument,
    Reference,
    SplitDocument,
    TrainingDocument,
)

if TYPE_CHECKING:
    from airflow.sdk import Context


class UploadModelOperator(BccOperator):
    """Write the version, test the file as uploaded, move the champion's pointer; returns the reference to promotion.json.

    Announces the champion on its asset, which must be among the `outlets`: other DAGs can be scheduled on it.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        checks, split, training, evaluation, gate: references to this run's documents.
    """

    template_fields: Sequence[str] = ("run", "checks", "split", "training", "evaluation", "gate")

    def __init__(self, *, run: Any, checks: Any, split: Any, training: Any, evaluation: Any, gate: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.checks = checks
        self.split = split
        self.training = training
        self.evaluation = evaluation
        self.gate = gate

    def work(self, context: Context) -> dict[str, str]:
        """Upload, promote, announce."""
        from bcc_ops.models.registry import ModelRegistry
        from bcc_ops.promotion.model_card import RunDocuments
        from bcc_ops.promotion.run_upload import require_same_model, upload_run

        run = self.load_run(self.run, context)
        if (promoted := self.promoted(run.paths)) is not None:
            self._announce_champion(context)
            return promoted.to_xcom()
        documents = RunDocuments(
            snapshot=run.snapshot,
            checks=self.load_document(ChecksDocument, run, self.checks),
            split=self.load_document(SplitDocument, run, self.split),
            training=self.load_document(TrainingDocument, run, self.training),
            evaluation=self.load_document(EvaluationDocument, run, self.evaluation),
            gate=self.load_document(GateDocument, run, self.gate),
        )
        require_same_model(run.paths, documents, Reference.model_validate(self.evaluation), Reference.model_validate(self.split))
        by = self._approver(run, documents.gate)
        registry = ModelRegistry(self.store, self.settings.models_prefix)
        key = run.paths.document("promotion.json")
        try:
            promotion = upload_run(
                registry,
                run.paths,
                documents,
                template=self.settings.model_card_template,
                fetch=self.fetch_images,
                by=by,
                now=datetime.now(timezone.utc),
            )
        except PromotionLost as error:
            if error.document is not None:
                self.store.save(key, error.document)
            raise
        announce(context, champion_asset(self.settings), promotion.version, promotion.model.sha256)
        self.log.info("Champion is now %s, after %s", promotion.version, promotion.previous_champion or "none")
        return self.store.save(key, promotion).to_xcom()

    def _announce_champion(self, context: Context) -> None:
        """Tell those who wait for the champion which one it is now: the task's success is an event of the asset in any case."""
        from bcc_ops.models.registry import ModelRegistry

        pointer = ModelRegistry(self.store, self.settings.models_prefix).champion()
        if pointer is not None and pointer.champion is not None:
            announce(context, champion_asset(self.settings), pointer.champion.version, pointer.champion.sha256)

    def _approver(self, run: Run, gate: GateDocument) -> str:
        """Return who approved: the gate, or the person that the run had to ask."""
        if not run.config.require_approval and gate.verdict != "needs_person":
            return "the gate"
        from bcc_ops.promotion.approval import require_approval

        shown = Reference.model_validate(dict(self.gate)).sha256
        return require_approval(self.store.find(ApprovalDocument, run.paths.document("approval.json")), shown)
