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
        predictions: columns of predictions.parquet, where there are any.
        summaries: the assessed runs up to this one, oldest first.

    Returns:
        Name in `run_paths.PLOTS` -> PNG.
    """
    drawn: dict[str, Callable[[], Figure]] = {}
    evaluation, weights, checks = run.evaluation, run.split, run.checks
    if run.epochs:
        best, resumed = (run.training.best_epoch, run.training.resumed_after_epochs) if run.training else (None, ())
        drawn["history"] = lambda: figures.history_figure(run.epochs, best, resumed)
    if weights:
        drawn["class_counts"] = lambda: figures.class_counts_figure(weights)
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
    """Return the gate's margins, by the name of the difference that each is about."""
    if run.config is None or run.evaluation is None:
        return {}
    parameters = run.config.config
    return {
        "balanced_accuracy": parameters.balanced_accuracy_margin,
        f"{run.evaluation.positive_class}_sensitivity": parameters.sensitivity_margin,
    }
