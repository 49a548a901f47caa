from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bcc_ops.config import RetrainingConfig
from bcc_ops.models.registry import Pointer
from bcc_ops.promotion.gate import ChampionState, champion_state, decide, margin_for
from bcc_ops.runs.documents import (
    Anchor,
    Comparison,
    Estimate,
    EvaluationDocument,
    GateDocument,
    Hold,
    ModelEvaluation,
    RuleResult,
    RunKind,
    SliceEvaluation,
)
from tests.unit.report.samples import (
    AS_OF,
    champion_document,
    evaluation_document,
    external_evaluation,
    file_check,
    reference,
)

CHAMPION = ChampionState("20261115T020000Z-3f9c2a1b", "e" * 32, AS_OF - timedelta(days=7), synthetic=False)
ANCHOR = Anchor(
    version="20261101T020000Z-11112222", sha256="b" * 64, since=AS_OF - timedelta(days=21), by="the gate", reason="better"
)
AFTER_THE_ANCHOR = replace(CHAMPION, anchor=ANCHOR)
FINE = evaluation_document()


def estimate(value: float, low: float | None = None) -> Estimate:
    return Estimate(value=value, low=value - 0.05 if low is None else low, high=value + 0.05)


def challenger(**changes: Any) -> ModelEvaluation:
    model = FINE.challenger.model_copy(
        update={"balanced_accuracy": estimate(0.8), "macro_auc": estimate(0.93), **changes.pop("metrics", {})}
    )
    point = model.operating_point.model_copy(
        update={"sensitivity": estimate(0.88), "specificity": estimate(0.83), **changes.pop("point", {})}
    )
    return model.model_copy(update={"operating_point": point})


def comparison(**changes: Any) -> Comparison:
    assert FINE.comparison is not None
    differences = {
        "balanced_accuracy": estimate(0.03, -0.01),
        "malignant_sensitivity": estimate(0.02, -0.02),
        "malignant_auc": Estimate(value=0.001, low=-0.015, high=0.017),
    }
    differences.update(changes.pop("differences", {}))
    return FINE.comparison.model_copy(update={"differences": differences, "positive_groups": 104, **changes})


def with_anchor(**changes: Any) -> Comparison:
    return comparison(**{"champion_version": ANCHOR.version, **changes})


BETTER = {"malignant_auc": Estimate(value=0.02, low=0.004, high=0.036)}


def shown(document: GateDocument, rule: str) -> RuleResult:
    return next(result for result in document.rules if result.rule == rule)


def evaluation(model: ModelEvaluation | None = None, against: Comparison | None = None, **changes: Any) -> EvaluationDocument:
    return FINE.model_copy(update={"challenger": model or challenger(), "comparison": against or comparison(), **changes})


def gate(
    document: EvaluationDocument | None = None,
    champion: ChampionState | None = CHAMPION,
    *,
    as_of: Any = AS_OF,
    run_kind: RunKind = "nightly",
    holdout_reuse: float = 1,
    **parameters: Any,
) -> GateDocument:
    return decide(
        document or evaluation(),
        champion,
        RetrainingConfig.resolve(parameters),
        as_of=as_of,
        run_kind=run_kind,
        holdout_reuse=holdout_reuse,
        reference=reference("evaluation.json"),
    )


def rejecting(document: GateDocument) -> list[str]:
    assert document.verdict == "rejected"
    return [rule.rule for rule in document.rules if rule.applies and not rule.passed]


def test_gate_approves_what_holds_every_rule_and_shows_each_with_its_figure() -> None:
    approved = gate()
    assert approved.verdict == "approved"
    assert approved.reasons == (
        f"Every rule holds: above the floors, and as good as champion {CHAMPION.version} or better, within the margins.",
    )
    shown = {rule.rule: (rule.value, rule.threshold) for rule in approved.rules}
    assert shown["min_balanced_accuracy"] == (0.8, 0.7)
    assert shown["balanced_accuracy_not_worse"][0] == -0.01
    assert all(rule.sentence.endswith(".") for rule in approved.rules)
    assert (approved.champion_version, approved.champion_etag, approved.holdout_reuse) == (CHAMPION.version, CHAMPION.etag, 1)


