"""How often the 95 % intervals of a report hold the truth: simulated, for three ways in which images belong together.

    python -m benchmarks.coverage [--repeats 2000] [--write]

Each repeat draws 160 images, 40 of them malignant, asks two models of known skill about them, and checks whether each interval of
`evaluation.json` holds what the models truly are: their metrics on 140,000 images drawn alike. `--write` puts the table into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from bcc_ops.evaluation.metrics import Evaluation, ScoredModel, Scores, Threshold, paired_difference
from benchmarks.report import write_section

CLASSES = ("benign", "malignant", "normal")
COUNTS = (90, 40, 30)
SKILL = 2.05
"""Distance of the classes, in standard deviations of the answers: a malignant AUC of 0.97."""
WANTED, LIMITS = 0.9, (93.0, 98.0)
TRUTH_SETS = 900
DIFFERENCES = (
    *("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "loss", "brier"),
    *("malignant.sensitivity", "malignant.specificity", "operating.sensitivity", "operating.specificity"),
)
"""Those that a comparison shows."""

Generator = np.random.Generator


@dataclass(frozen=True)
class Structure:
    """A way in which images belong together.

    Attributes:
        name: for the table.
        groups: draws (labels, groups), (160,) each.
        shared: part of the answers' variance that the images of a group share.
    """

    name: str
    groups: Callable[[Generator], tuple[np.ndarray, np.ndarray]]
    shared: float


def single_images(_: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw images that have nothing to do with one another."""
    return np.repeat(np.arange(3), COUNTS), np.arange(sum(COUNTS))


