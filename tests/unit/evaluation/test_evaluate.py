from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcc_ops.evaluation.evaluate import (
    NEAR_DUPLICATE,
    TRAINED_ON,
    Evaluated,
    EvaluationInputs,
    EvaluationPlan,
    LabelledImages,
    evaluate,
    evaluate_folder,
    score,
    seen_by,
    slice_values,
)
from bcc_ops.evaluation.metrics import Threshold
from bcc_ops.exceptions import DataError, ModelError
from bcc_ops.models.champion import ChampionModel
from bcc_ops.runs.documents import Estimate, OperatingPoint
from bcc_ops.runs.tables import AssignmentRow, ContentRow, SplitRow, read_predictions

CLASSES = ("benign", "malignant", "normal")
PLAN = EvaluationPlan(CLASSES, "malignant", 0.9, "near-duplicate group")
AS_OF = datetime(2026, 11, 22, 2, tzinfo=timezone.utc)


@dataclass
class Answering:
    """A model that knows the truth from the file's name and is right with `skill`; keeps what it was asked."""

    skill: float = 0.8
    order: tuple[str, ...] = CLASSES
    image_size: int = 256
    seed: int = 1
    asked: list[str] = field(default_factory=list)

    @property
    def classes_count(self) -> int:
        return len(self.order)

    def predict(self, paths: Sequence[Path], batch_size: int = 32) -> np.ndarray:
        self.asked.extend(path.name for path in paths)
        answers = []
        for path in paths:
            generator = np.random.default_rng([self.seed, *path.name.encode()])
            truth = self.order.index(path.name.split("-")[0])
            answers.append(generator.dirichlet(np.ones(len(self.order))) + self.skill * np.eye(len(self.order))[truth])
        stacked = np.array(answers)
        return (stacked / stacked.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass
class Fixed:
    answers: Any
    image_size: int = 256
    classes_count: int = 3

    def predict(self, paths: Sequence[Path], batch_size: int = 32) -> np.ndarray:
        return np.asarray(self.answers)


def rows(partition: str, count: int, start: int = 0) -> list[SplitRow]:
    found = []
    for i in range(start, start + count):
        label = CLASSES[i % 3]
        found.append(SplitRow(f"{label}-{partition}-{i}", f"sha-{partition}-{i}", label, f"g-{partition}-{i}", partition))
    return found


SPLIT = [*rows("train", 30), *rows("tuning", 30), *rows("validation", 60)]


def content(row: SplitRow, group: str | None = None, side: int = 100) -> ContentRow:
    return ContentRow(row.key, row.label, row.sha256, side, side, "L", 90.0, 40.0, False, group or row.group, "")


CONTENTS = [content(row, side=100 + i) for i, row in enumerate(SPLIT)]


def champion(**changes: Any) -> ChampionModel:
    missing = Estimate.missing("elsewhere")
    point = OperatingPoint(threshold=0.4, wanted_sensitivity=0.9, chosen_on="its own", sensitivity=missing, specificity=missing)
    known = ChampionModel("v1", AS_OF, False, CLASSES, point, 1.1, model=Answering(0.6, seed=2))
    return replace(known, **changes)


def record(*contents: str) -> tuple[SplitRow, ...]:
    """The record of a champion that was trained on these contents."""
    return tuple(SplitRow(sha256, sha256, "benign", sha256, "train") for sha256 in contents)


INPUTS = EvaluationInputs(
    split=SPLIT,
    contents=CONTENTS,
    paths={row.key: Path(row.key) for row in SPLIT},
    assignments=(),
    first=True,
    as_of=AS_OF,
    synthetic=False,
    validation_digest="v" * 64,
)


def run(
    against: ChampionModel | None = None,
    *,
    plan: EvaluationPlan = PLAN,
    challenger: Any = None,
    say: Any = lambda sentence: None,
    **changes: Any,
) -> Evaluated:
    """Evaluate; `changes` are to the inputs."""
    return evaluate(plan, challenger or Answering(), against, replace(INPUTS, **changes), say)


def test_both_models_are_judged_on_the_same_images_and_as_pairs() -> None:
    comparison = run(champion()).document.comparison
    assert comparison is not None and comparison.challenger is not None and comparison.champion is not None
    assert comparison.challenger.images == comparison.champion.images == 60
    assert comparison.problem is None
    difference = comparison.differences["balanced_accuracy"]
    own, other = comparison.challenger.balanced_accuracy.value, comparison.champion.balanced_accuracy.value
    assert difference.value == pytest.approx(own - other)
    kinds = {"malignant_sensitivity", "malignant_specificity", "malignant_sensitivity_at_operating_point"}
    assert {"macro_auc", "accuracy", *kinds} <= set(comparison.differences)


def test_without_a_champion_there_is_no_comparison() -> None:
    evaluated = run(None)
    assert evaluated.document.comparison is None
    assert "champion_benign" not in read_predictions(evaluated.predictions)


def test_the_champion_is_never_asked_about_what_it_was_trained_on_or_near_duplicates_of_it() -> None:
    validation = [row for row in SPLIT if row.partition == "validation"]
    memory = Answering(0.6)
    # Image 0 itself; image 1 by a near-duplicate that this run refused; image 2 through its patient's train image.
    seen = frozenset({validation[0].sha256, "sha-gone-from-the-split", "sha-train-0"})
    contents = [*CONTENTS, content(SplitRow("refused", "sha-gone-from-the-split", "benign", "", ""), validation[1].group)]
    split = [row._replace(group="patient-7") if row.key in (validation[2].key, SPLIT[0].key) else row for row in SPLIT]
    evaluated = run(champion(seen=seen, model=memory), split=split, contents=contents)
    comparison = evaluated.document.comparison
    assert comparison is not None and comparison.champion is not None
    assert comparison.left_out == {TRAINED_ON: 1, NEAR_DUPLICATE: 2}
    assert comparison.champion.images == 57
    assert not {row.key for row in validation[:3]} & set(memory.asked)
    assert evaluated.document.challenger.images == 60
    table = read_predictions(evaluated.predictions)
    assert table["champion_benign"][:4].count(None) == 3
    assert table["champion_benign"][3] is not None
    assert all(value is not None for value in table["challenger_benign"])


def test_seen_images_are_found_by_content_whatever_their_key() -> None:
    moved = SplitRow("elsewhere/renamed.png", "sha-1", "benign", "g", "validation")
    assert seen_by(frozenset({"sha-1"}), [moved], []) == {"elsewhere/renamed.png": TRAINED_ON}
    assert seen_by(frozenset(), [moved], [content(moved)]) == {}


def test_a_champion_that_has_seen_every_image_is_not_compared() -> None:
    seen = frozenset(row.sha256 for row in SPLIT if row.partition == "validation")
    comparison = run(champion(seen=seen)).document.comparison
    assert comparison is not None and comparison.champion is None
    assert comparison.problem == "the champion was trained on every validation image, or on near-duplicates"
    assert comparison.left_out == {TRAINED_ON: 60}


def test_train_images_that_are_gone_are_counted_since_their_near_duplicates_cannot_be_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        comparison = run(
            champion(record=record("sha-train-0", "sha-tuning-1", "sha-removed-1", "sha-removed-2"))
        ).document.comparison
    assert comparison is not None
    assert comparison.caution == (
        "Images that the champion was trained on and that are not in this snapshot: 2. Validation images that are "
        "near-duplicates of them cannot be told, and are compared on."
    )
    assert [record.getMessage() for record in caplog.records] == [comparison.caution]


def test_a_refused_image_is_not_gone_and_what_was_not_compared_needs_no_caution() -> None:
    refused = content(SplitRow("refused", "sha-refused", "benign", "", ""), "g-refused")
    compared = run(champion(record=record("sha-train-0", "sha-refused")), contents=[*CONTENTS, refused]).document.comparison
    broken = run(champion(record=record("sha-removed"), problem="its file is gone")).document.comparison
    assert compared is not None and compared.caution is None
    assert broken is not None and broken.caution is None


def test_images_whose_metadata_was_stripped_are_recognised_by_their_pixels() -> None:
    stripped = SplitRow("benign/a.png", "sha-of-the-stripped-file", "benign", "g", "validation", "sha-of-the-pixels")
    seen = frozenset({"sha-of-the-file", "sha-of-the-pixels"})
    assert seen_by(seen, [stripped], []) == {"benign/a.png": TRAINED_ON}


def test_an_image_of_a_patient_whose_trained_on_image_is_absent_is_not_held_out() -> None:
    present = SplitRow("p7/b.png", "sha-b", "benign", "patient-7", "validation")
    absent = AssignmentRow("p7/a.png", "sha-a", "", "benign", "patient-7", "train", 0)
    assert seen_by(frozenset({"sha-a"}), [present], [], [absent]) == {"p7/b.png": NEAR_DUPLICATE}


def test_a_champion_whose_images_were_encoded_anew_is_not_compared() -> None:
    """All 120 images are unknown to the champion's record and all 40 of it are gone: they may be the same ones."""
    comparison = run(champion(record=record(*(f"sha-before-{i}" for i in range(40))))).document.comparison
    assert comparison is not None and comparison.champion is None
    assert comparison.problem is not None and comparison.problem.startswith(
        "40 images that the champion knew are gone and 120 are new"
    )
    assert comparison.caution is None


def test_a_set_that_grew_and_lost_some_images_is_still_compared_on() -> None:
    known = [row.sha256 for row in SPLIT[:100]]
    comparison = run(champion(record=record(*known, *(f"sha-removed-{i}" for i in range(12))))).document.comparison
    assert comparison is not None and comparison.problem is None
    one_more = run(champion(record=record(*known, *(f"sha-removed-{i}" for i in range(13))))).document.comparison
    assert one_more is not None and one_more.problem is not None


def test_a_challenger_is_not_judged_on_what_the_champion_that_it_started_from_was_trained_on() -> None:
    validation = [row for row in SPLIT if row.partition == "validation"]
    challenger, told = Answering(), list[str]()
    seen = frozenset(row.sha256 for row in validation[:3])
    evaluated = run(champion(seen=seen), challenger=challenger, started_from="v1", say=told.append)
    document = evaluated.document
    assert document.challenger.images == 57
    assert not {row.key for row in validation[:3]} & set(challenger.asked)
    assert len(read_predictions(evaluated.predictions)["key"]) == 57
    assert document.comparison is not None and document.comparison.champion is not None
    assert (document.comparison.left_out, document.comparison.champion.images) == ({TRAINED_ON: 3}, 57)
    assert document.warm_start_note == told[0]
    assert told[0] == (
        "Training started from champion v1. Validation images that it was trained on, or near-duplicates of them, "
        "are left out of every metric: 3."
    )


@pytest.mark.parametrize(
    "known",
    [None, champion(version="v2", seen=frozenset({"sha-validation-0"})), champion(problem="no such object", model=None)],
    ids=["no champion by now", "another champion by now", "its split is gone"],
)
def test_where_nobody_knows_what_a_warm_start_had_seen_that_is_said(known: ChampionModel | None) -> None:
    document = run(known, started_from="v1").document
    assert document.challenger.images == 60
    assert (document.warm_start_note or "").startswith(
        "Training started from version v1, and what that was trained on is not known here"
    )


def test_without_a_warm_start_the_challenger_is_judged_on_every_validation_image() -> None:
    document = run(champion(seen=frozenset({"sha-validation-0"}))).document
    assert (document.challenger.images, document.warm_start_note) == (60, None)


def test_a_champion_with_its_classes_in_another_order_is_read_by_name() -> None:
    order = ("normal", "benign", "malignant")
    same = run(champion(model=Answering(0.99, order=order), classes=order)).document.comparison
    assert same is not None and same.champion is not None
    assert same.champion.accuracy.value > 0.8


def test_a_champion_with_another_input_size_is_compared_and_that_is_said() -> None:
    told: list[str] = []
    comparison = run(champion(model=Answering(image_size=500)), say=told.append).document.comparison
    assert comparison is not None and comparison.problem is None
    assert told[1] == "The champion sees 500 pixels per side, the challenger 256: each its own"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"problem": "models/v1/model.h5 is gone"}, "models/v1/model.h5 is gone"),
        ({"classes": ("benign", "malignant")}, "the champion knows the classes benign, malignant, not benign, malignant, normal"),
        (
            {"model": Fixed(np.full((60, 4), 0.25), classes_count=4)},
            "the champion cannot be asked: the model answers for 4 classes",
        ),
        ({"model": Fixed(np.full((60, 3), np.nan))}, "the champion cannot be asked: the model answers with something that is no"),
        ({"model": None}, "the champion's model is not available"),
    ],
)
def test_a_champion_that_cannot_be_compared_is_said_and_not_guessed(changes: dict[str, Any], problem: str) -> None:
    told: list[str] = []
    comparison = run(champion(**changes), say=told.append).document.comparison
    assert comparison is not None
    assert (comparison.problem or "").startswith(problem)
    assert (comparison.challenger, comparison.champion, comparison.differences) == (None, None, {})
    assert told == [f"Champion v1 not compared: {comparison.problem}"]


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (np.full((60, 3), np.nan), "not a probability"),
        (np.full((60, 3), 0.9), r"sum to 2\.700"),
        (np.tile([1.2, -0.1, -0.1], (60, 1)), "not a probability"),
        (np.full((3, 3), 1 / 3), "another shape"),
    ],
)
def test_a_challenger_that_answers_no_probabilities_fails_the_run(answers: np.ndarray, problem: str) -> None:
    images = LabelledImages.of_rows((r for r in SPLIT if r.partition == "validation"), {r.key: Path(r.key) for r in SPLIT})
    with pytest.raises(ModelError, match=problem):
        score(Fixed(answers), images, PLAN)


