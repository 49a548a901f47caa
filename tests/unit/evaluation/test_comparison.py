from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcc_ops.evaluation.comparison import (
    ACROSS_FOLDS,
    NEAR_DUPLICATE,
    TRAINED_ON,
    LabelledImages,
    RunImages,
    compare,
    score,
    scores_of,
    seen_by,
)
from bcc_ops.evaluation.metrics import ScoredModel, choose_threshold, cross_fit
from bcc_ops.exceptions import DataError, ModelError
from bcc_ops.models.champion import ChampionModel
from bcc_ops.runs.documents import Comparison
from bcc_ops.runs.rows import AssignmentRow, SplitRow
from tests.unit.evaluation.answering import (
    CLASSES,
    PLAN,
    SPLIT,
    Answering,
    Fixed,
    answers_about,
    content,
    images_of,
    older_version,
    rows,
    version_with_folds,
)


def challenger(split: list[SplitRow] | None = None) -> ScoredModel:
    asked = SPLIT if split is None else split
    scores = scores_of([row.label for row in asked], [row.group for row in asked], answers_about(asked), PLAN)
    return cross_fit(scores, np.array([row.fold for row in asked]), PLAN.positive, 0.9, "out-of-fold answers")


def compared(
    version: ChampionModel, images: RunImages | None = None, split: list[SplitRow] | None = None
) -> tuple[Comparison, np.ndarray | None]:
    asked = SPLIT if split is None else split
    comparison, theirs = compare(version, challenger(asked), asked, images or images_of(asked), PLAN)
    return comparison, theirs.probabilities if theirs else None


# By recorded answers --------------------------------------------------------------------------------------------------


def test_recorded_answers_are_used_and_the_file_is_not_asked_about_what_it_was_made_from() -> None:
    file = Answering(0.0)
    version = version_with_folds(model=file)
    comparison, answers = compared(version)
    assert (comparison.recorded, comparison.asked, comparison.left_out) == (120, 0, {})
    assert file.asked == []
    assert answers == pytest.approx(version.answers, abs=1e-6)
    assert comparison.positive_groups == 40


def test_the_file_is_asked_about_images_that_are_new_since() -> None:
    new = rows(2, 9, name="new")
    file = Answering(0.6)
    comparison, answers = compared(version_with_folds(model=file), split=[*SPLIT, *new])
    assert (comparison.recorded, comparison.asked, comparison.left_out) == (120, 9, {})
    assert file.asked == [row.key for row in new]
    assert answers is not None and not np.isnan(answers).any()


def test_an_image_is_recognised_by_its_pixels_whatever_its_fold_is_today() -> None:
    known = [row._replace(pixels=f"pixels of {row.key}") for row in SPLIT]
    encoded_anew = [row._replace(sha256=f"anew {row.sha256}", fold=row.fold % 5 + 1, key=row.key) for row in known]
    comparison, _ = compared(version_with_folds(known), images_of(encoded_anew), encoded_anew)
    assert (comparison.recorded, comparison.asked, comparison.left_out) == (120, 0, {})


def test_an_answer_of_a_model_that_trained_on_a_near_duplicate_is_not_honest() -> None:
    """Nobody took them for near-duplicates when the version was made: they were in two of its folds."""
    one, other = SPLIT[0], SPLIT[24]
    assert (one.fold, other.fold) == (1, 2)
    joined = [row._replace(group="together", fold=1) if row.key in (one.key, other.key) else row for row in SPLIT]
    comparison, answers = compared(version_with_folds(), images_of(joined), joined)
    assert (comparison.recorded, comparison.asked, comparison.left_out) == (118, 0, {ACROSS_FOLDS: 2})
    assert answers is not None and np.isnan(answers[[0, 24]]).all() and not np.isnan(answers[1:24]).any()


