"""Closed intervals, against worked answers and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from bcc_ops.evaluation.intervals import auc_interval, dice_of_overlap, mean_of, paired_share, student, wilson

Z2 = 1.959963984540054**2


def test_wilsons_interval_is_the_published_one() -> None:
    assert wilson(0.9, 40) == pytest.approx((0.7695, 0.9604), abs=1e-4)
    low, high = wilson([0.0, 1.0], [20, 20])
    assert low == pytest.approx([0, 20 / (20 + Z2)])
    assert high == pytest.approx([Z2 / (20 + Z2), 1])


def test_a_paired_difference_counts_two_pairs_more_that_speak_for_neither_side() -> None:
    z = np.sqrt(Z2)
    assert paired_share(0, 0, 42) == pytest.approx((-z / 44, z / 44))
    # one pair of eight for the first: a mean of 1 / 10, and 1 + 1 squares less 10 x 0.1^2
    assert paired_share(1 / 8, 1 / 8, 8) == pytest.approx((0.1 - z * np.sqrt(1.9) / 10, 0.1 + z * np.sqrt(1.9) / 10))
    low, high = paired_share(-1, 1, 3)
    assert (low, high) == pytest.approx((-0.6 - z * np.sqrt(4 - 1.8) / 5, -0.6 + z * np.sqrt(4 - 1.8) / 5))


def test_an_auc_over_one_pair_is_a_proportion_of_one_trial() -> None:
    assert auc_interval(1, 1, 1, 0) == pytest.approx((1 / (1 + Z2), 1.0))
    assert auc_interval(0, 1, 1, 0) == pytest.approx((0.0, Z2 / (1 + Z2)))


def test_a_perfect_auc_is_surer_with_more_images_and_as_sure_either_way_round() -> None:
    few, more, many = (auc_interval(1, positives, 40, 0)[0] for positives in (5, 20, 80))
    assert few < more < many < 1
    assert auc_interval(1, 5, 40, 0) == pytest.approx(auc_interval(1, 40, 5, 0))


def test_at_its_low_end_a_perfect_auc_is_not_seen_often() -> None:
    """Scores of two normal distributions whose area is the low end of the interval for 1: seldom apart altogether."""
    from scipy.stats import norm

    low = auc_interval(1, 20, 30, 0)[0]
    generator = np.random.default_rng(11)
    positives = generator.normal(np.sqrt(2) * norm.ppf(low), size=(20_000, 20))
    others = generator.normal(size=(20_000, 30))
    perfect = (positives.min(axis=1) > others.max(axis=1)).mean()
    assert 0.0 < perfect < 0.05


def test_an_overlap_of_a_half_is_an_f1_of_two_thirds() -> None:
    assert dice_of_overlap((0.5, 1.0)) == pytest.approx((2 / 3, 1.0))


def test_the_mean_of_independent_metrics_is_surer_than_each() -> None:
    assert mean_of([1.0] * 4, [(0.8, 1.0)] * 4, np.eye(4)) == pytest.approx((0.9, 1.0))
    assert mean_of([0.0, 1.0], [(0.0, 0.3), (0.6, 1.0)], np.eye(2)) == pytest.approx((0.3, 0.65))


def test_the_mean_of_metrics_that_move_together_is_no_surer() -> None:
    assert mean_of([1.0, 1.0], [(0.8, 1.0), (0.9, 1.0)], np.ones((2, 2))) == pytest.approx((0.85, 1.0))


def test_few_groups_widen_the_interval_of_a_mean_by_students_quantile() -> None:
    low, high = mean_of([0.5, 0.5], [(0.4, 0.6), (0.4, 0.6)], np.eye(2), groups=5)
    assert high - 0.5 == pytest.approx(0.1 / np.sqrt(2) * student(5) / np.sqrt(Z2)) == pytest.approx(0.5 - low)
    assert student(5) == pytest.approx(2.776, abs=1e-3)


def test_the_interval_of_an_area_follows_the_variance_that_was_seen() -> None:
    low, high = auc_interval(0.9, 40, 60, 0)
    wider_low, wider_high = auc_interval(0.9, 40, 60, 0.01)
    assert wider_low < low < 0.9 < high < wider_high < 1
    assert auc_interval(0.9, 40, 60, 1e-9) == auc_interval(0.9, 40, 60, 0), "little variance in few images proves little"
