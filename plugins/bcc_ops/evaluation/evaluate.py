"""Evaluate a run's challenger by its out-of-fold answers, and its model file on images from elsewhere.

The challenger's answers are honest by construction: each is of the model that did not train on the image's fold. How good the
file made from those models is can only be measured on images from elsewhere, if there are any; `FileCheck` compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcc_ops.evaluation.comparison import (
    OUT_OF_FOLD,
    EvaluationPlan,
    LabelledImages,
    RunImages,
    as_shipped,
    compare,
    describe_comparison,
    paired_differences,
    score,
    scores_of,
)
from bcc_ops.evaluation.external import ExternalImages
from bcc_ops.evaluation.intervals import student
from bcc_ops.evaluation.metrics import Evaluation, Floats, ScoredModel, Scores, Threshold, amount, cross_fit, variance_of
from bcc_ops.evaluation.subgroups import NO_SLICES, evaluate_slices, evaluate_without_findings, slice_values
from bcc_ops.exceptions import DataError, ModelError
from bcc_ops.models.champion import ChampionModel, PredictsImages
from bcc_ops.models.probabilities import cross_entropies
from bcc_ops.runs.documents import (
    Estimate,
    EvaluationDocument,
    ExternalEvaluation,
    FileCheck,
    ModelEvaluation,
    Reference,
)
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import write_predictions

MOST_CHECKED = 200
"""Images from elsewhere that the file and its folds' models are compared on."""
FILE_SAMPLE = 100
"""Images of the run that the file is asked about: the smoke test of an upload needs to know what it answers."""
LEAST_AGREEMENT = 0.8
"""How often a file must say of own images what the mean of its folds' answers says: the likeliest class, and whether it is the
positive one at the shipped threshold. Most of the models have trained on these images, so that a loss says little."""
TOLERANCE = 0.05
"""Largest difference between a recorded probability and what the model answers here: a GPU's products are less exact."""


@dataclass(frozen=True)
class Evaluated:
    """`evaluation.json` (without its references) and `predictions.parquet`."""

    document: EvaluationDocument
    predictions: bytes


@dataclass(frozen=True)
class Models:
    """What a run is evaluated with.

    Attributes:
        file: the challenger's model file.
        folds: fold -> loads the model that held it out.
        champion: the model in use; None if there is none.
        anchor: the version that challengers are measured against besides; None if it is the champion.
    """

    file: PredictsImages
    folds: Mapping[int, Callable[[], PredictsImages]]
    champion: ChampionModel | None = None
    anchor: ChampionModel | None = None


@dataclass(frozen=True)
class EvaluationInputs:
    """The images of a run, and what is known of them.

    Attributes:
        images: all of them.
        rows: those with an out-of-fold answer of the challenger.
        answers: (n, k) these answers, in the order of the plan's classes.
        first: whether this is the first run that gives images a fold.
        as_of, synthetic, held_out_digest: of the run.
        external: the external test sets.
    """

    images: RunImages
    rows: Sequence[SplitRow]
    answers: NDArray[np.float64]
    first: bool
    as_of: datetime | None
    synthetic: bool
    held_out_digest: str
    external: Sequence[ExternalImages] = ()


