"""95 % intervals in closed form, for small counts and where a bootstrap has nothing to vary.

A metric that is perfect on these images is perfect in each of their resamples too, so a bootstrap would promise certainty.
Score intervals do not: they ask which true values would make the observation unlikely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Interval = tuple[float, float]

_Z = 1.959963984540054


def wilson(share: ArrayLike, trials: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """The score intervals of shares of independent trials: their low ends and their high ends (Wilson, 1927).

    Args:
        share: in [0, 1]; a metric or an array.
        trials: of the same shape, at least 1.
    """
    share, trials = np.asarray(share, float), np.asarray(trials, float)
    scale = 1 + _Z**2 / trials
    centre = (share + _Z**2 / (2 * trials)) / scale
    half = _Z / scale * np.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    # clipped at the share itself, since at 0 and 1 rounding may leave it outside
    return np.clip(centre - half, 0, share), np.clip(centre + half, share, 1)


def paired_share(differences: ArrayLike) -> Interval:
    """The interval of the difference of two shares of the same trials (Agresti and Min, Statistics in Medicine 24, 2005).

    It is that of the mean over two trials more, in one of which neither side is ahead, and in the other each by a half.

    Args:
        differences: (n,) one side's answer minus the other's, in [-1, 1]; n at least 1.
    """
    differences = np.asarray(differences, float)
    trials = len(differences) + 2
    mean = differences.sum() / trials
    half = _Z * math.sqrt((differences**2).sum() + 1 - trials * mean**2) / trials
    return float(mean - half), float(mean + half)


def auc_at_an_end(auc: int, positives: int, others: int) -> Interval:
    """The score interval of an area under the ROC curve of 0 or 1 (Newcombe, Statistics in Medicine 25, 2006, method 5).

    Wilson's idea with Hanley and McNeil's variance: the lowest area at which seeing 1 is not yet unlikely.

    Args:
        auc: 0 or 1.
        positives, others: how many independent images, at least 1 each.
    """
    from scipy.optimize import brentq

    pairs, mean_count = positives * others, (positives + others) / 2

    def unlikely(area: float) -> float:
        spread = 1 + (mean_count - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return (1 - area) - _Z**2 * area * spread / pairs

    low = float(brentq(unlikely, 0.0, 1.0))
    return (low, 1.0) if auc else (0.0, 1 - low)


def dice_of_overlap(overlap: Interval) -> Interval:
    """The interval of an F1 (Dice) from that of the overlap (Jaccard), the share of the union that both have: 2 j / (1 + j)."""
    low, high = (2 * share / (1 + share) for share in overlap)
    return low, high


def mean_of_independent(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """The interval of a mean of independent metrics (MOVER; Zou and Donner, Statistics in Medicine 27, 2008).

    Args:
        values: the metrics, at least one.
        intervals: of each.
    """
    mean = math.fsum(values) / len(values)
    below, above = (
        math.sqrt(math.fsum((value - ends[side]) ** 2 for value, ends in zip(values, intervals))) / len(values) for side in (0, 1)
    )
    return mean - below, mean + above


def mean_of_dependent(intervals: Sequence[Interval]) -> Interval:
    """An interval of a mean of metrics that may move together: the mean of their ends, which is as wide as it can be."""
    low, high = np.mean(intervals, axis=0)
    return float(low), float(high)
