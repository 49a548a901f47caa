"""How often does the gate approve models whose truth is known, and what becomes of the champion over 100 nights?

Models are drawn, not trained: each answers with a softmax over three logits. An image's own difficulty is common to all models,
so that they err on much the same images as two trainings of one recipe do, and both the difficulty and a model's own part of an
answer are nearly the same for near-duplicates. A model's malignant sensitivity is true by design. Every night goes through the
pipeline's own metrics and `decide`, on the out-of-fold answers of challenger, champion and anchor.

Over the nights the images stay, and so do what the champion and the anchor answered about them: a model that was lucky on them
stays so. New images come, about which their files are asked.

    python -m benchmarks.gate_simulation [--nights 600] [--histories 60] [--write]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

import numpy as np

from bcc_ops.config import RetrainingConfig
from bcc_ops.evaluation.metrics import Evaluation, ScoredModel, Scores, Threshold, choose_threshold, paired_difference
from bcc_ops.promotion.gate import ChampionState, decide
from bcc_ops.runs.documents import (
    Anchor,
    Comparison,
    EvaluationDocument,
    GateDocument,
    ModelEvaluation,
    OperatingPoint,
    Reference,
)
from benchmarks.report import write_section

CLASSES = ("benign", "malignant", "normal")
SHARES = (0.56, 0.27, 0.17)
GROUPS_OF_SIZE = (
    {1: 164, 2: 71, 3: 8, 4: 1, 7: 1},
    {1: 122, 2: 14, 3: 2, 6: 1},
    {1: 48, 2: 16, 3: 3, 4: 4},
)
"""For each class, how many groups of near-duplicates of each size the real set has: 139 malignant groups with 162 images."""

SIGNAL, COMMON, ALIKE, SHARPNESS = 2.1, 0.6, 0.9, 1.5
"""Signal in the true class' logit; share of the rest's variance that is common to all models; share of the variance that
near-duplicates have in common; logit scale. Balanced accuracy 0.88, macro AUC 0.97, two models that differ on about a seventh of
the images."""

NIGHTS, NEW_IMAGES = 100, 10
FOLDS, SINGLE_FOLD = (600, 5), (121, 1)
"""Images with an out-of-fold answer, and folds: of a run with five folds, and with one."""

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
EARLIER = NOW - timedelta(days=1)
NO_REFERENCE = Reference(key="evaluation.json", sha256="0" * 64)
CHAMPION = ChampionState("champion", "etag", EARLIER, synthetic=False)
ANCHOR = Anchor(version="anchor", sha256="a" * 64, since=EARLIER, by="the gate", reason="better")
DIFFERENCES = {
    "balanced_accuracy": "balanced_accuracy",
    "malignant_sensitivity": "malignant.sensitivity",
    "malignant_auc": "malignant.auc",
}
MARGIN_BEFORE = 0.08

Floats = np.ndarray
Generator = np.random.Generator


@dataclass(frozen=True)
class Images:
    """Images of known labels, in groups.

    Attributes:
        labels: (n,) class numbers.
        groups: (n,) group numbers, from 0.
        difficulty: (n, 3) what all models' logits have in common.
    """

    labels: np.ndarray
    groups: np.ndarray
    difficulty: Floats

    @classmethod
    def draw(cls, generator: Generator, counts: Sequence[int], first_group: int = 0) -> Images:
        """Draw this many images of each class, group by group."""
        labels: list[int] = []
        groups: list[int] = []
        group = first_group
        for label, count in enumerate(counts):
            left, sizes = count, np.repeat(list(GROUPS_OF_SIZE[label]), list(GROUPS_OF_SIZE[label].values()))
            while left:
                size = min(left, int(generator.choice(sizes)))
                labels += [label] * size
                groups += [group] * size
                left, group = left - size, group + 1
        numbers = np.array(groups, dtype=np.int64)
        return cls(np.array(labels, dtype=np.int64), numbers, noise(generator, numbers))

    def with_new(self, generator: Generator, count: int) -> Images:
        """Return these images, and new ones of new groups after them."""
        new = Images.draw(generator, generator.multinomial(count, SHARES).tolist(), int(self.groups.max()) + 1)
        pairs = ((self.labels, new.labels), (self.groups, new.groups), (self.difficulty, new.difficulty))
        return Images(*(np.concatenate(pair) for pair in pairs))


def noise(generator: Generator, groups: np.ndarray) -> Floats:
    """(n, 3) standard normal, nearly the same within a group."""
    numbers = groups - groups.min() if len(groups) else groups
    of_group = generator.normal(size=(int(numbers.max(initial=-1)) + 1, 3))[numbers]
    return np.asarray(np.sqrt(ALIKE) * of_group + np.sqrt(1 - ALIKE) * generator.normal(size=(len(groups), 3)))


@cache
def _malignant_lead() -> Floats:
    """How far a malignant image's own logit is ahead of the others, sorted: a large sample."""
    logits = np.random.default_rng(0).normal(size=(400_000, 3))
    return np.sort(logits[:, 1] + SIGNAL - np.maximum(logits[:, 0], logits[:, 2]))


