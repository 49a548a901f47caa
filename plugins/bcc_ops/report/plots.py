"""Which plots a run has: its documents in, PNGs out. A plot whose document is missing is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bcc_ops.report import figures
from bcc_ops.runs.history import RunSummary
from bcc_ops.runs.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_plots(
    run: RunRecord, predictions: Mapping[str, Sequence[Any]] | None, summaries: Sequence[RunSummary]
) -> dict[str, bytes]:
    """Draw what the documents tell.

    Args:
        run: the documents.
        predictions: columns of predictions.parquet, if there are any.
        summaries: the assessed runs up to this one, oldest first.

    Returns:
        Name in `run_paths.PLOTS` -> PNG.
    """
    drawn: dict[str, Callable[[], Figure]] = {}
    evaluation, split, checks = run.evaluation, run.split, run.checks
    if run.epochs:
        resumed = {one.fold: one.resumed_after_epochs for one in run.training.folds} if run.training else {}
        drawn["history"] = lambda: figures.history_figure(run.epochs, resumed)
    if split:
        drawn["class_counts"] = lambda: figures.class_counts_figure(split)
    if checks and checks.drift:
        drawn["drift"] = lambda: figures.drift_figure(checks.drift)
    if evaluation:
        drawn["confusion_matrix"] = lambda: figures.confusion_figure(evaluation)
        drawn["reliability"] = lambda: figures.reliability_figure(evaluation)
        if evaluation.comparison and any(estimate.value is not None for estimate in evaluation.comparison.differences.values()):
            drawn["difference"] = lambda: figures.difference_figure(evaluation, _margins(run))
        if predictions is not None:
            drawn["roc"] = lambda: figures.roc_figure(evaluation, predictions)
            drawn["precision_recall"] = lambda: figures.precision_recall_figure(evaluation, predictions)
        if len(summaries) > 1:
            drawn["trend"] = lambda: figures.trend_figure(summaries, evaluation.positive_class)
    return {name: figures.to_png(draw(), synthetic=run.synthetic) for name, draw in drawn.items()}


def _margins(run: RunRecord) -> dict[str, float]:
    """Return the margins that the gate allowed, by the name of the difference that each is about."""
    if run.gate is None or run.evaluation is None:
        return {}
    about = {
        "balanced_accuracy_not_worse": "balanced_accuracy",
        "malignant_sensitivity_not_inferior": f"{run.evaluation.positive_class}_sensitivity",
    }
    return {about[rule.rule]: -rule.threshold for rule in run.gate.rules if rule.rule in about and rule.threshold is not None}