def test_without_a_champion_only_the_floors_decide() -> None:
    first = gate(evaluation(against=None).model_copy(update={"comparison": None}), None)
    assert first.verdict == "approved_without_champion"
    assert first.reasons == ("Every rule holds: above the floors, and there is no champion yet.",)
    assert {rule.rule for rule in first.rules if not rule.applies} >= {
        "comparable",
        "balanced_accuracy_not_worse",
        "newer_images",
    }
    poor = gate(evaluation(challenger(metrics={"balanced_accuracy": estimate(0.54)})), None)
    assert rejecting(poor) == ["min_balanced_accuracy"]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"metrics": {"balanced_accuracy": estimate(0.699)}}, "min_balanced_accuracy"),
        ({"metrics": {"macro_auc": estimate(0.849)}}, "min_macro_auc"),
        ({"point": {"sensitivity": estimate(0.699)}}, "min_malignant_sensitivity"),
        ({"point": {"specificity": estimate(0.39)}}, "min_malignant_specificity"),
    ],
)
def test_gate_rejects_below_a_floor_and_says_which(changes: dict[str, Any], rule: str) -> None:
    rejected = gate(evaluation(challenger(**changes)))
    assert rejecting(rejected) == [rule]
    assert "below the floor of" in rejected.reasons[0]


def test_a_figure_on_the_floor_holds() -> None:
    assert gate(evaluation(challenger(metrics={"balanced_accuracy": estimate(0.7)}))).verdict == "approved"


@pytest.mark.parametrize("metric", ["balanced_accuracy", "malignant_sensitivity"])
def test_a_missing_difference_fails_its_rule(metric: str) -> None:
    missing = Estimate.missing("there is not an image of malignant")
    rejected = gate(evaluation(against=comparison(differences={metric: missing})))
    assert rejecting(rejected) == [f"{metric}_not_" + ("worse" if metric == "balanced_accuracy" else "inferior")]
    assert "there is not an image of malignant" in rejected.reasons[0]


def test_a_missing_floor_figure_fails_its_rule() -> None:
    rejected = gate(evaluation(challenger(metrics={"macro_auc": Estimate.missing("all scores are the same")})))
    assert rejecting(rejected) == ["min_macro_auc"]
    assert rejected.reasons == ("Macro AUC is not available: all scores are the same.",)


def test_gate_rejects_when_balanced_accuracy_may_have_dropped_by_more_than_the_margin() -> None:
    wide = comparison(differences={"balanced_accuracy": estimate(0.01, -0.051)})
    assert rejecting(gate(evaluation(against=wide), balanced_accuracy_margin=0.05)) == ["balanced_accuracy_not_worse"]
    assert gate(evaluation(against=wide), balanced_accuracy_margin=0.06).verdict == "approved"


def test_a_champion_that_cannot_be_compared_is_never_replaced_in_silence() -> None:
    broken = comparison(problem="its file is gone", challenger=None, champion=None)
    broken = broken.model_copy(update={"differences": {}})
    rejected = gate(evaluation(against=broken))
    assert rejecting(rejected) == [
        "comparable",
        "balanced_accuracy_not_worse",
        "malignant_sensitivity_not_inferior",
        "malignant_auc_not_worse",
    ]
    assert not rejected.becomes_anchor
    assert rejected.reasons[0] == (
        f"Champion {CHAMPION.version} could not be compared: its file is gone. If that lasts, set another champion or begin "
        'without one: see "A champion that cannot be compared" in docs/operations.md.'
    )


def test_the_way_out_that_the_gate_names_is_written_down() -> None:
    operations = Path(__file__).parents[3] / "docs" / "operations.md"
    assert "\n## A champion that cannot be compared\n" in operations.read_text(encoding="utf-8")


def test_once_the_champion_is_taken_away_a_comparison_that_failed_rejects_no_longer() -> None:
    broken = comparison(problem="it knows other classes", challenger=None, champion=None)
    broken = broken.model_copy(update={"differences": {}})
    begun = gate(evaluation(against=broken), None, as_of=CHAMPION.as_of - timedelta(days=1))
    assert (begun.verdict, begun.champion_version, begun.champion_etag) == ("approved_without_champion", None, None)


