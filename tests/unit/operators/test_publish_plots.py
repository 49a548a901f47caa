"""The task that publishes: what it hands to the report, and what it writes of the answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG

from bcc_ops.operators.publish_plots import PublishPlotsOperator
from bcc_ops.runs.bundle import BUNDLE
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from tests.factories.tasks import context, in_bucket
from tests.unit.report.samples import AS_OF, PATHS, RUN_ID, config_document, gate_document, run_handle, snapshot_document

Publish = Callable[..., dict[str, str]]
asked: list[Any] = []


@pytest.fixture
def publish(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Do the task with these references; drawing is tested by test_publish.py."""
    asked.clear()

    def publish_report(store: ObjectStore, paths: RunPaths, run_id: str, references: Any, **more: Any) -> Any:
        asked.append((run_id, references))
        return SimpleNamespace(plots={"roc": b"png"}, page=b"<!doctype html>")

    monkeypatch.setattr("bcc_ops.report.publish.publish_report", publish_report)

    def do(**references: Any) -> dict[str, str]:
        run = run_handle(store, config_document(), snapshot_document(bucket=store.bucket))
        with DAG("bcc_retraining", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
            task = in_bucket(PublishPlotsOperator(task_id="publish_plots", run=run, **references), store)
        done: dict[str, str] = task.execute(context())
        return done

    return do


def test_a_report_is_written_of_what_the_run_has(publish: Publish, store: ObjectStore) -> None:
    gate = store.save(PATHS.document("gate.json"), gate_document("rejected")).to_xcom()
    reference = publish(gate=gate)
    ((run_id, references),) = asked
    assert run_id == RUN_ID
    assert {name for name, found in references.items() if found is not None} == {"config.json", "snapshot.json", "gate.json"}
    assert references["gate.json"] == gate
    assert reference["key"] == PATHS.document("report.html") and store.get(reference["key"]) == b"<!doctype html>"
    assert store.get(PATHS.plot("roc")) == b"png"
    assert store.head(PATHS.document(BUNDLE)) is not None


def test_a_document_of_another_run_is_not_published(publish: Publish, store: ObjectStore) -> None:
    other = RunPaths.of("artifacts", AS_OF, "manual__other").document("gate.json")
    with pytest.raises(AirflowFailException, match=r"which is not the run's own gate\.json"):
        publish(gate=store.save(other, gate_document("rejected")).to_xcom())
    assert asked == []
