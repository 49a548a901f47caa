"""Decide whether a challenger may replace the champion.

Pure policy: the evaluation, the champion's pointer and the thresholds in, a verdict with reasons out. With no champion,
only the absolute thresholds apply. A missing metric fails its rule: silence is never approval.

A challenger may be a little worse than the champion by chance, and the gate cannot see that. So that such losses cannot add up,
it is compared with the anchor too, the best version so far by its evidence. One model that is no worse may follow the anchor; a
model that is to replace that one in turn must be better than it with confidence. `benchmarks/gate_simulation.py` measures what
that is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import NormalDist

from bcc_ops.config import RetrainingConfig
from bcc_ops.models.registry import Pointer
from bcc_ops.runs.documents import (
    Anchor,
    Comparison,
    Estimate,
    EvaluationDocument,
    ExternalEvaluation,
    FileCheck,
    GateDocument,
    Hold,
    Reference,
    RuleResult,
    RunKind,
    Verdict,
)

FULL_MARGIN_GROUPS = 104
"""Malignant groups up to which the margins are as configured: 0.08 is then about as wide as the chance difference of two equal
models. With more groups chance does less, and the margins shrink with it, by the square root."""

EXTERNAL_RULE = "external_not_inferior"
"""Followed by the name of the set, if there is one."""

ONE_SIDED_80 = 0.841621 / 1.959964
"""Half the width of a paired 95 % interval -> the distance of the one-sided 80 % bound from the difference. The intervals of AUC
differences are symmetric, and their estimate is close to normal."""


@dataclass(frozen=True)
class ChampionState:
    """The champion when the gate decides, as its pointer has it.

    `hold` is set if a person holds it, and `withdrawn` has the sha256 of the model files that persons replaced. `anchor` is None
    if the champion is the anchor.
    """

    version: str
    etag: str
    as_of: datetime
    synthetic: bool
    hold: Hold | None = None
    withdrawn: tuple[str, ...] = ()
    anchor: Anchor | None = None


@dataclass(frozen=True)
class _Other:
    """A version that the challenger is compared with: `name` is how sentences call it."""

    name: str
    comparison: Comparison | None


def champion_state(pointer: Pointer | None) -> ChampionState | None:
    """Return what the gate must know of the pointer."""
    if pointer is None or pointer.champion is None:
        return None
    named = pointer.champion
    anchor = named.anchor if named.anchor and named.anchor.version != named.version else None
    return ChampionState(named.version, pointer.etag, named.as_of, named.synthetic, named.hold, named.withdrawn, anchor)


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
    """Judge a challenger by every rule, even if an early one fails: the reader sees all of them.

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
    positive = evaluation.positive_class
    against = _Other("the champion", evaluation.comparison) if champion else None
    anchor, anchor_rule = _anchor(evaluation, champion, config)
    rules = (
        *_floors(evaluation, config),
        _compared(evaluation.comparison, champion, config, positive),
        *_not_inferior(positive, against, config),
        anchor_rule,
        *(_not_inferior(positive, anchor, config, prefix="anchor_") if anchor else ()),
        _auc_not_worse(positive, anchor or against),
        _better_than_champion(positive, against, anchor),
        *_external(evaluation.external, positive, champion, config),
        *_subgroups(evaluation, champion, config),
        *_file_check(evaluation.file_check),
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
        held_out_digest=evaluation.held_out_digest,
        holdout_reuse=holdout_reuse,
        becomes_anchor=champion is None or better_with_confidence(_auc_difference(positive, anchor or against)),
        anchor_version=champion.anchor.version if champion and champion.anchor and anchor else None,
        evaluation=reference,
        split=split,
    )


def margin_for(margin: float, groups: int) -> float:
    """Return the margin for this many malignant groups: as configured up to `FULL_MARGIN_GROUPS`, and less for more."""
    return margin * min(1.0, math.sqrt(FULL_MARGIN_GROUPS / groups)) if groups else margin