def shift_for(sensitivity: float) -> float:
    """Return what must be added to a malignant image's own logit for this true sensitivity of the likeliest class."""
    return -float(_malignant_lead()[round((1 - sensitivity) * len(_malignant_lead()))])


START = float((_malignant_lead() > 0).mean())
"""True malignant sensitivity of the first champion: 0.882."""


@dataclass(frozen=True)
class Model:
    """A model whose truth is known, and what is its own in its answers.

    Attributes:
        sensitivity: true malignant sensitivity of the likeliest class.
        own: (n, 3) noise about the images so far.
        everywhere: added signal for every class.
    """

    sensitivity: float
    own: Floats
    everywhere: float = 0.0

    @classmethod
    def draw(cls, generator: Generator, images: Images, sensitivity: float, everywhere: float = 0.0) -> Model:
        """Train a model, so to speak."""
        return cls(sensitivity, noise(generator, images.groups), everywhere)

    def asked(self, generator: Generator, images: Images) -> Model:
        """Return the model with answers about images that are new to it, too; the earlier answers stay."""
        new = images.groups[len(self.own) :]
        return self if not len(new) else replace(self, own=np.concatenate([self.own, noise(generator, new)]))

    def scores(self, images: Images) -> Scores:
        """Return its answers."""
        logits = np.sqrt(COMMON) * images.difficulty + np.sqrt(1 - COMMON) * self.own
        logits[np.arange(len(images.labels)), images.labels] += SIGNAL + self.everywhere
        logits[images.labels == 1, 1] += shift_for(self.sensitivity)
        answers = np.exp(SHARPNESS * logits)
        return Scores(images.labels, answers / answers.sum(axis=1, keepdims=True), images.groups)


def evaluation_of(model: Model, images: Images, wanted: float, folds: int) -> Evaluation:
    """Evaluate the model, with a threshold that is chosen for each part from the answers of the others, as a run does."""
    scores = model.scores(images)
    parts = scores.codes % 5 if folds == 1 else images.groups % folds
    cuts = np.zeros(len(parts))
    for part in np.unique(parts):
        cuts[parts == part] = choose_threshold(scores.subset(parts != part), 1, wanted, "others").value or 0.5
    return Evaluation(ScoredModel(scores, Threshold(0.5, wanted, "out-of-fold answers"), None, cuts), CLASSES, "malignant")


def floors_of(evaluation: Evaluation) -> ModelEvaluation:
    """Return what the gate's floors look at."""
    point = OperatingPoint(
        threshold=0.5,
        wanted_sensitivity=evaluation.scored.threshold.wanted_sensitivity,
        chosen_on="out-of-fold answers",
        sensitivity=evaluation.estimate("operating.sensitivity"),
        specificity=evaluation.estimate("operating.specificity"),
    )
    return _partly(
        images=len(evaluation.scored.scores.labels),
        balanced_accuracy=evaluation.estimate("balanced_accuracy"),
        macro_auc=evaluation.estimate("macro_auc"),
        operating_point=point,
    )


def _partly(**fields: Any) -> ModelEvaluation:
    """Return an evaluation with this alone: the rest is not looked at, and takes time."""
    return ModelEvaluation.model_construct(**fields)


def compare(version: str, challenger: Evaluation, other: Evaluation) -> Comparison:
    """Return the paired comparison with another version."""
    scores = challenger.scored.scores
    nothing = _partly(images=len(scores.labels))
    return Comparison(
        champion_version=version,
        champion_as_of=EARLIER,
        champion_synthetic=False,
        left_out={},
        challenger=nothing,
        champion=nothing,
        differences={name: paired_difference(challenger, other, metric) for name, metric in DIFFERENCES.items()},
        positive_groups=len(np.unique(scores.groups[scores.labels == 1])),
        problem=None,
    )


