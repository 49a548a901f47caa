"""Parts of the images: what tells them apart, and the two models on each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bcc_ops.dataset.metadata import Metadata
from bcc_ops.evaluation.comparison import AnswersOfVersion, scores_of
from bcc_ops.evaluation.metrics import Evaluation, ScoredModel, Threshold
from bcc_ops.evaluation.subgroups import evaluate_slices, evaluate_without_findings, slice_values
from bcc_ops.runs.documents import Estimate, SliceEvaluation
from bcc_ops.runs.rows import ContentRow, SplitRow
from tests.unit.evaluation.answering import PLAN, SPLIT


def known(**columns: list[str]) -> Metadata:
    return Metadata(
        {row.key: {name: values[place] for name, values in columns.items() if values[place]} for place, row in enumerate(SPLIT)}
    )


def test_a_pattern_that_matches_no_key_slices_nothing() -> None:
    assert "key pattern" not in slice_values(SPLIT, [], None, r"site-(\w+)")


def test_every_column_that_tells_images_apart_is_sliced_by_and_the_patient_is_not() -> None:
    north = ["North", "South", ""] * 40
    metadata = known(site=north, device=["E9"] * 120, patient_id=[str(place) for place in range(120)])
    assert slice_values(SPLIT, [], None, "", metadata) == {"site": north}


def test_of_many_values_only_the_most_frequent_become_subgroups() -> None:
    sites = [f"site {number % 60}" for number in range(len(SPLIT))]
    sliced = slice_values(SPLIT, [], None, "", known(site=sites))["site"]
    assert len(set(sliced) - {""}) == 20


def test_what_a_pattern_reads_from_names_makes_no_more_subgroups_than_a_column_and_no_terminal_obeys_it() -> None:
    named = [row._replace(key=f"{number % 60}\x1b[31m/{row.key}") for number, row in enumerate(SPLIT)]
    sliced = slice_values(named, [], None, r"^(.*?)/")["key pattern"]
    assert len(set(sliced) - {""}) == 20
    assert sliced[:2] == ["0?[31m", "1?[31m"]


def test_a_column_does_not_take_the_place_of_a_slice_of_our_own() -> None:
    sites = ["x", "y"] * (len(SPLIT) // 2)
    named = slice_values(
        SPLIT, [], None, r"fold(\d)-", Metadata({row.key: {"key pattern": site} for row, site in zip(SPLIT, sites)})
    )
    assert set(named) == {"key pattern", "key pattern (metadata)"}


def test_dates_are_sliced_by_quarters_or_by_years_if_these_are_many() -> None:
    months = [f"20{year}-Q{part}" for year in (20, 21, 22) for part in (1, 2, 3, 4)] * 10
    assert set(slice_values(SPLIT, [], None, "", known(acquired_at=months))["acquired_at"]) == {"2020", "2021", "2022"}
    few = ["2020-Q1", "2020-Q2"] * 60
    assert slice_values(SPLIT, [], None, "", known(acquired_at=few)) == {"acquired_at": few}


def test_the_years_of_many_quarters_have_all_their_images() -> None:
    """Six years make more quarters than a column has subgroups."""
    quarters = [f"{year}-Q{part}" for year in range(2018, 2024) for part in (1, 2, 3, 4)] * 5
    years = slice_values(SPLIT, [], None, "", known(acquired_at=quarters))["acquired_at"]
    assert years == [quarter[:4] for quarter in quarters]


def test_a_key_pattern_and_a_column_that_say_the_same_give_the_same_metrics() -> None:
    pattern = slice_values(SPLIT, [], None, r"fold(\d)-")
    column = slice_values(SPLIT, [], None, "", known(site=[str(row.fold) for row in SPLIT]))
    by_key, by_column = (evaluate_slices(by, answering(0.9), None, PLAN) for by in (pattern, column))
    assert [part.model_copy(update={"by": "site"}) for part in by_key] == list(by_column)


def answering(right: float, rows: list[SplitRow] = SPLIT, wrong: tuple[str, ...] = ()) -> ScoredModel:
    """Give the true class a probability, but for the malignant images whose keys end with `wrong`."""
    answers = np.full((len(rows), 3), (1 - right) / 2)
    for place, row in enumerate(rows):
        truth = PLAN.classes.index(row.label)
        missed = row.label == "malignant" and row.key.endswith(wrong)
        answers[place, 0 if missed else truth] = right
    scores = scores_of([row.label for row in rows], [row.group for row in rows], answers, PLAN)
    return ScoredModel(scores, Threshold(0.5, 0.9, "the test"), None)


def slices(challenger: ScoredModel, champion: AnswersOfVersion | None, **plan: Any) -> dict[str, SliceEvaluation]:
    values = ["North" if row.fold < 4 else "South" for row in SPLIT]
    return {part.value: part for part in evaluate_slices({"site": values}, challenger, champion, replace(PLAN, **plan))}


def test_each_subgroup_has_sensitivity_and_specificity_at_the_operating_point_with_intervals() -> None:
    found = slices(answering(0.9, wrong=("1", "4")), None)
    north = found["North"]
    assert (north.images, north.groups, north.positive_groups) == (72, 72, 24)
    assert north.positive_sensitivity.value == pytest.approx(18 / 24)  # of the 8 of each fold, 1 and 4 end so
    assert north.positive_specificity.value == 1
    assert north.positive_specificity.low < 0.96
    assert (north.compared, north.champion_sensitivity, north.differences) == (0, None, {})


def test_intervals_are_over_groups() -> None:
    together = [row._replace(group=f"{row.fold} {row.label}") for row in SPLIT]
    single, grouped = answering(0.9, wrong=("1", "4")), answering(0.9, together, wrong=("1", "4"))
    ours, theirs = (slices(scored, None)["North"].positive_specificity for scored in (single, grouped))
    assert theirs.low < ours.low


def test_the_champion_is_beside_the_challenger_where_both_have_an_answer() -> None:
    chosen = np.array([row.fold != 1 for row in SPLIT])
    rows = [row for row, is_chosen in zip(SPLIT, chosen) if is_chosen]
    champion = AnswersOfVersion(chosen, answering(0.9, rows, wrong=("1", "4", "7", "0")))
    north = slices(answering(0.9, wrong=("1", "4")), champion)["North"]
    assert (north.images, north.compared, north.compared_positive_groups) == (72, 48, 16)
    theirs = north.champion_sensitivity.value
    ours = 1 - sum(row.label == "malignant" and row.fold in (2, 3) and row.key.endswith(("1", "4")) for row in SPLIT) / 16
    assert north.differences["malignant_sensitivity_at_operating_point"].value == pytest.approx(ours - theirs)
    assert north.differences["malignant_sensitivity"].low < north.differences["malignant_sensitivity"].value
    assert north.champion_specificity.value == 1


def test_too_few_images_are_counted_and_not_evaluated() -> None:
    champion = AnswersOfVersion(np.ones(120, bool), answering(0.9))
    found = slices(answering(0.9), champion, smallest_slice=49)
    assert found["South"].positive_sensitivity == Estimate.missing("48 images are too few")
    assert (found["South"].images, found["South"].compared, found["North"].compared) == (48, 0, 72)


def with_findings(findings: dict[str, str]) -> list[ContentRow]:
    """The rows of the checks, with these findings of some keys."""
    return [
        ContentRow(
            row.key, row.label, row.sha256, 9, 9, "L", 9.0, 9.0, False, row.group, "", findings=findings.get(row.key, "1t")
        )
        for row in SPLIT
    ]


def test_without_the_images_of_a_finding_the_metrics_are_those_of_the_others() -> None:
    """All malignant images of two folds are marked, and are the only ones that are missed."""
    marked = {row.key: "1t axilla calipers" for row in SPLIT if row.label == "malignant" and row.fold < 3}
    scored = answering(0.9, wrong=tuple(marked))
    whole = Evaluation(scored, PLAN.classes, "malignant")
    missed = len(marked) / sum(row.label == "malignant" for row in SPLIT)
    assert whole.estimate("malignant.auc").value < 1
    assert whole.estimate("balanced_accuracy").value == pytest.approx((2 + 1 - missed) / 3)

    told = evaluate_without_findings(SPLIT, with_findings(marked), scored, replace(PLAN, smallest_slice=len(marked)))
    assert [(part.finding, part.images) for part in told] == [("axilla", len(marked)), ("calipers", len(marked))]
    for metric in (told[0].balanced_accuracy, told[0].macro_auc, told[0].positive_auc):
        assert metric.value == 1 and metric.low < 1, "perfect on these images, which are few"


def test_nothing_is_told_without_few_images_nor_without_nearly_all() -> None:
    few = {row.key: "1t calipers" for row in SPLIT[:19]}
    nearly_all = {row.key: "1t device" for row in SPLIT[:-19]}
    for findings in (few, nearly_all):
        assert evaluate_without_findings(SPLIT, with_findings(findings), answering(0.9), PLAN) == ()


def test_without_all_images_of_a_class_the_metrics_are_missing_and_say_why() -> None:
    every = {row.key: "1t doppler" for row in SPLIT if row.label == "normal"}
    (part,) = evaluate_without_findings(SPLIT, with_findings(every), answering(0.9), PLAN)
    assert part.macro_auc.value is None and "normal" in part.macro_auc.reason
    assert part.positive_auc.value == 1
