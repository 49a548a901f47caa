"""How a metric is spelled, and which way it is better: for the plots and the pages alike."""

from __future__ import annotations

from typing import Literal

from bcc_ops.runs.documents import Estimate

LOWER_IS_BETTER = frozenset({"loss", "brier"})

_SPELLED = {"auc": "AUC", "f1": "F1", "brier": "Brier score"}


def spelled(name: str) -> str:
    """`macro_auc` as a reader knows it: "Macro AUC"."""
    words = " ".join(_SPELLED.get(word, word) for word in name.split("_"))
    return words[0].upper() + words[1:]


def tone(name: str, difference: Estimate | None) -> Literal["better", "worse", ""]:
    """Return whether a whole interval says that the challenger is better or worse; "" if it does not settle it."""
    if difference is None or difference.low is None or difference.high is None:
        return ""
    low, high = difference.low, difference.high
    if name in LOWER_IS_BETTER:
        low, high = -high, -low
    return "better" if low > 0 else "worse" if high < 0 else ""