def near_duplicates(generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw groups of one class: most of one image, some of up to seven."""
    labels: list[int] = []
    groups: list[int] = []
    for label, count in enumerate(COUNTS):
        left = count
        while left:
            size = min(left, int(generator.choice([1, 2, 3, 7], p=[0.7, 0.2, 0.08, 0.02])))
            groups += [max(groups, default=-1) + 1] * size
            labels += [label] * size
            left -= size
    return np.array(labels), np.array(groups)


def patients(generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw patients with one to five images of a lesion, and some with normal images besides."""
    labels: list[int] = []
    groups: list[int] = []
    normal = COUNTS[2]

    def add(*parts: tuple[int, int]) -> None:
        patient = max(groups, default=-1) + 1
        for label, count in parts:
            labels.extend([label] * count)
            groups.extend([patient] * count)

    for label in (1, 0):
        left = COUNTS[label]
        while left:
            size = min(left, int(generator.integers(1, 6)))
            besides = min(normal, int(generator.choice([0, 1, 2], p=[0.7, 0.2, 0.1])))
            add((label, size), (2, besides))
            left, normal = left - size, normal - besides
    while normal:
        size = min(normal, int(generator.integers(1, 5)))
        add((2, size))
        normal -= size
    return np.array(labels), np.array(groups)


STRUCTURES = (
    Structure("single images", single_images, 0.0),
    Structure("near-duplicates", near_duplicates, 0.9),
    Structure("patients", patients, 0.55),
)


def ask(generator: Generator, labels: np.ndarray, groups: np.ndarray, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Return two models' probabilities (n, 3), of the same skill; half of the variance of their answers is common to both."""
    n = len(labels)

    def noise() -> np.ndarray:
        of_group = generator.normal(size=(groups.max() + 1, 3))[groups]
        return np.asarray(np.sqrt(shared) * of_group + np.sqrt(1 - shared) * generator.normal(size=(n, 3)))

    common = noise()
    answers = []
    for _ in range(2):
        logits = SKILL * np.eye(3)[labels] + np.sqrt(0.5) * (common + noise())
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        answers.append(weights / weights.sum(axis=1, keepdims=True))
    return answers[0], answers[1]


def evaluation_of(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, threshold: float) -> Evaluation:
    """Evaluate a model at a threshold that was chosen elsewhere."""
    at = Threshold(threshold, WANTED, "elsewhere")
    return Evaluation(ScoredModel(Scores(labels, probabilities, groups), at, None), CLASSES, "malignant")


def truth_of(structure: Structure, seed: int) -> tuple[float, dict[str, float]]:
    """Return the threshold of the wanted sensitivity, and the metrics on many images."""
    generator = np.random.default_rng(seed)
    labels, groups, offset = [], [], 0
    for _ in range(TRUTH_SETS):
        some, of_group = structure.groups(generator)
        labels.append(some)
        groups.append(of_group + offset)
        offset += int(of_group.max()) + 1
    every, together = np.concatenate(labels), np.concatenate(groups)
    probabilities, _ = ask(generator, every, together, structure.shared)
    threshold = float(np.quantile(probabilities[every == 1, 1], 1 - WANTED))
    metrics = evaluation_of(every, probabilities, together, threshold).metrics
    return threshold, {name: metric.value for name, metric in metrics.items()}


def measure(task: tuple[int, int, int]) -> dict[str, tuple[int, int]]:
    """Return metric -> (how often its interval held the truth, how often there was one).

    Args:
        task: number of the structure, repeats, seed.
    """
    number, repeats, seed = task
    structure = STRUCTURES[number]
    threshold, truth = truth_of(structure, seed=number)
    generator = np.random.default_rng([number, seed])
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for _ in range(repeats):
        labels, groups = structure.groups(generator)
        one, other = (
            evaluation_of(labels, answers, groups, threshold) for answers in ask(generator, labels, groups, structure.shared)
        )
        estimates: dict[str, tuple[Any, float]] = {name: (one.estimate(name), true) for name, true in truth.items()}
        estimates |= {f"difference of {name}": (paired_difference(one, other, name), 0.0) for name in DIFFERENCES}
        for name, (estimate, true) in estimates.items():
            if estimate.value is not None:
                found[name].append(estimate.low <= true <= estimate.high)
    return {name: (sum(held), len(held)) for name, held in found.items()}


def as_section(coverage: Mapping[str, Mapping[str, float]], repeats: int) -> str:
    """Return the benchmark's section as Markdown."""
    outside = [f"{name} ({structure})" for structure, of in coverage.items() for name, held in of.items() if not within(held)]
    names = list(next(iter(coverage.values())))
    rows = [f"| {name} | " + " | ".join(f"{coverage[s.name][name]:.1f}" for s in STRUCTURES) + " |" for name in names]
    noise = 100 * np.sqrt(0.95 * 0.05 / repeats)
    return "\n".join(
        [
            "## How often 95 % intervals hold the truth",
            "",
            "`python -m benchmarks.coverage --write`",
            "",
            f"160 images, 40 of them malignant; {repeats} repeats, so that each number is uncertain by {noise:.1f} (standard "
            f"error). Wanted: {LIMITS[0]:.0f} to {LIMITS[1]:.0f} %. Outside this range: {', '.join(outside) or 'none'}.",
            "",
            "| 95 % interval of | " + " | ".join(structure.name for structure in STRUCTURES) + " |",
            "|---" * (1 + len(STRUCTURES)) + "|",
            *rows,
        ]
    )


def within(held: float) -> bool:
    """Tell whether a coverage is within the limits."""
    return LIMITS[0] <= held <= LIMITS[1]


def main() -> int:
    """Simulate on every core, print the table, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    given = parser.parse_args()
    shares = 4
    tasks = [(number, given.repeats // shares, seed) for number in range(len(STRUCTURES)) for seed in range(shares)]
    with get_context("spawn").Pool() as pool:
        parts = pool.map(measure, tasks, chunksize=1)
    coverage: dict[str, dict[str, float]] = {}
    for number, structure in enumerate(STRUCTURES):
        own = [part for (of, _, _), part in zip(tasks, parts) if of == number]
        coverage[structure.name] = {
            name: 100 * sum(part[name][0] for part in own) / sum(part[name][1] for part in own) for name in own[0]
        }
    section = as_section(coverage, given.repeats)
    print(section)
    if given.write:
        write_section("coverage", section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