def evaluate(
    plan: EvaluationPlan, models: Models, inputs: EvaluationInputs, say: Callable[[str], None] = lambda sentence: None
) -> Evaluated:
    """Evaluate the challenger on every image with an out-of-fold answer, and beside champion and anchor if they have one too.

    Args:
        plan: classes and the like.
        models: challenger, champion, anchor.
        inputs: the run's images and the challenger's answers.
        say: takes a sentence for the log.

    Raises:
        ModelError: the challenger does not answer as a classifier of these classes, or a recorded answer is not its model's.
        DataError: there are no answers, or an image has no file.
    """
    rows = inputs.rows
    if not rows:
        raise DataError("no image is held out: there is nothing to evaluate on")
    scores = scores_of([row.label for row in rows], [row.group for row in rows], inputs.answers, plan)
    parts = np.array([row.fold for row in rows], dtype=np.int64)
    scored = cross_fit(scores, parts, plan.positive, plan.wanted_sensitivity, OUT_OF_FOLD)
    answers: dict[str, Floats] = {"challenger": scores.probabilities}
    comparisons, answered = {}, {}
    for name, version in (("champion", models.champion), ("anchor", models.anchor)):
        if version is not None:
            comparisons[name], theirs = compare(version, scored, rows, inputs.images, plan)
            say(describe_comparison(comparisons[name]))
            if theirs is not None:
                answers[name], answered[name] = theirs.probabilities, theirs
    sample = LabelledImages.of_rows(rows, inputs.images.paths).first(FILE_SAMPLE)
    elsewhere = [score(models.file, one.images, plan) for one in inputs.external]
    file = _AskedFile(plan, sample, score(models.file, sample, plan), *_pooled(inputs.external, elsewhere))
    answers["file"] = _of_sample(rows, sample, file.own)
    folds = [_AskedFold.ask(fold, load(), file) for fold, load in models.folds.items()]
    _require_own_answers(inputs, sample, folds)
    by = slice_values(rows, inputs.images.contents, _known_before(inputs), plan.slice_pattern, inputs.images.metadata)
    document = EvaluationDocument(
        classes=plan.classes,
        positive_class=plan.positive_class,
        as_of=inputs.as_of,
        synthetic=inputs.synthetic,
        held_out_digest=inputs.held_out_digest,
        challenger=_of(scored, plan).evaluation(),
        comparison=comparisons.get("champion"),
        anchor=comparisons.get("anchor"),
        slices=evaluate_slices(by, scored, answered.get("champion"), plan),
        slices_unavailable=None if by else NO_SLICES,
        without=evaluate_without_findings(rows, inputs.images.contents, scored, plan),
        external=tuple(_external(*one, scored, models, plan) for one in zip(inputs.external, elsewhere)),
        file_check=_check_file(file, folds, scored.threshold.value) if len(folds) > 1 else None,
        grouping=plan.grouping,
        model=None,
        predictions=None,
    )
    return Evaluated(document, _predictions(rows, answers, plan))


@dataclass(frozen=True)
class _AskedFile:
    """The challenger's file, and what it answers about images of the run and from elsewhere."""

    plan: EvaluationPlan
    sample: LabelledImages
    own: Scores
    external: LabelledImages | None
    elsewhere: Scores | None


@dataclass(frozen=True)
class _AskedFold:
    """What the model of a fold answers about the sample of own images, and about some from elsewhere if there are any."""

    fold: int
    own: Scores
    elsewhere: Scores | None

    @classmethod
    def ask(cls, fold: int, model: PredictsImages, file: _AskedFile) -> _AskedFold:
        elsewhere = score(model, file.external.first(MOST_CHECKED), file.plan) if file.external is not None else None
        return cls(fold, score(model, file.sample, file.plan), elsewhere)


def with_references(evaluated: Evaluated, model: Reference, predictions: Reference) -> EvaluationDocument:
    """Return the document with the references to its model and its table."""
    return evaluated.document.model_copy(update={"model": model, "predictions": predictions})


def evaluate_folder(
    model: PredictsImages,
    images: LabelledImages,
    plan: EvaluationPlan,
    *,
    by: Mapping[str, Sequence[str]],
    synthetic: bool,
    digest: str,
    threshold: Threshold,
) -> EvaluationDocument:
    """Evaluate any model on any labelled images: an external test, outside a run.

    This fits nothing: `threshold` came with the model, and no temperature applies. `by` makes the subgroups, as
    `slice_values` returns it.
    """
    scored = ScoredModel(score(model, images, plan), threshold, None)
    return EvaluationDocument(
        classes=plan.classes,
        positive_class=plan.positive_class,
        as_of=None,
        synthetic=synthetic,
        held_out_digest=digest,
        challenger=_of(scored, plan).evaluation(),
        comparison=None,
        slices=evaluate_slices(by, scored, None, plan),
        slices_unavailable=None if by else NO_SLICES,
        grouping=plan.grouping,
        model=None,
        predictions=None,
    )


