"""A training that was done and not reported is found again, and nothing else is taken for it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from bcc_ops.runs.documents import Reference, TrainingDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.training.completed import find_completed
from tests.unit.report.samples import PATHS, reference, training_document

INPUTS: dict[str, Any] = {
    "snapshot_digest": "d" * 64,
    "config_digest": "c" * 64,
    "split": reference("split.json"),
    "preprocessing": "inside the model; its odds of malignant are multiplied by 4",
}


@pytest.fixture
def finished(store: ObjectStore) -> Reference:
    """The reference to the training.json of a training that is done."""
    document = training_document(
        **INPUTS,
        model=store.put_referenced(PATHS.document("model.h5"), b"a model"),
        history=store.put_referenced(PATHS.document("history.csv"), b"epoch\n1\n"),
    )
    return store.save(PATHS.document("training.json"), document)


def test_a_training_of_the_same_inputs_is_handed_on(store: ObjectStore, finished: Reference) -> None:
    assert find_completed(store, PATHS, **INPUTS) == finished


def test_nothing_is_found_before_the_first_training(store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    assert find_completed(store, PATHS, **INPUTS) is None
    assert not caplog.records


@pytest.mark.parametrize(
    "other",
    [
        {"snapshot_digest": "e" * 64},
        {"config_digest": "e" * 64},
        {"split": reference("split.json of before")},
        {"preprocessing": "inside the model; its odds of malignant are multiplied by 2"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_training_of_other_inputs_is_not_handed_on(
    store: ObjectStore, finished: Reference, other: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert find_completed(store, PATHS, **{**INPUTS, **other}) is None
    assert "other images, parameters or weights" in caplog.text


@pytest.mark.parametrize("name", ["model.h5", "history.csv"])
def test_a_training_whose_files_are_not_what_it_promised_is_not_handed_on(
    store: ObjectStore, finished: Reference, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        store.put(PATHS.document(name), b"a later attempt's")
        assert find_completed(store, PATHS, **INPUTS) is None
        store.client.delete_object(Bucket=store.bucket, Key=PATHS.document(name))
        assert find_completed(store, PATHS, **INPUTS) is None
    assert [name in record.message for record in caplog.records] == [True, True]


def test_a_document_of_before_its_class_weights_were_named_is_not_handed_on(store: ObjectStore, finished: Reference) -> None:
    document = store.load(TrainingDocument, finished)
    older = document.model_dump(mode="json", exclude={"split"})
    store.save(PATHS.document("training.json"), TrainingDocument.model_validate(older))

    assert find_completed(store, PATHS, **INPUTS) is None


def test_a_torn_document_is_trained_over(store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    store.put(PATHS.document("training.json"), b'{"preset": "tran')

    assert find_completed(store, PATHS, **INPUTS) is None
    assert "training again" in caplog.text
