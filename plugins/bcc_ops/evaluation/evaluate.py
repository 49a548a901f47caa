"""Evaluate challenger and champion on the same validation images: predictions in, the evaluation document out.

The champion is never evaluated on images that it was trained on, nor on near-duplicates of them; neither is a challenger that
started from it. If a comparison is impossible (its file is gone, it knows other classes), the document says why.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from bcc_ops.evaluation.metrics import (
    Evaluation,
    ScoredModel,
    Scores,
    Threshold,
    choose_threshold,
    fit_temperature,
    paired_difference,
)
from bcc_ops.exceptions import DataError, ModelError
from bcc_ops.models.champion import TRAINED_OR_TUNED, ChampionModel, PredictsImages
from bcc_ops.runs.documents import (
    Comparison,
    Estimate,
    EvaluationDocument,
    ModelEvaluation,
    Reference,
    SliceEvaluation,
)
from bcc_ops.runs.tables import AssignmentRow, ContentRow, SplitRow, write_predictions

log = logging.getLogger(__name__)

TUNING_PART = "tuning part"
TRAINED_ON = "the champion was trained on it"
NEAR_DUPLICATE = "near-duplicate of what the champion was trained on"
MOST_UNRECOGNISED = 0.1
"""Part of a run's images. If more of them are new to the champion while as many that it knew are gone, it is not compared."""
SMALLEST_SLICE = 10
"""Images. A slice of fewer says nothing with an interval worth reading."""


@dataclass(frozen=True)
class Evaluated:
    """`evaluation.json` (without its references) and `predictions.parquet`."""

    document: EvaluationDocument
    predictions: bytes


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation needs to know beside models and images."""

    classes: tuple[str, ...]
    positive_class: str
    wanted_sensitivity: float
    grouping: str
    slice_pattern: str = ""
    batch_size: int = 32


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
            rows: of `split.parquet`, whose groups may be patients, or of what validation saw, whose groups are near-duplicates.
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

    def chosen(self, mask: np.ndarray) -> LabelledImages:
        """Return the images where `mask` (n,) is true."""
        columns = (self.keys, self.labels, self.groups, self.paths)
        return LabelledImages(*(tuple(value for value, keep in zip(column, mask) if keep) for column in columns))  # type: ignore[arg-type]


def score(model: PredictsImages, images: LabelledImages, plan: EvaluationPlan, order: Sequence[str] | None = None) -> Scores:
    """Return a model's answers, columns in the order of `plan.classes`.

    Args:
        order: the order in which the model answers; `plan.classes` by default.

    Raises:
        ModelError: it answers for another number of classes, or with something that is not a probability.
    """
    order = tuple(order or plan.classes)
    if model.classes_count != len(order):
        raise ModelError(f"the model answers for {model.classes_count} classes, not for {', '.join(order)}")
    labels = np.array([plan.classes.index(label) for label in images.labels], dtype=np.int64)
    answers = np.zeros((0, len(order)))
    if images.paths:
        answers = np.asarray(model.predict(images.paths, batch_size=plan.batch_size), dtype=np.float64)
    if answers.shape != (len(labels), len(order)) or not np.isfinite(answers).all() or (answers < 0).any():
        raise ModelError("the model answers with something that is not a probability (NaN, negative or of another shape)")
    total = answers.sum(axis=1, keepdims=True)
    if len(total) and not np.allclose(total, 1, atol=0.01):
        raise ModelError(f"the model's probabilities sum to {float(total.min()):.3f} … {float(total.max()):.3f}, not to 1")
    columns = [order.index(name) for name in plan.classes]
    return Scores(labels, (answers / total)[:, columns], np.asarray(images.groups, dtype=str))


def score_and_fit(model: PredictsImages, tuning: LabelledImages, images: LabelledImages, plan: EvaluationPlan) -> ScoredModel:
    """Return a model's answers on `images`, with its threshold and temperature fitted on `tuning`."""
    fitted = score(model, tuning, plan)
    positive = plan.classes.index(plan.positive_class)
    threshold = choose_threshold(fitted, positive, plan.wanted_sensitivity, TUNING_PART)
    return ScoredModel(score(model, images, plan), threshold, fit_temperature(fitted))


