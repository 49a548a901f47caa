"""A challenger from the models of several folds: one file, all answers, one document."""

from __future__ import annotations

import io
from typing import Any

import h5py
import numpy as np
import pytest

from bcc_ops.exceptions import ArtifactError, ModelError
from bcc_ops.runs.documents import FoldDocument, Reference, SageMakerJobs, TrainingDocument, parse_document
from bcc_ops.runs.paths import fold_file
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import read_answers, write_answers
from bcc_ops.training import combine
from bcc_ops.training.combine import Combined, combine_folds
from tests.unit.report.samples import CLASSES, PATHS, fold_document, reference

IMAGES = {1: 3, 2: 2, 3: 4}
"""How many images each fold has."""

JOBS = {
    1: SageMakerJobs(jobs=2, instance_types=("ml.g5.xlarge",), billed_seconds=60, saved_seconds=9, without_bill=1),
    2: SageMakerJobs(jobs=1, instance_types=("ml.g5.2xlarge",), billed_seconds=70, saved_seconds=0, without_bill=0),
    3: None,
}


def rows(fold: int) -> list[SplitRow]:
    return [SplitRow(f"{fold}-{n}.png", f"bytes-{fold}-{n}", "benign", "g", fold, f"p-{fold}-{n}") for n in range(IMAGES[fold])]


def probabilities(fold: int) -> np.ndarray:
    return np.array([[0.5 + fold / 10, 0.25, 0.25 - fold / 10]] * IMAGES[fold])


def answers(fold: int) -> bytes:
    return write_answers(rows(fold), CLASSES, probabilities(fold))


def model(fold: int) -> bytes:
    """A file with one weight, which is ten times the fold."""
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened.attrs["model_config"] = "{}"
        opened["dense/kernel"] = np.array([10 * fold], "f4")
    return file.getvalue()


def weight(content: bytes) -> float:
    with h5py.File(io.BytesIO(content), "r") as file:
        return float(file["dense/kernel"][0])


def document(fold: int, **changes: Any) -> FoldDocument:
    own: dict[str, Any] = {
        "versions": {"python": "3.11.2"},
        "devices": (f"CPU: {fold} cores",),
        "host": f"worker-{fold % 2}",
        "images": sum(IMAGES.values()) - IMAGES[fold],
        "epochs": 24,
        "resumed_after_epochs": (fold,),
        "sagemaker": JOBS.get(fold),
        "seconds": 100.0 * fold,
        "seconds_per_epoch": 4.0 * fold,
        "images_per_second": 20.0,
        "peak_memory_mb": 2000.0 + fold,
        "answers": Reference.of(PATHS.document(fold_file(fold, "parquet")), answers(fold)),
        "model": Reference.of(PATHS.document(fold_file(fold, "h5")), model(fold)),
    }
    return fold_document(fold, **{**own, **changes})


def combined(*folds: int, ensemble: bool = False, **changes: Any) -> Combined:
    documents = [document(fold, **changes) for fold in folds]
    models, tables = [model(fold) for fold in folds], [answers(fold) for fold in folds]
    return combine_folds(PATHS, documents, models, tables, ensemble=ensemble)