def _of(scored: ScoredModel, plan: EvaluationPlan) -> Evaluation:
    return Evaluation(scored, plan.classes, plan.positive_class)


def _external(
    one: ExternalImages, scores: Scores, challenger: ScoredModel, models: Models, plan: EvaluationPlan
) -> ExternalEvaluation:
    """Evaluate the challenger's file on a set, with the shipped threshold, beside those of champion and anchor."""
    told = ExternalEvaluation(
        name=one.name,
        prefix=one.prefix,
        note=one.note,
        counts=dict(one.counts),
        left_out=dict(one.left_out),
        near_duplicates=one.near_duplicates,
        compared=one.compared,
        challenger=None,
    )
    if not one.images.keys:
        return told
    ours = _of(ScoredModel(scores, challenger.threshold, challenger.temperature), plan)
    champion = _beside(ours, models.champion, one.images, plan, "the champion")
    anchor = _beside(ours, models.anchor, one.images, plan, "the anchor")
    return told.model_copy(
        update={
            "challenger": ours.evaluation(),
            "positive_groups": len(np.unique(scores.groups[scores.labels == plan.positive])),
            "champion": champion.evaluation,
            "differences": champion.differences,
            "problem": champion.problem,
            "anchor": anchor.evaluation,
            "anchor_differences": anchor.differences,
            "anchor_problem": anchor.problem,
        }
    )


@dataclass(frozen=True)
class _Beside:
    """What another version's file answers about an external test set; `problem` says why it could not be asked."""

    evaluation: ModelEvaluation | None = None
    differences: dict[str, Estimate] = field(default_factory=dict)
    problem: str | None = None


def _beside(ours: Evaluation, version: ChampionModel | None, images: LabelledImages, plan: EvaluationPlan, name: str) -> _Beside:
    if version is None:
        return _Beside()
    if version.problem is not None:
        return _Beside(problem=version.problem)
    if set(version.classes) != set(plan.classes):
        return _Beside(problem=f"{name} knows the classes {', '.join(version.classes)}, not {', '.join(plan.classes)}")
    if version.model is None:
        return _Beside(problem=f"{name}'s file is not available")
    try:
        scores = score(version.model, images, plan, version.classes)
    except ModelError as error:
        return _Beside(problem=f"{name} cannot be asked: {error}")
    theirs = _of(as_shipped(version, scores, plan), plan)
    return _Beside(theirs.evaluation(), paired_differences(ours, theirs))


def _pooled(sets: Sequence[ExternalImages], scores: Sequence[Scores]) -> tuple[LabelledImages | None, Scores | None]:
    """Return the images of all sets, and the answers about them. What two sets show counts once, and groups stay within a set."""
    chosen = [
        (one, answers, n)
        for one, answers in zip(sets, scores)
        for n, key in enumerate(one.images.keys)
        if key not in one.elsewhere
    ]
    if not chosen:
        return None, None
    groups = tuple(f"{one.name}/{one.images.groups[n]}" for one, _, n in chosen)
    images = LabelledImages(
        tuple(one.images.keys[n] for one, _, n in chosen),
        tuple(one.images.labels[n] for one, _, n in chosen),
        groups,
        tuple(one.images.paths[n] for one, _, n in chosen),
    )
    labels = np.array([answers.labels[n] for _, answers, n in chosen], dtype=np.int64)
    return images, Scores(labels, np.stack([answers.probabilities[n] for _, answers, n in chosen]), np.array(groups))


