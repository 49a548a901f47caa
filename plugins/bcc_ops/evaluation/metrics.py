"""Turn probabilities into metrics, with 95 % intervals.

Each metric is computed with its *influence*: how much each image moves it, per image of weight (the infinitesimal jackknife). The
influences of a group's images are summed, since near-duplicates (or one patient's images) tell the same thing twice, and their
sum of squares is the metric's variance. So a metric, a difference between two models and a mean over classes need no resampling.
`evaluation.intervals` turns values and variances into intervals that hold for few images;
`benchmarks/coverage.py` measures how well.

Shapes throughout: n images, k classes. Labels are class numbers in 0..k-1, probabilities are in [0, 1] and sum to 1 along a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bcc_ops.evaluation.intervals import (
    Interval,
    auc_interval,
    dice_of_overlap,
    mean_of,
    paired_share,
    share_interval,
    student,
)
from bcc_ops.models.probabilities import SMALLEST_PROBABILITY, cross_entropies
from bcc_ops.runs.documents import Calibration, ClassEvaluation, Estimate, ModelEvaluation, OperatingPoint, ReliabilityBin

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

MOST_BINS = 10
IMAGES_PER_BIN = 10
"""Equal-mass bins of the reliability diagram: at most ten, and none of fewer than about ten images."""

CROSS_FITTED_PARTS = 5
"""Parts into which the groups of a single fold are dealt."""

TEMPERATURES = (0.05, 20.0)
STEEPEST = 50.0
"""Of a calibration slope. Beyond it, any certainty would fit: the images do not settle it."""
_NO_BETTER = 1e-6
_LARGEST = {"loss": -math.log(SMALLEST_PROBABILITY), "brier": 2.0}
"""What an amount can be at most: the high end of its interval is not above it."""


@dataclass(frozen=True)
class Scores:
    """One model's answers on one set of images.

    Args:
        labels: (n,) true class numbers.
        probabilities: (n, k) the model's answers.
        groups: (n,) one value per image; images with the same value are near-duplicates (or of one patient) and are drawn
            together.
    """

    labels: Ints
    probabilities: Floats
    groups: NDArray[Any]

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.probabilities.ndim != 2 or len(self.probabilities) != n or len(self.groups) != n:
            raise ValueError(f"{n} labels, probabilities of shape {self.probabilities.shape}, {len(self.groups)} groups")
        if n and (self.labels.min() < 0 or self.labels.max() >= self.probabilities.shape[1]):
            raise ValueError("a label is not a class number")
        if not np.isfinite(self.probabilities).all():
            raise ValueError("a probability is not finite")

    @property
    def classes_count(self) -> int:
        """k."""
        return int(self.probabilities.shape[1])

    @cached_property
    def predicted(self) -> Ints:
        """(n,) the most probable class of each image; the first of equals."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @cached_property
    def codes(self) -> Ints:
        """(n,) groups numbered from 0."""
        return np.unique(self.groups, return_inverse=True)[1].astype(np.int64)

    def subset(self, chosen: NDArray[np.bool_]) -> Scores:
        """Return the images where `chosen` (n,) is true."""
        return Scores(self.labels[chosen], self.probabilities[chosen], self.groups[chosen])


# Metrics and their influences -----------------------------------------------------------------------------------------

Kind = Literal["share", "overlap", "auc", "mean", "amount", "slope"]


@dataclass(frozen=True)
class Metric:
    """One metric of one model on one set of images.

    Attributes:
        value: the metric.
        influence: (n,) how much each image moves it. They sum to 0.
        counted: (n,) the images that it is about.
        kind: how its interval is made.
        parts: the metrics that it is the mean of; empty for others.
    """

    value: float
    influence: Floats
    counted: Mask
    kind: Kind
    parts: tuple[str, ...] = ()


def share(counted: Mask, right: Mask) -> Metric:
    """Return the share of the `counted` images that are `right`."""
    value = float(right[counted].mean())
    return Metric(value, np.where(counted, right - value, 0.0) / counted.sum(), counted, "share")


