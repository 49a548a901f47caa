"""Compare the challenger with another version on images about which each has an honest answer: from a model not trained on them.

For an image that the other version was made from, the out-of-fold answer that was stored with it is used. For a newer one,
its file is asked. Images with neither are left out and counted. If a version cannot be compared at all (its file is
gone, it knows other classes), the comparison says why.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bcc_ops.dataset.metadata import Metadata
from bcc_ops.evaluation.metrics import (
    Evaluation,
    Floats,
    Ints,
    Mask,
    ScoredModel,
    Scores,
    Threshold,
    cross_fit,
    paired_difference,
)
from bcc_ops.exceptions import DataError, ModelError
from bcc_ops.models.champion import ChampionModel, PredictsImages
from bcc_ops.runs.documents import Comparison, Estimate
from bcc_ops.runs.rows import AssignmentRow, ContentRow, SplitRow

log = logging.getLogger(__name__)

OUT_OF_FOLD = "out-of-fold answers"
TRAINED_ON = "the version was trained on it"
NEAR_DUPLICATE = "near-duplicate of what the version was trained on"
ACROSS_FOLDS = "in several of the version's folds by now, with its near-duplicates"
MOST_UNRECOGNISED = 0.1
"""Part of a run's images. If more of them are new to a version while as many that it knew are gone, it is not compared."""
_ELSEWHERE = -1
"""In place of a fold: an image that the weights of an older release's version had seen before its own training."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation needs to know beside models and images."""

    classes: tuple[str, ...]
    positive_class: str
    wanted_sensitivity: float
    grouping: str
    slice_pattern: str = ""
    smallest_slice: int = 20
    batch_size: int = 32

    @property
    def positive(self) -> int:
        """The positive class' number."""
        return self.classes.index(self.positive_class)


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels: one entry per image in each. Images of one of the `groups` are one piece of evidence."""

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    paths: tuple[Path, ...]

    @classmethod
    def of_rows(cls, rows: Iterable[SplitRow | ContentRow], paths: Mapping[str, Path]) -> LabelledImages:
        """Return the images of rows, with their files.

        Args:
            rows: of `split.parquet`, whose groups may be patients, or of what the image checks saw, whose groups are
                near-duplicates.
            paths: key -> local file.

        Raises:
            DataError: an image has no file.
        """
        rows = list(rows)
        missing = [row.key for row in rows if row.key not in paths]
        if missing:
            raise DataError(f"{len(missing)} images have no local file, {missing[0]} the first")
        columns = ([r.key for r in rows], [r.label for r in rows], [r.group for r in rows], [paths[r.key] for r in rows])
        return cls(*(tuple(column) for column in columns))  # type: ignore[arg-type]

    def places(self, count: int) -> Ints:
        """Return the places of `count` of the images, evenly spread; of all of them if there are no more."""
        return np.unique(np.linspace(0, len(self.keys) - 1, min(count, len(self.keys))).round().astype(np.int64))

    def first(self, count: int) -> LabelledImages:
        """Return the images of `places(count)`."""
        if len(self.keys) <= count:
            return self
        chosen = self.places(count)
        columns = (self.keys, self.labels, self.groups, self.paths)
        return LabelledImages(*(tuple(column[place] for place in chosen) for column in columns))


@dataclass(frozen=True)
class RunImages:
    """The images of a run, and what is known of them.

    Attributes:
        split: the run's `split.parquet`.
        contents: the run's `contents.parquet`; its groups are near-duplicates, refused images included.
        assignments: the run's `assignments.parquet`, which knows the groups of images that are absent by now.
        paths: key -> local file, of the split's images at least.
        metadata: what is known of them beside their pixels.
    """

    split: Sequence[SplitRow]
    contents: Sequence[ContentRow]
    assignments: Sequence[AssignmentRow]
    paths: Mapping[str, Path]
    metadata: Metadata = field(default_factory=Metadata)


def score(model: PredictsImages, images: LabelledImages, plan: EvaluationPlan, order: Sequence[str] | None = None) -> Scores:
    """Return a model's answers, columns in the order of `plan.classes`.

    Args:
        model: it.
        images: what it is asked about.
        plan: classes and the like.
        order: the order in which the model answers; `plan.classes` by default.

    Raises:
        ModelError: it answers for another number of classes, or with something that is not a probability.
    """
    order = tuple(order or plan.classes)
    if model.classes_count != len(order):
        raise ModelError(f"the model answers for {model.classes_count} classes, not for {', '.join(order)}")
    answers = np.zeros((0, len(order)))
    if images.paths:
        answers = np.asarray(model.predict(images.paths, batch_size=plan.batch_size), dtype=np.float64)
    return scores_of(images.labels, images.groups, answers, plan, order)


def scores_of(
    labels: Sequence[str], groups: Sequence[str], answers: Floats, plan: EvaluationPlan, order: Sequence[str] | None = None
) -> Scores:
    """Return answers as scores, columns in the order of `plan.classes`.

    Args:
        labels, groups: one entry per image.
        answers: (n, k) probabilities.
        plan: classes and the like.
        order: the classes of the columns of `answers`; `plan.classes` by default.

    Raises:
        ModelError: an answer is not a probability.
    """
    order = tuple(order or plan.classes)
    if answers.shape != (len(labels), len(order)) or not np.isfinite(answers).all() or (answers < 0).any():
        raise ModelError("the model answers with something that is not a probability (NaN, negative or of another shape)")
    total = answers.sum(axis=1, keepdims=True)
    if len(total) and not np.allclose(total, 1, atol=0.01):
        raise ModelError(f"the model's probabilities sum to {float(total.min()):.3f} … {float(total.max()):.3f}, not to 1")
    numbers = np.array([plan.classes.index(label) for label in labels], dtype=np.int64)
    columns = [order.index(name) for name in plan.classes]
    return Scores(numbers, (answers / total)[:, columns], np.asarray(groups, dtype=str))


def seen_by(seen: frozenset[str], images: RunImages) -> dict[str, str]:
    """Tell which images a model file has seen, or near-duplicates of them, or images of the same patient.

    Args:
        seen: digests (of bytes or of pixels) of the images that it was trained on.
        images: the run's.

    Returns:
        key -> why it may not be asked about it.
    """
    touched = {row.group for row in images.contents if _is_seen(row, seen)}
    near = {row.key for row in images.contents if row.group in touched}
    groups = {row.group for rows in (images.split, images.assignments) for row in rows if _is_seen(row, seen)}
    reasons = {row.key: NEAR_DUPLICATE for row in images.split if row.key in near or row.group in groups}
    return reasons | {row.key: TRAINED_ON for row in images.split if _is_seen(row, seen)}


def _is_seen(row: SplitRow | ContentRow | AssignmentRow, seen: frozenset[str]) -> bool:
    return row.sha256 in seen or row.pixels in seen


def folds_around(version: ChampionModel, images: RunImages) -> dict[str, set[int]]:
    """Tell in which folds of a version's own split an image and all that now belongs with it are.

    Two images that nobody took for near-duplicates then may be known as such today. The model that answered about one has
    trained on the other, unless both were in one fold.

    Returns:
        key -> folds of its recognised near-duplicates and patient's images, itself included; those that are new have none.
    """
    fold_of = dict.fromkeys(version.seen, _ELSEWHERE)
    fold_of |= {digest: row.fold for row in version.record for digest in (row.sha256, row.pixels) if digest}
    near: defaultdict[str, set[int]] = defaultdict(set)
    grouped: defaultdict[str, set[int]] = defaultdict(set)
    for found, tables in ((near, (images.contents,)), (grouped, (images.split, images.assignments))):
        for rows in tables:
            for row in rows:
                fold = fold_of.get(row.sha256, fold_of.get(row.pixels))
                if fold is not None:
                    found[row.group].add(fold)
    near_group = {row.key: row.group for row in images.contents}
    return {row.key: near[near_group.get(row.key, "")] | grouped[row.group] for row in images.split}


@dataclass(frozen=True)
class HonestAnswers:
    """Where a version's honest answers about some images come from.

    Attributes:
        recorded: which image -> which of the version's own out-of-fold answers.
        asked: which images its file may be asked about.
        left_out: why an image is in neither -> how many are.
    """

    recorded: Mapping[int, int]
    asked: Sequence[int]
    left_out: Mapping[str, int]


def honest_answers(version: ChampionModel, rows: Sequence[SplitRow], images: RunImages) -> HonestAnswers:
    """Choose the answers of a version that come from a model trained on neither the image nor what belongs with it.

    Args:
        version: it.
        rows: what it would be asked about.
        images: all of the run's.
    """
    reasons, around = seen_by(version.seen, images), folds_around(version, images)
    known = {digest: place for place, row in enumerate(version.answered) for digest in (row.pixels, row.sha256) if digest}
    recorded: dict[int, int] = {}
    asked: list[int] = []
    left_out: Counter[str] = Counter()
    for place, row in enumerate(rows):
        answer = known.get(row.sha256, known.get(row.pixels))
        if answer is not None and around[row.key] <= {version.answered[answer].fold}:
            recorded[place] = answer
        elif row.key not in reasons:
            asked.append(place)
        else:
            left_out[reasons[row.key] if answer is None else ACROSS_FOLDS] += 1
    return HonestAnswers(recorded, asked, left_out)


@dataclass(frozen=True)
class _Answers:
    """A version's honest answers about some of the images.

    Attributes:
        places: (m,) which images.
        scored: its answers about them, with the threshold and temperature that each is judged by.
        recorded: (m,) which of the answers are its own out-of-fold ones; its file was asked about the others.
        left_out: why an image is left out -> how many are.
    """

    places: Ints
    scored: ScoredModel
    recorded: Mask
    left_out: Mapping[str, int]


def _answers_of(version: ChampionModel, rows: Sequence[SplitRow], images: RunImages, plan: EvaluationPlan) -> _Answers:
    honest = honest_answers(version, rows, images)
    recorded, asked = honest.recorded, honest.asked
    places = np.array(sorted([*recorded, *asked]), dtype=np.int64)
    is_recorded = np.array([place in recorded for place in places], dtype=bool)
    probabilities = np.zeros((len(places), len(plan.classes)))
    columns = [version.classes.index(name) for name in plan.classes]
    if recorded:
        probabilities[is_recorded] = version.answers[[recorded[place] for place in places[is_recorded]]][:, columns]
    if asked:
        new = LabelledImages.of_rows((rows[place] for place in places[~is_recorded]), images.paths)
        if version.model is None:
            raise ModelError("its file is not available")
        probabilities[~is_recorded] = score(version.model, new, plan, version.classes).probabilities
    chosen = [rows[place] for place in places]
    scores = scores_of([row.label for row in chosen], [row.group for row in chosen], probabilities, plan)
    judged = _judged(version, scores, [recorded.get(place) for place in places], plan)
    return _Answers(places, judged, is_recorded, honest.left_out)


def _judged(version: ChampionModel, scores: Scores, answers: Sequence[int | None], plan: EvaluationPlan) -> ScoredModel:
    """Judge recorded answers by a threshold and temperature from the version's other folds, all others by those of its file."""
    threshold = _shipped_threshold(version, plan)
    cuts = np.full(len(answers), np.nan if threshold.value is None else threshold.value)
    temperatures = np.full(len(answers), np.nan if version.temperature is None else version.temperature)
    if any(answer is not None for answer in answers):
        own = version.answered
        order = [version.classes.index(name) for name in plan.classes]
        numbers = np.array([plan.classes.index(row.label) for row in own], dtype=np.int64)
        theirs = Scores(numbers, version.answers[:, order], np.asarray([row.group for row in own], dtype=str))
        parts = np.array([row.fold for row in own], dtype=np.int64)
        fitted = cross_fit(theirs, parts, plan.positive, threshold.wanted_sensitivity, OUT_OF_FOLD)
        for place, answer in enumerate(answers):
            if answer is not None and fitted.cuts is not None and fitted.temperatures is not None:
                cuts[place], temperatures[place] = fitted.cuts[answer], fitted.temperatures[answer]
    if np.isnan(cuts).any() and threshold.value is not None:
        threshold = Threshold(
            None, threshold.wanted_sensitivity, threshold.chosen_on, "too few of its own answers to choose one from"
        )
    temperature = None if np.isnan(temperatures).any() else version.temperature
    return ScoredModel(scores, threshold, temperature, cuts, temperatures)