def _check_file(file: _AskedFile, folds: Sequence[_AskedFold], threshold: float | None) -> FileCheck:
    """Compare the file with the models that it is made from: answers about own images, and the loss on those from elsewhere."""
    plan, external, compared = file.plan, file.external is not None, file.own
    if file.external is not None and file.elsewhere is not None:
        compared = file.elsewhere.subset(np.isin(np.arange(len(file.external.keys)), file.external.places(MOST_CHECKED)))
    answers = [fold.own.probabilities if fold.elsewhere is None else fold.elsewhere.probabilities for fold in folds]
    losses = cross_entropies(compared.probabilities, compared.labels)
    of_folds = np.mean([cross_entropies(each, compared.labels) for each in answers], axis=0)
    difference = _paired_mean(losses - of_folds, compared)
    worse = external and difference.low is not None and difference.low > 0
    mean = np.mean([fold.own.probabilities for fold in folds], axis=0)
    agreement = _agreement(file.own.predicted, mean.argmax(axis=1))
    calls = 1.0
    if threshold is not None:
        calls = _agreement(file.own.probabilities[:, plan.positive] >= threshold, mean[:, plan.positive] >= threshold)
    return FileCheck(
        images=len(compared.labels),
        external=external,
        file_loss=float(losses.mean()),
        folds_loss=float(of_folds.mean()),
        difference=difference,
        agreement=agreement,
        calls_agreement=calls,
        passed=not worse and min(agreement, calls) >= LEAST_AGREEMENT,
    )


def _agreement(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Return the share of equal answers: the mean over what they say, so that what is said most does not decide alone."""
    return float(np.mean([(ours[theirs == said] == said).mean() for said in np.unique(theirs)]))


def _require_own_answers(inputs: EvaluationInputs, sample: LabelledImages, folds: Sequence[_AskedFold]) -> None:
    """Make sure that the recorded answers are those of the folds' models: all evidence rests on them.

    Raises:
        ModelError: a model answers differently about images of its fold.
    """
    recorded = {row.key: (row.fold, answer) for row, answer in zip(inputs.rows, inputs.answers)}
    for fold in folds:
        for key, answer in zip(sample.keys, fold.own.probabilities):
            of_fold, expected = recorded[key]
            if of_fold == fold.fold and np.abs(answer - expected).max() > TOLERANCE:
                raise ModelError(
                    f"the model of fold {fold.fold} answers about {key} differently from its out-of-fold answers: clear "
                    "train_model, so that it is trained and asked again"
                )


def _paired_mean(differences: Floats, scores: Scores) -> Estimate:
    groups = len(np.unique(scores.codes))
    if groups < 2:
        return Estimate(value=float(differences.mean()))
    metric = amount(differences, scores.codes)
    half = student(groups) * float(np.sqrt(variance_of(metric.influence, scores.codes, metric.counted)))
    return Estimate(value=metric.value, low=metric.value - half, high=metric.value + half)


def _of_sample(rows: Sequence[SplitRow], sample: LabelledImages, scores: Scores) -> Floats:
    place = {key: number for number, key in enumerate(sample.keys)}
    answers = np.full((len(rows), scores.classes_count), np.nan)
    for number, row in enumerate(rows):
        if row.key in place:
            answers[number] = scores.probabilities[place[row.key]]
    return answers


def _known_before(inputs: EvaluationInputs) -> frozenset[str] | None:
    """Return sha256 of the images that were held out before; None in the first run."""
    return None if inputs.first else frozenset(row.sha256 for row in inputs.images.assignments if row.decisions > 1)


def _predictions(rows: Sequence[SplitRow], answers: dict[str, Floats], plan: EvaluationPlan) -> bytes:
    probabilities = {
        model: {
            name: [None if np.isnan(value) else float(value) for value in columns[:, c]] for c, name in enumerate(plan.classes)
        }
        for model, columns in answers.items()
    }
    keys, labels, groups = ([getattr(row, name) for row in rows] for name in ("key", "label", "group"))
    return write_predictions(keys, labels, groups, probabilities)
