"""ROC and precision-recall curves of one class against the rest, with 95 % bands from a bootstrap over groups.

Near-duplicates of one image are not independent evidence, so whole groups are drawn. The bands are pointwise: they say how
far the curve may be off at one abscissa, not that the whole curve stays inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

GRID = np.linspace(0.0, 1.0, 101)
"""Where the curves' bands are evaluated: false positive rate, or recall."""

_LEVELS = (2.5, 97.5)


@dataclass(frozen=True)
class Curve:
    """One curve: `x` and `y` (n + 1,) in [0, 1] as measured, `low` and `high` (101,) over `GRID`, and its area.

    The area is the AUC of a ROC curve and the average precision of a precision-recall curve.
    """

    x: Array
    y: Array
    low: Array
    high: Array
    area: float


def resample_weights(groups: Sequence[str], resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """Return how often each image is drawn in each bootstrap resample of whole groups.

    Args:
        groups: the group of each of n images.
        resamples: how many resamples.
        seed: of the draw.

    Returns:
        (resamples, n) counts; images of one group share theirs.
    """
    _, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count = int(member.max()) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return draws[:, member].astype(np.int64)


def roc_curve(positive: npt.ArrayLike, score: npt.ArrayLike, weights: npt.NDArray[Any]) -> Curve | None:
    """Return the ROC curve of one class: x the false positive rate, y the sensitivity.

    Args:
        positive: (n,) whether an image truly belongs to the class.
        score: (n,) its probability of the class.
        weights: (resamples, n) from `resample_weights`.

    Returns:
        None if the class or the rest has no image.
    """
    ranked, hit, ends = _rank(positive, score, weights)
    if not 0 < hit.sum() < len(hit):
        return None
    x, y = _roc_points(np.ones((1, len(hit))), hit, ends)
    xs, ys = _roc_points(ranked, hit, ends)
    whole = np.isfinite(xs[:, -1]) & np.isfinite(ys[:, -1])
    bands = np.array([np.interp(GRID, a, b) for a, b in zip(xs[whole], ys[whole])])
    return _curve(x[0], y[0], bands, float(np.trapezoid(y[0], x[0])))


def precision_recall_curve(positive: npt.ArrayLike, score: npt.ArrayLike, weights: npt.NDArray[Any]) -> Curve | None:
    """Return the precision-recall curve of one class: x the recall (sensitivity), y the precision.

    The area is the average precision, the sum of (R_k - R_(k-1)) P_k over the thresholds k, without interpolation:
    Manning, Raghavan & Schuetze, Introduction to Information Retrieval, 2008, section 8.4.

    Args and result as in `roc_curve`.
    """
    ranked, hit, ends = _rank(positive, score, weights)
    if not 0 < hit.sum() < len(hit):
        return None
    recall, precision = _precision_recall_points(np.ones((1, len(hit))), hit, ends)
    recalls, precisions = _precision_recall_points(ranked, hit, ends)
    whole = np.isfinite(recalls[:, -1])
    bands = np.array([_step(r, p) for r, p in zip(recalls[whole], precisions[whole])])
    return _curve(recall[0], precision[0], bands, float(_average_precision(recall, precision)[0]))


def _rank(
    positive: npt.ArrayLike, score: npt.ArrayLike, weights: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Weights and hits by falling score, and where each run of equal scores ends."""
    scores = np.asarray(score, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    return weights[:, order], np.asarray(positive, dtype=bool)[order], ends


def _counts(weights: npt.NDArray[Any], hit: npt.NDArray[np.bool_], ends: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Count true and false positives at each threshold, with the empty answer first: (resamples, thresholds + 1) each."""
    true = np.cumsum(weights * hit, axis=1)[:, ends]
    false = np.cumsum(weights * ~hit, axis=1)[:, ends]
    nothing = np.zeros((len(weights), 1))
    return np.hstack([nothing, true]), np.hstack([nothing, false])


def _roc_points(weights: npt.NDArray[Any], hit: npt.NDArray[np.bool_], ends: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    true, false = _counts(weights, hit, ends)
    with np.errstate(invalid="ignore", divide="ignore"):
        return false / false[:, -1:], true / true[:, -1:]


def _precision_recall_points(
    weights: npt.NDArray[Any], hit: npt.NDArray[np.bool_], ends: npt.NDArray[np.int64]
) -> tuple[Array, Array]:
    true, false = _counts(weights, hit, ends)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(true + false > 0, true / (true + false), 1.0)
        return true / true[:, -1:], precision


def _average_precision(recall: Array, precision: Array) -> Array:
    return np.asarray(np.sum(np.diff(recall, axis=1) * precision[:, 1:], axis=1))


def _step(recall: Array, precision: Array) -> Array:
    """Precision over `GRID`: that of the first threshold that reaches the recall."""
    return precision[np.minimum(np.searchsorted(recall, GRID, side="left"), len(recall) - 1)]


def _curve(x: Array, y: Array, bands: Array, area: float) -> Curve:
    if len(bands) == 0:
        nothing = np.full(len(GRID), np.nan)
        return Curve(x, y, nothing, nothing, area)
    low, high = np.percentile(bands, _LEVELS, axis=0)
    return Curve(x, y, low, high, area)