def overlap(is_class: Mask, called: Mask) -> Metric:
    """Return the F1 score (Dice): twice the images that are in both, over the images of each. Its images are the union."""
    both, size = is_class & called, is_class.astype(float) + called
    value = float(2 * both.sum() / size.sum())
    return Metric(value, (2 * both - value * size) / size.sum(), is_class | called, "overlap")


def amount(values: Floats, codes: Ints) -> Metric:
    """Return the mean of an amount per image, 0 or more. The influences are those of leaving out whole groups.

    Args:
        values: (n,).
        codes: (n,) groups numbered from 0.
    """
    others = np.maximum(len(values) - np.bincount(codes)[codes], 1)
    return Metric(float(values.mean()), (values - values.mean()) / others, np.ones(len(values), bool), "amount")


def mean(parts: Mapping[str, Metric]) -> Metric:
    """Return the mean of metrics."""
    influence = np.mean([part.influence for part in parts.values()], axis=0)
    counted = np.any([part.counted for part in parts.values()], axis=0)
    return Metric(float(np.mean([part.value for part in parts.values()])), influence, counted, "mean", tuple(parts))


def area_under_roc(positive: Mask, score: Floats) -> Metric:
    """Return the area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    The influences are DeLong's placements (DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988): of a positive, the part of
    the negatives that it scores above; of a negative, the part of the positives that score above it.

    Args:
        positive: (n,) which images are of the class.
        score: (n,) the model's score of each.
    """
    found, others = score[positive], score[~positive]
    ordered, ordered_others = np.sort(found), np.sort(others)

    def below(scores: Floats, of: Floats) -> Floats:
        return (np.searchsorted(of, scores, "left") + np.searchsorted(of, scores, "right")) / 2 / len(of)

    placements, other_placements = below(found, ordered_others), 1 - below(others, ordered)
    value = float(placements.mean())
    influence = np.zeros(len(score))
    influence[positive] = (placements - value) / len(found)
    influence[~positive] = (other_placements - value) / len(others)
    return Metric(value, influence, np.ones(len(score), bool), "auc")


