"""Decide whether the challenger may replace the champion, and how the run continues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bcc_ops import metrics
from bcc_ops.airflow_names import BranchMixIn
from bcc_ops.operators.base import BccOperator, run_kind
from bcc_ops.runs.documents import EvaluationDocument, GateDocument, Reference, SplitDocument

if TYPE_CHECKING:
    from airflow.sdk import Context


class GateModelOperator(BccOperator, BranchMixIn):
    """Write `gate.json` with the verdict and every rule, then go on to the approval, to the upload, or to neither.

    A rejection is a result: the task succeeds. The XCom is the reference to `gate.json`.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        split, evaluation: references to this run's documents.
        approve_task_id: the task that asks a person.
        upload_task_id: the task that uploads; downstream of the former too.
        always: tasks that run whatever the verdict.
    """

    template_fields: Sequence[str] = ("run", "split", "evaluation")
    inherits_from_skipmixin = True

    def __init__(
        self,
        *,
        run: Any,
        split: Any,
        evaluation: Any,
        approve_task_id: str,
        upload_task_id: str,
        always: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.split = split
        self.evaluation = evaluation
        self.approve_task_id = approve_task_id
        self.upload_task_id = upload_task_id
        self.always = always

    def work(self, context: Context) -> None:
        """Decide, write, say why, branch."""
        from bcc_ops.models.registry import ModelRegistry
        from bcc_ops.promotion.gate import champion_state, decide

        run = self.load_run(self.run, context)
        if self.promoted(run.paths) is not None:
            kept = run.paths.document("gate.json")
            context["ti"].xcom_push(key="return_value", value=self.store.reference(kept).to_xcom())
            self.do_branch(context, [*self.always, self.upload_task_id])
            return
        evaluation = self.load_document(EvaluationDocument, run, self.evaluation)
        registry = ModelRegistry(self.store, self.settings.models_prefix)
        gate = decide(
            evaluation,
            champion_state(registry.champion()),
            run.config,
            as_of=run.paths.as_of,
            run_kind=run_kind(context),
            holdout_reuse=self.load_document(SplitDocument, run, self.split).holdout_reuse,
            reference=Reference.model_validate(self.evaluation),
            split=Reference.model_validate(self.split),
        )
        reference = self.store.save(run.paths.document("gate.json"), gate)
        metrics.verdict(gate, self.instance)
        self.log.info("%s: %s", gate.verdict, " ".join(gate.reasons))
        # Skipping ends a task by an exception, and what `execute` would return never becomes its XCom.
        context["ti"].xcom_push(key="return_value", value=reference.to_xcom())
        self.do_branch(context, self.next_tasks(gate, run.config.require_approval))

    def next_tasks(self, gate: GateDocument, require_approval: bool) -> list[str]:
        """Return the tasks to go on with."""
        if gate.verdict == "rejected":
            return [*self.always]
        asks = require_approval or gate.verdict == "needs_person"
        return [*self.always, self.approve_task_id if asks else self.upload_task_id]
