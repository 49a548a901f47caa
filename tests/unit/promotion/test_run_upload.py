"""A version's name: kept by a retry, and never one that other documents have taken."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from bcc_ops.exceptions import ArtifactError, StorageUnavailable
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.promotion.model_card import RunDocuments
from bcc_ops.promotion.run_upload import model_document, upload_run
from bcc_ops.runs.documents import Document, PromotionDocument
from bcc_ops.runs.object_store import ObjectStore
from tests.unit.promotion.samples import client_error, failing_registry
from tests.unit.report import samples

OFFLINE = ModelRegistry(ObjectStore(None, "bucket"), "models")  # type: ignore[arg-type]


def documents(**changes: Document) -> RunDocuments:
    kept: dict[str, Any] = {
        "snapshot": samples.snapshot_document(),
        "checks": samples.checks_document(),
        "split": samples.split_document(),
        "training": samples.training_document(),
        "evaluation": samples.evaluation_document(champion=False),
        "gate": samples.gate_document("approved_without_champion", champion_version=None, champion_etag=None),
    }
    return RunDocuments(**{**kept, **changes})


def name_of(run: RunDocuments, template: str = "") -> str:
    return model_document(OFFLINE, samples.PATHS, run, template).version


def test_the_same_documents_have_the_same_name_at_every_retry() -> None:
    assert name_of(documents(), "## Contact\nana") == name_of(documents(), "## Contact\nana")


def test_whatever_the_model_card_tells_changes_the_name() -> None:
    """The card is written before model.json: under the same name, an upload that ended between the two could never go on."""
    base = documents()
    others = [
        name_of(documents(snapshot=base.snapshot.model_copy(update={"prefix": "other"}))),
        name_of(documents(checks=base.checks.model_copy(update={"warnings": ("look",)}))),
        name_of(documents(split=base.split.model_copy(update={"salt": "s"}))),
        name_of(documents(training=base.training.model_copy(update={"seconds": 499.0}))),
        name_of(documents(evaluation=base.evaluation.model_copy(update={"slices_unavailable": "3 images"}))),
        name_of(documents(gate=base.gate.model_copy(update={"holdout_reuse": 5}))),
        name_of(base, "## Contact\nana"),
    ]
    assert len({name_of(base), *others}) == 8


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_a_version_says_how_its_images_become_squares(keep_aspect: bool) -> None:
    run = documents(training=samples.training_document(keep_aspect=keep_aspect))
    assert model_document(OFFLINE, samples.PATHS, run, "").keep_aspect == keep_aspect


def test_a_version_says_which_folds_its_models_held_out() -> None:
    """From this it follows what its file was trained on: one model on all folds but its own, several on all."""
    quick_look = documents(training=samples.training_document(folds=(samples.fold_summary(1),)))
    assert model_document(OFFLINE, samples.PATHS, documents(), "").folds == (1, 2, 3, 4, 5)
    assert model_document(OFFLINE, samples.PATHS, quick_look, "").folds == (1,)


def test_a_run_without_answers_of_its_folds_becomes_no_version() -> None:
    run = documents(training=samples.training_document(answers=None))
    with pytest.raises(ArtifactError, match=r"names no out_of_fold\.parquet"):
        model_document(OFFLINE, samples.PATHS, run, "")


def test_an_upload_that_was_cut_short_goes_on_after_the_gate_has_decided_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcc_ops.promotion.run_upload.smoke_test_images", lambda *given: ())
    monkeypatch.setattr("bcc_ops.promotion.run_upload.run_smoke_test", lambda *given, **named: None)
    model = store.put_referenced(samples.PATHS.document("model.h5"), b"weights")
    split = samples.split_document(table=store.put_referenced(samples.PATHS.document("split.parquet"), b"split"))
    answers = store.put_referenced(samples.PATHS.document("out_of_fold.parquet"), b"answers")
    trained = samples.training_document(model=model, answers=answers)
    first = documents(training=trained, split=split)

    def upload(registry: ModelRegistry, run: RunDocuments) -> PromotionDocument:
        now = datetime(2026, 11, 22, 3, tzinfo=timezone.utc)
        return upload_run(registry, samples.PATHS, run, template="", fetch=lambda rows: [], by="the gate", now=now)

    dying, _ = failing_registry(
        store, lambda name, key: name == "put_object" and key.endswith("/model.json"), client_error("SlowDown", 503)
    )
    with pytest.raises(StorageUnavailable):
        upload(dying, first)
    registry = ModelRegistry(store, "models")
    done = upload(registry, documents(training=trained, split=split, gate=first.gate.model_copy(update={"holdout_reuse": 5})))
    assert done.promoted
    version = registry.model(done.version)
    assert version.model.sha256 == model.sha256
    assert version.answers is not None and store.get_referenced(version.answers) == b"answers"
    assert "had served 4.0 gate decisions" in store.get(registry.key(done.version, "model_card.md")).decode()