def calibration_slope(probabilities: Floats, labels: Ints, codes: Ints) -> Metric | None:
    """Return the slope b for which softmax(b log p) fits the labels best: 1 if calibrated, below 1 if overconfident.

    It is the inverse of the temperature that these very images would ask for (Cox, Biometrika 45, 1958, for two classes). The
    influences are those of leaving out whole groups: the slope's own would promise too much for few of them.

    Args:
        probabilities: (n, k).
        labels: (n,) true class numbers.
        codes: (n,) groups numbered from 0.

    Returns:
        None if the images do not settle it: a model without a single error, say.
    """
    if (probabilities.argmax(axis=1) == labels).all():
        return None
    logits = np.log(np.clip(probabilities, SMALLEST_PROBABILITY, 1.0))
    true = logits[np.arange(len(labels)), labels]
    slope = 1.0
    for _ in range(100):
        weights = np.exp(slope * logits - (slope * logits).max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        expected = (weights * logits).sum(axis=1)
        information = (weights * logits**2).sum(axis=1) - expected**2
        total = information.sum()
        if total <= 0 or not 0 < slope < STEEPEST:
            return None
        step = float(np.clip((true - expected).sum() / total, -slope / 2, slope))
        slope += step
        if abs(step) < 1e-9 * slope:
            break
    else:
        return None
    left = total - np.bincount(codes, information)
    if (left <= 0).any():
        return None
    return Metric(slope, (true - expected) / left[codes], np.ones(len(labels), bool), "slope")


def equal_mass_bins(confidence: Floats) -> Ints:
    """(n,) the bin of each image: about equally many images per bin, equal confidences never apart, numbered from 0."""
    count = int(np.clip(len(confidence) // IMAGES_PER_BIN, 1, MOST_BINS))
    ordered = np.sort(confidence)
    edges = np.unique([ordered[(len(ordered) * b) // count] for b in range(1, count)]) if count > 1 else np.empty(0)
    return np.unique(np.searchsorted(edges, confidence, side="right"), return_inverse=True)[1].astype(np.int64)


def calibration_error(correct: Mask, confidence: Floats) -> float:
    """Return the root mean square calibration error over equal-mass bins, less what chance alone adds.

    A perfectly calibrated model's bins miss their confidence by chance; over 160 images the plain error (ECE) is 0.09 then. That
    expectation is subtracted (Kumar, Liang and Ma, NeurIPS 2019). It has no interval: see the calibration slope.
    """
    bins = equal_mass_bins(confidence)
    sizes = np.bincount(bins)
    accuracy = np.bincount(bins, correct) / sizes
    gap = accuracy - np.bincount(bins, confidence) / sizes
    chance = accuracy * (1 - accuracy) / np.maximum(sizes - 1, 1)
    return math.sqrt(max(0.0, float((sizes * (gap**2 - chance)).sum() / sizes.sum())))


def scale_temperature(probabilities: Floats, temperature: float | Floats) -> Floats:
    """(n, k) softmax(log p / temperature): above 1 less sure, below 1 surer (Guo et al., ICML 2017).

    The temperature is one for all images, or (n,), one for each.
    """
    logits = np.log(np.clip(probabilities, SMALLEST_PROBABILITY, 1.0)) / np.reshape(temperature, (-1, 1))
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def brier(scores: Scores) -> Floats:
    """(n,) squared distance of the probabilities from the truth, summed over classes: 0 to 2 (Brier, 1950)."""
    truth = np.eye(scores.classes_count)[scores.labels]
    return np.asarray(((scores.probabilities - truth) ** 2).sum(axis=1))


# What is fitted on out-of-fold answers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threshold:
    """A threshold on the positive class' probability (at or above it: positive), or the reason why there is none."""

    value: float | None
    wanted_sensitivity: float
    chosen_on: str
    reason: str | None = None


def choose_threshold(scores: Scores, positive: int, wanted_sensitivity: float, chosen_on: str) -> Threshold:
    """Return the highest threshold that is expected to find at least `wanted_sensitivity` of the positives among other images.

    Among these images themselves a higher one would do: the k-th lowest of n scores leaves k - 1 of n below it, but k of
    n + 1 below it among scores that are still to come (the quantile of split conformal prediction). With n = 20 and 0.9
    wanted, one may be missed here, and not two. It is laid halfway to the next lower score, so that another device's
    rounding does not lose the last image.

    Args:
        scores: of images that the model did not train on; not those on which the operating point is then reported.
        positive: the positive class' number.
        wanted_sensitivity: in (0, 1).
        chosen_on: names the images, for the reader.
    """
    score = scores.probabilities[:, positive]
    found = np.sort(score[scores.labels == positive])[::-1]
    chosen_on = f"{chosen_on}: {len(found)} positive and {len(score) - len(found)} other images"
    if not len(found) or len(found) == len(score):
        missing = "positive" if not len(found) else "other"
        return Threshold(None, wanted_sensitivity, chosen_on, f"no {missing} image to choose a threshold on")
    if np.ptp(score) == 0:
        return Threshold(None, wanted_sensitivity, chosen_on, "all scores are the same")
    rank = max(1, math.floor((1 - wanted_sensitivity) * (len(found) + 1) + 1e-9))
    last = found[-rank]
    lower = score[score < last].max(initial=0.0)
    return Threshold(float((last + lower) / 2), wanted_sensitivity, chosen_on)


def fit_temperature(scores: Scores) -> float | None:
    """Return the temperature with the least log loss on these images; None if they do not settle it.

    They do not if an end of `TEMPERATURES` is as good: without a single error, say, the surest is best.
    """
    from scipy.optimize import minimize_scalar

    if not len(scores.labels) or np.ptp(scores.probabilities) == 0:
        return None
    low, high = np.log(TEMPERATURES)

    def loss(log_temperature: float) -> float:
        scaled = scale_temperature(scores.probabilities, math.exp(log_temperature))
        return float(cross_entropies(scaled, scores.labels).mean())

    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return float(math.exp(best.x)) if best.fun < min(loss(low), loss(high)) - _NO_BETTER else None


# Evaluation -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredModel:
    """A model's answers with the threshold and the temperature that belong to it.

    Attributes:
        scores: its answers.
        threshold, temperature: those that its file is used with.
        cuts, temperatures: (n,) those that each image is judged by if they are cross-fitted; None if all are judged by the above.
    """

    scores: Scores
    threshold: Threshold
    temperature: float | None
    cuts: Floats | None = None
    temperatures: Floats | None = None

    def subset(self, chosen: Mask) -> ScoredModel:
        """Return the images where `chosen` (n,) is true."""
        cuts, temperatures = (None if own is None else own[chosen] for own in (self.cuts, self.temperatures))
        return ScoredModel(self.scores.subset(chosen), self.threshold, self.temperature, cuts, temperatures)


def cross_fit(scores: Scores, parts: Ints, positive: int, wanted_sensitivity: float, chosen_on: str) -> ScoredModel:
    """Fit threshold and temperature on all images, and for each part on the other parts.

    What is reported of them is held out too: each image is judged by what the images of other parts gave.

    Args:
        scores: out-of-fold answers.
        parts: (n,) the fold of each image. If there is one fold alone, its groups are dealt into five parts.
        positive: the positive class' number.
        wanted_sensitivity: in (0, 1).
        chosen_on: names the images, for the reader.
    """
    if len(np.unique(parts)) < 2:
        parts = scores.codes % CROSS_FITTED_PARTS
    threshold = choose_threshold(scores, positive, wanted_sensitivity, chosen_on)
    temperature = fit_temperature(scores)
    cuts, temperatures = np.full(len(parts), np.nan), np.full(len(parts), np.nan)
    for part in np.unique(parts):
        others = scores.subset(parts != part)
        cut, own = choose_threshold(others, positive, wanted_sensitivity, chosen_on), fit_temperature(others)
        cuts[parts == part] = np.nan if cut.value is None else cut.value
        temperatures[parts == part] = np.nan if own is None else own
    if threshold.value is not None and np.isnan(cuts).any():
        threshold = Threshold(
            None, wanted_sensitivity, threshold.chosen_on, "too few images to choose it from some and judge others"
        )
    if temperature is not None and np.isnan(temperatures).any():
        temperature = None
    return ScoredModel(scores, threshold, temperature, cuts, temperatures)


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of images: its metrics by name, each an `Estimate`.

    The names: `loss`, `brier`, `accuracy`, `balanced_accuracy`, `macro_f1`, `macro_auc`, `calibration_slope`,
    `calibration_slope_scaled`, `operating.sensitivity`, `operating.specificity`, and of each class `<class>.sensitivity`,
    `.specificity`, `.precision`, `.f1` and `.auc`.
    """

    scored: ScoredModel
    classes: tuple[str, ...]
    positive_class: str

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics that these images allow."""
        scores = self.scored.scores
        if not len(scores.labels):
            return {}
        found = {name: metric for c, name in enumerate(self.classes) for name, metric in self._of_one_class(c, name)}
        found["accuracy"] = share(np.ones(len(scores.labels), bool), scores.predicted == scores.labels)
        for name, kind in (("balanced_accuracy", "sensitivity"), ("macro_f1", "f1"), ("macro_auc", "auc")):
            parts = {f"{of}.{kind}": found[f"{of}.{kind}"] for of in self.classes if f"{of}.{kind}" in found}
            if len(parts) == len(self.classes):
                found[name] = mean(parts)
        found["loss"] = amount(cross_entropies(scores.probabilities, scores.labels), scores.codes)
        found["brier"] = amount(brier(scores), scores.codes)
        found |= self._at_the_operating_point()
        scaled = self._scaled_probabilities
        for name, probabilities in (("calibration_slope", scores.probabilities), ("calibration_slope_scaled", scaled)):
            slope = None if probabilities is None else calibration_slope(probabilities, scores.labels, scores.codes)
            if slope is not None:
                found[name] = slope
        return found

    def _of_one_class(self, c: int, name: str) -> list[tuple[str, Metric]]:
        scores = self.scored.scores
        is_class, called = scores.labels == c, scores.predicted == c
        found: list[tuple[str, Metric]] = []
        if is_class.any():
            found += [(f"{name}.sensitivity", share(is_class, called)), (f"{name}.f1", overlap(is_class, called))]
        if not is_class.all():
            found.append((f"{name}.specificity", share(~is_class, ~called)))
        if called.any():
            found.append((f"{name}.precision", share(called, is_class)))
        if is_class.any() and not is_class.all():
            found.append((f"{name}.auc", area_under_roc(is_class, scores.probabilities[:, c])))
        return found

    def _at_the_operating_point(self) -> dict[str, Metric]:
        scores = self.scored.scores
        if self.scored.threshold.value is None:
            return {}
        cuts = self.scored.threshold.value if self.scored.cuts is None else self.scored.cuts
        positive = self.classes.index(self.positive_class)
        is_class, called = scores.labels == positive, scores.probabilities[:, positive] >= cuts
        found = {}
        if is_class.any():
            found["operating.sensitivity"] = share(is_class, called)
        if not is_class.all():
            found["operating.specificity"] = share(~is_class, ~called)
        return found

    def estimate(self, name: str) -> Estimate:
        """Return one metric with its interval, or the reason why it is missing."""
        reason = self._why_not(name)
        if reason is not None:
            return Estimate.missing(reason)
        metric = self.metrics[name]
        if self._fewest_groups(name) < 2:
            return Estimate.missing("too few groups for an interval: all images that count are of one group")
        low, high = self._interval(name)
        return Estimate(value=metric.value, low=min(low, metric.value), high=max(high, metric.value))

    def evaluation(self) -> ModelEvaluation:
        """Return all of it, as it goes into `evaluation.json`."""
        scored, scores = self.scored, self.scored.scores
        k = len(self.classes)
        matrix = np.bincount(scores.labels * k + scores.predicted, minlength=k * k).reshape(k, k)
        return ModelEvaluation(
            images=len(scores.labels),
            groups=len(np.unique(scores.groups)),
            **{name: self.estimate(name) for name in ("loss", "accuracy", "balanced_accuracy", "macro_f1", "macro_auc")},
            per_class={name: self._described(name) for name in self.classes},
            operating_point=OperatingPoint(
                threshold=scored.threshold.value,
                wanted_sensitivity=scored.threshold.wanted_sensitivity,
                chosen_on=scored.threshold.chosen_on,
                sensitivity=self.estimate("operating.sensitivity"),
                specificity=self.estimate("operating.specificity"),
            ),
            calibration=Calibration(
                slope=self.estimate("calibration_slope"),
                error=self._calibration_error(scores.probabilities),
                brier=self.estimate("brier"),
                temperature=scored.temperature,
                slope_scaled=self.estimate("calibration_slope_scaled"),
                error_scaled=self._scaled_calibration_error(),
                bins=reliability_bins(scores),
            ),
            confusion_matrix=tuple(tuple(int(cell) for cell in row) for row in matrix),
        )

    def _described(self, name: str) -> ClassEvaluation:
        kinds = ("sensitivity", "specificity", "precision", "f1", "auc")
        return ClassEvaluation(support=self._count(name), **{kind: self.estimate(f"{name}.{kind}") for kind in kinds})

    def _calibration_error(self, probabilities: Floats) -> Estimate:
        scores = self.scored.scores
        if not len(scores.labels):
            return Estimate.missing("the set is empty")
        correct = probabilities.argmax(axis=1) == scores.labels
        return Estimate(value=calibration_error(correct, probabilities.max(axis=1)))

    def _scaled_calibration_error(self) -> Estimate:
        if self._scaled_probabilities is None:
            return Estimate.missing(NO_TEMPERATURE)
        return self._calibration_error(self._scaled_probabilities)

    @cached_property
    def _scaled_probabilities(self) -> Floats | None:
        scored = self.scored
        if scored.temperature is None:
            return None
        return scale_temperature(
            scored.scores.probabilities, scored.temperature if scored.temperatures is None else scored.temperatures
        )

    def _interval(self, name: str) -> Interval:
        metric, codes = self.metrics[name], self.scored.scores.codes
        if metric.kind == "share":
            return share_interval(metric.value, self._independent(metric.counted))
        if metric.kind == "overlap":
            return dice_of_overlap(share_interval(metric.value / (2 - metric.value), self._independent(metric.counted)))
        if metric.kind == "auc":
            positive = self.scored.scores.labels == self.classes.index(name.rpartition(".")[0])
            variance = variance_of(metric.influence, codes, metric.counted)
            return auc_interval(metric.value, self._independent(positive), self._independent(~positive), variance)
        if metric.kind == "mean":
            parts = [self.metrics[part] for part in metric.parts]
            correlations = correlations_of([part.influence for part in parts], codes)
            intervals = [self._interval(part) for part in metric.parts]
            low, high = mean_of([part.value for part in parts], intervals, correlations, groups=self._fewest_groups(name))
            return max(low, 0.0), min(high, 1.0)
        half = student(self._groups_of(metric.counted)) * math.sqrt(variance_of(metric.influence, codes, metric.counted))
        if metric.kind == "slope" or metric.value <= 0:
            return metric.value - half, metric.value + half
        wide, widest = half / metric.value, math.log(_LARGEST[name] / metric.value)  # of few groups, wider than a float holds
        return metric.value * math.exp(-wide), metric.value * math.exp(min(wide, widest))

    @cached_property
    def _alike(self) -> float:
        """The correlation of the answers within a group, right or wrong, in [0, 1]: 1 if nothing tells."""
        scores = self.scored.scores
        return correlation_within((scores.predicted == scores.labels).astype(float), scores.codes)

    def _independent(self, counted: Mask) -> float:
        """Return how many independent images these are worth: their number, less the design effect of their groups (Kish,
        1965).
        """
        sizes = np.bincount(self.scored.scores.codes[counted])
        typical = (sizes**2).sum() / sizes.sum()
        return float(counted.sum() / (1 + (typical - 1) * self._alike))

    def _fewest_groups(self, name: str) -> int:
        """Return how many groups the metric's images are of; of a mean or an area, those of the part that has the fewest."""
        metric = self.metrics[name]
        if metric.kind == "mean":
            return min(self._fewest_groups(part) for part in metric.parts)
        if metric.kind == "auc":
            positive = self.scored.scores.labels == self.classes.index(name.rpartition(".")[0])
            return min(self._groups_of(positive), self._groups_of(~positive))
        return self._groups_of(metric.counted)

    def _groups_of(self, counted: Mask) -> int:
        return len(np.unique(self.scored.scores.codes[counted]))

    def _count(self, name: str) -> int:
        return int((self.scored.scores.labels == self.classes.index(name)).sum())

    def _why_not(self, metric: str) -> str | None:  # noqa: PLR0911 (one return per reason)
        scores = self.scored.scores
        name, _, kind = metric.rpartition(".")
        of_class = self.positive_class if name == "operating" else name
        absent = [other for other in self.classes if not self._count(other)]
        if not len(scores.labels):
            return "the set is empty"
        if len(np.unique(scores.groups)) < 2:
            return "all images are of one group, which tells nothing of others"
        if name == "operating" and self.scored.threshold.value is None:
            return self.scored.threshold.reason
        if metric == "calibration_slope_scaled" and self.scored.temperature is None:
            return NO_TEMPERATURE
        if metric in ("balanced_accuracy", "macro_f1", "macro_auc") and absent:
            return f"none of the images is {', '.join(absent)}"
        if kind in ("sensitivity", "f1", "auc") and name and not self._count(of_class):
            return f"none of the images is {of_class}"
        if kind in ("specificity", "auc") and name and self._count(of_class) == len(scores.labels):
            return f"there are only images of {of_class}"
        if kind == "precision" and metric not in self.metrics:
            return f"no image was called {name}"
        ranked = self.classes if metric == "macro_auc" else (name,) if kind == "auc" else ()
        if any(np.ptp(scores.probabilities[:, self.classes.index(other)]) == 0 for other in ranked):
            return "all scores are the same: they rank nothing"
        return None if metric in self.metrics else "these images do not settle it"


NO_TEMPERATURE = "the images do not settle a temperature"


def variance_of(influence: Floats, codes: Ints, counted: Mask) -> float:
    """Return the variance of a metric from its images' influences, summed per group.

    Args:
        influence: (n,) how much each image moves the metric.
        codes: (n,) groups numbered from 0.
        counted: (n,) the images that the metric is about.
    """
    groups = len(np.unique(codes[counted]))
    return float((np.bincount(codes, influence) ** 2).sum() * groups / max(groups - 1, 1))


def correlations_of(influences: Sequence[Floats], codes: Ints) -> Floats:
    """Return the (m, m) correlations of m metrics, from influences that are summed per group; 0 if one of them does not vary."""
    sums = np.stack([np.bincount(codes, influence) for influence in influences])
    covariance = sums @ sums.T
    spread = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.nan_to_num(covariance / np.outer(spread, spread))
    np.fill_diagonal(correlations, 1.0)
    return np.asarray(correlations)


def correlation_within(values: Floats, codes: Ints) -> float:
    """Return the intraclass correlation of values within groups, by analysis of variance (Donner, 1986), cut to [0, 1].

    Args:
        values: (n,).
        codes: (n,) groups numbered from 0.

    Returns:
        1 if the values do not vary at all, since nothing tells then; 0 if no group has two.
    """
    sizes = np.bincount(codes)
    n, groups = len(values), len(sizes)
    if groups == n or groups < 2:
        return 0.0
    if np.ptp(values) == 0:
        return 1.0
    means = np.bincount(codes, values) / sizes
    between = (sizes * (means - values.mean()) ** 2).sum() / (groups - 1)
    within = ((values - means[codes]) ** 2).sum() / (n - groups)
    typical = (n - (sizes**2).sum() / n) / (groups - 1)
    return float(np.clip((between - within) / (between + (typical - 1) * within), 0, 1))


def reliability_bins(scores: Scores) -> tuple[ReliabilityBin, ...]:
    """Return the reliability diagram's equal-mass bins, least sure first."""
    if not len(scores.labels):
        return ()
    confidence = scores.probabilities.max(axis=1)
    correct = scores.predicted == scores.labels
    bins = equal_mass_bins(confidence)
    members = [bins == b for b in range(bins.max() + 1)]
    return tuple(
        ReliabilityBin(images=int(m.sum()), confidence=float(confidence[m].mean()), accuracy=float(correct[m].mean()))
        for m in members
    )


def paired_difference(one: Evaluation, other: Evaluation, name: str) -> Estimate:
    """Return `one` minus `other` on the same images, with the interval of the paired difference.

    Raises:
        ValueError: the models were not asked about the same images.
    """
    ours, theirs = one.scored.scores, other.scored.scores
    if not (np.array_equal(ours.labels, theirs.labels) and np.array_equal(ours.groups, theirs.groups)):
        raise ValueError("models can only be compared on the same images")
    for model in (one, other):
        estimate = model.estimate(name)
        if estimate.value is None:
            return estimate
    low, high = _paired_interval(one, other, name)
    return Estimate(value=one.metrics[name].value - other.metrics[name].value, low=low, high=high)


def _paired_interval(one: Evaluation, other: Evaluation, name: str) -> Interval:
    ours, theirs, codes = one.metrics[name], other.metrics[name], one.scored.scores.codes
    if ours.kind == "mean":
        influences = [one.metrics[part].influence - other.metrics[part].influence for part in ours.parts]
        differences = [one.metrics[part].value - other.metrics[part].value for part in ours.parts]
        intervals = [_paired_interval(one, other, part) for part in ours.parts]  # these know how few their groups are
        return mean_of(differences, intervals, correlations_of(influences, codes))
    difference, influence = ours.value - theirs.value, ours.influence - theirs.influence
    counted = ours.counted | theirs.counted
    half = student(one._groups_of(counted)) * math.sqrt(variance_of(influence, codes, counted))
    low, high = difference - half, difference + half
    if ours.kind != "share" or not np.array_equal(ours.counted, theirs.counted):
        return low, high
    # Variances know only what was seen. If no image speaks against a model, they promise too much, however few images there are.
    ahead = np.rint(influence[counted] * counted.sum() + difference)
    closed = paired_share(difference, float(np.abs(ahead).mean()), one._independent(counted))
    low = low if (ahead < 0).any() else min(low, closed[0])
    high = high if (ahead > 0).any() else max(high, closed[1])
    return max(low, -1.0), min(high, 1.0)
