"""Do the new images look like the old ones?

Per class, the new images against those of the last assessed snapshot: size, mean intensity and contrast by the
two-sample Kolmogorov-Smirnov test, and the mix of classes by Pearson's chi-squared test. Near-duplicates are not independent
observations, so that each group counts once. A finding warns and never blocks: new hospitals do look different.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bcc_ops.runs.documents import DriftFinding
from bcc_ops.runs.rows import ContentRow

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

SIGNIFICANCE = 0.01
"""Family-wise: p-values are multiplied by the number of comparisons (Bonferroni)."""

LEAST_DISTANCE = 0.2
"""Smallest Kolmogorov-Smirnov distance that warns: with thousands of images any difference is significant."""

LEAST_IMAGES = 8
"""Fewer independent images on either side are not compared."""

CLASS_MIX = "class mix"

QUANTITIES: dict[str, Callable[[ContentRow], float]] = {
    "size": lambda row: float(np.sqrt(row.width * row.height)),
    "mean intensity": lambda row: row.mean,
    "contrast": lambda row: row.contrast,
}
"""What is compared: the side of a square with as many pixels, and mean and standard deviation of the gray values."""


def compare_distributions(
    contents: Sequence[ContentRow], previous: Sequence[ContentRow] | None, classes: Sequence[str]
) -> tuple[tuple[DriftFinding, ...], str | None]:
    """Compare the usable images whose content is new with the usable images of the previous snapshot.

    Args:
        contents: this snapshot's rows.
        previous: the last assessed earlier run's; None without one.
        classes: in the order of the answer.

    Returns:
        The comparisons made, and the reason why there is none (None if there is one).
    """
    if previous is None:
        return (), "there is no assessed earlier run to compare with"
    before = _independent(row for row in previous if not row.refused)
    known = {row.sha256 for row in previous}
    familiar = {row.group for row in contents if row.sha256 in known}
    new = _independent(row for row in contents if not row.refused and row.sha256 not in known and row.group not in familiar)
    if not new:
        return (), "no image is new"
    comparisons: list[dict[str, Any]] = []
    for label in classes:
        old_rows = [row for row in before if row.label == label]
        new_rows = [row for row in new if row.label == label]
        if min(len(old_rows), len(new_rows)) < LEAST_IMAGES:
            continue
        for quantity, read in QUANTITIES.items():
            statistic, p_value = _kolmogorov_smirnov([read(row) for row in old_rows], [read(row) for row in new_rows])
            comparisons.append(
                {
                    "label": label,
                    "quantity": quantity,
                    "statistic": statistic,
                    "p_value": p_value,
                    "images_before": len(old_rows),
                    "images_new": len(new_rows),
                }
            )
    if min(len(before), len(new)) >= LEAST_IMAGES:
        statistic, p_value = _cramers_v(Counter(row.label for row in before), Counter(row.label for row in new))
        comparisons.append(
            {
                "label": "",
                "quantity": CLASS_MIX,
                "statistic": statistic,
                "p_value": p_value,
                "images_before": len(before),
                "images_new": len(new),
            }
        )
    if not comparisons:
        return (), f"too few images are new: {len(new)} independent ones, and {LEAST_IMAGES} of a class are needed"
    return tuple(_finding(**comparison, comparisons=len(comparisons), rows=(before, new)) for comparison in comparisons), None


def _independent(rows: Iterable[ContentRow]) -> list[ContentRow]:
    """Return the first image of each group, by key."""
    first: dict[str, ContentRow] = {}
    for row in sorted(rows, key=lambda row: row.key):
        first.setdefault(row.group, row)
    return list(first.values())


def _kolmogorov_smirnov(before: ArrayLike, new: ArrayLike) -> tuple[float, float]:
    from scipy.stats import ks_2samp

    result = ks_2samp(before, new, method="auto")
    return float(result.statistic), float(result.pvalue)


def _cramers_v(before: Counter[str], new: Counter[str]) -> tuple[float, float]:
    """Cramér's V (0 to 1) of the table of counts, and the p-value of Pearson's chi-squared test on it."""
    from scipy.stats import chi2_contingency

    names = sorted(set(before) | set(new))
    if len(names) < 2:
        return 0.0, 1.0
    table = np.array([[counts[name] for name in names] for counts in (before, new)])
    result = chi2_contingency(table)
    return float(np.sqrt(result.statistic / table.sum())), float(result.pvalue)


def _finding(
    *,
    label: str,
    quantity: str,
    statistic: float,
    p_value: float,
    images_before: int,
    images_new: int,
    comparisons: int,
    rows: tuple[Sequence[ContentRow], Sequence[ContentRow]],
) -> DriftFinding:
    adjusted = min(1.0, p_value * comparisons)
    warning = bool(adjusted < SIGNIFICANCE and statistic >= LEAST_DISTANCE)
    sentence = _mix_sentence(rows) if quantity == CLASS_MIX else _median_sentence(label, quantity, rows)
    verdict = "differs" if warning else "no warning"
    return DriftFinding(
        label=label,
        quantity=quantity,
        statistic=statistic,
        p_value=p_value,
        images_before=images_before,
        images_new=images_new,
        warning=warning,
        sentence=f"{sentence} ({verdict}; distance {statistic:.2f}, p = {adjusted:.2g} for {comparisons} comparisons)",
    )


def _median_sentence(label: str, quantity: str, rows: tuple[Sequence[ContentRow], Sequence[ContentRow]]) -> str:
    read = QUANTITIES[quantity]
    before, new = (float(np.median([read(row) for row in side if row.label == label])) for side in rows)
    return f"{quantity} of {label} images: median {new:.0f} in the new ones, {before:.0f} before"


def _mix_sentence(rows: tuple[Sequence[ContentRow], Sequence[ContentRow]]) -> str:
    before, new = (Counter(row.label for row in side) for side in rows)
    parts = (
        f"{name} {new[name] / len(rows[1]):.0%} of the new ones, {before[name] / len(rows[0]):.0%} before"
        for name in sorted(set(before) | set(new))
    )
    return f"class mix: {'; '.join(parts)}"