def test_too_few_malignant_groups_to_compare_on_reject() -> None:
    rejected = gate(evaluation(against=comparison(positive_groups=22)))
    assert rejecting(rejected) == ["comparable"]
    assert "with 22 malignant groups, fewer than the 23 needed" in rejected.reasons[0]
    assert gate(evaluation(against=comparison(positive_groups=23))).verdict == "approved"


def test_margins_are_as_configured_up_to_104_malignant_groups_and_shrink_from_there() -> None:
    assert [round(margin_for(0.08, groups), 4) for groups in (0, 33, 104, 139, 162, 416)] == [
        0.08,
        0.08,
        0.08,
        0.0692,
        0.0641,
        0.04,
    ]
    seven_points = {"malignant_sensitivity": estimate(0.0, -0.07), "balanced_accuracy": estimate(0.0, -0.07)}
    assert gate(evaluation(against=comparison(differences=seven_points))).verdict == "approved"
    with_more = gate(evaluation(against=comparison(differences=seven_points, positive_groups=162)))
    assert rejecting(with_more) == ["balanced_accuracy_not_worse", "malignant_sensitivity_not_inferior"]
    assert "minus the margin of 0.064" in with_more.reasons[0]


def test_a_champion_that_came_in_the_meantime_rejects() -> None:
    other = ChampionState("20261116T020000Z-ffff", "f" * 32, CHAMPION.as_of, synthetic=False)
    assert "comparable" in rejecting(gate(champion=other))
    none_then = evaluation().model_copy(update={"comparison": None})
    assert "comparable" in rejecting(gate(none_then))


def test_images_that_are_not_newer_than_the_champions_reject() -> None:
    assert rejecting(gate(as_of=CHAMPION.as_of)) == ["newer_images"]
    assert gate(as_of=CHAMPION.as_of + timedelta(seconds=1)).verdict == "approved"


def test_a_backfill_leaves_the_champion_alone_unless_it_says_so() -> None:
    rejected = gate(run_kind="backfill")
    assert rejecting(rejected) == ["backfill_may_promote"]
    assert rejected.reasons == ("A backfill leaves the champion alone: promote_backfill is off.",)
    assert gate(run_kind="backfill", promote_backfill=True).verdict == "approved"
    older = gate(run_kind="backfill", promote_backfill=True, as_of=CHAMPION.as_of - timedelta(days=1))
    assert rejecting(older) == ["newer_images"]


def test_synthetic_images_never_replace_a_model_of_real_ones() -> None:
    synthetic = evaluation().model_copy(update={"synthetic": True})
    assert rejecting(gate(synthetic)) == ["no_synthetic_data_over_real"]
    same = ChampionState(CHAMPION.version, CHAMPION.etag, CHAMPION.as_of, synthetic=True)
    assert gate(synthetic, same).verdict == "approved"
    assert gate(synthetic.model_copy(update={"comparison": None}), None).verdict == "approved_without_champion"
    assert gate(champion=same).verdict == "approved"


def test_images_that_decided_often_are_a_warning_and_do_not_reject() -> None:
    overused = gate(holdout_reuse=31, max_holdout_reuse=30)
    assert (overused.verdict, overused.holdout_reuse) == ("approved", 31)
    assert overused.reasons[-1].startswith("The same held-out images have decided often: 31.0 times each")
    fresh = gate(holdout_reuse=30, max_holdout_reuse=30)
    assert len(fresh.reasons) == 1
    assert not any("decided often" in reason for reason in fresh.reasons)


def test_every_failed_rule_is_a_reason() -> None:
    poor = challenger(metrics={"balanced_accuracy": estimate(0.5), "macro_auc": estimate(0.6)})
    rejected = gate(evaluation(poor), run_kind="backfill", as_of=CHAMPION.as_of)
    assert len(rejected.reasons) == len(rejecting(rejected)) == 4


HOLD = Hold(by="ana", at=AS_OF, reason="misses small lesions.")


