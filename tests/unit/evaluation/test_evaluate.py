from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcc_ops.evaluation.comparison import EvaluationPlan, LabelledImages
from bcc_ops.evaluation.evaluate import (
    FILE_SAMPLE,
    Evaluated,
    EvaluationInputs,
    Models,
    evaluate,
    evaluate_folder,
)
from bcc_ops.evaluation.metrics import Threshold
from bcc_ops.exceptions import DataError, ModelError
from bcc_ops.models.champion import ChampionModel
from bcc_ops.runs.documents import Estimate, FileCheck
from bcc_ops.runs.rows import AssignmentRow
from bcc_ops.runs.tables import read_predictions
from tests.unit.evaluation.answering import (
    AS_OF,
    CLASSES,
    PLAN,
    SPLIT,
    Answering,
    Fixed,
    answers_about,
    content,
    external,
    images_of,
    older_version,
    version_with_folds,
)

INPUTS = EvaluationInputs(
    images=images_of(),
    rows=SPLIT,
    answers=answers_about(SPLIT),
    first=True,
    as_of=AS_OF,
    synthetic=False,
    held_out_digest="v" * 64,
)


def run(
    champion: ChampionModel | None = None,
    *,
    anchor: ChampionModel | None = None,
    plan: EvaluationPlan = PLAN,
    file: Any = None,
    folds: Any = (),
    say: Any = lambda sentence: None,
    **changes: Any,
) -> Evaluated:
    """Evaluate; `changes` are to the inputs."""
    of_folds = {fold: partial(lambda model: model, model) for fold, model in enumerate(folds, 1)}
    models = Models(file or Answering(), of_folds, champion, anchor)
    return evaluate(plan, models, replace(INPUTS, **changes), say)


def answered_by(folds: Sequence[Answering]) -> dict[str, Any]:
    """The rows of these folds, each with the answer of its fold's model."""
    rows = [row for row in SPLIT if row.fold <= len(folds)]
    return {"rows": rows, "answers": np.concatenate([answers_about([row], folds[row.fold - 1]) for row in rows])}


def test_the_challenger_is_judged_by_its_out_of_fold_answers_and_not_by_its_file() -> None:
    document = run(file=Fixed(np.tile([1.0, 0, 0], (FILE_SAMPLE, 1)))).document
    expected = np.mean(answers_about(SPLIT).argmax(axis=1) == [CLASSES.index(row.label) for row in SPLIT])
    assert document.challenger.images == 120
    assert document.challenger.accuracy.value == pytest.approx(expected)


def test_the_shipped_threshold_is_of_all_answers_and_each_image_is_judged_by_those_of_other_folds() -> None:
    point = run().document.challenger.operating_point
    answers, malignant = answers_about(SPLIT)[:, 1], np.array([row.label == "malignant" for row in SPLIT])
    assert point.chosen_on == "out-of-fold answers: 40 positive and 80 other images"
    folds = np.array([row.fold for row in SPLIT])
    found = []
    for fold in range(1, 6):
        others = np.sort(answers[malignant & (folds != fold)])  # 32 of them: 3 of 33 may be missed with 0.9 wanted
        cut = (others[2] + answers[(folds != fold) & (answers < others[2])].max()) / 2
        found.extend(answers[malignant & (folds == fold)] >= cut)
    assert point.sensitivity.value == pytest.approx(np.mean(found))
    scores = np.sort(answers[malignant])
    assert point.threshold is not None and scores[2] < point.threshold < scores[4]


def test_a_single_folds_threshold_is_cross_fitted_within_it() -> None:
    held_out = [row for row in SPLIT if row.fold == 1]
    document = run(rows=held_out, answers=answers_about(held_out)).document
    assert document.challenger.images == 24
    assert document.challenger.operating_point.threshold is not None


def test_without_a_champion_there_is_no_comparison() -> None:
    evaluated = run(None)
    assert (evaluated.document.comparison, evaluated.document.anchor) == (None, None)
    assert "champion_benign" not in read_predictions(evaluated.predictions)