def seen_by(
    seen: frozenset[str], split: Iterable[SplitRow], contents: Iterable[ContentRow], assignments: Iterable[AssignmentRow] = ()
) -> dict[str, str]:
    """Tell which images a model has seen, or near-duplicates of them, or images of the same patient.

    Args:
        seen: digests (of bytes or of pixels) of the images that the model was trained or tuned on.
        split: this run's split; its groups may be patients.
        contents: what this run's checks saw; its groups are near-duplicates, refused images included.
        assignments: this run's assignments, which know the groups of images that are absent by now.

    Returns:
        key -> why it may not be compared on.
    """
    split, contents = list(split), list(contents)
    touched = {row.group for row in contents if _is_seen(row, seen)}
    near = {row.key for row in contents if row.group in touched}
    groups = {row.group for row in split if _is_seen(row, seen)} | {row.group for row in assignments if _is_seen(row, seen)}
    reasons = {row.key: NEAR_DUPLICATE for row in split if row.key in near or row.group in groups}
    return reasons | {row.key: TRAINED_ON for row in split if _is_seen(row, seen)}


def _is_seen(row: SplitRow | ContentRow | AssignmentRow, seen: frozenset[str]) -> bool:
    return row.sha256 in seen or row.pixels in seen


def gone_from(record: Iterable[SplitRow], contents: Iterable[ContentRow]) -> list[SplitRow]:
    """Return the images of a model's record that are not in this run, recognised by their bytes and by their pixels."""
    here = {digest for row in contents for digest in (row.sha256, row.pixels) if digest}
    return [row for row in record if row.sha256 not in here and row.pixels not in here]


def caution_about(champion: ChampionModel, inputs: EvaluationInputs) -> str | None:
    """Say what `seen_by` cannot tell: near-duplicates of images that are gone. None if none are."""
    gone = sum(row.partition in TRAINED_OR_TUNED for row in gone_from(champion.record, inputs.contents))
    if not gone:
        return None
    return (
        f"Images that the champion was trained on and that are not in this snapshot: {gone}. Validation images that are "
        "near-duplicates of them cannot be told, and are compared on."
    )


def record_problem(champion: ChampionModel, inputs: EvaluationInputs) -> str | None:
    """Say why nobody can tell which images the champion was trained on; None if that can be told.

    If many images are gone and as many are unknown, they may be the same ones, re-encoded with loss.
    """
    gone = len(gone_from(champion.record, inputs.contents))
    recorded = {digest for row in champion.record for digest in (row.sha256, row.pixels) if digest}
    unknown = sum(row.sha256 not in recorded and row.pixels not in recorded for row in inputs.split)
    if min(gone, unknown) <= MOST_UNRECOGNISED * len(inputs.split):
        return None
    return (
        f"{gone} images that the champion knew are gone and {unknown} are new to it: they may be the same ones, re-encoded, so "
        "that nobody can tell which images it was trained on"
    )


@dataclass(frozen=True)
class EvaluationInputs:
    """The images of a run, and what is known of them.

    Attributes:
        split: the run's `split.parquet`.
        contents: the run's `contents.parquet`.
        paths: key -> local file, of the tuning and validation images at least.
        assignments: the run's `assignments.parquet`.
        first: whether this is the first run that gives images a side.
        as_of, synthetic, validation_digest: of the run.
        started_from: the version whose weights the challenger's training started with; None if there is none.
        external: labelled images from elsewhere, reported only.
        external_note: a sentence about them, or why there are none.
    """

    split: Sequence[SplitRow]
    contents: Sequence[ContentRow]
    paths: Mapping[str, Path]
    assignments: Sequence[AssignmentRow]
    first: bool
    as_of: datetime | None
    synthetic: bool
    validation_digest: str
    started_from: str | None = None
    external: LabelledImages | None = None
    external_note: str | None = None