def test_the_threshold_is_chosen_on_the_tuning_part_and_not_on_validation() -> None:
    first = run().document.challenger.operating_point
    assert first.chosen_on == "tuning part: 10 positive and 20 other images"
    other_validation = [row for row in SPLIT if row.partition != "validation"] + rows("validation", 60, start=500)
    second = run(split=other_validation, paths={row.key: Path(row.key) for row in other_validation}).document.challenger
    assert second.operating_point.threshold == first.threshold
    assert second.calibration.temperature == run().document.challenger.calibration.temperature
    other_tuning = [row for row in SPLIT if row.partition != "tuning"] + rows("tuning", 30, start=500)
    third = run(split=other_tuning, paths={row.key: Path(row.key) for row in other_tuning}).document.challenger
    assert third.operating_point.threshold != first.threshold


def test_the_champion_keeps_its_own_operating_point() -> None:
    comparison = run(champion()).document.comparison
    assert comparison is not None and comparison.champion is not None
    assert (comparison.champion.operating_point.threshold, comparison.champion.operating_point.chosen_on) == (0.4, "its own")


def test_an_empty_validation_part_and_a_missing_file_are_clear_errors() -> None:
    with pytest.raises(DataError, match="no validation image"):
        run(split=[row for row in SPLIT if row.partition != "validation"])
    with pytest.raises(DataError, match="60 images have no local file"):
        run(paths={})
    seen = frozenset(row.sha256 for row in SPLIT)
    with pytest.raises(DataError, match="no validation image that the model has not seen"):
        run(champion(seen=seen), started_from="v1")