@pytest.fixture
def mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/unit/models/test_combination.py` asks the real one."""
    monkeypatch.setattr(combine, "mean_of_answers", lambda files: b"mean of %d" % len(files))


def test_an_ensemble_answers_the_mean_of_the_folds_models(mean: None) -> None:
    made = combined(1, 2, 3, ensemble=True)

    assert made.model == b"mean of 3"
    assert made.document.combined == "mean of the answers of 3 models"
    assert made.document.model == Reference.of(PATHS.document("model.h5"), made.model)


def test_without_an_ensemble_the_weights_of_models_with_one_pretrained_start_are_averaged() -> None:
    made = combined(1, 2, 3)

    assert weight(made.model) == 20
    assert made.document.combined == "average of the weights of 3 models"
    assert made.document.model == Reference.of(PATHS.document("model.h5"), made.model)


@pytest.mark.parametrize(
    "start",
    [{"weights": "none"}, {"architecture": "cnn", "weights": "none"}, {"architecture": "cnn", "weights": "imagenet"}],
    ids=["no weights", "the notebook's network", "the notebook's network, which has no pretrained weights"],
)
def test_models_that_began_with_random_weights_answer_their_mean(mean: None, start: dict[str, Any]) -> None:
    """They have no basin in common, so that the mean of their weights would be no model."""
    made = combined(1, 2, 3, **start)

    assert made.model == b"mean of 3"
    assert made.document.combined == "mean of the answers of 3 models"


def test_out_of_fold_answers_are_those_of_every_fold_each_by_the_model_that_did_not_see_it() -> None:
    made = combined(1, 2, 3)

    found, answered = read_answers(made.answers, CLASSES)

    assert found == [*rows(1), *rows(2), *rows(3)]
    np.testing.assert_array_equal(answered, np.concatenate([probabilities(fold) for fold in (1, 2, 3)]))
    assert made.document.answers == Reference.of(PATHS.document("out_of_fold.parquet"), made.answers)


def test_the_document_says_what_the_folds_have_in_common_and_what_each_was() -> None:
    made = combined(1, 2, 3).document

    assert parse_document(TrainingDocument, made.to_json(), "training.json") == made
    assert (made.architecture, made.config_digest, made.split) == ("efficientnet_lite0", "c" * 64, reference("split.json"))
    assert made.images == 9, "the file has learned from every image"
    assert (made.epochs, made.seconds, made.peak_memory_mb) == (24, 600.0, 2003.0)
    assert made.host == "worker-0, worker-1"
    assert made.devices == ("CPU: 1 cores", "CPU: 2 cores", "CPU: 3 cores")
    told = [(fold.fold, fold.images, fold.held_out, fold.seconds, fold.resumed_after_epochs, fold.host) for fold in made.folds]
    assert told == [
        (1, 6, 3, 100.0, (1,), "worker-1"),
        (2, 7, 2, 200.0, (2,), "worker-0"),
        (3, 5, 4, 300.0, (3,), "worker-1"),
    ]
    assert {fold.fold: fold.sagemaker for fold in made.folds} == JOBS
    assert [fold.model for fold in made.folds] == [document(fold).model for fold in (1, 2, 3)]


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_the_model_of_all_folds_sees_images_as_theirs_did(keep_aspect: bool) -> None:
    assert combined(1, 2, keep_aspect=keep_aspect).document.keep_aspect == keep_aspect


def test_a_single_model_is_the_challenger_and_has_not_learned_from_its_fold() -> None:
    made = combined(1)

    assert made.model == model(1)
    assert (made.document.images, made.document.combined) == (6, "the one model")
    assert [fold.fold for fold in made.document.folds] == [1]
    assert read_answers(made.answers, CLASSES)[0] == rows(1)


def test_a_single_model_with_random_weights_stays_as_it_is() -> None:
    assert combined(1, architecture="cnn", weights="none").model == model(1)


def test_a_note_about_determinism_of_any_fold_is_kept() -> None:
    documents = [document(1), document(2, determinism_note="not on this GPU")]
    made = combine_folds(PATHS, documents, [model(1), model(2)], [answers(1), answers(2)], ensemble=False)

    assert made.document.determinism_note == "not on this GPU"


@pytest.mark.parametrize("folds", [(), (1, 1), (1, 2, 1)])
def test_folds_that_are_missing_or_there_twice_are_refused(folds: tuple[int, ...]) -> None:
    with pytest.raises(ArtifactError, match="each fold must occur once"):
        combined(*folds)


@pytest.mark.parametrize(
    "other",
    [
        {"config_digest": "e" * 64},
        {"snapshot_digest": "e" * 64},
        {"split": reference("split.json of before")},
        {"architecture": "cnn"},
        {"image_size": 224},
        {"keep_aspect": True},
        {"seed": 1},
        {"preprocessing": "inside the model: otherwise"},
        {"synthetic": True},
    ],
    ids=lambda other: next(iter(other)),
)
def test_folds_that_were_trained_differently_are_refused(other: dict[str, Any]) -> None:
    documents = [document(1), document(2, **other)]
    said = f"the folds' models differ in {next(iter(other))}: clear train_model"

    with pytest.raises(ArtifactError, match=said):
        combine_folds(PATHS, documents, [model(1), model(2)], [answers(1), answers(2)], ensemble=False)


def test_models_of_other_networks_are_refused() -> None:
    other = io.BytesIO()
    with h5py.File(other, "w") as file:
        file.attrs["model_config"] = "{}"
        file["dense/kernel"] = np.zeros(2, "f4")

    with pytest.raises(ModelError, match="model 2 of 2 is another network"):
        combine_folds(PATHS, [document(1), document(2)], [model(1), other.getvalue()], [answers(1), answers(2)], ensemble=False)