def _shipped_threshold(version: ChampionModel, plan: EvaluationPlan) -> Threshold:
    point = version.operating_point
    if point is None or point.threshold is None:
        return Threshold(None, plan.wanted_sensitivity, OUT_OF_FOLD, "the version has no operating point")
    return Threshold(point.threshold, point.wanted_sensitivity, point.chosen_on)


def as_shipped(version: ChampionModel, scores: Scores, plan: EvaluationPlan) -> ScoredModel:
    """Return a version's file's answers, with the threshold and temperature that it was shipped with."""
    return ScoredModel(scores, _shipped_threshold(version, plan), version.temperature)


@dataclass(frozen=True)
class AnswersOfVersion:
    """A version's honest answers about some of the images that the challenger answered about.

    Attributes:
        chosen: (n,) about which of them.
        scored: these answers, in the same order.
    """

    chosen: Mask
    scored: ScoredModel

    @property
    def probabilities(self) -> Floats:
        """(n, k) its answers, NaN where it has none."""
        answers = np.full((len(self.chosen), self.scored.scores.classes_count), np.nan)
        answers[self.chosen] = self.scored.scores.probabilities
        return answers


def compare(
    version: ChampionModel, challenger: ScoredModel, rows: Sequence[SplitRow], images: RunImages, plan: EvaluationPlan
) -> tuple[Comparison, AnswersOfVersion | None]:
    """Compare the challenger with another version.

    Args:
        version: the champion, say.
        challenger: its out-of-fold answers.
        rows: the images of those answers, in their order.
        images: all of the run's.
        plan: classes and the like.

    Returns:
        The comparison, and the version's answers; None if it could not be compared at all.
    """
    problem = version.problem or record_problem(version, images)
    if problem is None and set(version.classes) != set(plan.classes):
        problem = f"version {version.version} knows the classes {', '.join(version.classes)}, not {', '.join(plan.classes)}"
    if problem is not None:
        return _uncompared(version, {}, problem), None
    try:
        theirs = _answers_of(version, rows, images, plan)
    except ModelError as error:
        return _uncompared(version, {}, f"version {version.version} cannot be asked: {error}"), None
    if not len(theirs.places):
        problem = f"version {version.version} was trained on all of these images, or near-duplicates, and stored no answers"
        return _uncompared(version, theirs.left_out, problem), None
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[theirs.places] = True
    ours = challenger.subset(chosen)
    both = {name: Evaluation(scored, plan.classes, plan.positive_class) for name, scored in (("o", ours), ("t", theirs.scored))}
    caution = caution_about(version, images)
    if caution:
        log.warning("%s", caution)
    comparison = Comparison(
        champion_version=version.version,
        champion_as_of=version.as_of,
        champion_synthetic=version.synthetic,
        left_out=dict(theirs.left_out),
        recorded=int(theirs.recorded.sum()),
        asked=int((~theirs.recorded).sum()),
        challenger=both["o"].evaluation(),
        champion=both["t"].evaluation(),
        differences=paired_differences(both["o"], both["t"]),
        positive_groups=len(np.unique(ours.scores.groups[ours.scores.labels == plan.positive])),
        problem=None,
        caution=caution,
    )
    return comparison, AnswersOfVersion(chosen, theirs.scored)