def test_a_run_without_tuning_images_has_no_operating_point_and_a_reason() -> None:
    point = run(split=[row for row in SPLIT if row.partition != "tuning"]).document.challenger.operating_point
    assert point.threshold is None
    assert point.sensitivity == Estimate.missing("the tuning part has no positive image to choose a threshold on")


def test_the_document_is_json_without_nan_and_the_same_again() -> None:
    first, second = run(champion()), run(champion())
    assert first == second
    assert json.loads(first.document.to_json())["grouping"] == "near-duplicate group"


# Slices ---------------------------------------------------------------------------------------------------------------


def test_slices_are_by_size_by_novelty_and_by_key() -> None:
    plan = replace(PLAN, slice_pattern=r"validation-(\d)")
    assignments = [
        AssignmentRow(row.key, row.sha256, "", row.label, row.group, row.partition, 2 if int(row.key.split("-")[-1]) < 40 else 1)
        for row in SPLIT
        if row.partition == "validation"
    ]
    slices = run(plan=plan, assignments=assignments, first=False).document.slices
    counts = {(part.by, part.value): part.images for part in slices}
    assert counts["new images", "new"] == 20
    assert counts["new images", "held out before"] == 40
    assert sum(images for (by, _), images in counts.items() if by == "image size") == 60
    assert counts["key pattern", "1"] == 11  # 1, 10 to 19
    few = next(part for part in slices if part.by == "key pattern" and part.value == "9")
    assert few.balanced_accuracy == Estimate.missing("1 images are too few")


