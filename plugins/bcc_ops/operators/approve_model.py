"""Ask a person before a model is uploaded."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

from bcc_ops.operators.base import BccOperator, airflow_errors
from bcc_ops.promotion.approval import approval_text
from bcc_ops.runs.documents import ApprovalDocument, GateDocument, Reference

if TYPE_CHECKING:
    from airflow.sdk import Context


class ApproveModelOperator(BccOperator, ApprovalOperator):
    """Show the gate's reasons to a person and wait for an answer; none in time is a rejection.

    The provider's `ApprovalOperator` with what it takes at parse time (the text, the time-out) taken from the run.
    Writes `approval.json`, and withdraws an earlier answer in it when it asks again. The XCom stays the provider's: chosen
    option, who answered and when.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        gate: reference to gate.json.
    """

    template_fields = (*ApprovalOperator.template_fields, "run", "gate")

    def __init__(self, *, run: Any, gate: Any, **kwargs: Any) -> None:
        super().__init__(subject="Replace the model in use?", defaults=ApprovalOperator.REJECT, **kwargs)
        self.run = run
        self.gate = gate

    def work(self, context: Context) -> Any:
        """Ask the question."""
        run = self.load_run(self.run, context)
        self.response_timeout = timedelta(minutes=run.config.approval_timeout_minutes)
        self.subject, self.body = approval_text(
            self.load_document(GateDocument, run, self.gate), run.snapshot, run.paths, self.report_url(context)
        )
        answer = run.paths.document("approval.json")
        if self.store.head(answer):  # Overwritten and not deleted: the workers may delete no document.
            again = ApprovalDocument(approved=None, by="nobody yet", at=datetime.now(timezone.utc), timed_out=False)
            self.store.save(answer, again)
        return ApprovalOperator.execute(self, context)

    def report_url(self, context: Context) -> str:
        """Address of the run's report page, relative to the UI."""
        run = context["dag_run"]
        return f"/bcc/runs/{run.dag_id}/{run.run_id}/report"

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Keep the answer, then go on or skip the upload."""
        if "error" not in event:
            with airflow_errors():
                run = self.load_run(self.run, context)
                self.store.save(run.paths.document("approval.json"), self.answer(event))
        return super().execute_complete(context, event)

    def answer(self, event: Mapping[str, Any]) -> ApprovalDocument:
        """Return the provider's event as our document. An answer from nobody is the time-out's default."""
        user = event["responded_by_user"]
        return ApprovalDocument(
            approved=event["chosen_options"][0] == self.APPROVE,
            by=user["name"] if user else "nobody, in time",
            at=event["responded_at"],
            timed_out=user is None,
            gate=Reference.model_validate(dict(self.gate)).sha256,
        )