def paired_differences(one: Evaluation, other: Evaluation) -> dict[str, Estimate]:
    """Return `one` minus `other`, paired, by the names that `Comparison.differences` has."""
    positive = one.positive_class
    metrics = {name: name for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "loss", "brier")}
    metrics[f"{positive}_auc"] = f"{positive}.auc"
    for kind in ("sensitivity", "specificity"):
        metrics[f"{positive}_{kind}"] = f"{positive}.{kind}"
        metrics[f"{positive}_{kind}_at_operating_point"] = f"operating.{kind}"
    return {name: paired_difference(one, other, metric) for name, metric in metrics.items()}


def describe_comparison(comparison: Comparison) -> str:
    """Describe a comparison in a sentence, for the log."""
    if comparison.problem or comparison.champion is None:
        return f"Version {comparison.champion_version} is not compared: {comparison.problem}"
    left_out = ", ".join(f"{count}: {reason}" for reason, count in comparison.left_out.items()) or "none"
    return (
        f"Compared with version {comparison.champion_version} on {comparison.champion.images} images: {comparison.recorded} "
        f"by its recorded answers, {comparison.asked} new ones by its file; left out {left_out}"
    )


def gone_from(record: Iterable[SplitRow], contents: Iterable[ContentRow]) -> list[SplitRow]:
    """Return the images of a version's record that are not in this run, recognised by their bytes and by their pixels."""
    here = {digest for row in contents for digest in (row.sha256, row.pixels) if digest}
    return [row for row in record if row.sha256 not in here and row.pixels not in here]