def night(
    images: Images, challenger: Model, champion: Model, anchor: Model | None, config: RetrainingConfig, folds: int = 5
) -> tuple[GateDocument, Comparison]:
    """Let the pipeline's own gate decide; return the comparison with the champion too."""
    own, *others = (evaluation_of(m, images, config.wanted_sensitivity, folds) for m in (challenger, champion, anchor) if m)
    comparison = compare("champion", own, others[0])
    document = EvaluationDocument(
        classes=CLASSES,
        positive_class="malignant",
        as_of=NOW,
        synthetic=False,
        held_out_digest="0",
        challenger=floors_of(own),
        comparison=comparison,
        anchor=compare("anchor", own, others[1]) if anchor else None,
        slices=(),
        slices_unavailable="none",
        grouping="near-duplicate group",
        model=None,
        predictions=None,
    )
    state = replace(CHAMPION, anchor=ANCHOR if anchor else None)
    gate = decide(document, state, config, as_of=NOW, run_kind="nightly", holdout_reuse=1, reference=NO_REFERENCE)
    return gate, comparison


def approved_before(comparison: Comparison) -> bool:
    """Tell what the gate from before five folds would have said of a comparison: its margins were the same for every set."""
    lows = (comparison.differences[metric].low for metric in ("balanced_accuracy", "malignant_sensitivity"))
    return all(low is not None and low > -MARGIN_BEFORE for low in lows)


# One night ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """How a challenger truly differs from the champion.

    Attributes:
        name: in points of malignant sensitivity where the champion's threshold finds 0.90, unless it says otherwise.
        points: of the malignant sensitivity of the likeliest class.
        everywhere: added signal in every class.
    """

    name: str
    points: float = 0.0
    everywhere: float = 0.0


TRUTHS = (
    Truth("10 points worse", -0.1056),
    Truth("5 points worse", -0.0548),
    Truth("5 points worse (of the likeliest class)", -0.05),
    Truth("equal"),
    Truth("5 points better (of the likeliest class)", 0.05),
    Truth("5 points better", 0.0538),
    Truth("better in every class", everywhere=0.6),
)


def true_sensitivities(truth: Truth, images: int = 200_000) -> tuple[float, float]:
    """Return the malignant sensitivity at the threshold where the champion's is 0.90, and that of the likeliest class."""
    generator = np.random.default_rng(0)
    of_no_group = np.arange(images)
    lesions = Images(np.ones(images, np.int64), of_no_group, noise(generator, of_no_group))
    champion = Model.draw(np.random.default_rng(1), lesions, START).scores(lesions)
    challenger = Model.draw(np.random.default_rng(2), lesions, START + truth.points, truth.everywhere).scores(lesions)
    threshold = np.quantile(champion.probabilities[:, 1], 0.1)
    return float((challenger.probabilities[:, 1] >= threshold).mean()), float((challenger.predicted == 1).mean())


def counts_of(images: int) -> tuple[int, int, int]:
    """Return how many of this many images are of each class."""
    first, second = (round(share * images) for share in SHARES[:2])
    return first, second, images - first - second


def one_night(seed: int, truth: Truth, images: int, folds: int) -> tuple[bool, bool, bool]:
    """Return whether the gate approves, whether the one before would have, and whether the challenger becomes the anchor."""
    generator = np.random.default_rng([images, seed])
    world = Images.draw(generator, counts_of(images))
    champion = Model.draw(generator, world, START)
    challenger = Model.draw(generator, world, START + truth.points, truth.everywhere)
    gate, comparison = night(world, challenger, champion, None, RetrainingConfig.resolve({}), folds)
    approved = gate.verdict == "approved"
    return approved, approved_before(comparison), approved and gate.becomes_anchor


