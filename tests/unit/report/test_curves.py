"""ROC and precision-recall curves with bands: answers worked out by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from bcc_ops.report.curves import GRID, precision_recall_curve, resample_weights, roc_curve


def test_roc_of_four_images_by_hand() -> None:
    # By falling score: hit, miss, hit, miss. The curve goes up, right, up, right.
    curve = roc_curve([True, False, True, False], [0.9, 0.8, 0.7, 0.1], np.ones((1, 4), int))
    assert curve is not None
    assert curve.x.tolist() == [0, 0, 0.5, 0.5, 1]
    assert curve.y.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.area == pytest.approx(0.75)


def test_precision_recall_of_four_images_by_hand() -> None:
    curve = precision_recall_curve([True, False, True, False], [0.9, 0.8, 0.7, 0.1], np.ones((1, 4), int))
    assert curve is not None
    assert curve.x.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.y.tolist() == pytest.approx([1, 1, 1 / 2, 2 / 3, 2 / 4])
    assert curve.area == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_equal_scores_are_one_threshold() -> None:
    curve = roc_curve([True, False], [0.5, 0.5], np.ones((1, 2), int))
    assert curve is not None
    assert curve.x.tolist() == [0, 1]
    assert curve.area == pytest.approx(0.5)


def test_areas_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(3)
    truth = random.random(300) < 0.3
    score = np.round(random.normal(size=300) + truth, 1)
    roc, precision = (draw(truth, score, np.ones((1, 300), int)) for draw in (roc_curve, precision_recall_curve))
    assert roc is not None and precision is not None
    assert roc.area == pytest.approx(roc_auc_score(truth, score))
    assert precision.area == pytest.approx(average_precision_score(truth, score))


def test_groups_are_drawn_whole() -> None:
    weights = resample_weights(["a", "a", "b", "c"], 50, seed=1)
    assert (weights[:, 0] == weights[:, 1]).all()
    draws_a_resample = weights[:, 0] + weights[:, 2] + weights[:, 3]
    assert set(draws_a_resample) == {3}


def test_band_lies_around_the_curve_and_narrows_with_more_images() -> None:
    random = np.random.default_rng(5)
    widths = []
    for count in (60, 2000):
        truth = random.random(count) < 0.4
        score = random.normal(size=count) + 1.5 * truth
        curve = roc_curve(truth, score, resample_weights([str(i) for i in range(count)], 300, seed=2))
        assert curve is not None
        assert (curve.low <= curve.high).all()
        middle = np.interp(GRID, curve.x, curve.y)
        assert np.mean((curve.low - 0.02 <= middle) & (middle <= curve.high + 0.02)) > 0.9
        widths.append(np.mean(curve.high - curve.low))
    assert widths[1] < widths[0] / 3


@pytest.mark.parametrize("truth", [[True, True], [False, False]])
def test_a_class_without_images_or_without_a_rest_has_no_curve(truth: list[bool]) -> None:
    assert roc_curve(truth, [0.1, 0.2], np.ones((1, 2), int)) is None
    assert precision_recall_curve(truth, [0.1, 0.2], np.ones((1, 2), int)) is None