def caution_about(version: ChampionModel, images: RunImages) -> str | None:
    """Say what cannot be known: near-duplicates of images that are gone. None if none are."""
    gone = sum(row.sha256 in version.seen or row.pixels in version.seen for row in gone_from(version.record, images.contents))
    if not gone:
        return None
    return (
        f"Images that version {version.version} was made from and that are not in this snapshot: {gone}. "
        "Near-duplicates of them cannot be recognised, and are compared on."
    )


def record_problem(version: ChampionModel, images: RunImages) -> str | None:
    """Say why it is unknown which images a version was trained on; None if it is known.

    If many images are gone and as many are unknown, they may be the same ones, re-encoded with loss.
    """
    gone = len(gone_from(version.record, images.contents))
    recorded = {digest for row in version.record for digest in (row.sha256, row.pixels) if digest}
    unknown = sum(row.sha256 not in recorded and row.pixels not in recorded for row in images.split)
    if min(gone, unknown) <= MOST_UNRECOGNISED * len(images.split):
        return None
    return (
        f"{gone} images that version {version.version} knew are gone and {unknown} are new to it: they may be the same ones, "
        "re-encoded, so that nobody can tell which images it was trained on"
    )


def _uncompared(version: ChampionModel, left_out: Mapping[str, int], problem: str) -> Comparison:
    return Comparison(
        champion_version=version.version,
        champion_as_of=version.as_of,
        champion_synthetic=version.synthetic,
        left_out=dict(left_out),
        challenger=None,
        champion=None,
        differences={},
        problem=problem,
    )
