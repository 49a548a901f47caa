"""The task that uploads the model: on which documents it acts, what it announces and hands on."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG

from bcc_ops.config import Settings
from bcc_ops.exceptions import PromotionLost
from bcc_ops.operators.assets import champion_asset
from bcc_ops.operators.upload_model import UploadModelOperator
from bcc_ops.runs.documents import ApprovalDocument, Document, PromotionDocument, Reference
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from tests.factories.tasks import context, in_bucket
from tests.unit.promotion.samples import NOW
from tests.unit.report.samples import (
    AS_OF,
    PATHS,
    checks_document,
    config_document,
    evaluation_document,
    gate_document,
    run_handle,
    snapshot_document,
    split_document,
    training_document,
)


def uploading(store: ObjectStore, approval: ApprovalDocument | None = None, verdict: str = "approved", **parameters: Any) -> Any:
    """The upload of an approved model. An answer in `approval` is made to be about this very verdict."""

    def save(name: str, document: Document) -> Reference:
        return store.save(PATHS.document(f"{name}.json"), document)

    split, evaluation = save("split", split_document()), save("evaluation", evaluation_document())
    references = {
        "checks": save("checks", checks_document()),
        "split": split,
        "training": save("training", training_document(split=split)),
        "evaluation": evaluation,
        "gate": save("gate", gate_document(verdict, evaluation=evaluation, split=split)),
    }
    saved = {name: reference.to_xcom() for name, reference in references.items()}
    saved["run"] = run_handle(store, config_document(**parameters), snapshot_document(bucket=store.bucket))
    if approval is not None:
        about = approval.gate or saved["gate"]["sha256"]
        store.save(PATHS.document("approval.json"), approval.model_copy(update={"gate": about}))
    with DAG("d", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
        return in_bucket(UploadModelOperator(task_id="upload_model", **saved), store)


ANA = ApprovalDocument(approved=True, by="ana", at=NOW, timed_out=False)


def test_a_model_that_needs_a_person_is_not_uploaded_without_one(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run did not ask for an approval, and approve_model was marked successful by hand."""
    monkeypatch.setattr("bcc_ops.promotion.run_upload.upload_run", lambda *given, **more: pytest.fail("it was uploaded"))
    with pytest.raises(AirflowFailException, match=r"ApprovalMissing: .*nobody has given one"):
        uploading(store, verdict="needs_person").execute(context())


@pytest.mark.parametrize(
    ("approval", "why"),
    [
        (None, "nobody has given one"),
        (ANA.model_copy(update={"approved": None, "by": "nobody yet"}), "nobody has given one"),
        (ANA.model_copy(update={"gate": "0" * 64}), "the approval by ana is for another verdict"),
        (ANA.model_copy(update={"approved": False}), "ana rejected this model"),
    ],
    ids=["marked successful by hand", "asked again", "of an earlier verdict", "rejected"],
)
def test_a_run_that_asks_for_an_approval_uploads_nothing_without_it(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, approval: ApprovalDocument | None, why: str
) -> None:
    monkeypatch.setattr("bcc_ops.promotion.run_upload.upload_run", lambda *given, **more: pytest.fail("it was uploaded"))
    with pytest.raises(AirflowFailException, match=f"ApprovalMissing: .*{why}"):
        uploading(store, approval, require_approval=True).execute(context())


