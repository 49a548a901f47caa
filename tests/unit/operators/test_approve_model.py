"""The approval as a task: what it leaves of an earlier answer when the question is put again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG

from bcc_ops.config import Settings
from bcc_ops.operators.approve_model import ApproveModelOperator
from bcc_ops.runs.documents import ApprovalDocument
from bcc_ops.runs.object_store import ObjectStore
from tests.unit.report.samples import PATHS, RUN_ID, config_document, gate_document, run_handle, snapshot_document

ANSWERED = datetime(2026, 11, 22, 3, tzinfo=timezone.utc)
APPROVAL = PATHS.document("approval.json")


@pytest.fixture
def ask(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ApproveModelOperator]:
    """Put the question as the task does; in place of Airflow's waiting for an answer, nothing happens."""
    monkeypatch.setattr(ApprovalOperator, "execute", lambda task, context: None)
    run = run_handle(store, config_document(require_approval=True), snapshot_document(bucket=store.bucket))
    gate = store.save(PATHS.document("gate.json"), gate_document("approved")).to_xcom()

    def put() -> ApproveModelOperator:
        with DAG("bcc_retraining", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
            task = ApproveModelOperator(task_id="approve_model", run=run, gate=gate)
        task.__dict__["store"] = store
        task.__dict__["settings"] = Settings(bucket=store.bucket)
        given: Any = {"run_id": RUN_ID, "dag_run": SimpleNamespace(dag_id="bcc_retraining", run_id=RUN_ID)}
        task.execute(given)
        return task

    return put


def test_a_question_leaves_no_answer_before_somebody_answers(ask: Callable[[], Any], store: ObjectStore) -> None:
    task = ask()
    assert "replace champion" in task.subject
    assert store.find(ApprovalDocument, APPROVAL) is None


@pytest.mark.parametrize("approved", [True, False])
def test_a_question_that_is_put_again_takes_the_earlier_answer_back(
    ask: Callable[[], Any], store: ObjectStore, approved: bool
) -> None:
    store.save(APPROVAL, ApprovalDocument(approved=approved, by="ada", at=ANSWERED, timed_out=False))
    ask()
    again = store.load_key(ApprovalDocument, APPROVAL)
    assert (again.approved, again.by, again.timed_out) == (None, "nobody yet", False)
    assert again.at > ANSWERED
