"""Stand-ins for models, and the images of a run, for the tests of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from bcc_ops.evaluation.comparison import EvaluationPlan, LabelledImages, RunImages
from bcc_ops.evaluation.external import ExternalImages
from bcc_ops.models.champion import ChampionModel
from bcc_ops.runs.documents import Estimate, OperatingPoint
from bcc_ops.runs.rows import ContentRow, SplitRow

CLASSES = ("benign", "malignant", "normal")
PLAN = EvaluationPlan(CLASSES, "malignant", 0.9, "near-duplicate group")
AS_OF = datetime(2026, 11, 22, 2, tzinfo=timezone.utc)


@dataclass
class Answering:
    """A model that knows the truth from the file's name and is right with `skill`; keeps what it was asked."""

    skill: float = 0.8
    order: tuple[str, ...] = CLASSES
    image_size: int = 256
    seed: int = 1
    asked: list[str] = field(default_factory=list)

    @property
    def classes_count(self) -> int:
        return len(self.order)

    def predict(self, paths: Sequence[Path], batch_size: int = 32) -> np.ndarray:
        self.asked.extend(path.name for path in paths)
        answers = []
        for path in paths:
            generator = np.random.default_rng([self.seed, *path.name.encode()])
            truth = self.order.index(path.name.split("-")[0])
            answers.append(generator.dirichlet(np.ones(len(self.order))) + self.skill * np.eye(len(self.order))[truth])
        stacked = np.array(answers)
        return (stacked / stacked.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass
class Fixed:
    """A model that gives the same answers whatever it is asked."""

    answers: Any
    image_size: int = 256
    classes_count: int = 3

    def predict(self, paths: Sequence[Path], batch_size: int = 32) -> np.ndarray:
        return np.asarray(self.answers)


def rows(fold: int, count: int, start: int = 0, name: str = "fold") -> list[SplitRow]:
    """Images of a fold, a third of each class, each in a group of its own."""
    found = []
    for i in range(start, start + count):
        label, own = CLASSES[i % 3], f"{name}{fold}-{i}"
        found.append(SplitRow(f"{label}-{own}", f"sha-{own}", label, f"g-{own}", fold))
    return found


SPLIT = [row for fold in (1, 2, 3, 4, 5) for row in rows(fold, 24)]


def content(row: SplitRow, group: str | None = None, side: int = 100) -> ContentRow:
    """What the checks saw of an image."""
    return ContentRow(row.key, row.label, row.sha256, side, side, "L", 90.0, 40.0, False, group or row.group, "")


def images_of(split: Sequence[SplitRow] = SPLIT, **changes: Any) -> RunImages:
    """The images of a run with this split."""
    contents = [content(row, side=100 + i) for i, row in enumerate(split)]
    return replace(RunImages(split, contents, (), {row.key: Path(row.key) for row in split}), **changes)


def answers_about(rows: Sequence[SplitRow], model: Answering | None = None) -> np.ndarray:
    """Out-of-fold answers, as good as a model's."""
    return np.asarray((model or Answering()).predict([Path(row.key) for row in rows]), dtype=np.float64)


def older_version(**changes: Any) -> ChampionModel:
    """A version of an older release, which stored no answers; by default it has seen none of the run's images."""
    missing = Estimate.missing("elsewhere")
    point = OperatingPoint(threshold=0.4, wanted_sensitivity=0.9, chosen_on="its own", sensitivity=missing, specificity=missing)
    known = ChampionModel("v1", AS_OF, False, CLASSES, point, 1.1, model=Answering(0.6, seed=2))
    return replace(known, **changes)


def version_with_folds(split: Sequence[SplitRow] = SPLIT, **changes: Any) -> ChampionModel:
    """A version that was made from five folds' models, with its answers."""
    order = changes.get("classes", CLASSES)
    answers = answers_about(split, Answering(0.6, order=order, seed=2))
    seen = frozenset(row.sha256 for row in split)
    return older_version(**{"record": tuple(split), "answered": tuple(split), "answers": answers, "seen": seen} | changes)


def external(count: int = 30, *names: str, **changes: Any) -> tuple[ExternalImages, ...]:
    """External test sets of so many images each; the images of each are others."""
    sets = []
    for name in names or ("elsewhere",):
        found = rows(9, count, name=name)
        images = LabelledImages.of_rows(found, {row.key: Path(row.key) for row in found})
        sets.append(replace(ExternalImages(name, name, images, note=f"{count} images"), **changes))
    return tuple(sets)
