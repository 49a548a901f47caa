from __future__ import annotations

import pytest

from bcc_ops.config import RetrainingConfig
from benchmarks.gate_simulation import TRUTHS, Truth, night, true_metrics, verdicts

BY_NAME = {truth.name: truth for truth in TRUTHS}


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("worse by 10 points of malignant sensitivity", -0.10),
        ("worse by 5 points of malignant sensitivity", -0.05),
        ("equal", 0.0),
        ("better by 5 points of malignant sensitivity", 0.05),
    ],
)
def test_a_simulated_challenger_differs_by_what_its_name_says(name: str, points: float) -> None:
    assert true_metrics(BY_NAME[name])[1] == pytest.approx(0.90 + points, abs=0.005)


def test_a_night_is_judged_by_the_pipelines_own_gate() -> None:
    config = RetrainingConfig.resolve({})
    hopeless = night(1, Truth("hopeless", everywhere=-3.0), config)
    assert verdicts(hopeless, config)["this gate"] is False
    assert hopeless.comparison is not None and hopeless.comparison.champion is not None
    assert hopeless.comparison.champion.images == 156
    assert night(1, Truth("hopeless", everywhere=-3.0), config) == hopeless