def test_while_a_person_holds_the_champion_the_best_verdict_is_that_a_person_is_needed() -> None:
    held = replace(CHAMPION, hold=HOLD)
    asked = gate(champion=held)
    assert asked.verdict == "needs_person"
    assert asked.reasons[0].startswith("Every rule holds")
    assert asked.reasons[1] == (
        f"ana holds champion {CHAMPION.version} since {AS_OF:%Y-%m-%d %H:%M} UTC: misses small lesions. A person must approve "
        "this model, or release the hold with bcc_set_champion."
    )
    rejected = gate(champion=held, min_macro_auc=1.0)
    assert rejected.verdict == "rejected" and rejected.reasons[-1] == asked.reasons[1]


def test_a_model_that_a_person_withdrew_is_rejected_by_its_file() -> None:
    model = reference("model.h5")
    withdrawn = replace(CHAMPION, withdrawn=(model.sha256,))
    assert rejecting(gate(evaluation().model_copy(update={"model": model}), champion=withdrawn)) == ["not_withdrawn"]
    other = evaluation().model_copy(update={"model": reference("another.h5")})
    assert gate(other, champion=withdrawn).verdict == "approved"


# Small losses must not add up ----------------------------------------------------------------------------------------


def test_a_lower_malignant_auc_rejects_if_it_is_lower_with_one_sided_confidence_of_80_percent() -> None:
    # the bound is 0.4294 half widths of the 95 % interval above the difference
    close = {"malignant_auc": Estimate(value=-0.004, low=-0.014, high=0.006)}
    lower = {"malignant_auc": Estimate(value=-0.0045, low=-0.0145, high=0.0055)}
    assert gate(evaluation(against=comparison(differences=close))).verdict == "approved"
    rejected = gate(evaluation(against=comparison(differences=lower)))
    assert rejecting(rejected) == ["malignant_auc_not_worse"]
    assert rejected.reasons[0].endswith("it is lower with one-sided confidence of 80 % (upper bound -0.000).")


def test_a_first_model_becomes_the_anchor_and_a_later_one_only_if_it_is_better_with_confidence() -> None:
    assert gate(evaluation().model_copy(update={"comparison": None}), None).becomes_anchor
    assert not gate().becomes_anchor
    assert gate(evaluation(against=comparison(differences=BETTER))).becomes_anchor


def test_one_model_that_is_no_worse_may_follow_the_anchor_and_the_next_one_must_be_better_than_it() -> None:
    assert gate().verdict == "approved"
    again = gate(evaluation(anchor=with_anchor()), AFTER_THE_ANCHOR)
    assert rejecting(again) == ["better_than_champion"]
    assert again.reasons[0].endswith("That is asked because the champion is not the anchor.")
    better = gate(evaluation(against=comparison(differences=BETTER), anchor=with_anchor()), AFTER_THE_ANCHOR)
    assert (better.verdict, better.becomes_anchor, better.anchor_version) == ("approved", False, ANCHOR.version)
    best = gate(evaluation(against=comparison(differences=BETTER), anchor=with_anchor(differences=BETTER)), AFTER_THE_ANCHOR)
    assert (best.verdict, best.becomes_anchor) == ("approved", True)


@pytest.mark.parametrize(
    ("differences", "rule"),
    [
        ({"malignant_sensitivity": estimate(-0.03, -0.09)}, "anchor_malignant_sensitivity_not_inferior"),
        ({"balanced_accuracy": estimate(-0.03, -0.09)}, "anchor_balanced_accuracy_not_worse"),
        ({"malignant_auc": Estimate(value=-0.02, low=-0.03, high=-0.01)}, "malignant_auc_not_worse"),
    ],
)
def test_better_than_the_champion_is_not_enough_if_it_is_worse_than_the_anchor(differences: Any, rule: str) -> None:
    document = evaluation(against=comparison(differences=BETTER), anchor=with_anchor(differences=differences))
    rejected = gate(document, AFTER_THE_ANCHOR)
    assert rejecting(rejected) == [rule]
    assert f"anchor {ANCHOR.version}'s" in rejected.reasons[0]