def better_with_confidence(difference: Estimate) -> bool:
    """Tell whether the paired 95 % interval of a difference is above 0."""
    return difference.low is not None and difference.low > 0


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


def _compared(
    comparison: Comparison | None, champion: ChampionState | None, config: RetrainingConfig, positive: str
) -> RuleResult:
    rule, needed = "comparable", config.min_malignant_groups
    if champion is None:
        return _not_applicable(rule, "There is no champion to compare with.", threshold=needed)
    if comparison is None:
        sentence = f"Champion {champion.version} came into use after this model was evaluated: it was not compared with it."
        return _rule(rule, False, sentence, threshold=needed)
    if comparison.champion_version != champion.version:
        sentence = f"The champion is now {champion.version}, but the comparison is with {comparison.champion_version}."
        return _rule(rule, False, sentence, threshold=needed)
    if comparison.problem or comparison.champion is None:
        sentence = (
            f"Champion {champion.version} could not be compared: {comparison.problem}. If that lasts, set another champion or "
            'begin without one: see "A champion that cannot be compared" in docs/operations.md.'
        )
        return _rule(rule, False, sentence, threshold=needed)
    groups, left_out = comparison.positive_groups, sum(comparison.left_out.values())
    passed = groups >= needed
    sentence = (
        f"The models are compared on {comparison.champion.images} images with {groups} {positive} groups, "
        f"{'at least' if passed else 'fewer than'} the {needed} needed; "
        f"{left_out} images are left out because one of the models has no honest answer about them."
    )
    return _rule(rule, passed, sentence, value=float(groups), threshold=needed)


def _not_inferior(positive: str, other: _Other | None, config: RetrainingConfig, *, prefix: str = "") -> tuple[RuleResult, ...]:
    # Sensitivities of the likeliest class, not at the operating points: thresholds are chosen on few malignant images, which
    # moves two equal models apart by more than the comparison should notice (benchmarks/gate_simulation.py).
    margins = (
        ("balanced_accuracy_not_worse", "Balanced accuracy", "balanced_accuracy", config.balanced_accuracy_margin),
        (
            "malignant_sensitivity_not_inferior",
            f"{positive.capitalize()} sensitivity",
            f"{positive}_sensitivity",
            config.sensitivity_margin,
        ),
    )
    if other is None:
        return tuple(_not_applicable(rule, f"{name}: no champion to compare with.", threshold=-m) for rule, name, _, m in margins)
    groups = other.comparison.positive_groups if other.comparison else 0
    return tuple(
        _margin(f"{prefix}{rule}", name, other.name, _difference(other, metric), margin_for(margin, groups))
        for rule, name, metric, margin in margins
    )


def _difference(other: _Other, metric: str) -> Estimate:
    if other.comparison is None:
        return Estimate.missing("there is no comparison")
    return other.comparison.differences.get(metric, Estimate.missing(other.comparison.problem or "it was not measured"))


def _auc_difference(positive: str, other: _Other | None) -> Estimate:
    return _difference(other, f"{positive}_auc") if other else Estimate.missing("there is no champion")


def _margin(rule: str, name: str, other: str, difference: Estimate, margin: float) -> RuleResult:
    if difference.value is None or difference.low is None:
        return _rule(rule, False, _incomparable(name, other, difference), threshold=-margin)
    passed = difference.low > -margin
    sentence = (
        f"{name} differs from {other}'s by {difference}: the lower bound is "
        f"{'above' if passed else 'not above'} minus the margin of {margin:.3f}."
    )
    return _rule(rule, passed, sentence, value=difference.low, threshold=-margin)


def _incomparable(name: str, other: str, difference: Estimate) -> str:
    return f"{name} cannot be compared with {other}'s: {difference.reason or 'it has no interval'}."