def test_near_duplicates_that_were_in_one_fold_are_honest() -> None:
    joined = [row._replace(group="together") if row.key in (SPLIT[0].key, SPLIT[1].key) else row for row in SPLIT]
    comparison, _ = compared(version_with_folds(), images_of(joined), joined)
    assert (comparison.recorded, comparison.left_out) == (120, {})


def test_a_refused_near_duplicate_in_another_of_its_folds_counts_too() -> None:
    refused = SPLIT[24]
    present = [row for row in SPLIT if row.key != refused.key]
    contents = [content(row) for row in present]
    images = images_of(present, contents=[*contents, content(refused, SPLIT[0].group)])
    comparison, _ = compared(version_with_folds(), images, present)
    assert (comparison.recorded, comparison.left_out) == (118, {ACROSS_FOLDS: 1})


def test_a_new_image_near_one_that_the_file_was_made_from_is_left_out() -> None:
    new = rows(1, 1, name="new")[0]._replace(group=SPLIT[0].group)
    comparison, _ = compared(version_with_folds(), split=[*SPLIT, new])
    assert (comparison.recorded, comparison.asked, comparison.left_out) == (120, 0, {NEAR_DUPLICATE: 1})


def test_a_version_with_one_fold_answers_about_that_and_about_new_images_alone() -> None:
    held_out = [row for row in SPLIT if row.fold == 1]
    trained_on = frozenset(row.sha256 for row in SPLIT if row.fold != 1)
    version = version_with_folds(answered=tuple(held_out), answers=answers_about(held_out, Answering(0.6)), seen=trained_on)
    near_held_out = rows(1, 1, name="new")[0]._replace(group=held_out[0].group)
    split = [*SPLIT, near_held_out]
    comparison, _ = compared(version, split=split)
    assert (comparison.recorded, comparison.asked, comparison.left_out) == (24, 1, {TRAINED_ON: 96})


def test_recorded_answers_are_judged_by_its_other_folds_and_new_ones_by_its_own_threshold() -> None:
    version, new = version_with_folds(), rows(2, 9, name="new")
    asked = [*SPLIT, *new]
    theirs = scores_of([row.label for row in SPLIT], [row.group for row in SPLIT], version.answers, PLAN)
    cuts = {
        fold: choose_threshold(theirs.subset(np.array([r.fold != fold for r in SPLIT])), 1, 0.9, "").value for fold in range(1, 6)
    }
    answers = np.concatenate([version.answers, answers_about(new, Answering(0.6, seed=2))])
    wanted = np.array([*(cuts[row.fold] for row in SPLIT), *[0.4] * len(new)])
    called = [answers[i, 1] >= wanted[i] for i, row in enumerate(asked) if row.label == "malignant"]
    comparison, _ = compared(version, split=asked)
    assert comparison.champion is not None
    assert comparison.champion.operating_point.sensitivity.value == pytest.approx(np.mean(called))
    assert comparison.champion.operating_point.threshold == 0.4


def test_classes_in_another_order_are_read_by_name() -> None:
    order = ("normal", "benign", "malignant")
    version = version_with_folds(classes=order, model=Answering(0.99, order=order, seed=2))
    comparison, answers = compared(version, split=[*SPLIT, *rows(1, 3, name="new")])
    assert answers is not None and answers[:120] == pytest.approx(version.answers[:, [1, 2, 0]], abs=1e-6)
    assert comparison.champion is not None and comparison.champion.accuracy.value > 0.8


# By the file alone, for a version of an older release -----------------------------------------------------------------


def test_both_are_judged_on_the_same_images_and_as_pairs() -> None:
    comparison, _ = compared(older_version())
    assert comparison.challenger is not None and comparison.champion is not None
    assert comparison.challenger.images == comparison.champion.images == comparison.asked == 120
    difference = comparison.differences["balanced_accuracy"]
    own, other = comparison.challenger.balanced_accuracy.value, comparison.champion.balanced_accuracy.value
    assert own is not None and other is not None
    assert difference.value == pytest.approx(own - other)
    kinds = {"malignant_sensitivity", "malignant_specificity", "malignant_sensitivity_at_operating_point", "malignant_auc"}
    assert {"macro_auc", "accuracy", *kinds} <= set(comparison.differences)


