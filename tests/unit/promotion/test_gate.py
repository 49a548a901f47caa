from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bcc_ops.config import RetrainingConfig
from bcc_ops.promotion.gate import ChampionState, decide
from bcc_ops.runs.documents import Comparison, Estimate, EvaluationDocument, GateDocument, Hold, ModelEvaluation, RunKind
from tests.unit.report.samples import AS_OF, evaluation_document, reference

CHAMPION = ChampionState("20261115T020000Z-3f9c2a1b", "e" * 32, AS_OF - timedelta(days=7), synthetic=False)
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
    differences = {"balanced_accuracy": estimate(0.03, -0.01), "malignant_sensitivity": estimate(0.02, -0.02)}
    differences.update(changes.pop("differences", {}))
    return FINE.comparison.model_copy(update={"differences": differences, **changes})


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
    assert rejecting(rejected) == ["comparable", "balanced_accuracy_not_worse", "malignant_sensitivity_not_inferior"]
    assert rejected.reasons[0] == (
        f"Champion {CHAMPION.version} could not be compared: its file is gone. Where that lasts, set another champion or begin "
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


def test_too_few_images_that_the_champion_has_not_seen_reject() -> None:
    rejected = gate(min_compared_images=125)
    assert rejecting(rejected) == ["comparable"]
    assert rejected.reasons[0].startswith("124 validation images are compared on, fewer than the 125")
    assert gate(min_compared_images=124).verdict == "approved"


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