@dataclass(frozen=True)
class _HeldOut:
    """The validation images of an evaluation.

    Attributes:
        rows: those on which the challenger is evaluated.
        images: the same, with their files.
        unseen: (n,) which of them the champion has not seen.
        left_out: why validation images are left out of the comparison -> how many.
        warm_start_note: a sentence about images left out since the challenger's training started from a version.
    """

    rows: Sequence[SplitRow]
    images: LabelledImages
    unseen: np.ndarray
    left_out: Mapping[str, int]
    warm_start_note: str | None


def evaluate(
    plan: EvaluationPlan,
    challenger: PredictsImages,
    champion: ChampionModel | None,
    inputs: EvaluationInputs,
    say: Callable[[str], None] = lambda sentence: None,
) -> Evaluated:
    """Evaluate the challenger on the validation part, and both models on those images that the champion has not seen.

    Args:
        plan: classes and the like.
        challenger: the model just trained.
        champion: the model in use; None if there is none.
        inputs: the run's images.
        say: takes a sentence for the log.

    Raises:
        ModelError: the challenger does not answer as a classifier of these classes.
        DataError: the validation part is empty or was all seen before, or an image has no file.
    """
    held_out = _held_out(champion, inputs)
    if held_out.warm_start_note:
        say(held_out.warm_start_note)
    tuning = LabelledImages.of_rows((row for row in inputs.split if row.partition == "tuning"), inputs.paths)
    scored = score_and_fit(challenger, tuning, held_out.images, plan)
    comparison, champion_scores = None, None
    if champion:
        comparison, champion_scores = _compare(champion, scored, held_out, plan, record_problem(champion, inputs))
        say(_comparison_sentence(comparison))
        comparison = _with_caution(comparison, champion, inputs)
        if champion.model is not None and champion.model.image_size != challenger.image_size:
            say(
                f"The champion sees {champion.model.image_size} pixels per side, the challenger {challenger.image_size}: "
                "each its own"
            )
    slices, slices_unavailable = _slices(held_out.rows, scored, inputs, plan)
    document = EvaluationDocument(
        classes=plan.classes,
        positive_class=plan.positive_class,
        as_of=inputs.as_of,
        synthetic=inputs.synthetic,
        validation_digest=inputs.validation_digest,
        challenger=_of(scored, plan).evaluation(),
        comparison=comparison,
        slices=slices,
        slices_unavailable=slices_unavailable,
        external=_external(challenger, scored, inputs.external, plan),
        external_note=inputs.external_note,
        grouping=plan.grouping,
        warm_start_note=held_out.warm_start_note,
        model=None,
        predictions=None,
    )
    return Evaluated(document, _predictions(held_out, scored.scores, champion_scores, plan))


def _held_out(champion: ChampionModel | None, inputs: EvaluationInputs) -> _HeldOut:
    """Choose the validation images that neither model has seen, itself or in the version that it started from.

    Raises:
        DataError: none is left, or an image has no file.
    """
    validation = [row for row in inputs.split if row.partition == "validation"]
    reasons = seen_by(champion.seen, inputs.split, inputs.contents, inputs.assignments) if champion else {}
    inherits = champion is not None and champion.version == inputs.started_from and bool(champion.seen)
    rows = [row for row in validation if not (inherits and row.key in reasons)]
    if not rows:
        raise DataError("the split has no validation image that the model has not seen: there is nothing to evaluate on")
    return _HeldOut(
        rows,
        LabelledImages.of_rows(rows, inputs.paths),
        np.array([row.key not in reasons for row in rows]),
        dict(Counter(reasons[row.key] for row in validation if row.key in reasons)),
        _warm_start_note(inputs.started_from, len(validation) - len(rows) if inherits else None),
    )


def _with_caution(comparison: Comparison, champion: ChampionModel, inputs: EvaluationInputs) -> Comparison:
    caution = None if comparison.problem else caution_about(champion, inputs)
    if caution is None:
        return comparison
    log.warning("%s", caution)
    return comparison.model_copy(update={"caution": caution})


def with_references(evaluated: Evaluated, model: Reference, predictions: Reference) -> EvaluationDocument:
    """Return the document with the references to its model and its table."""
    return evaluated.document.model_copy(update={"model": model, "predictions": predictions})