def _anchor(
    evaluation: EvaluationDocument, champion: ChampionState | None, config: RetrainingConfig
) -> tuple[_Other | None, RuleResult]:
    """Return the anchor, or None if the champion stands in for it; and the rule that says which.

    The champion stands in, with a warning, for an anchor that can no longer be compared with: a rule that no model can pass would
    protect nobody.
    """
    rule = "anchor_comparable"
    if champion is None:
        return None, _not_applicable(rule, "There is no champion, and so no anchor.")
    if champion.anchor is None:
        return None, _not_applicable(rule, f"Champion {champion.version} is the anchor.")
    anchor, compared = champion.anchor, evaluation.anchor
    other = _Other(f"anchor {anchor.version}", compared)
    problem = None
    if anchor.sha256 in champion.withdrawn:
        problem = "a person withdrew it"
    elif compared is None or compared.champion_version != anchor.version:
        sentence = f"This model was not compared with anchor {anchor.version}. Clear evaluate_model to compare it."
        return other, _rule(rule, False, sentence)
    elif compared.problem:
        problem = compared.problem
    elif compared.positive_groups < config.min_malignant_groups:
        problem = f"only {compared.positive_groups} {evaluation.positive_class} groups are left to compare on"
    if problem is None:
        groups = compared.positive_groups if compared else 0
        sentence = f"Anchor {anchor.version} is compared on {groups} {evaluation.positive_class} groups."
        return other, _rule(rule, True, sentence)
    sentence = f"Anchor {anchor.version} cannot be compared: {problem}. Champion {champion.version} stands in for it."
    return None, RuleResult(rule=rule, passed=False, applies=False, value=None, threshold=None, sentence=sentence)


def _auc_not_worse(positive: str, other: _Other | None) -> RuleResult:
    """Reject a model whose malignant AUC is below the anchor's with one-sided confidence of 80 %."""
    rule, name = "malignant_auc_not_worse", f"{positive.capitalize()} AUC"
    if other is None:
        return _not_applicable(rule, f"{name}: no champion to compare with.", threshold=0)
    difference = _auc_difference(positive, other)
    if difference.value is None or difference.high is None:
        return _rule(rule, False, _incomparable(name, other.name, difference), threshold=0)
    bound = difference.value + ONE_SIDED_80 * (difference.high - difference.value)
    passed = bound >= 0
    sentence = (
        f"{name} differs from {other.name}'s by {difference}: it is {'not ' if passed else ''}lower with one-sided confidence of "
        f"80 % (upper bound {bound:.3f})."
    )
    return _rule(rule, passed, sentence, value=bound, threshold=0)


def _better_than_champion(positive: str, champion: _Other | None, anchor: _Other | None) -> RuleResult:
    """Ask for a better model if the champion is not the anchor: a second loss must not follow the first."""
    rule, name = "better_than_champion", f"{positive.capitalize()} AUC"
    if champion is None or anchor is None:
        sentence = "The champion is the anchor: a model that is as good may replace it." if champion else "There is no champion."
        return _not_applicable(rule, sentence, threshold=0)
    difference = _auc_difference(positive, champion)
    if difference.value is None or difference.low is None:
        return _rule(rule, False, _incomparable(name, champion.name, difference), threshold=0)
    passed = better_with_confidence(difference)
    sentence = (
        f"{name} differs from the champion's by {difference}: the lower bound is {'above' if passed else 'not above'} 0. That is "
        f"asked because the champion is not the anchor."
    )
    return _rule(rule, passed, sentence, value=difference.low, threshold=0)


def _external(
    sets: Sequence[ExternalEvaluation], positive: str, champion: ChampionState | None, config: RetrainingConfig
) -> tuple[RuleResult, ...]:
    if not sets:
        return (_not_applicable(EXTERNAL_RULE, "There are no external test sets.", threshold=-config.external_margin),)
    return tuple(_on_external_set(one, positive, champion, config) for one in sets)


