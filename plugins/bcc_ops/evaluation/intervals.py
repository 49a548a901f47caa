"""95 % intervals in closed form, which hold for few images and for metrics near 0 or 1.

A metric that is perfect on these images is perfect in each of their resamples too, so a bootstrap would promise certainty.
Score intervals do not: they ask which true values would make the observation unlikely. `benchmarks/coverage.py` measures how
often the intervals hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Interval = tuple[float, float]

_Z = 1.959963984540054
_EDGE = 1e-9
LEAST_SCALE = 0.6
"""Of the variance that was seen to Hanley and McNeil's. Chosen by benchmarks/coverage.py."""


def wilson(share: ArrayLike, trials: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the score intervals of shares of independent trials: their low ends and their high ends (Wilson, 1927).

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


def paired_share(difference: float, discordant: float, independent: float) -> Interval:
    """Return the interval of the difference of two shares of the same trials (Agresti and Min, Statistics in Medicine 24, 2005).

    It is that over two trials more, in one of which neither side is ahead, and in the other each by a half.

    Args:
        difference: of the shares, in [-1, 1].
        discordant: share of the trials in which one side is ahead.
        independent: how many independent trials, more than 0.
    """
    trials = independent + 2
    mean = difference * independent / trials
    half = _Z * math.sqrt(max(0.0, discordant * independent + 1 - trials * mean**2)) / trials
    return mean - half, mean + half


def share_interval(share: float, independent: float) -> Interval:
    """Return Wilson's interval of a share of so many independent images, not necessarily a whole number."""
    low, high = wilson(share, independent)
    return float(low), float(high)


def student(groups: int) -> float:
    """Return Student's 97.5 % quantile for a variance that was estimated from so many groups."""
    from scipy.stats import t

    return float(t.ppf(0.975, max(groups - 1, 1)))


def auc_interval(auc: float, positives: float, others: float, variance: float) -> Interval:
    """Return the score interval of an area under the ROC curve (Newcombe, Statistics in Medicine 25, 2006, method 5).

    Wilson's idea with Hanley and McNeil's variance: all areas at which seeing this one is not yet unlikely. That variance assumes
    exponential scores and is too large for most classifiers, so it is scaled to the variance that was seen; not below
    `LEAST_SCALE`, since few images show too little of it, and none near 1.

    Args:
        auc: in [0, 1].
        positives, others: how many independent images, more than 0 each.
        variance: of the area, from the images' influences.
    """
    from scipy.optimize import brentq

    pairs, mean_count = positives * others, (positives + others) / 2

    def assumed(area: float) -> float:
        spread = 1 + (mean_count - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return area * (1 - area) * spread / pairs

    expected = assumed(auc)
    scale = max(LEAST_SCALE, variance / expected) if expected > 0 else 1.0

    def unlikely(area: float) -> float:
        return (auc - area) ** 2 - _Z**2 * scale * assumed(area)

    low = float(brentq(unlikely, _EDGE, min(auc, 1 - _EDGE))) if auc > _EDGE and unlikely(_EDGE) > 0 else 0.0
    high = float(brentq(unlikely, max(auc, _EDGE), 1 - _EDGE)) if auc < 1 - _EDGE and unlikely(1 - _EDGE) > 0 else 1.0
    return low, high


def dice_of_overlap(overlap: Interval) -> Interval:
    """Return the interval of an F1 (Dice) from that of the overlap (Jaccard), the share of the union in both: 2 j / (1 + j)."""
    low, high = (2 * share / (1 + share) for share in overlap)
    return low, high


def mean_of(
    values: Sequence[float], intervals: Sequence[Interval], correlations: NDArray[Any], groups: int | None = None
) -> Interval:
    """Return the interval of a mean of metrics (MOVER; Zou and Donner, Statistics in Medicine 27, 2008).

    Args:
        values: (m,) the metrics, at least one.
        intervals: of each.
        correlations: (m, m) of the metrics.
        groups: of the metric that has the fewest; the interval is wider by Student's quantile. None if the intervals are so.
    """
    wider = student(groups) / _Z if groups else 1.0
    mean = math.fsum(values) / len(values)
    below = np.array([value - low for value, (low, _) in zip(values, intervals)])
    above = np.array([high - value for value, (_, high) in zip(values, intervals)])
    low, high = (math.sqrt(max(0.0, float(ends @ correlations @ ends))) / len(values) for ends in (below, above))
    return mean - wider * low, mean + wider * high