def test_nothing_to_slice_by_is_said() -> None:
    document = run(contents=[content(row) for row in SPLIT]).document
    assert document.slices == ()
    assert document.slices_unavailable == "not available: nothing tells one part of the validation images from another"


def test_a_pattern_that_matches_no_key_slices_nothing() -> None:
    validation = [row for row in SPLIT if row.partition == "validation"]
    assert "key pattern" not in slice_values(validation, [], None, r"site-(\w+)")


# Elsewhere ------------------------------------------------------------------------------------------------------------


def external(count: int = 30) -> LabelledImages:
    found = rows("external", count)
    return LabelledImages.of_rows(found, {row.key: Path(row.key) for row in found})


def test_external_images_are_reported_and_change_nothing_else() -> None:
    with_them, without = run(external=external(), external_note="30 images").document, run().document
    assert with_them.external is not None and with_them.external.images == 30
    assert with_them.external.operating_point.threshold == without.challenger.operating_point.threshold
    assert with_them.challenger == without.challenger


def test_any_model_is_evaluated_on_any_folder_with_the_threshold_that_came_with_it() -> None:
    threshold = Threshold(0.3, 0.9, "model.json")
    document = evaluate_folder(Answering(), external(), PLAN, synthetic=False, digest="f" * 64, threshold=threshold)
    assert (document.as_of, document.comparison, document.challenger.images) == (None, None, 30)
    assert document.challenger.operating_point.threshold == 0.3
    assert document.challenger.calibration.temperature is None
