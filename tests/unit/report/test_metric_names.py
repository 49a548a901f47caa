from __future__ import annotations

import pytest

from bcc_ops.report.metric_names import spelled, tone
from bcc_ops.runs.documents import Estimate


@pytest.mark.parametrize(
    ("name", "low", "high", "expected"),
    [
        ("balanced_accuracy", 0.01, 0.05, "better"),
        ("balanced_accuracy", -0.05, -0.01, "worse"),
        ("balanced_accuracy", -0.01, 0.05, ""),
        ("loss", 0.01, 0.05, "worse"),
        ("brier", -0.05, -0.01, "better"),
    ],
)
def test_a_difference_is_better_or_worse_only_where_the_whole_interval_says_so(
    name: str, low: float, high: float, expected: str
) -> None:
    assert tone(name, Estimate(value=(low + high) / 2, low=low, high=high)) == expected


def test_a_missing_difference_is_neither() -> None:
    assert tone("accuracy", None) == ""
    assert tone("accuracy", Estimate.missing("no image")) == ""


def test_figures_are_spelled_as_readers_know_them() -> None:
    assert spelled("macro_auc") == "Macro AUC"
    assert spelled("macro_f1") == "Macro F1"
    assert spelled("malignant_sensitivity_at_operating_point") == "Malignant sensitivity at operating point"