def test_champion_and_anchor_are_compared_with_each_and_their_answers_kept() -> None:
    told: list[str] = []
    evaluated = run(version_with_folds(), anchor=older_version(version="v0", seen=frozenset({SPLIT[0].sha256})), say=told.append)
    champion, anchor = evaluated.document.comparison, evaluated.document.anchor
    assert champion is not None and anchor is not None
    assert (champion.champion_version, champion.recorded, champion.asked) == ("v1", 120, 0)
    assert (anchor.champion_version, anchor.recorded, anchor.asked) == ("v0", 0, 119)
    assert told[0].startswith("Compared with version v1 on 120 images: 120 by its recorded answers, 0 new ones by its file")
    assert "version v0" in told[1]
    table = read_predictions(evaluated.predictions)
    assert table["champion_benign"] == pytest.approx(version_with_folds().answers[:, 0], abs=1e-6)
    assert table["anchor_benign"][0] is None and None not in table["anchor_benign"][1:]


def test_the_files_answers_about_a_sample_are_kept_for_the_smoke_test() -> None:
    file = Answering(0.7)
    table = read_predictions(run(file=file).predictions)
    asked = [key for key, answer in zip(table["key"], table["file_benign"]) if answer is not None]
    assert asked == file.asked and len(asked) == FILE_SAMPLE
    assert {key.split("-")[0] for key in asked} == set(CLASSES)
    assert None not in table["challenger_benign"]


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (np.full((120, 3), np.nan), "not a probability"),
        (np.full((120, 3), 0.9), r"sum to 2\.700"),
        (np.full((3, 3), 1 / 3), "another shape"),
    ],
)
def test_a_challenger_that_answers_no_probabilities_fails_the_run(answers: np.ndarray, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        run(answers=answers)
    with pytest.raises(ModelError, match=problem):
        run(file=Fixed(answers[:100]))


def test_no_answers_and_a_missing_file_are_clear_errors() -> None:
    with pytest.raises(DataError, match="no image is held out"):
        run(rows=[], answers=np.zeros((0, 3)))
    with pytest.raises(DataError, match="120 images have no local file"):
        run(images=images_of(paths={}))


def test_the_document_is_json_without_nan_and_the_same_again() -> None:
    first, second = run(version_with_folds(), external=external()), run(version_with_folds(), external=external())
    assert first == second
    assert json.loads(first.document.to_json())["grouping"] == "near-duplicate group"


@dataclass
class AlwaysBenign:
    """A file that is broken."""

    image_size: int = 256
    classes_count: int = 3

    def predict(self, paths: Sequence[Path], batch_size: int = 32) -> np.ndarray:
        return np.tile([1.0, 0.0, 0.0], (len(paths), 1))


# The file against its folds' models -----------------------------------------------------------------------------------


def check(file: Any, folds: Sequence[Answering], **given: Any) -> FileCheck:
    found = run(file=file, folds=folds, **answered_by(folds), **given).document.file_check
    assert found is not None
    return found


SURE = [Answering(2.0, seed=seed) for seed in (11, 12, 13, 15, 16)]


@dataclass
class Softened:
    """A file that names the same classes as the mean of its folds, and is less sure of everything."""

    folds: Sequence[Answering]
    image_size: int = 256
    classes_count: int = 3

    def predict(self, paths: Sequence[Path], batch_size: int = 32) -> np.ndarray:
        mean = np.mean([fold.predict(paths) for fold in self.folds], axis=0)
        return np.asarray(0.05 * mean + 0.95 / 3)


def test_a_file_of_one_model_has_nothing_to_be_checked_against() -> None:
    assert run(folds=[Answering()], **answered_by([Answering()])).document.file_check is None


def test_a_file_that_is_worse_elsewhere_than_its_folds_fails_and_one_as_good_passes() -> None:
    as_good = check(Answering(2.0, seed=14), SURE, external=external(150))
    worse = check(Answering(0.9, seed=14), SURE, external=external(150))
    assert (as_good.passed, as_good.external, as_good.images) == (True, True, 150)
    assert not worse.passed
    assert worse.difference.value == pytest.approx(worse.file_loss - worse.folds_loss)
    assert worse.difference.low is not None and worse.difference.low > 0


@pytest.mark.parametrize("elsewhere", [0, 1, 3, 150])
def test_a_file_that_says_always_the_same_fails_however_many_images_there_are_from_elsewhere(elsewhere: int) -> None:
    found = check(AlwaysBenign(), SURE, external=external(elsewhere) if elsewhere else ())
    assert not found.passed
    assert found.agreement == pytest.approx(1 / 3, abs=0.05)


def test_a_file_that_names_the_same_classes_but_is_useless_at_the_shipped_threshold_fails() -> None:
    found = check(Softened(SURE), SURE)
    assert found.agreement == 1.0
    assert found.calls_agreement == 0.5  # it calls nothing malignant
    assert not found.passed


def test_without_images_from_elsewhere_a_file_has_to_agree_with_its_folds() -> None:
    agreeing = check(Answering(2.0, seed=14), SURE)
    assert (agreeing.passed, agreeing.external, agreeing.agreement) == (True, False, 1.0)


def test_answers_that_are_not_those_of_the_folds_models_fail_the_run() -> None:
    """Somebody who may write into the bucket could claim any."""
    claimed = {**answered_by(SURE), "answers": answers_about(SPLIT, Answering(9.0))}
    with pytest.raises(
        ModelError, match=r"the model of fold 1 answers about .* differently from its out-of-fold answers: clear train_model"
    ):
        run(folds=SURE, **claimed)


# Slices ---------------------------------------------------------------------------------------------------------------


def test_slices_are_by_size_by_novelty_and_by_key() -> None:
    plan = replace(PLAN, slice_pattern=r"fold1-(\d)")
    assignments = [
        AssignmentRow(row.key, row.sha256, "", row.label, row.group, row.fold, 2 if row.fold < 4 else 1) for row in SPLIT
    ]
    slices = run(plan=plan, images=images_of(assignments=assignments), first=False).document.slices
    counts = {(part.by, part.value): part.images for part in slices}
    assert counts["new images", "new"] == 48
    assert counts["new images", "held out before"] == 72
    assert sum(images for (by, _), images in counts.items() if by == "image size") == 120
    assert counts["key pattern", "1"] == 11  # 1, 10 to 19
    few = next(part for part in slices if part.by == "key pattern" and part.value == "9")
    assert few.balanced_accuracy == Estimate.missing("1 images are too few")


def test_nothing_to_slice_by_is_said() -> None:
    document = run(images=images_of(contents=[content(row) for row in SPLIT])).document
    assert document.slices == ()
    assert document.slices_unavailable == "not available: nothing tells one part of the images from another"


def test_metrics_without_the_images_of_a_finding_are_in_the_document() -> None:
    marked = [content(row)._replace(findings="1t axilla" if row.fold == 2 else "1t") for row in SPLIT]
    (part,) = run(images=images_of(contents=marked)).document.without
    assert (part.finding, part.images) == ("axilla", sum(row.fold == 2 for row in SPLIT))
    assert part.positive_auc.low < part.positive_auc.value


# Elsewhere ------------------------------------------------------------------------------------------------------------


def test_the_file_is_evaluated_elsewhere_with_the_shipped_threshold_and_nothing_else_changes() -> None:
    with_them, without = run(external=external()).document, run().document
    (found,) = with_them.external
    assert (found.name, found.note, found.positive_groups) == ("elsewhere", "30 images", 10)
    assert found.challenger is not None and found.challenger.images == 30
    assert found.challenger.operating_point.threshold == without.challenger.operating_point.threshold
    assert (found.champion, found.problem, found.anchor, found.anchor_problem) == (None, None, None, None)
    assert with_them.challenger == without.challenger
    assert without.external == ()


def test_champion_and_anchor_are_evaluated_beside_it_on_each_set_alone() -> None:
    champion, anchor = version_with_folds(model=Answering(0.1, seed=5)), older_version(model=Answering(0.3, seed=6))
    both = run(champion, anchor=anchor, external=external(30, "Ulm", "Lima")).document.external
    assert [one.name for one in both] == ["Ulm", "Lima"]
    for name, found in zip(("Ulm", "Lima"), both):
        assert (found,) == run(champion, anchor=anchor, external=external(30, name)).document.external
        assert found.challenger is not None and found.champion is not None and found.anchor is not None
        own, *others = (
            model.per_class["malignant"].auc.value or 0.0 for model in (found.challenger, found.champion, found.anchor)
        )
        assert found.differences["malignant_auc"].value == pytest.approx(own - others[0])
        assert found.anchor_differences["malignant_auc"].value == pytest.approx(own - others[1])
        assert found.champion.operating_point.threshold == 0.4
    assert both[0].champion != both[1].champion


def test_a_set_without_images_and_one_without_a_class_are_told_about_and_fail_nothing() -> None:
    empty, normal_only = external(0, "empty")[0], external(30, "screening")[0]
    chosen = [place for place, label in enumerate(normal_only.images.labels) if label == "normal"]
    images = LabelledImages(
        *(
            tuple(column[place] for place in chosen)
            for column in (
                normal_only.images.keys,
                normal_only.images.labels,
                normal_only.images.groups,
                normal_only.images.paths,
            )
        )  # type: ignore[arg-type]
    )
    found = run(version_with_folds(), external=(empty, replace(normal_only, images=images))).document.external
    assert (found[0].challenger, found[0].champion) == (None, None)
    assert found[1].challenger is not None and found[1].positive_groups == 0
    assert found[1].challenger.per_class["malignant"].auc.value is None
    assert found[1].challenger.per_class["malignant"].specificity.value is not None


def test_the_file_is_checked_on_all_sets_together_and_on_what_two_have_once() -> None:
    first, second = external(30, "Ulm", "Lima")
    second = replace(second, elsewhere=frozenset(second.images.keys[:10]))
    assert check(Answering(2.0, seed=14), SURE, external=(first, second)).images == 50


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"problem": "its file is gone"}, "its file is gone"),
        ({"classes": ("benign", "malignant")}, "{} knows the classes benign, malignant"),
        ({"model": Fixed(np.full((30, 3), np.nan))}, "{} cannot be asked: the model answers with something"),
        ({"model": None}, "{}'s file is not available"),
    ],
)
def test_a_champion_or_anchor_that_cannot_be_asked_elsewhere_is_said(changes: dict[str, Any], problem: str) -> None:
    (found,) = run(older_version(**changes), anchor=older_version(**changes), external=external()).document.external
    assert (found.champion, found.anchor) == (None, None)
    assert (found.problem or "").startswith(problem.format("the champion"))
    assert (found.anchor_problem or "").startswith(problem.format("the anchor"))


def test_any_model_is_evaluated_on_any_folder_with_the_threshold_that_came_with_it() -> None:
    threshold = Threshold(0.3, 0.9, "model.json")
    images = external()[0].images
    by = {"device": ["A"] * 20 + ["B"] * (len(images.keys) - 20)}
    document = evaluate_folder(Answering(), images, PLAN, by=by, synthetic=False, digest="f" * 64, threshold=threshold)
    assert (document.as_of, document.comparison, document.challenger.images) == (None, None, 30)
    assert document.challenger.operating_point.threshold == 0.3
    assert document.challenger.calibration.temperature is None
    assert [(part.value, part.images) for part in document.slices] == [("A", 20), ("B", 10)]
    assert document.slices[1].positive_sensitivity.reason == "10 images are too few"