def evaluate_folder(
    model: PredictsImages, images: LabelledImages, plan: EvaluationPlan, *, synthetic: bool, digest: str, threshold: Threshold
) -> EvaluationDocument:
    """Evaluate any model on any labelled images: an external test, outside of a run.

    There is no tuning part here, so `threshold` is the one that came with the model, and there is no temperature.
    """
    scored = ScoredModel(score(model, images, plan), threshold, None)
    return EvaluationDocument(
        classes=plan.classes,
        positive_class=plan.positive_class,
        as_of=None,
        synthetic=synthetic,
        validation_digest=digest,
        challenger=_of(scored, plan).evaluation(),
        comparison=None,
        slices=(),
        slices_unavailable="not available: a folder has no history to slice by",
        external=None,
        external_note=None,
        grouping=plan.grouping,
        model=None,
        predictions=None,
    )


def _of(scored: ScoredModel, plan: EvaluationPlan) -> Evaluation:
    return Evaluation(scored, plan.classes, plan.positive_class)


def _warm_start_note(started_from: str | None, left_out: int | None) -> str | None:
    """`left_out`: validation images; None if it is unknown which ones the version has seen."""
    if started_from is None:
        return None
    if left_out is None:
        return (
            f"Training started from version {started_from}, and what that was trained on is not known here: it is no longer the "
            "champion, or its split is gone. Validation images that it has seen, if there are any, flatter the metrics."
        )
    return (
        f"Training started from champion {started_from}. Validation images that it was trained on, or near-duplicates of them, "
        f"are left out of every metric: {left_out}."
    )


def _compare(
    champion: ChampionModel, challenger: ScoredModel, held_out: _HeldOut, plan: EvaluationPlan, record_problem: str | None
) -> tuple[Comparison, Scores | None]:
    scores, problem = None, champion.problem or record_problem
    if problem is None and set(champion.classes) != set(plan.classes):
        problem = f"the champion knows the classes {', '.join(champion.classes)}, not {', '.join(plan.classes)}"
    if problem is None and not held_out.unseen.any():
        problem = "the champion was trained on every validation image, or on near-duplicates"
    if problem is None and champion.model is not None:
        try:
            scores = score(champion.model, held_out.images.chosen(held_out.unseen), plan, champion.classes)
        except ModelError as error:
            problem = f"the champion cannot be asked: {error}"
    if scores is None:
        return _uncompared(champion, dict(held_out.left_out), problem or "the champion's model is not available"), None
    point = champion.operating_point
    threshold = Threshold(None, plan.wanted_sensitivity, TUNING_PART, "the champion has no operating point")
    if point is not None and point.threshold is not None:
        threshold = Threshold(point.threshold, point.wanted_sensitivity, point.chosen_on)
    own = ScoredModel(challenger.scores.subset(held_out.unseen), challenger.threshold, challenger.temperature)
    both = {"challenger": _of(own, plan), "champion": _of(ScoredModel(scores, threshold, champion.temperature), plan)}
    metrics = {name: name for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "loss", "brier")}
    for kind in ("sensitivity", "specificity"):
        metrics[f"{plan.positive_class}_{kind}"] = f"{plan.positive_class}.{kind}"
        metrics[f"{plan.positive_class}_{kind}_at_operating_point"] = f"operating.{kind}"
    differences = {name: paired_difference(both["challenger"], both["champion"], metric) for name, metric in metrics.items()}
    comparison = Comparison(
        champion_version=champion.version,
        champion_as_of=champion.as_of,
        champion_synthetic=champion.synthetic,
        left_out=dict(held_out.left_out),
        challenger=both["challenger"].evaluation(),
        champion=both["champion"].evaluation(),
        differences=differences,
        problem=None,
    )
    return comparison, scores


def _uncompared(champion: ChampionModel, left_out: dict[str, int], problem: str) -> Comparison:
    return Comparison(
        champion_version=champion.version,
        champion_as_of=champion.as_of,
        champion_synthetic=champion.synthetic,
        left_out=left_out,
        challenger=None,
        champion=None,
        differences={},
        problem=problem,
    )


