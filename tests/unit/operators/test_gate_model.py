"""The gate as a task: what it writes, hands on and skips."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import DownstreamTasksSkipped

from bcc_ops.config import Settings
from bcc_ops.exceptions import StorageUnavailable
from bcc_ops.operators.gate_model import GateModelOperator
from bcc_ops.runs.documents import GateDocument
from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import S3Server
from tests.services.faulty_proxy import FAULTS, faulty
from tests.unit.promotion.samples import FailingClient, client_error
from tests.unit.report.samples import (
    PATHS,
    RUN_ID,
    champion_document,
    config_document,
    evaluation_document,
    run_handle,
    snapshot_document,
    split_document,
)

OPENING = {"min_malignant_sensitivity": 0.0, "min_balanced_accuracy": 0.0, "min_macro_auc": 0.0}


class Pushed(dict[str, Any]):
    def __call__(self, *, key: str, value: Any) -> None:
        self[key] = value


@pytest.fixture
def decide(store: ObjectStore) -> Callable[..., tuple[GateDocument, set[str], Pushed]]:
    """Run the gate's task with these parameters: the document it wrote, the tasks it skipped, what it pushed.

    `through`: another way to the bucket, for the task alone.
    """

    def run(
        run_type: str = "scheduled", through: ObjectStore | None = None, **parameters: Any
    ) -> tuple[GateDocument, set[str], Pushed]:
        handle = run_handle(store, config_document(**parameters), snapshot_document(bucket=store.bucket))
        evaluation = store.save(PATHS.document("evaluation.json"), evaluation_document(champion=False)).to_xcom()
        split = store.save(PATHS.document("split.json"), split_document(holdout_reuse=3.5)).to_xcom()
        with DAG("d", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
            gate = GateModelOperator(
                task_id="gate_model",
                run=handle,
                split=split,
                evaluation=evaluation,
                approve_task_id="approve_model",
                upload_task_id="upload_model",
                always=["publish_plots"],
            )
            plots, approve, upload = (EmptyOperator(task_id=name) for name in ("publish_plots", "approve_model", "upload_model"))
            gate >> [plots, approve, upload]
            approve >> upload
        gate.__dict__["store"] = through or store
        gate.__dict__["settings"] = Settings(bucket=store.bucket)
        pushed = Pushed()
        context = {
            "run_id": RUN_ID,
            "ti": SimpleNamespace(task=gate, map_index=-1, xcom_push=pushed),
            "dag_run": SimpleNamespace(run_type=run_type),
        }
        skipped: set[str] = set()
        try:
            gate.execute(context)  # type: ignore[arg-type]
        except DownstreamTasksSkipped as skip:
            skipped = {name for name, _ in skip.tasks}
        return store.load_key(GateDocument, PATHS.document("gate.json")), skipped, pushed

    return run


def test_an_approved_model_goes_to_the_upload_and_nobody_is_asked(decide: Any) -> None:
    gate, skipped, _ = decide(**OPENING)
    assert gate.verdict == "approved_without_champion"
    assert skipped == {"approve_model"}


def test_a_person_is_asked_where_the_run_says_so_and_the_upload_waits_for_it(decide: Any) -> None:
    _, skipped, _ = decide(require_approval=True, **OPENING)
    assert skipped == set()


def test_a_rejected_model_is_a_result_and_the_plots_are_still_published(decide: Any) -> None:
    gate, skipped, _ = decide(min_macro_auc=1.0)
    assert gate.verdict == "rejected"
    assert skipped == {"approve_model", "upload_model"}


def test_a_backfill_is_told_by_the_runs_type_and_leaves_the_champion_alone(decide: Any) -> None:
    gate, skipped, _ = decide(run_type="backfill", **OPENING)
    assert gate.reasons == ("A backfill leaves the champion alone: promote_backfill is off.",)
    assert "upload_model" in skipped


@pytest.mark.parametrize("parameters", [OPENING, {"require_approval": True, **OPENING}, {"min_macro_auc": 1.0}])
def test_the_xcom_is_the_reference_to_gate_json_whatever_is_skipped(decide: Any, store: ObjectStore, parameters: Any) -> None:
    gate, _, pushed = decide(**parameters)
    assert store.load(GateDocument, pushed["return_value"]) == gate


def test_deciding_again_does_not_count_as_another_look(decide: Any) -> None:
    first, _, _ = decide(**OPENING)
    second, _, _ = decide(**OPENING)
    assert first.holdout_reuse == second.holdout_reuse == 3.5


@pytest.mark.parametrize("fault", FAULTS)
def test_an_s3_error_at_any_read_is_one_clear_line_that_a_retry_mends(
    decide: Any, store: ObjectStore, s3_server: S3Server, fault: str
) -> None:
    store.save("models/champion.json", champion_document())
    own = [PATHS.document(name) for name in ("config.json", "evaluation.json", "split.json")]
    broken: list[str] = []
    with faulty(s3_server, lambda path, number: fault if unquote(path).endswith(broken[0]) else None) as proxy:
        shaky = ObjectStore(proxy.client(fault), store.bucket)
        for key in (*own, "models/champion.json"):
            broken[:] = [key]
            with pytest.raises(StorageUnavailable) as told:  # and not AirflowFailException, which no retry follows
                decide(through=shaky, **OPENING)
            assert str(told.value).startswith(f"reading s3://{store.bucket}/{key}: ")
            assert "\n" not in str(told.value)
            assert store.head(PATHS.document("gate.json")) is None
        broken[:] = ["nothing"]
        gate, _, _ = decide(through=shaky, **OPENING)
    assert gate.champion_version == champion_document().version


def test_a_verdict_that_cannot_be_written_is_retried_and_decided_alike(decide: Any, store: ObjectStore) -> None:
    broken = FailingClient(
        store.client, lambda name, key: name == "put_object" and key.endswith("gate.json"), client_error("SlowDown", 503)
    )
    with pytest.raises(StorageUnavailable, match=r"writing s3://.*/gate\.json: SlowDown"):
        decide(through=ObjectStore(broken, store.bucket), **OPENING)  # type: ignore[arg-type]
    gate, skipped, _ = decide(**OPENING)
    assert (gate.verdict, skipped) == ("approved_without_champion", {"approve_model"})