@pytest.mark.parametrize("name", ["config", "snapshot", "checks", "split", "evaluation", "gate"])
def test_a_document_that_somebody_overwrote_is_not_acted_on(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An overwritten config.json could switch off the approval and the floors of the gate."""
    monkeypatch.setattr("bcc_ops.promotion.run_upload.upload_run", lambda *given, **more: pytest.fail("it was uploaded"))
    task = uploading(store, require_approval=name == "config")
    key = PATHS.document(f"{name}.json")
    store.put(key, store.get(key).replace(b'"require_approval": true', b'"require_approval": false') + b"\n")
    with pytest.raises(AirflowFailException, match=f"{name}.json has changed since the reference to it was made"):
        task.execute(context())


def test_a_task_marked_successful_by_hand_is_told_as_the_cause(store: ObjectStore) -> None:
    task = uploading(store)
    task.gate = None
    with pytest.raises(AirflowFailException, match="an earlier task handed on no GateDocument"):
        task.execute(context())


OTHER = Reference(key=PATHS.document("model.h5"), sha256="0" * 64)


@pytest.mark.parametrize(
    ("name", "document", "why"),
    [
        ("evaluation", evaluation_document(champion=False), "gate.json is about another evaluation: clear gate_model too"),
        ("evaluation", evaluation_document(model=OTHER), "evaluation.json is about another model .* clear evaluate_model"),
        ("evaluation", evaluation_document(held_out_digest="0" * 64), "evaluation.json is about another model or other images"),
        ("training", training_document(model=OTHER), "evaluation.json is about another model .* clear evaluate_model"),
        ("training", training_document(split=OTHER), "trained with another split of this run: clear train_model"),
        ("split", split_document(salt="other"), "trained with another split of this run: clear train_model"),
        ("gate", gate_document("approved", evaluation=OTHER), "gate.json is about another evaluation: clear gate_model too"),
    ],
    ids=["evaluated again", "other model", "other images", "trained again", "other split", "split again", "other evaluation"],
)
def test_a_model_that_the_gate_did_not_judge_is_not_uploaded(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, name: str, document: Document, why: str
) -> None:
    """Somebody cleared one task without those after it: each document is this run's own and of the digest handed on."""
    monkeypatch.setattr("bcc_ops.promotion.run_upload.upload_run", lambda *given, **more: pytest.fail("it was uploaded"))
    task = uploading(store)
    setattr(task, name, store.save(PATHS.document(f"{name}.json"), document).to_xcom())
    with pytest.raises(AirflowFailException, match=f"ArtifactError: .*{why}"):
        task.execute(context())


@pytest.mark.parametrize("name", ["checks", "split", "training", "evaluation", "gate"])
def test_a_document_of_another_run_is_not_acted_on(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whoever may edit XComs could otherwise promote a model under the verdict of another run."""
    monkeypatch.setattr("bcc_ops.promotion.run_upload.upload_run", lambda *given, **more: pytest.fail("it was uploaded"))
    task = uploading(store)
    own = store.get(PATHS.document(f"{name}.json"))
    other = RunPaths.of("artifacts", AS_OF, "manual__other").document(f"{name}.json")
    setattr(task, name, store.put_referenced(other, own).to_xcom())
    with pytest.raises(AirflowFailException, match=f"handed on {other}, which is not the run's own {name}.json"):
        task.execute(context())


def test_a_task_works_for_no_other_run_than_its_own(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcc_ops.promotion.run_upload.upload_run", lambda *given, **more: pytest.fail("it was uploaded"))
    with pytest.raises(AirflowFailException, match="and not of this run, 'manual__other': clear snapshot_dataset"):
        uploading(store).execute({**context(), "run_id": "manual__other"})


def test_an_upload_writes_promotion_json_with_who_approved_and_updates_the_asset(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upload_run(registry: Any, paths: Any, documents: Any, **given: Any) -> PromotionDocument:
        return PromotionDocument(
            version="v2",
            model=documents.training.model,
            promoted=True,
            reason="better",
            previous_champion="v1",
            approved_by=given["by"],
            at=NOW,
        )

    monkeypatch.setattr("bcc_ops.promotion.run_upload.upload_run", upload_run)
    given = context()
    reference = uploading(store, ANA, require_approval=True).execute(given)
    assert store.load(PromotionDocument, reference).approved_by == "ana (asked in the UI)"
    store.client.delete_object(Bucket=store.bucket, Key=PATHS.document("promotion.json"))
    unasked = uploading(store).execute(context())
    assert store.load(PromotionDocument, unasked).approved_by == "the gate"
    asset = champion_asset(Settings(bucket=store.bucket))
    assert given["outlet_events"][asset].extra["version"] == "v2"


def test_a_lost_race_fails_the_task_and_announces_nothing(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*given: Any, **more: Any) -> PromotionDocument:
        raise PromotionLost("version v2 is uploaded but was not promoted, since the champion has moved to v3 in the meantime")

    monkeypatch.setattr("bcc_ops.promotion.run_upload.upload_run", lose)
    given = context()
    with pytest.raises(AirflowFailException, match="PromotionLost: version v2 is uploaded but was not promoted"):
        uploading(store).execute(given)
    assert given["outlet_events"] == {}