def test_an_older_version_is_never_asked_about_what_it_was_trained_on_or_near_duplicates_of_it() -> None:
    memory = Answering(0.6)
    # Image 0 itself; image 1 by a near-duplicate that this run refused; image 2 through its patient's other image, 3.
    seen = frozenset({SPLIT[0].sha256, "sha-gone-from-the-split", SPLIT[3].sha256})
    split = [row._replace(group="patient-7") if row.key in (SPLIT[2].key, SPLIT[3].key) else row for row in SPLIT]
    refused = content(SplitRow("refused", "sha-gone-from-the-split", "benign", "", 1), SPLIT[1].group)
    images = images_of(split, contents=[*(content(row) for row in SPLIT), refused])
    comparison, answers = compared(older_version(seen=seen, model=memory), images, split)
    assert comparison.left_out == {TRAINED_ON: 2, NEAR_DUPLICATE: 2}
    assert comparison.champion is not None and comparison.champion.images == 116
    assert not {row.key for row in SPLIT[:4]} & set(memory.asked)
    assert answers is not None and np.isnan(answers[:4]).all() and not np.isnan(answers[4:]).any()


def test_seen_images_are_found_by_content_whatever_their_key() -> None:
    moved = SplitRow("elsewhere/renamed.png", "sha-1", "benign", "g", 1)
    assert seen_by(frozenset({"sha-1"}), RunImages([moved], [], [], {})) == {"elsewhere/renamed.png": TRAINED_ON}
    assert seen_by(frozenset(), RunImages([moved], [content(moved)], [], {})) == {}


def test_images_whose_metadata_was_stripped_are_recognised_by_their_pixels() -> None:
    stripped = SplitRow("benign/a.png", "sha-of-the-stripped-file", "benign", "g", 1, "sha-of-the-pixels")
    seen = frozenset({"sha-of-the-file", "sha-of-the-pixels"})
    assert seen_by(seen, RunImages([stripped], [], [], {})) == {"benign/a.png": TRAINED_ON}


def test_an_image_of_a_patient_whose_trained_on_image_is_absent_is_not_held_out() -> None:
    present = SplitRow("p7/b.png", "sha-b", "benign", "patient-7", 1)
    absent = AssignmentRow("p7/a.png", "sha-a", "", "benign", "patient-7", 0, 0)
    assert seen_by(frozenset({"sha-a"}), RunImages([present], [], [absent], {})) == {"p7/b.png": NEAR_DUPLICATE}


def test_a_version_that_has_seen_every_image_and_stored_no_answers_is_not_compared() -> None:
    comparison, answers = compared(older_version(seen=frozenset(row.sha256 for row in SPLIT)))
    assert (comparison.champion, answers) == (None, None)
    assert comparison.problem == "version v1 was trained on all of these images, or near-duplicates, and stored no answers"
    assert comparison.left_out == {TRAINED_ON: 120}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"problem": "models/v1/model.h5 is gone"}, "models/v1/model.h5 is gone"),
        ({"classes": ("benign", "malignant")}, "version v1 knows the classes benign, malignant, not benign, malignant, normal"),
        (
            {"model": Fixed(np.full((120, 4), 0.25), classes_count=4)},
            "version v1 cannot be asked: the model answers for 4 classes",
        ),
        ({"model": Fixed(np.full((120, 3), np.nan))}, "version v1 cannot be asked: the model answers with something that is no"),
        ({"model": None}, "version v1 cannot be asked: its file is not available"),
    ],
)
def test_a_version_that_cannot_be_compared_is_said_and_not_guessed(changes: dict[str, Any], problem: str) -> None:
    comparison, answers = compared(older_version(**changes))
    assert (comparison.problem or "").startswith(problem)
    assert (comparison.challenger, comparison.champion, comparison.differences, answers) == (None, None, {}, None)