def _on_external_set(
    external: ExternalEvaluation, positive: str, champion: ChampionState | None, config: RetrainingConfig
) -> RuleResult:
    rule, margin = f"{EXTERNAL_RULE}_{external.name}", config.external_margin
    name = f"{positive.capitalize()} AUC on the external test set {external.name}"
    if external.challenger is None:
        return _not_applicable(rule, f"{name}: it has no usable image.", threshold=-margin)
    if champion is None:
        return _not_applicable(rule, f"{name}: no champion to compare with.", threshold=-margin)
    if external.problem:
        sentence = f"The champion could not be asked about the external test set {external.name}: {external.problem}."
        return RuleResult(rule=rule, passed=False, applies=False, value=None, threshold=-margin, sentence=sentence)
    groups = external.positive_groups
    if groups < config.min_malignant_groups:
        sentence = f"{name}: {groups} {positive} groups are too few for a rule; {config.min_malignant_groups} are needed."
        return _not_applicable(rule, sentence, threshold=-margin)
    if external.counts and not sum(count for label, count in external.counts.items() if label != positive):
        return _not_applicable(rule, f"{name}: it has only images of {positive}.", threshold=-margin)
    difference = external.differences.get(f"{positive}_auc", Estimate.missing("it was not measured"))
    return _margin(rule, name, "the champion", difference, margin)


def _subgroups(
    evaluation: EvaluationDocument, champion: ChampionState | None, config: RetrainingConfig
) -> tuple[RuleResult, ...]:
    """Reject a model that finds fewer cancers in a subgroup than the champion, with confidence; a rule only if it is switched on.

    One of many subgroups looks worse by chance. So the bound is that of Bonferroni: of two equal models, one in forty is rejected
    for any of its subgroups.
    """
    rule, needed = "no_subgroup_worse", config.subgroup_malignant_groups
    if not needed:
        return ()
    positive = evaluation.positive_class
    metric, name = f"{positive}_sensitivity", f"{positive.capitalize()} sensitivity in subgroups"
    if champion is None:
        return (_not_applicable(rule, f"{name}: no champion to compare with.", threshold=0),)
    parts = [part for part in evaluation.slices if part.compared_positive_groups >= needed]
    found = {f"{part.by} {part.value}": part.differences[metric] for part in parts if metric in part.differences}
    wider = NormalDist().inv_cdf(1 - 0.025 / max(1, len(found))) / NormalDist().inv_cdf(0.975)
    bounds = {
        of: difference.value + wider * (difference.high - difference.value)
        for of, difference in found.items()
        if difference.value is not None and difference.high is not None
    }
    if not bounds:
        return (_not_applicable(rule, f"{name}: none has {needed} {positive} groups to compare on.", threshold=0),)
    worst = min(bounds, key=lambda of: bounds[of])
    passed = bounds[worst] >= 0
    sentence = (
        f"{name}: of {len(bounds)} with {needed} {positive} groups or more, {worst} looks worst; it differs from the champion's "
        f"by {found[worst]}: it is {'not ' if passed else ''}lower with confidence (upper bound {bounds[worst]:.3f})."
    )
    return (_rule(rule, passed, sentence, value=bounds[worst], threshold=0),)


def _file_check(check: FileCheck | None) -> tuple[RuleResult, ...]:
    if check is None:
        return ()
    images = "external test images" if check.external else "images, most of which the folds' models have trained on"
    sentence = (
        f"The model file is {'as good as' if check.passed else 'worse than'} the models that it was made from: log loss "
        f"{check.file_loss:.3f} and {check.folds_loss:.3f} on {check.images} {images}; on own images, both "
        f"agree in {check.agreement:.0%} (the likeliest class) and {check.calls_agreement:.0%} (at the operating point)."
    )
    if not check.passed:
        sentence += " Train fewer folds, or look at the folds' histories."
    return (_rule("file_as_good_as_folds", check.passed, sentence, value=check.difference.value),)


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
    return _rule(rule, True, "This model is not one of those withdrawn.")


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