def _comparison_sentence(comparison: Comparison) -> str:
    if comparison.problem or comparison.champion is None:
        return f"Champion {comparison.champion_version} not compared: {comparison.problem}"
    left_out = ", ".join(f"{count}: {reason}" for reason, count in comparison.left_out.items()) or "none"
    return f"Compared with champion {comparison.champion_version} on {comparison.champion.images} images; left out {left_out}"


def _external(
    challenger: PredictsImages, scored: ScoredModel, images: LabelledImages | None, plan: EvaluationPlan
) -> ModelEvaluation | None:
    if images is None or not images.keys:
        return None
    scores = score(challenger, images, plan)
    return _of(ScoredModel(scores, scored.threshold, scored.temperature), plan).evaluation()


def _slices(
    rows: Sequence[SplitRow], scored: ScoredModel, inputs: EvaluationInputs, plan: EvaluationPlan
) -> tuple[tuple[SliceEvaluation, ...], str | None]:
    found: list[SliceEvaluation] = []
    for by, values in slice_values(rows, inputs.contents, _known_before(inputs), plan.slice_pattern).items():
        for value in sorted(set(values) - {""}):
            chosen = np.array([own == value for own in values])
            found.append(_slice(by, value, scored, chosen, plan))
    return tuple(found), None if found else "not available: nothing tells one part of the validation images from another"


def _known_before(inputs: EvaluationInputs) -> frozenset[str] | None:
    """Return sha256 of the images that were held out before; None in the first run."""
    return None if inputs.first else frozenset(row.sha256 for row in inputs.assignments if row.decisions > 1)


def slice_values(
    rows: Sequence[SplitRow], contents: Sequence[ContentRow], earlier: frozenset[str] | None, pattern: str
) -> dict[str, list[str]]:
    """Return what the validation images can be told apart by.

    Args:
        rows: validation rows.
        contents: widths and heights of this snapshot's images.
        earlier: sha256 of the images that were held out before; None in the first run.
        pattern: regular expression whose first group names the slice that a key belongs to; "" for none.

    Returns:
        What is sliced by -> one value per row, "" for a row in no slice. Nothing where all rows have the same value.
    """
    pixels = {row.key: row.width * row.height for row in contents}
    sizes = [pixels.get(row.key, 0) for row in rows]
    middle = float(np.median([size for size in sizes if size] or [0]))
    small, large = f"up to {middle / 1e6:.2f} megapixels", f"more than {middle / 1e6:.2f} megapixels"
    by = {"image size": [(small if size <= middle else large) if size else "" for size in sizes]}
    if earlier is not None:
        by["new images"] = ["held out before" if row.sha256 in earlier else "new" for row in rows]
    if pattern:
        matches = [re.search(pattern, row.key) for row in rows]
        by["key pattern"] = [(match.group(1) or "") if match else "" for match in matches]
    return {name: values for name, values in by.items() if len(set(values) - {""}) > 1}


def _slice(by: str, value: str, scored: ScoredModel, chosen: np.ndarray, plan: EvaluationPlan) -> SliceEvaluation:
    count = int(chosen.sum())
    if count < SMALLEST_SLICE:
        missing = Estimate.missing(f"{count} images are too few")
        return SliceEvaluation(by=by, value=value, images=count, balanced_accuracy=missing, positive_sensitivity=missing)
    part = _of(ScoredModel(scored.scores.subset(chosen), scored.threshold, None), plan)
    sensitivity = part.estimate("operating.sensitivity")
    balanced = part.estimate("balanced_accuracy")
    return SliceEvaluation(by=by, value=value, images=count, balanced_accuracy=balanced, positive_sensitivity=sensitivity)


def _predictions(held_out: _HeldOut, challenger: Scores, champion: Scores | None, plan: EvaluationPlan) -> bytes:
    images, unseen = held_out.images, held_out.unseen
    probabilities = {"challenger": {name: challenger.probabilities[:, c].tolist() for c, name in enumerate(plan.classes)}}
    if champion is not None:
        places = np.cumsum(unseen) - 1
        probabilities["champion"] = {
            name: [float(champion.probabilities[place, c]) if asked else None for place, asked in zip(places, unseen)]
            for c, name in enumerate(plan.classes)
        }
    return write_predictions(list(images.keys), list(images.labels), list(images.groups), probabilities)
