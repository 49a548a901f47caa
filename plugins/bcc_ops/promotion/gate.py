"""Decide whether a challenger may replace the champion.

Pure policy: the evaluation, the champion's pointer and the thresholds in, a verdict with reasons out. With no champion,
only the absolute thresholds apply. A missing metric fails its rule: silence is never approval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from bcc_ops.config import RetrainingConfig
from bcc_ops.models.registry import Pointer
from bcc_ops.runs.documents import (
    Comparison,
    Estimate,
    EvaluationDocument,
    GateDocument,
    Hold,
    Reference,
    RuleResult,
    RunKind,
    Verdict,
)


@dataclass(frozen=True)
class ChampionState:
    """The champion when the gate decides, as its pointer has it.

    `hold` is set if a person holds it, and `withdrawn` has the sha256 of the model files that persons replaced.
    """

    version: str
    etag: str
    as_of: datetime
    synthetic: bool
    hold: Hold | None = None
    withdrawn: tuple[str, ...] = ()


def champion_state(pointer: Pointer | None) -> ChampionState | None:
    """Return what the gate must know of the pointer."""
    if pointer is None or pointer.champion is None:
        return None
    named = pointer.champion
    return ChampionState(named.version, pointer.etag, named.as_of, named.synthetic, named.hold, named.withdrawn)


def decide(
    evaluation: EvaluationDocument,
    champion: ChampionState | None,
    config: RetrainingConfig,
    *,
    as_of: datetime,
    run_kind: RunKind,
    holdout_reuse: float,
    reference: Reference,
    split: Reference | None = None,
) -> GateDocument:
    """Judge a challenger by every rule, also where an early one fails: the reader sees all of them.

    Args:
        evaluation: of this run.
        champion: the model in use now; None if there is none.
        config: the thresholds.
        as_of: of this run's snapshot.
        run_kind: a backfill leaves the champion alone unless `promote_backfill`.
        holdout_reuse: gate decisions per held-out image, this one included.
        reference: to `evaluation.json`.
        split: to the run's `split.json`, whose split the next run carries forward.
    """
    comparison = evaluation.comparison
    rules = (
        *_floors(evaluation, config),
        _compared(comparison, champion, config),
        *_against_champion(evaluation, comparison, champion, config),
        _newer(as_of, champion),
        _backfill(run_kind, config),
        _not_synthetic(evaluation.synthetic, champion),
        _not_withdrawn(evaluation.model, champion),
        _hold(champion),
        _holdout_reuse(holdout_reuse, config),
    )
    failed = [rule for rule in rules if rule.applies and not rule.passed]
    verdict: Verdict = "approved" if champion else "approved_without_champion"
    if failed:
        verdict = "rejected"
    elif champion and champion.hold:
        verdict = "needs_person"
    return GateDocument(
        verdict=verdict,
        reasons=_reasons(rules, failed, champion),
        rules=rules,
        as_of=as_of,
        synthetic=evaluation.synthetic,
        champion_version=champion.version if champion else None,
        champion_etag=champion.etag if champion else None,
        validation_digest=evaluation.validation_digest,
        holdout_reuse=holdout_reuse,
        evaluation=reference,
        split=split,
    )


def _reasons(rules: Sequence[RuleResult], failed: Sequence[RuleResult], champion: ChampionState | None) -> tuple[str, ...]:
    warnings = tuple(rule.sentence for rule in rules if not rule.applies and not rule.passed)
    if failed:
        return (*(rule.sentence for rule in failed), *warnings)
    against = f"as good as champion {champion.version} or better, within the margins" if champion else "there is no champion yet"
    return (f"Every rule holds: above the floors, and {against}.", *warnings)


def _rule(rule: str, passed: bool, sentence: str, *, value: float | None = None, threshold: float | None = None) -> RuleResult:
    return RuleResult(rule=rule, passed=passed, applies=True, value=value, threshold=threshold, sentence=sentence)


def _not_applicable(rule: str, sentence: str, *, threshold: float | None = None) -> RuleResult:
    return RuleResult(rule=rule, passed=True, applies=False, value=None, threshold=threshold, sentence=sentence)


def _floors(evaluation: EvaluationDocument, config: RetrainingConfig) -> tuple[RuleResult, ...]:
    challenger, positive = evaluation.challenger, evaluation.positive_class
    floors = (
        ("min_balanced_accuracy", "Balanced accuracy", challenger.balanced_accuracy, config.min_balanced_accuracy),
        ("min_macro_auc", "Macro AUC", challenger.macro_auc, config.min_macro_auc),
        (
            "min_malignant_sensitivity",
            f"{positive.capitalize()} sensitivity at the operating point",
            challenger.operating_point.sensitivity,
            config.min_malignant_sensitivity,
        ),
        (
            "min_malignant_specificity",
            f"{positive.capitalize()} specificity at the operating point",
            challenger.operating_point.specificity,
            config.min_malignant_specificity,
        ),
    )
    return tuple(_floor(*floor) for floor in floors)


def _floor(rule: str, name: str, estimate: Estimate, floor: float) -> RuleResult:
    if estimate.value is None:
        return _rule(rule, False, f"{name} is not available: {estimate.reason}.", threshold=floor)
    passed = estimate.value >= floor
    sentence = f"{name} is {estimate}, {'not below' if passed else 'below'} the floor of {floor:.3f}."
    return _rule(rule, passed, sentence, value=estimate.value, threshold=floor)


def _compared(comparison: Comparison | None, champion: ChampionState | None, config: RetrainingConfig) -> RuleResult:
    rule, needed = "comparable", config.min_compared_images
    if champion is None:
        return _not_applicable(rule, "There is no champion to compare with.", threshold=needed)
    if comparison is None:
        sentence = f"Champion {champion.version} came into use after this model was evaluated: it was not compared with it."
        return _rule(rule, False, sentence, threshold=needed)
    if comparison.champion_version != champion.version:
        sentence = f"The champion is {champion.version} by now, but the comparison is with {comparison.champion_version}."
        return _rule(rule, False, sentence, threshold=needed)
    if comparison.problem or comparison.champion is None:
        sentence = (
            f"Champion {champion.version} could not be compared: {comparison.problem}. Where that lasts, set another champion or "
            'begin without one: see "A champion that cannot be compared" in docs/operations.md.'
        )
        return _rule(rule, False, sentence, threshold=needed)
    images, left_out = comparison.champion.images, sum(comparison.left_out.values())
    passed = images >= needed
    sentence = (
        f"{images} validation images are compared on, {'at least' if passed else 'fewer than'} the {needed} that are needed; "
        f"{left_out} are left out because the champion was trained on them or on near-duplicates."
    )
    return _rule(rule, passed, sentence, value=float(images), threshold=needed)


def _against_champion(
    evaluation: EvaluationDocument, comparison: Comparison | None, champion: ChampionState | None, config: RetrainingConfig
) -> tuple[RuleResult, ...]:
    positive = evaluation.positive_class
    # Sensitivities of the likeliest class, not at the operating points: a threshold that is chosen on 20 malignant tuning
    # images moves two equal models apart by more than what the comparison is to notice (benchmarks/gate_simulation.py).
    margins = (
        ("balanced_accuracy_not_worse", "Balanced accuracy", "balanced_accuracy", config.balanced_accuracy_margin),
        (
            "malignant_sensitivity_not_inferior",
            f"{positive.capitalize()} sensitivity",
            f"{positive}_sensitivity",
            config.sensitivity_margin,
        ),
    )
    if champion is None:
        return tuple(_not_applicable(rule, f"{name}: no champion to compare with.", threshold=-m) for rule, name, _, m in margins)
    differences = comparison.differences if comparison else {}
    missing = Estimate.missing("there is no comparison")
    return tuple(_margin(rule, name, differences.get(metric, missing), margin) for rule, name, metric, margin in margins)


def _margin(rule: str, name: str, difference: Estimate, margin: float) -> RuleResult:
    if difference.value is None or difference.low is None:
        reason = difference.reason or "it has no interval"
        return _rule(rule, False, f"{name} cannot be compared with the champion's: {reason}.", threshold=-margin)
    passed = difference.low > -margin
    sentence = (
        f"{name} differs from the champion's by {difference}: the lower bound is "
        f"{'above' if passed else 'not above'} minus the margin of {margin:.3f}."
    )
    return _rule(rule, passed, sentence, value=difference.low, threshold=-margin)


def _newer(as_of: datetime, champion: ChampionState | None) -> RuleResult:
    if champion is None:
        return _not_applicable("newer_images", "There is no champion whose images could be newer.")
    passed = as_of > champion.as_of
    relation = "newer than" if passed else "not newer than"
    sentence = (
        f"The images are as of {as_of:%Y-%m-%d %H:%M:%S} UTC, {relation} the champion's ({champion.as_of:%Y-%m-%d %H:%M:%S})."
    )
    if not passed:
        sentence += " If the champion's date is wrong, choose another one with bcc_set_champion."
    return _rule("newer_images", passed, sentence)


def _backfill(run_kind: RunKind, config: RetrainingConfig) -> RuleResult:
    if run_kind != "backfill":
        return _not_applicable("backfill_may_promote", "This run is not a backfill.")
    if config.promote_backfill:
        return _rule("backfill_may_promote", True, "This backfill may promote: promote_backfill is on.")
    return _rule("backfill_may_promote", False, "A backfill leaves the champion alone: promote_backfill is off.")


def _not_synthetic(synthetic: bool, champion: ChampionState | None) -> RuleResult:
    rule = "no_synthetic_data_over_real"
    if not synthetic:
        return _rule(rule, True, "The images are not synthetic.")
    if champion is None:
        return _not_applicable(rule, "The images are synthetic; there is no champion of real images.")
    if champion.synthetic:
        return _rule(rule, True, "The images are synthetic, and so were the champion's.")
    return _rule(rule, False, f"The images are synthetic, and champion {champion.version} was trained on real ones.")


def _not_withdrawn(model: Reference | None, champion: ChampionState | None) -> RuleResult:
    rule = "not_withdrawn"
    if champion is None or not champion.withdrawn:
        return _not_applicable(rule, "No model was withdrawn.")
    if model is not None and model.sha256 in champion.withdrawn:
        sentence = "A person withdrew this very model (its file is the same). Only a person can bring it back: bcc_set_champion."
        return _rule(rule, False, sentence)
    return _rule(rule, True, "This model is none of those that were withdrawn.")


def _hold(champion: ChampionState | None) -> RuleResult:
    """Say that a person decides; that is neither for nor against the model."""
    rule = "no_hold"
    if champion is None or champion.hold is None:
        return _not_applicable(rule, "Nobody holds the champion.")
    hold = champion.hold
    sentence = (
        f"{hold.by} holds champion {champion.version} since {hold.at:%Y-%m-%d %H:%M} UTC: {hold.reason.rstrip('.')}. A person "
        "must approve this model, or release the hold with bcc_set_champion."
    )
    return RuleResult(rule=rule, passed=False, applies=False, value=None, threshold=None, sentence=sentence)


def _holdout_reuse(decisions: float, config: RetrainingConfig) -> RuleResult:
    """Warn and do not reject: an overused set needs new images, and refusing every model until then would help nobody."""
    passed = decisions <= config.max_holdout_reuse
    sentence = f"Gate decisions per held-out image, this one included: {decisions:.1f} of {config.max_holdout_reuse}."
    if not passed:
        sentence = (
            f"The same held-out images have decided often: {decisions:.1f} times each on average, and {config.max_holdout_reuse} "
            "were foreseen. By now a model may win by luck; add new images."
        )
    return RuleResult(
        rule="max_holdout_reuse",
        passed=passed,
        applies=False,
        value=decisions,
        threshold=float(config.max_holdout_reuse),
        sentence=sentence,
    )