# Many nights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """What comes night after night.

    Attributes:
        name: for the table.
        challenger: (true sensitivity of the champion, night from 1) -> that of the challenger.
        fresh: the images are different every night. Otherwise they stay, and new ones are added.
    """

    name: str
    challenger: Callable[[float, int], float]
    fresh: bool = False


def _below(champion: float, _: int) -> float:
    return champion - 0.02


def _equal(champion: float, _: int) -> float:
    return champion


def _fading(_: float, night: int) -> float:
    return START - 0.002 * night


def _improving(_: float, night: int) -> float:
    return START + 0.0005 * night


HISTORIES = (
    History("2 points below the champion, every night", _below),
    History("losing 0.2 points a night", _fading),
    History("losing 0.2 points a night, other images every night", _fading, fresh=True),
    History("equal to the champion, every night", _equal),
    History("gaining 0.05 points a night", _improving),
)


@dataclass(frozen=True)
class Outcome:
    """What became of the champion: its true sensitivity at the end, and how often it, and the anchor, moved."""

    sensitivity: float
    promotions: int
    anchors: int


def many_nights(seed: int, history: History, before: bool = False, nights: int = NIGHTS) -> Outcome:
    """Simulate this many nights, each of which starts with what the one before left.

    Args:
        seed: of all draws.
        history: what comes.
        before: decide by the gate from before five folds, on a single fold.
        nights: how many.
    """
    generator = np.random.default_rng(seed)
    config = RetrainingConfig.resolve({})
    size, folds = SINGLE_FOLD if before else FOLDS
    growth = NEW_IMAGES // 5 if before else NEW_IMAGES
    world = Images.draw(generator, counts_of(size))
    champion = Model.draw(generator, world, START)
    anchor: Model | None = None
    promotions = anchors = 0
    for number in range(1, nights + 1):
        if history.fresh:
            world = Images.draw(generator, counts_of(size + growth * number))
            champion = Model.draw(generator, world, champion.sensitivity)
            anchor = anchor and Model.draw(generator, world, anchor.sensitivity)
        else:
            world = world.with_new(generator, growth)
            champion = champion.asked(generator, world)
            anchor = anchor and anchor.asked(generator, world)
        challenger = Model.draw(generator, world, history.challenger(champion.sensitivity, number))
        gate, comparison = night(world, challenger, champion, None if before else anchor, config, folds)
        if not (approved_before(comparison) if before else gate.verdict == "approved"):
            continue
        promotions += 1
        anchors += gate.becomes_anchor
        anchor = None if gate.becomes_anchor else anchor or champion
        champion = challenger
    return Outcome(champion.sensitivity, promotions, anchors)


# Report ---------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Simulate on every core, print, and write the section if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=600, help="nights for each truth (600)")
    parser.add_argument("--histories", type=int, default=60, help="times that 100 nights are simulated (60)")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args()
    began = time.monotonic()
    with get_context("spawn").Pool() as pool:
        single = [
            (truth.name, *(f"{share:.3f}" for share in true_sensitivities(truth)), *_rates(pool, truth, given.nights))
            for truth in TRUTHS
        ]
        long = [_told(pool, history, given.histories) for history in HISTORIES]
    section = as_section(single, long, given.nights, given.histories, time.monotonic() - began)
    print(section)
    if given.write:
        write_section("gate", section)


def _rates(pool: Any, truth: Truth, nights: int) -> Iterable[str]:
    for images, folds in (FOLDS, SINGLE_FOLD):
        found = np.mean(pool.map(partial(one_night, truth=truth, images=images, folds=folds), range(nights), 20), axis=0)
        print(truth.name, images, found, flush=True)
        approved, before, anchor = (f"{share:.1%}" for share in found)
        yield from (approved, anchor) if folds > 1 else (approved, before)


def _told(pool: Any, history: History, times: int) -> list[str]:
    row = [history.name]
    for before in (True, False):
        outcomes = pool.map(partial(many_nights, history=history, before=before), range(times), 1)
        ends = [outcome.sensitivity for outcome in outcomes]
        moved = np.mean([(outcome.promotions, outcome.anchors) for outcome in outcomes], axis=0)
        print(history.name, before, np.mean(ends), np.quantile(ends, 0.05), moved, flush=True)
        row += [f"{np.mean(ends):.3f}"] if before else [f"{np.mean(ends):.3f}", f"{np.quantile(ends, 0.05):.3f}"]
        row += [] if before else [f"{moved[0]:.1f}", f"{moved[1]:.1f}"]
    return row


def as_section(single: list[Any], long: list[list[str]], nights: int, times: int, seconds: float) -> str:
    """Return the benchmark's section as Markdown."""
    true = ["the challenger is truly", "sensitivity at the threshold", "of the likeliest class"]
    header = [*true, "five folds: approved", "… and becomes the anchor", "one fold: approved", "one fold, the gate before"]
    later = ["100 nights of challengers", "the gate before", "this gate", "in the worst 5 %", "promotions", "new anchors"]
    return f"""## What the gate approves

`python -m benchmarks.gate_simulation --nights {nights} --histories {times} --write` ({seconds:.0f} s)

{nights} nights for each truth, in groups of near-duplicates. Five folds: {FOLDS[0]} images, {counts_of(FOLDS[0])[1]} of them
malignant. One fold: {SINGLE_FOLD[0]} and {counts_of(SINGLE_FOLD[0])[1]}; the gate before asked for the same margins whatever the
evidence, and knew no anchor. The champion is the anchor. How often the gate approves:

{_table(header, single)}

{times} times {NIGHTS} nights, with {NEW_IMAGES} new images each on top of {FOLDS[0]}; the gate before decides on a fifth of them.
The champion's true malignant sensitivity is {START:.3f} at first. At the end, on average:

{_table(later, long)}"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


if __name__ == "__main__":
    main()
