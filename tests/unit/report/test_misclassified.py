"""Missed cancers and false alarms, by hand."""

from __future__ import annotations

from typing import Any

from bcc_ops.report.misclassified import MisclassifiedImage, find_misclassified

CLASSES = ("benign", "malignant", "normal")


def columns(rows: list[tuple[str, str, tuple[float | None, float | None, float | None]]]) -> dict[str, list[Any]]:
    keys, labels, probabilities = zip(*rows)
    by_class = {f"challenger_{name}": [row[i] for row in probabilities] for i, name in enumerate(CLASSES)}
    return {"key": list(keys), "label": list(labels), **by_class}


ROWS: list[tuple[str, str, tuple[float | None, float | None, float | None]]] = [
    ("a", "malignant", (0.6, 0.3, 0.1)),
    ("b", "malignant", (0.2, 0.1, 0.7)),
    ("c", "malignant", (0.1, 0.8, 0.1)),
    ("d", "benign", (0.55, 0.4, 0.05)),
    ("e", "normal", (0.05, 0.9, 0.05)),
    ("f", "benign", (None, None, None)),
]


def test_the_operating_point_decides_and_the_worst_come_first() -> None:
    cases = find_misclassified(columns(ROWS), CLASSES, "malignant", 0.35)
    assert cases.missed == (
        MisclassifiedImage("b", "malignant", "normal", 0.1),
        MisclassifiedImage("a", "malignant", "benign", 0.3),
    )
    assert cases.false_alarms == (
        MisclassifiedImage("e", "normal", "malignant", 0.9),
        MisclassifiedImage("d", "benign", "malignant", 0.4),
    )


def test_without_a_threshold_the_highest_probability_decides() -> None:
    cases = find_misclassified(columns(ROWS), CLASSES, "malignant", None)
    assert [case.key for case in cases.missed] == ["b", "a"]
    assert [case.key for case in cases.false_alarms] == ["e"]


def test_the_threshold_itself_counts_as_positive() -> None:
    assert [case.key for case in find_misclassified(columns(ROWS), CLASSES, "malignant", 0.3).missed] == ["b"]
