"""Turn probabilities into metrics, with confidence intervals.

Pure numpy on one idea: every metric is a function of image *weights*. All ones give the metric itself. The weights of a
bootstrap resample, which say how often each image's group was drawn, give one draw of it. Thousands of resamples are then
a few matrix products, and two models under the same weights are compared as pairs.

Shapes throughout: n images, k classes, r resamples. Labels are class numbers in 0..k-1, probabilities are in [0, 1]
and sum to 1 along a row, weights are 0 or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcc_ops.evaluation.intervals import (
    Interval,
    auc_at_an_end,
    dice_of_overlap,
    mean_of_dependent,
    mean_of_independent,
    paired_share,
    wilson,
)
from bcc_ops.models.probabilities import SMALLEST_PROBABILITY, cross_entropies
from bcc_ops.runs.documents import Calibration, ClassEvaluation, Estimate, ModelEvaluation, OperatingPoint, ReliabilityBin

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_BINS = 10
IMAGES_PER_BIN = 10
"""Equal-mass bins of the reliability diagram: at most ten, and none of fewer than about ten images."""

TEMPERATURES = (0.05, 20.0)
_LEVEL = (0.025, 0.975)
_SAME = 1e-12
_NO_BETTER = 1e-6
_CHUNK = 4_000_000
"""Weights held at a time: 32 MB."""


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
    def groups_are_of_one_class(self) -> bool:
        """Whether no group has images of two classes: near-duplicates never do, a patient may."""
        codes = np.unique(self.groups, return_inverse=True)[1]
        return len(np.unique(codes)) == len(np.unique(codes * self.classes_count + self.labels))

    def subset(self, chosen: NDArray[np.bool_]) -> Scores:
        """The images where `chosen` (n,) is true."""
        return Scores(self.labels[chosen], self.probabilities[chosen], self.groups[chosen])


# Metrics of weights ---------------------------------------------------------------------------------------------------


def weighted_confusion(scores: Scores, weights: Floats) -> Floats:
    """(r, k, k) confusion matrices, rows true, columns predicted, of `weights` (r, n)."""
    k = scores.classes_count
    cells = np.zeros((len(scores.labels), k * k))
    cells[np.arange(len(scores.labels)), scores.labels * k + scores.predicted] = 1.0
    return (weights @ cells).reshape(-1, k, k)


def weighted_auc(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> Floats:
    """(r,) area under the ROC curve by ranks: the chance that a positive scores above a negative, ties count half.

    The Mann-Whitney statistic over weighted images (Hanley and McNeil, Radiology 143, 1982). NaN where the weights
    leave no positive or no negative.

    Args:
        positive: (n,) which images are of the class.
        score: (n,) the model's score of each.
        weights: (r, n).
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    ordered = weights[:, order]
    positives = np.add.reduceat(ordered * positive[order], starts, axis=1)
    negatives = np.add.reduceat(ordered * ~positive[order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((positives * below).sum(axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1)))


def equal_mass_bins(confidence: Floats) -> Ints:
    """(n,) the bin of each image: about equally many images a bin, equal confidences never apart, numbered from 0."""
    count = int(np.clip(len(confidence) // IMAGES_PER_BIN, 1, MOST_BINS))
    ordered = np.sort(confidence)
    edges = np.unique([ordered[(len(ordered) * b) // count] for b in range(1, count)]) if count > 1 else np.empty(0)
    return np.unique(np.searchsorted(edges, confidence, side="right"), return_inverse=True)[1].astype(np.int64)


def weighted_ece(correct: NDArray[np.bool_], confidence: Floats, weights: Floats) -> Floats:
    """(r,) expected calibration error: the mean over bins, by mass, of |accuracy - confidence|.

    Equal-mass bins, the same for all resamples (Nixon et al., "Measuring Calibration in Deep Learning", 2019).
    """
    bins = equal_mass_bins(confidence)
    gap = np.zeros((len(confidence), bins.max(initial=0) + 1))
    gap[np.arange(len(confidence)), bins] = correct - confidence
    return np.asarray(np.abs(weights @ gap).sum(axis=1) / weights.sum(axis=1))


def scale_temperature(probabilities: Floats, temperature: float) -> Floats:
    """(n, k) softmax(log p / temperature): above 1 less sure, below 1 surer (Guo et al., ICML 2017)."""
    logits = np.log(np.clip(probabilities, SMALLEST_PROBABILITY, 1.0)) / temperature
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def brier(scores: Scores) -> Floats:
    """(n,) squared distance of the probabilities from the truth, summed over classes: 0 to 2 (Brier, 1950)."""
    truth = np.eye(scores.classes_count)[scores.labels]
    return np.asarray(((scores.probabilities - truth) ** 2).sum(axis=1))


# What is fitted on the tuning part ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threshold:
    """A threshold on the positive class' probability (at or above it: positive), or the reason why there is none."""

    value: float | None
    wanted_sensitivity: float
    chosen_on: str
    reason: str | None = None


def choose_threshold(scores: Scores, positive: int, wanted_sensitivity: float, chosen_on: str) -> Threshold:
    """The highest threshold that is expected to find at least `wanted_sensitivity` of the positives among other images.

    Among these images themselves a higher one would do: the k-th lowest of n scores leaves k - 1 of n below it, but k of
    n + 1 below it among scores that are still to come (the quantile of split conformal prediction). With n = 20 and 0.9
    wanted, one may be missed here, and not two. It is laid halfway to the next lower score, so that another device's
    rounding does not lose the last image.

    Args:
        scores: the tuning part; never the images on which the operating point is then reported.
        positive: the positive class' number.
        wanted_sensitivity: in (0, 1).
        chosen_on: names the images, for the reader.
    """
    score = scores.probabilities[:, positive]
    found = np.sort(score[scores.labels == positive])[::-1]
    chosen_on = f"{chosen_on}: {len(found)} positive and {len(score) - len(found)} other images"
    if not len(found) or len(found) == len(score):
        missing = "positive" if not len(found) else "other"
        return Threshold(None, wanted_sensitivity, chosen_on, f"the tuning part has no {missing} image to choose a threshold on")
    if np.ptp(score) == 0:
        return Threshold(None, wanted_sensitivity, chosen_on, "all scores on the tuning part are the same")
    rank = max(1, math.floor((1 - wanted_sensitivity) * (len(found) + 1) + 1e-9))
    last = found[-rank]
    lower = score[score < last].max(initial=0.0)
    return Threshold(float((last + lower) / 2), wanted_sensitivity, chosen_on)


def fit_temperature(scores: Scores) -> float | None:
    """The temperature with the least log loss on these images; None where they do not settle it.

    They do not where an end of `TEMPERATURES` is as good: without a single error, say, the surest is best.
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


# Resamples ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resamples:
    """Seeded bootstrap resamples of groups, as weights of images.

    Groups and not images are drawn, since near-duplicates (or one patient's images) tell the same thing twice (Davison and
    Hinkley, 1997, section 3.8).

    Args:
        groups: (n,) one value per image.
        count: r, how many resamples.
        seed: the same seed and groups give the same resamples.
    """

    groups: NDArray[Any]
    count: int
    seed: int

    @cached_property
    def codes(self) -> Ints:
        """(n,) groups numbered from 0."""
        return np.unique(self.groups, return_inverse=True)[1].astype(np.int64)

    @property
    def group_count(self) -> int:
        """How many groups there are."""
        return int(self.codes.max(initial=-1)) + 1

    def weights(self) -> Iterator[Floats]:
        """Chunks (c, n) of the weights, `count` rows in all."""
        generator = np.random.default_rng(self.seed)
        groups = self.group_count
        rows = max(1, _CHUNK // max(1, len(self.codes)))
        for start in range(0, self.count, rows):
            chunk = min(rows, self.count - start)
            drawn = generator.integers(0, groups, size=(chunk, groups)) + groups * np.arange(chunk)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=chunk * groups).reshape(chunk, groups)
            yield counts[:, self.codes].astype(np.float64)


# Evaluation -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredModel:
    """A model's answers with what was fitted for it on its tuning part."""

    scores: Scores
    threshold: Threshold
    temperature: float | None


Metrics = Mapping[str, Floats]
"""Metric -> (r,) its value at each row of weights; NaN if it is not defined."""


def weighted_metrics(scored: ScoredModel, classes: Sequence[str], positive_class: str, weights: Floats) -> Metrics:
    """Compute every metric of `evaluation.json` at each row of `weights` (r, n).

    One name per metric: `accuracy`, `malignant.sensitivity`, `operating.specificity`, `ece_scaled`, …
    """
    scores = scored.scores
    total = weights.sum(axis=1)
    found: dict[str, Floats] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = weighted_confusion(scores, weights)
        true, predicted = matrix.sum(axis=2), matrix.sum(axis=1)
        hits = np.diagonal(matrix, axis1=1, axis2=2)
        sensitivity = hits / true
        f1 = 2 * hits / (true + predicted)
        auc = np.stack(
            [weighted_auc(scores.labels == c, scores.probabilities[:, c], weights) for c in range(len(classes))], axis=1
        )
        found["loss"] = weights @ cross_entropies(scores.probabilities, scores.labels) / total
        found["accuracy"] = hits.sum(axis=1) / total
        found["balanced_accuracy"] = sensitivity.mean(axis=1)
        found["macro_f1"] = np.where((true > 0).all(axis=1), f1.mean(axis=1), np.nan)
        found["macro_auc"] = auc.mean(axis=1)
        for c, name in enumerate(classes):
            found[f"{name}.sensitivity"] = sensitivity[:, c]
            found[f"{name}.specificity"] = 1 - (predicted - hits)[:, c] / (total - true[:, c])
            found[f"{name}.precision"] = hits[:, c] / predicted[:, c]
            found[f"{name}.f1"] = np.where(true[:, c] > 0, f1[:, c], np.nan)
            found[f"{name}.auc"] = auc[:, c]
        positive = scores.labels == classes.index(positive_class)
        if scored.threshold.value is not None:
            called = scores.probabilities[:, classes.index(positive_class)] >= scored.threshold.value
            found["operating.sensitivity"] = weights @ (positive & called) / (weights @ positive)
            found["operating.specificity"] = weights @ ~(positive | called) / (weights @ ~positive)
        found["brier"] = weights @ brier(scores) / total
        correct = scores.predicted == scores.labels
        found["ece"] = weighted_ece(correct, scores.probabilities.max(axis=1), weights)
        if scored.temperature is not None:
            scaled = scale_temperature(scores.probabilities, scored.temperature)
            found["ece_scaled"] = weighted_ece(correct, scaled.max(axis=1), weights)
    return found


def interval(value: float, draws: Floats, *, reflected: bool = False) -> Interval | None:
    """A 95 % bootstrap interval, or None where too few draws are defined.

    Args:
        value: the metric itself.
        draws: (r,) its bootstrap draws; NaN where a resample left it undefined. At least half must be defined.
        reflected: turn the draws about the value, at 0 and above. For the ECE, which noise only ever raises, so that its
            draws lie above it; the interval then ends at the value itself, where it would end below.
    """
    defined = draws[np.isfinite(draws)]
    if len(defined) * 2 < len(draws) or not len(defined):
        return None
    low, high = np.quantile(defined, _LEVEL)
    if reflected:
        low, high = max(0.0, 2 * value - high), max(value, 2 * value - low)
    return float(low), float(high)


@dataclass(frozen=True)
class Bootstrapped:
    """One model's metrics and their bootstrap draws."""

    scored: ScoredModel
    classes: tuple[str, ...]
    positive_class: str
    values: Mapping[str, float]
    draws: Metrics

    def estimate(self, metric: str) -> Estimate:
        """Return one metric with its interval, or the reason why it is missing."""
        reason = self._why_not(metric)
        if reason is not None:
            return Estimate.missing(reason)
        value = self.values[metric]
        bounds = self._bounds(metric)
        if bounds is None:
            return Estimate.missing("too few groups for an interval: most bootstrap resamples leave the metric undefined")
        return Estimate(value=value, low=bounds[0], high=bounds[1])

    def _bounds(self, metric: str) -> Interval | None:
        value, draws = self.values[metric], self.draws[metric]
        bounds = interval(value, draws, reflected=metric.startswith("ece"))
        if bounds is None:
            return None
        if metric == "balanced_accuracy" and self.scored.scores.groups_are_of_one_class:
            return self._balanced()
        if np.ptp(draws[np.isfinite(draws)]) < _SAME and min(value, 1 - value) < _SAME:
            return self._at_an_end(metric, round(value)) or bounds
        return bounds

    def _balanced(self) -> Interval:
        """The interval of the balanced accuracy from those of the classes' sensitivities.

        Its own draws do not vary with a class that is always or never found.
        """
        sensitivities = [f"{name}.sensitivity" for name in self.classes]
        found = [(self.values[name], ends) for name in sensitivities if (ends := self._bounds(name)) is not None]
        values, intervals = zip(*found)
        return mean_of_independent(values, intervals)

    def shares(self, metric: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        """Of a metric that is a share of images: which (n,) it counts, and which (n,) are answered right. None for others."""
        scores = self.scored.scores
        name, _, kind = metric.rpartition(".")
        if metric == "accuracy":
            return np.ones(len(scores.labels), bool), scores.predicted == scores.labels
        if kind not in ("sensitivity", "specificity"):
            return None
        of_class = self.classes.index(self.positive_class if name == "operating" else name)
        is_class, called = scores.labels == of_class, scores.predicted == of_class
        if name == "operating":
            if self.scored.threshold.value is None:
                return None
            called = scores.probabilities[:, of_class] >= self.scored.threshold.value
        return (is_class, called) if kind == "sensitivity" else (~is_class, ~called)

    def _count(self, name: str) -> int:
        return int((self.scored.scores.labels == self.classes.index(name)).sum())

    def _why_not(self, metric: str) -> str | None:  # noqa: PLR0911 (one return per reason)
        scores = self.scored.scores
        name, _, kind = metric.rpartition(".")
        of_class = self.positive_class if name == "operating" else name
        absent = [other for other in self.classes if not self._count(other)]
        if not len(scores.labels):
            return "there are not images"
        if len(np.unique(scores.groups)) < 2:
            return "all images are of one group, which tells nothing of others"
        if name == "operating" and self.scored.threshold.value is None:
            return self.scored.threshold.reason
        if metric == "ece_scaled" and self.scored.temperature is None:
            return "the tuning part does not settle a temperature"
        if metric in ("balanced_accuracy", "macro_f1", "macro_auc") and absent:
            return f"there is not an image of {', '.join(absent)}"
        if kind in ("sensitivity", "f1", "auc") and name and not self._count(of_class):
            return f"there is not an image of {of_class}"
        if kind in ("specificity", "auc") and name and self._count(of_class) == len(scores.labels):
            return f"there are only images of {of_class}"
        if kind == "precision" and not (scores.predicted == self.classes.index(name)).any():
            return f"no image was called {name}"
        ranked = self.classes if metric == "macro_auc" else (name,) if kind == "auc" else ()
        if any(np.ptp(scores.probabilities[:, self.classes.index(other)]) == 0 for other in ranked):
            return "all scores are the same: they rank nothing"
        return None

    def _at_an_end(self, metric: str, value: int) -> Interval | None:
        """The interval of a metric that is 0 or 1 in every resample, over groups; None for a metric with no such ends."""
        scores = self.scored.scores
        name, _, kind = metric.rpartition(".")

        def groups(chosen: NDArray[np.bool_]) -> int:
            return len(np.unique(scores.groups[chosen]))

        def share(chosen: NDArray[np.bool_]) -> Interval:
            low, high = wilson(value, groups(chosen))
            return float(low), float(high)

        def of_classes(kind: str) -> list[Interval]:
            return [ends for other in self.classes if (ends := self._at_an_end(f"{other}.{kind}", value)) is not None]

        of_class = self.classes.index(self.positive_class if name == "operating" else name) if name else -1
        is_class, is_called = scores.labels == of_class, scores.predicted == of_class
        found: dict[str, Callable[[], Interval]] = {
            "accuracy": lambda: share(np.ones(len(scores.labels), bool)),
            "sensitivity": lambda: share(is_class),
            "specificity": lambda: share(~is_class),
            "precision": lambda: share(is_called),
            "f1": lambda: dice_of_overlap(share(is_class | is_called)),
            "auc": lambda: auc_at_an_end(value, groups(is_class), groups(~is_class)),
            "macro_f1": lambda: mean_of_dependent(of_classes("f1")),
            "macro_auc": lambda: mean_of_dependent(of_classes("auc")),
        }
        return found[kind]() if kind in found else None

    def evaluation(self) -> ModelEvaluation:
        """All of it, as it goes into `evaluation.json`."""
        scored, scores = self.scored, self.scored.scores
        ones = np.ones((1, len(scores.labels)))
        matrix = weighted_confusion(scores, ones)[0].astype(int)
        return ModelEvaluation(
            images=len(scores.labels),
            groups=len(np.unique(scores.groups)),
            **{name: self.estimate(name) for name in ("loss", "accuracy", "balanced_accuracy", "macro_f1", "macro_auc")},
            per_class={name: self._of_class(name) for name in self.classes},
            operating_point=OperatingPoint(
                threshold=scored.threshold.value,
                wanted_sensitivity=scored.threshold.wanted_sensitivity,
                chosen_on=scored.threshold.chosen_on,
                sensitivity=self.estimate("operating.sensitivity"),
                specificity=self.estimate("operating.specificity"),
            ),
            calibration=Calibration(
                ece=self.estimate("ece"),
                brier=self.estimate("brier"),
                temperature=scored.temperature,
                ece_scaled=self.estimate("ece_scaled"),
                bins=reliability_bins(scores),
            ),
            confusion_matrix=tuple(tuple(int(cell) for cell in row) for row in matrix),
        )

    def _of_class(self, name: str) -> ClassEvaluation:
        kinds = ("sensitivity", "specificity", "precision", "f1", "auc")
        return ClassEvaluation(support=self._count(name), **{kind: self.estimate(f"{name}.{kind}") for kind in kinds})


def reliability_bins(scores: Scores) -> tuple[ReliabilityBin, ...]:
    """The reliability diagram's equal-mass bins, least sure first."""
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


def bootstrap(
    models: Mapping[str, ScoredModel], classes: Sequence[str], positive_class: str, *, resamples: int, seed: int
) -> dict[str, Bootstrapped]:
    """Metrics of one or more models on the same images, each with the draws of the same resamples.

    Args:
        models: name -> answers; all on the same images, in the same order.
        classes: names, in the order of the probabilities' columns.
        positive_class: the class of the operating point.
        resamples: how many.
        seed: of the draws.

    Raises:
        ValueError: the models were not asked about the same images.
    """
    first = next(iter(models.values())).scores
    for scored in models.values():
        if not (np.array_equal(scored.scores.labels, first.labels) and np.array_equal(scored.scores.groups, first.groups)):
            raise ValueError("models can only be compared on the same images")
    classes = tuple(classes)
    drawn: dict[str, list[Metrics]] = {name: [] for name in models}
    values: dict[str, Metrics] = {name: {} for name in models}
    if len(first.labels):
        values = {
            name: weighted_metrics(model, classes, positive_class, np.ones((1, len(first.labels))))
            for name, model in models.items()
        }
        for weights in Resamples(first.groups, resamples, seed).weights():
            for name, model in models.items():
                drawn[name].append(weighted_metrics(model, classes, positive_class, weights))
    return {
        name: Bootstrapped(
            model,
            classes,
            positive_class,
            {metric: float(value[0]) for metric, value in values[name].items()},
            {metric: np.concatenate([chunk[metric] for chunk in drawn[name]]) for metric in values[name]},
        )
        for name, model in models.items()
    }


def paired_difference(one: Bootstrapped, other: Bootstrapped, metric: str) -> Estimate:
    """`one` minus `other`, with the interval of the difference over the resamples that both went through."""
    for model in (one, other):
        estimate = model.estimate(metric)
        if estimate.value is None:
            return estimate
    bounds = _paired_bounds(one, other, metric)
    if bounds is None:
        return Estimate.missing("too few groups for an interval: most bootstrap resamples leave the difference undefined")
    return Estimate(value=one.values[metric] - other.values[metric], low=bounds[0], high=bounds[1])


def _paired_bounds(one: Bootstrapped, other: Bootstrapped, metric: str) -> Interval | None:
    low_high = interval(one.values[metric] - other.values[metric], one.draws[metric] - other.draws[metric])
    if low_high is None:
        return None
    scores = one.scored.scores
    if metric == "balanced_accuracy" and scores.groups_are_of_one_class:
        sensitivities = [f"{name}.sensitivity" for name in one.classes]
        found = [
            (one.values[name] - other.values[name], ends)
            for name in sensitivities
            if (ends := _paired_bounds(one, other, name)) is not None
        ]
        values, intervals = zip(*found)
        return mean_of_independent(values, intervals)
    shares, other_shares = one.shares(metric), other.shares(metric)
    if shares is None or other_shares is None:
        return low_high
    counted = shares[0]
    ahead = shares[1][counted].astype(float) - other_shares[1][counted]
    codes = np.unique(scores.groups[counted], return_inverse=True)[1]
    by_group = np.bincount(codes, ahead) / np.bincount(codes)
    closed = paired_share(by_group)
    # Resamples repeat what was seen. Where no group speaks against a model, none of them would, however few groups there are.
    low = low_high[0] if (by_group < 0).any() else min(low_high[0], closed[0])
    high = low_high[1] if (by_group > 0).any() else max(low_high[1], closed[1])
    return low, high