@pytest.mark.parametrize(
    ("anchor", "withdrawn", "why"),
    [
        (with_anchor(problem="its file is gone", challenger=None, champion=None), (), "its file is gone"),
        (with_anchor(), (ANCHOR.sha256,), "a person withdrew it"),
        (with_anchor(positive_groups=22), (), "only 22 malignant groups are left to compare on"),
    ],
    ids=["gone", "withdrawn", "other images"],
)
def test_the_champion_stands_in_for_an_anchor_that_cannot_be_compared_and_a_warning_says_so(
    anchor: Comparison, withdrawn: tuple[str, ...], why: str
) -> None:
    champion = replace(AFTER_THE_ANCHOR, withdrawn=withdrawn)
    approved = gate(evaluation(anchor=anchor), champion)
    assert (approved.verdict, approved.anchor_version) == ("approved", None)
    assert approved.reasons[1] == (
        f"Anchor {ANCHOR.version} cannot be compared: {why}. Champion {CHAMPION.version} stands in for it."
    )
    assert gate(evaluation(against=comparison(differences=BETTER), anchor=anchor), champion).becomes_anchor


def test_an_anchor_that_the_evaluation_does_not_know_is_never_passed_over_in_silence() -> None:
    better = comparison(differences=BETTER)
    rejected = gate(evaluation(against=better), AFTER_THE_ANCHOR)
    assert "anchor_comparable" in rejecting(rejected)
    assert f"This model was not compared with anchor {ANCHOR.version}. Clear evaluate_model to compare it." in rejected.reasons


def test_an_older_pointer_names_no_anchor_and_the_champion_is_it() -> None:
    for anchor in (None, ANCHOR.model_copy(update={"version": CHAMPION.version})):
        state = champion_state(Pointer(champion_document(anchor=anchor), "e" * 32))
        assert state is not None and state.anchor is None
    named = champion_state(Pointer(champion_document(anchor=ANCHOR), "e" * 32))
    assert named is not None and named.anchor == ANCHOR


# Beside the comparison -------------------------------------------------------------------------------------------------


def test_a_model_that_may_be_worse_elsewhere_is_rejected() -> None:
    worse = external_evaluation(differences={"malignant_auc": estimate(-0.03, -0.081)})
    rejected = gate(evaluation(external=(worse,)))
    assert rejecting(rejected) == ["external_not_inferior_elsewhere"]
    assert "Malignant AUC on the external test set elsewhere differs from the champion's" in rejected.reasons[0]
    assert gate(evaluation(external=(worse,)), external_margin=0.09).verdict == "approved"
    assert gate(evaluation(external=(external_evaluation(),))).verdict == "approved"
    unmeasured = external_evaluation(differences={"malignant_auc": Estimate.missing("all scores are the same")})
    assert rejecting(gate(evaluation(external=(unmeasured,)))) == ["external_not_inferior_elsewhere"]


def test_each_external_set_has_its_own_rule_and_one_that_is_worse_is_enough() -> None:
    worse = external_evaluation(name="Ulm", differences={"malignant_auc": estimate(-0.03, -0.081)})
    empty = external_evaluation(name="Oslo", challenger=None, champion=None, differences={})
    document = gate(evaluation(external=(external_evaluation(name="Lima"), worse, empty)))
    assert rejecting(document) == ["external_not_inferior_Ulm"]
    assert shown(document, "external_not_inferior_Lima").passed
    unused = shown(document, "external_not_inferior_Oslo")
    assert not unused.applies and "test set Oslo: it has no usable image" in unused.sentence
    none = shown(gate(evaluation()), "external_not_inferior")
    assert not none.applies and none.sentence == "There are no external test sets."


def test_a_few_patients_from_elsewhere_decide_nothing() -> None:
    """With few, not even the champion itself would pass, however many images they have."""
    worse = external_evaluation(differences={"malignant_auc": estimate(-0.03, -0.081)}, positive_groups=22)
    rule = shown(gate(evaluation(external=(worse,))), "external_not_inferior_elsewhere")
    assert not rule.applies and "22 malignant groups are too few for a rule; 23 are needed" in rule.sentence
    enough = worse.model_copy(update={"positive_groups": 23})
    assert rejecting(gate(evaluation(external=(enough,)))) == ["external_not_inferior_elsewhere"]


