"""A training that was done and not reported is found again, and nothing else is taken for it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from bcc_ops.config import RetrainingConfig
from bcc_ops.runs.documents import FoldDocument, Reference
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import fold_file
from bcc_ops.training.completed import describe_preprocessing, find_completed
from tests.unit.report.samples import CLASSES, PATHS, reference

INPUTS: dict[str, Any] = {
    "snapshot_digest": "d" * 64,
    "config_digest": "c" * 64,
    "split": reference("split.json"),
    "preprocessing": describe_preprocessing(RetrainingConfig(test_time_flip=True)),
}
FOLD = 2


def key(ending: str, fold: int = FOLD) -> str:
    return PATHS.document(fold_file(fold, ending))


@pytest.fixture
def finished(store: ObjectStore) -> Reference:
    """The reference to the document of a fold's training that is done."""
    document = FoldDocument(
        **INPUTS,
        fold=FOLD,
        preset="transfer",
        architecture="efficientnet_lite0",
        weights="imagenet",
        classes=CLASSES,
        image_size=256,
        parameters=3_417_035,
        seed=20261122,
        deterministic=True,
        determinism_note=None,
        mixed_precision=False,
        xla="off",
        versions={"python": "3.11.2"},
        devices=("CPU: 2 cores",),
        host="worker-1",
        images=419,
        epochs=24,
        resumed_after_epochs=(5,),
        seconds=498.0,
        seconds_per_epoch=20.75,
        images_per_second=20.2,
        peak_memory_mb=2210.0,
        synthetic=False,
        model=store.put_referenced(key("h5"), b"a model"),
        history=store.put_referenced(key("csv"), b"epoch\n1\n"),
        answers=store.put_referenced(key("parquet"), b"answers"),
    )
    return store.save(key("json"), document)


def test_a_training_of_the_same_inputs_is_handed_on(store: ObjectStore, finished: Reference) -> None:
    assert find_completed(store, PATHS, FOLD, **INPUTS) == finished


def test_the_training_of_another_fold_is_not_handed_on(store: ObjectStore, finished: Reference) -> None:
    assert find_completed(store, PATHS, FOLD + 1, **INPUTS) is None


def test_nothing_is_found_before_the_first_training(store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    assert find_completed(store, PATHS, FOLD, **INPUTS) is None
    assert not caplog.records


@pytest.mark.parametrize(
    "other",
    [
        {"snapshot_digest": "e" * 64},
        {"config_digest": "e" * 64},
        {"split": reference("split.json of before")},
        {"preprocessing": describe_preprocessing(RetrainingConfig(test_time_flip=False))},
        {"preprocessing": describe_preprocessing(RetrainingConfig(test_time_flip=True, keep_aspect=False))},
    ],
    ids=["snapshot", "parameters", "split", "mirror image", "aspect"],
)
def test_a_training_of_other_inputs_is_not_handed_on(
    store: ObjectStore, finished: Reference, other: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert find_completed(store, PATHS, FOLD, **{**INPUTS, **other}) is None
    assert "other images, parameters or weights" in caplog.text


@pytest.mark.parametrize("ending", ["h5", "csv", "parquet"])
def test_a_training_whose_files_are_not_what_it_promised_is_not_handed_on(
    store: ObjectStore, finished: Reference, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        store.put(key(ending), b"a later attempt's")
        assert find_completed(store, PATHS, FOLD, **INPUTS) is None
        store.client.delete_object(Bucket=store.bucket, Key=key(ending))
        assert find_completed(store, PATHS, FOLD, **INPUTS) is None
    assert [fold_file(FOLD, ending) in record.message for record in caplog.records] == [True, True]


def test_a_document_that_names_no_split_is_not_handed_on(store: ObjectStore, finished: Reference) -> None:
    document = store.load(FoldDocument, finished)
    unnamed = document.model_dump(mode="json", exclude={"split"})
    store.save(key("json"), FoldDocument.model_validate(unnamed))

    assert find_completed(store, PATHS, FOLD, **INPUTS) is None


def test_a_torn_document_is_trained_over(store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    store.put(key("json"), b'{"preset": "tran')

    assert find_completed(store, PATHS, FOLD, **INPUTS) is None
    assert "training again" in caplog.text