# What nobody can tell -------------------------------------------------------------------------------------------------


def record(*contents: str) -> dict[str, Any]:
    """The record of an older version that was trained on these contents."""
    split = tuple(SplitRow(sha256, sha256, "benign", sha256, 0) for sha256 in contents)
    return {"record": split, "seen": frozenset(contents)}


def test_images_that_are_gone_are_counted_since_their_near_duplicates_cannot_be_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        comparison, _ = compared(older_version(**record(SPLIT[0].sha256, "sha-removed-1", "sha-removed-2")))
    assert comparison.caution == (
        "Images that version v1 was made from and that are not in this snapshot: 2. Near-duplicates of them cannot "
        "be recognised, and are compared on."
    )
    assert [entry.getMessage() for entry in caplog.records] == [comparison.caution]


def test_a_gone_image_that_no_model_of_it_trained_on_needs_no_caution() -> None:
    known = record(SPLIT[0].sha256)
    held_out = SplitRow("gone", "sha-held-out", "benign", "g", 1)
    comparison, _ = compared(older_version(**known | {"record": (*known["record"], held_out)}))
    assert comparison.caution is None


def test_a_refused_image_is_not_gone_and_what_was_not_compared_needs_no_caution() -> None:
    refused = content(SplitRow("refused", "sha-refused", "benign", "", 1), "g-refused")
    images = images_of(contents=[*(content(row) for row in SPLIT), refused])
    with_refused, _ = compared(older_version(**record(SPLIT[0].sha256, "sha-refused")), images)
    broken, _ = compared(older_version(**record("sha-removed"), problem="its file is gone"))
    assert with_refused.caution is None and broken.caution is None


def test_a_version_whose_images_were_encoded_anew_is_not_compared() -> None:
    """All 120 images are unknown to the version's record and all 40 of it are gone: they may be the same ones."""
    comparison, _ = compared(older_version(**record(*(f"sha-before-{i}" for i in range(40)))))
    assert comparison.champion is None
    assert (comparison.problem or "").startswith("40 images that version v1 knew are gone and 120 are new")


def test_a_set_that_grew_and_lost_some_images_is_still_compared_on() -> None:
    known = version_with_folds(SPLIT[:100])
    gone = [SplitRow(f"gone-{i}", f"sha-removed-{i}", "benign", f"gone-{i}", 1) for i in range(13)]
    comparison, _ = compared(replace(known, record=(*known.record, *gone[:12])))
    assert comparison.problem is None
    one_more, _ = compared(replace(known, record=(*known.record, *gone)))
    assert one_more.problem is not None


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (np.full((120, 3), np.nan), "not a probability"),
        (np.full((120, 3), 0.9), r"sum to 2\.700"),
        (np.tile([1.2, -0.1, -0.1], (120, 1)), "not a probability"),
        (np.full((3, 3), 1 / 3), "another shape"),
    ],
)
def test_answers_that_are_no_probabilities_are_refused(answers: np.ndarray, problem: str) -> None:
    images = LabelledImages.of_rows(SPLIT, {row.key: Path(row.key) for row in SPLIT})
    with pytest.raises(ModelError, match=problem):
        score(Fixed(answers), images, PLAN)


def test_images_without_a_file_are_a_clear_error() -> None:
    with pytest.raises(DataError, match="120 images have no local file"):
        LabelledImages.of_rows(SPLIT, {})


def test_a_few_images_are_spread_over_all_of_them() -> None:
    images = LabelledImages.of_rows(SPLIT, {row.key: Path(row.key) for row in SPLIT})
    assert images.first(3).keys == (SPLIT[0].key, SPLIT[60].key, SPLIT[119].key)
    assert images.first(120) is images
    assert set(images.first(30).labels) == set(CLASSES)
