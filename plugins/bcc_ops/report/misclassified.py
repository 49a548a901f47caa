"""Which images the challenger got dangerously wrong: missed cancers and false alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class MisclassifiedImage:
    """One held-out image on the wrong side of the decision for the positive class."""

    key: str
    label: str
    answer: str
    """What it was taken for: the positive class in a false alarm, else the most probable other class."""
    positive_probability: float


@dataclass(frozen=True)
class Misclassified:
    """All of a run's, worst first, and the rule that they were decided by."""

    missed: tuple[MisclassifiedImage, ...]
    false_alarms: tuple[MisclassifiedImage, ...]
    threshold: float | None
    """The operating point's; None if the highest probability decided."""


def find_misclassified(
    predictions: Mapping[str, Sequence[Any]], classes: Sequence[str], positive_class: str, threshold: float | None
) -> Misclassified:
    """Find the missed cancers and the false alarms of the challenger.

    Args:
        predictions: columns of predictions.parquet.
        classes: in the model's order.
        positive_class: whose misses are the dangerous ones.
        threshold: an image counts as positive from this probability on; None: if the positive class is the most
            probable one.

    Returns:
        Missed cancers with the lowest probability first, false alarms with the highest first; ties by key.
    """
    columns = [predictions[f"challenger_{name}"] for name in classes]
    found: dict[Literal["missed", "false_alarms"], list[MisclassifiedImage]] = {"missed": [], "false_alarms": []}
    for key, label, probabilities in zip(predictions["key"], predictions["label"], zip(*columns)):
        if None in probabilities:
            continue
        by_class = dict(zip(classes, probabilities))
        positive = float(by_class.pop(positive_class))
        other = max(by_class, key=lambda name: by_class[name])
        called = positive > by_class[other] if threshold is None else positive >= threshold
        if called != (label == positive_class):
            side: Literal["missed", "false_alarms"] = "false_alarms" if called else "missed"
            found[side].append(MisclassifiedImage(key, label, positive_class if called else other, positive))
    return Misclassified(
        missed=tuple(sorted(found["missed"], key=lambda case: (case.positive_probability, case.key))),
        false_alarms=tuple(sorted(found["false_alarms"], key=lambda case: (-case.positive_probability, case.key))),
        threshold=threshold,
    )