def test_a_champion_that_cannot_be_asked_about_images_from_elsewhere_is_a_warning() -> None:
    unasked = external_evaluation(champion=None, differences={}, problem="its file is gone")
    approved = gate(evaluation(external=(unasked,)))
    assert approved.verdict == "approved"
    assert approved.reasons[1] == "The champion could not be asked about the external test set elsewhere: its file is gone."
    alone = external_evaluation(champion=None, differences={})
    first = gate(evaluation(external=(alone,)).model_copy(update={"comparison": None}), None)
    assert first.verdict == "approved_without_champion" and not shown(first, "external_not_inferior_elsewhere").applies


def test_a_file_that_does_not_keep_what_its_folds_promised_is_rejected() -> None:
    assert gate(evaluation(file_check=file_check())).verdict == "approved"
    rejected = gate(evaluation(file_check=file_check(passed=False, file_loss=0.7)))
    assert rejecting(rejected) == ["file_as_good_as_folds"]
    assert "log loss 0.700 and 0.419 on 60 external test images" in rejected.reasons[0]
    assert not [rule for rule in gate().rules if rule.rule == "file_as_good_as_folds"]


# Subgroups ------------------------------------------------------------------------------------------------------------


def subgroup(value: str, difference: Estimate, groups: int = 30) -> SliceEvaluation:
    fine = Estimate(value=0.9, low=0.8, high=0.95)
    return SliceEvaluation(
        by="site",
        value=value,
        images=90,
        balanced_accuracy=fine,
        positive_sensitivity=fine,
        compared=80,
        compared_positive_groups=groups,
        differences={"malignant_sensitivity": difference},
    )


EQUAL = Estimate(value=0.0, low=-0.1, high=0.1)
LOWER = Estimate(value=-0.2, low=-0.3, high=-0.1)
"""By twice its half width: in forty subgroups, one of two equal models differs so by chance."""


def with_subgroups(*parts: SliceEvaluation, needed: int = 20, champion: ChampionState | None = CHAMPION) -> GateDocument:
    return gate(evaluation(slices=parts), champion, subgroup_malignant_groups=needed)


def test_subgroups_decide_nothing_unless_the_rule_is_switched_on() -> None:
    document = gate(evaluation(slices=(subgroup("North", LOWER),)))
    assert document.verdict == "approved"
    assert "no_subgroup_worse" not in {rule.rule for rule in document.rules}


def test_a_model_that_finds_fewer_cancers_in_a_subgroup_is_rejected() -> None:
    document = with_subgroups(subgroup("North", EQUAL), subgroup("South", LOWER))
    assert rejecting(document) == ["no_subgroup_worse"]
    rule = shown(document, "no_subgroup_worse")
    assert "site South looks worst; it differs from the champion's by -0.200 (-0.300 to -0.100)" in rule.sentence
    assert rule.value == pytest.approx(-0.2 + 0.1 * 2.2414 / 1.95996, abs=1e-4)


def test_one_of_many_subgroups_may_look_worse_by_chance() -> None:
    slightly = Estimate(value=-0.11, low=-0.21, high=-0.01)
    assert rejecting(with_subgroups(subgroup("A", slightly))) == ["no_subgroup_worse"]
    many = with_subgroups(subgroup("A", slightly), *(subgroup(str(number), EQUAL) for number in range(9)))
    assert many.verdict == "approved"
    assert shown(many, "no_subgroup_worse").value == pytest.approx(-0.11 + 0.1 * 2.80703 / 1.95996, abs=1e-4)


def test_a_subgroup_of_few_cancers_and_one_that_cannot_be_compared_decide_nothing() -> None:
    missing = Estimate.missing("none of the images is malignant")
    document = with_subgroups(subgroup("North", LOWER, groups=19), subgroup("South", missing))
    assert document.verdict == "approved"
    assert not shown(document, "no_subgroup_worse").applies
    first = with_subgroups(subgroup("North", LOWER), champion=None)
    assert not shown(first, "no_subgroup_worse").applies
