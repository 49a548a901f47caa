"""A run's documents as matplotlib figures.

Only `Figure` objects, never pyplot: no state outlives a call. One style for all; what colour tells apart, a marker, a
line style, a hatch or a word tells apart too. The colours are Okabe & Ito's (2008), which hold for the common colour-vision
deficiencies.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from bcc_ops.evaluation.intervals import wilson
from bcc_ops.report.curves import GRID, Curve, precision_recall_curve, resample_weights, roc_curve
from bcc_ops.report.metric_names import spelled, tone
from bcc_ops.report.misclassified import MisclassifiedImage
from bcc_ops.runs.documents import (
    OLDER_TRAINING,
    Calibration,
    DriftFinding,
    EpochRow,
    Estimate,
    EvaluationDocument,
    SplitDocument,
    name_fold,
)
from bcc_ops.runs.history import RunSummary

Pixels = npt.NDArray[np.uint8]
P = ParamSpec("P")

INK, QUIET, HAIR, PAPER = "#1f2933", "#5f6b7a", "#d9dee5", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#a8578b"
ORANGE, SKY, YELLOW = "#e69f00", "#56b4e9", "#b8a800"
CLASS_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, YELLOW)
CLASS_LINES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (1.5, 1.5)), "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (8, 3)), ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_OLDER_COLOUR = "#8a94a3"
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx")
WASH = LinearSegmentedColormap.from_list("wash", ["#f6f9fc", "#9cc4e0", "#0072b2", "#004a78"])

SYNTHETIC_NOTICE = "SYNTHETIC IMAGES · no figure here says anything about patients"
PIXELS_PER_INCH = 160

_BAND_RESAMPLES = 400
_STAR: dict[str, Any] = {"marker": "*", "ms": 15, "mec": PAPER, "mew": 1, "color": INK, "ls": ""}
_STYLE: Any = {
    # File names come from whoever uploads images: "$\\x$.png" is a name, not a formula.
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "axes.labelsize": 9.5,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": HAIR,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.7,
    "hatch.color": PAPER,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in this module's style and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def _figure(width: float, height: float, pad: float = 0.1) -> Figure:
    figure = Figure(figsize=(width, height), dpi=PIXELS_PER_INCH, layout="constrained")
    figure.get_layout_engine().set(w_pad=pad, h_pad=max(pad, 0.07))  # type: ignore[union-attr,call-arg]
    return figure


def to_png(figure: Figure, *, synthetic: bool) -> bytes:
    """Return a figure as PNG, at 160 pixels an inch; with a strip across its top if its figures are synthetic."""
    rows = [_rendered(figure)]
    if synthetic:
        rows.insert(0, _rendered(_synthetic_strip(figure.get_figwidth())))
    buffer = io.BytesIO()
    Image.fromarray(np.vstack(rows)).save(buffer, format="png", compress_level=9)
    return buffer.getvalue()


def _rendered(figure: Figure) -> Pixels:
    canvas = FigureCanvasAgg(figure)
    with matplotlib.rc_context(_STYLE):
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3]  # type: ignore[no-untyped-call]


@_styled
def _synthetic_strip(width: float) -> Figure:
    strip = Figure(figsize=(width, 0.3), dpi=PIXELS_PER_INCH, facecolor="#ffe3a3")
    strip.text(0.5, 0.5, SYNTHETIC_NOTICE, ha="center", va="center", fontsize=8, fontweight="bold", color="#5c3b00")
    return strip


@_styled
def history_figure(epochs: Sequence[EpochRow], resumed_after: Mapping[int, Sequence[int]] | None = None) -> Figure:
    """Accuracy and loss by epoch, one colour per fold: solid on the images held out, dashed on those trained on.

    Args:
        epochs: the rows of all folds' histories; at least one.
        resumed_after: fold -> how many epochs were done each time that its training was taken up again.
    """
    figure = _figure(9.6, 4.3)
    panels: tuple[tuple[Axes, str, str], ...] = tuple(
        zip(figure.subplots(1, 2), ("Accuracy", "Loss"), ("accuracy", "loss"), strict=True)
    )
    longest = max(row.epoch for row in epochs)
    folds = sorted({row.fold for row in epochs})
    for axes, title, metric in panels:
        for fold in folds:
            rows = [row for row in epochs if row.fold == fold]
            x, colour, marker = [row.epoch for row in rows], _fold_colour(fold), MARKERS[(fold - 1) % len(MARKERS)]
            axes.plot(x, [getattr(row, metric) for row in rows], color=colour, ls=(0, (4, 2)), lw=1, alpha=0.75)
            held_out = [getattr(row, f"held_out_{metric}") for row in rows]
            axes.plot(x, held_out, color=colour, marker=marker, markevery=_every(longest), label=name_fold(fold))
            for done in (resumed_after or {}).get(fold, ()):
                axes.axvline(done + 0.5, color=colour, lw=1, ls=":")
                axes.annotate(f"{name_fold(fold)} resumed", (done + 0.5, 0.02), **_UPRIGHT)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0.5, longest + 0.5)
        if metric == "accuracy":
            lowest = min(min(row.accuracy, row.held_out_accuracy) for row in epochs)
            axes.set_ylim(min(0.4, lowest - 0.03), 1.0)
        else:
            axes.set_ylim(bottom=0)
    handles, labels = panels[0][0].get_legend_handles_labels()
    keys = [Line2D([], [], color=INK), Line2D([], [], color=INK, ls=(0, (4, 2)), lw=1)]
    texts = ["held out", "trained on"]
    figure.legend([*handles, *keys], [*labels, *texts], loc="outside lower center", ncols=len(handles) + 2, handlelength=2.6)
    return figure


def _fold_colour(fold: int) -> str:
    return _OLDER_COLOUR if fold == OLDER_TRAINING else CLASS_COLOURS[(fold - 1) % len(CLASS_COLOURS)]


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Draw the legend under the axes: a curve of a poor model may run anywhere."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", handlelength=2.8)


def _every(count: int) -> int:
    return max(1, count // 20)


_UPRIGHT: dict[str, Any] = {
    **{"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "xytext": (2, 0)},
    **{"fontsize": 8, "color": QUIET, "rotation": 90, "va": "bottom", "ha": "left"},
}


@_styled
def class_counts_figure(document: SplitDocument) -> Figure:
    """Return the images of each class in each fold, with the weight that training gives the class."""
    classes, folds = document.classes, sorted(document.counts)
    figure = _figure(5.0, 1.6 + 0.19 * len(classes) * max(4, len(folds)))
    axes = figure.subplots()
    height, top = 0.8 / max(1, len(folds)), max(max(counts.values(), default=0) for counts in document.counts.values()) or 1
    for row, fold in enumerate(folds):
        counts = [document.counts[fold].get(name, 0) for name in classes]
        y = np.arange(len(classes)) + (row - (len(folds) - 1) / 2) * height
        look: dict[str, Any] = {"color": _fold_colour(fold), "hatch": HATCHES[row % len(HATCHES)], "edgecolor": PAPER}
        bars = axes.barh(y, counts, height * 0.9, label=name_fold(fold), **look)
        axes.bar_label(bars, padding=3, fontsize=7.5, color=QUIET)
    axes.set_yticks(range(len(classes)), [f"{name}\nweight {document.weights[name]:.2f}" for name in classes])
    for tick in axes.get_yticklabels():
        tick.set_color(INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, top * 1.14)
    axes.set_xlabel("images")
    axes.set_title("Images by class and fold")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@_styled
def confusion_figure(document: EvaluationDocument) -> Figure:
    """Confusion matrices, rows true and columns predicted: counts, and shares of each row.

    With a champion that could be compared, both models on the images of the comparison; else the challenger on all
    held-out images.
    """
    comparison = document.comparison
    if comparison and comparison.challenger and comparison.champion:
        models = [("Challenger", comparison.challenger), ("Champion", comparison.champion)]
    else:
        models = [("Challenger", document.challenger)]
    side = len(document.classes) + 1.2
    figure = _figure(side * len(models) + 0.4, side + 0.1)
    for axes, (name, model) in zip(figure.subplots(1, len(models), squeeze=False)[0], models):
        _confusion(axes, document.classes, np.asarray(model.confusion_matrix))
        axes.set_title(f"{name} · {model.images} images")
    return figure


def _confusion(axes: Axes, classes: Sequence[str], matrix: npt.NDArray[Any]) -> None:
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    axes.imshow(shares, cmap=WASH, vmin=0, vmax=1)
    axes.grid(visible=False)
    for (row, column), share in np.ndenumerate(shares):
        colour = PAPER if share > 0.5 else INK
        axes.text(column, row - 0.08, f"{matrix[row, column]}", ha="center", va="center", fontsize=13, color=colour)
        axes.text(column, row + 0.24, f"{share:.0%}", ha="center", va="center", fontsize=8.5, color=colour)
        if row == column:
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=1.4))
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), [f"{name}\n({total})" for name, total in zip(classes, totals[:, 0])])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)


@_styled
def roc_figure(document: EvaluationDocument, predictions: Mapping[str, Sequence[Any]]) -> Figure:
    """One ROC curve per class against the rest, with 95 % bands, and the positive class' operating point.

    Args:
        document: gives the AUCs, with their intervals, and the operating point.
        predictions: columns of predictions.parquet.
    """
    figure = _figure(4.8, 6.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#9aa5b1", lw=1)
    for index, name, curve in _curves(document, predictions, roc_curve):
        axes.fill_between(GRID, curve.low, curve.high, color=CLASS_COLOURS[index], alpha=0.11, lw=0)
        label = f"{name}  AUC {_figure_text(document.challenger.per_class[name].auc)}"
        axes.plot(curve.x, curve.y, color=CLASS_COLOURS[index], ls=CLASS_LINES[index], label=label)
    point = document.challenger.operating_point
    sensitivity, specificity = point.sensitivity.value, point.specificity.value
    if sensitivity is not None and specificity is not None and point.threshold is not None:
        label = f"operating point of {document.positive_class} (from {point.threshold:.2f} on)"
        axes.plot([1 - specificity], [sensitivity], label=label, **_STAR)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
    axes.set_xlabel("false positive rate (1 − specificity)")
    axes.set_ylabel("sensitivity")
    axes.set_title("ROC, each class against the rest")
    _legend_below(figure, axes)
    return figure


@_styled
def precision_recall_figure(document: EvaluationDocument, predictions: Mapping[str, Sequence[Any]]) -> Figure:
    """One precision-recall curve per class, with 95 % bands and the positive class' operating point. Args as `roc_figure`."""
    figure = _figure(4.8, 6.0)
    axes = figure.subplots()
    labels = np.asarray(predictions["label"])
    for index, name, curve in _curves(document, predictions, precision_recall_curve):
        colour = CLASS_COLOURS[index]
        axes.fill_between(GRID, curve.low, curve.high, color=colour, alpha=0.11, lw=0)
        label = f"{name}  AP {curve.area:.2f}"
        axes.plot(curve.x, curve.y, color=colour, ls=CLASS_LINES[index], drawstyle="steps-post", label=label)
        share = float(np.mean(labels == name))
        axes.plot([1.0, 1.02], [share, share], color=colour, lw=3, solid_capstyle="butt", clip_on=False)
    point = document.challenger.operating_point
    precision = _precision_at(document, predictions)
    if point.sensitivity.value is not None and precision is not None:
        label = f"operating point of {document.positive_class}"
        axes.plot([point.sensitivity.value], [precision], label=label, **_STAR)
    axes.set(xlim=(-0.01, 1.02), ylim=(-0.01, 1.02), aspect="equal")
    axes.set_xlabel("recall (sensitivity)")
    axes.set_ylabel("precision")
    axes.set_title("Precision and recall, each class against the rest")
    _legend_below(figure, axes)
    return figure


def _curves(
    document: EvaluationDocument, predictions: Mapping[str, Sequence[Any]], compute: Callable[..., Curve | None]
) -> list[tuple[int, str, Curve]]:
    labels = np.asarray(predictions["label"])
    weights = resample_weights(predictions["group"], _BAND_RESAMPLES, seed=0)
    drawn = []
    for index, name in enumerate(document.classes):
        score = np.asarray(predictions[f"challenger_{name}"], dtype=np.float64)
        curve = compute(labels == name, score, weights)
        if curve is not None:
            drawn.append((index % len(CLASS_COLOURS), name, curve))
    return drawn


def _precision_at(document: EvaluationDocument, predictions: Mapping[str, Sequence[Any]]) -> float | None:
    threshold = document.challenger.operating_point.threshold
    if threshold is None:
        return None
    called = np.asarray(predictions[f"challenger_{document.positive_class}"], dtype=np.float64) >= threshold
    right = np.asarray(predictions["label"])[called] == document.positive_class
    return float(np.mean(right)) if called.any() else None


def _figure_text(estimate: Estimate) -> str:
    if estimate.value is None:
        return "not available"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} ({estimate.low:.2f}–{estimate.high:.2f})"


@_styled
def reliability_figure(document: EvaluationDocument) -> Figure:
    """Return how often the model is right where it says how sure it is; bins of equal mass, with 95 % Wilson intervals."""
    figure = _figure(4.8, 5.45)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#9aa5b1", lw=1)
    axes.annotate("as sure as right", (0.30, 0.325), rotation=45, rotation_mode="anchor", fontsize=8, color=QUIET)
    models = [("challenger", document.challenger)]
    comparison = document.comparison
    if comparison and comparison.champion:
        models.insert(0, ("champion", comparison.champion))
    for name, model in models:
        _reliability(axes, name, model.calibration)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    axes.set_xlabel("probability that the model gives its answer")
    axes.set_ylabel("share of right answers")
    axes.set_title("Reliability")
    _legend_below(figure, axes)
    return figure


def _reliability(axes: Axes, name: str, calibration: Calibration) -> None:
    challenger = name == "challenger"
    colour = BLUE if challenger else "#8a94a3"
    bins = [bin_ for bin_ in calibration.bins if bin_.images]
    if not bins:
        return
    right = np.array([bin_.accuracy for bin_ in bins])
    low, high = wilson(right, np.array([bin_.images for bin_ in bins]))
    axes.errorbar(
        [bin_.confidence for bin_ in bins],
        right,
        np.vstack([np.maximum(0, right - low), np.maximum(0, high - right)]),
        color=colour,
        marker="o" if challenger else "s",
        ms=6,
        mfc=colour if challenger else PAPER,
        lw=1.4,
        ls="-" if challenger else (0, (4, 2)),
        elinewidth=1,
        label=f"{name}  slope {_figure_text(calibration.slope)}",
    )


@_styled
def difference_figure(document: EvaluationDocument, margins: Mapping[str, float]) -> Figure:
    """Challenger minus champion, paired, each figure with its 95 % interval, and how much worse the gate lets it be.

    Args:
        document: with a comparison; figures without a value are left out.
        margins: name of a difference -> the gate's margin for it, at least 0.
    """
    differences = document.comparison.differences if document.comparison else {}
    rows = [(name, estimate) for name, estimate in differences.items() if estimate.value is not None]
    figure = _figure(7.2, 1.5 + 0.5 * max(1, len(rows)))
    axes = figure.subplots()
    axes.axvline(0, color=INK, lw=1)
    reach = 0.05
    for row, (name, estimate) in enumerate(rows):
        assert estimate.value is not None
        low = estimate.low if estimate.low is not None else estimate.value
        high = estimate.high if estimate.high is not None else estimate.value
        reach = max(reach, abs(low), abs(high), margins.get(name, 0))
        side = tone(name, estimate)
        colour, marker = {"better": (GREEN, "^"), "worse": (VERMILION, "v"), "": (BLUE, "o")}[side]
        axes.plot([low, high], [row, row], color=colour, lw=2.2, solid_capstyle="round")
        axes.plot([estimate.value], [row], marker=marker, ms=7.5, color=colour, mec=PAPER)
        axes.annotate(
            f"{estimate.value:+.3f}  {side or 'no clear difference'}".replace("-", "−"),
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=colour if side else QUIET,
            annotation_clip=False,
        )
        if name in margins:
            axes.plot([-margins[name]] * 2, [row - 0.32, row + 0.32], color=INK, lw=1.6, ls=(0, (2, 1)))
    axes.set_yticks(range(len(rows)), [spelled(name).replace(" at operating", "\nat operating") for name, _ in rows])
    for tick in axes.get_yticklabels():
        tick.set_color(INK)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-reach * 1.12, reach * 1.12)
    axes.set_xlabel("challenger − champion" + (" (dashed: the gate's margin)" if margins else ""))
    axes.set_title("Difference from the champion, 95 % intervals")
    return figure


@_styled
def trend_figure(runs: Sequence[RunSummary], positive_class: str) -> Figure:
    """Return the key figures over the assessed runs, oldest first, with their verdicts.

    Args:
        runs: assessed ones, oldest first; the newest 30 are drawn.
        positive_class: named in the label of its sensitivity.
    """
    runs = [run for run in runs if run.verdict is not None][-30:]
    figure = _figure(9.6, 3.9)
    axes = figure.subplots()
    x = np.arange(len(runs))
    series: list[tuple[str, list[Estimate | None], str, Any, str]] = [
        ("balanced accuracy", [run.balanced_accuracy for run in runs], BLUE, "-", "o"),
        ("macro AUC", [run.macro_auc for run in runs], GREEN, (0, (1.5, 1.5)), "D"),
        (
            f"{positive_class} sensitivity at operating point",
            [run.positive_sensitivity for run in runs],
            VERMILION,
            (0, (6, 2)),
            "s",
        ),
    ]
    for shift, (name, estimates, colour, line, marker) in enumerate(series):
        at = x + (shift - 1) * 0.08
        values = [np.nan if e is None or e.value is None else e.value for e in estimates]
        axes.plot(at, values, color=colour, ls=line, marker=marker, ms=5, label=name)
        bars = [(i, e.low, e.high) for i, e in zip(at, estimates) if e and e.low is not None and e.high is not None]
        axes.vlines([b[0] for b in bars], [b[1] for b in bars], [b[2] for b in bars], color=colour, lw=1, alpha=0.55)
    for position, run in zip(x, runs):
        approved = run.verdict != "rejected"
        axes.annotate(
            "✓" if approved else "✗",
            (position, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=10,
            annotation_clip=False,
            color=GREEN if approved else VERMILION,
        )
    axes.set_xticks(x, [run.as_of.strftime("%d %b\n%H:%M") for run in runs])
    if len(runs) > 12:
        axes.set_xticks(x[:: len(runs) // 12 + 1], [run.as_of.strftime("%d %b\n%Y") for run in runs[:: len(runs) // 12 + 1]])
    axes.set_xlim(-0.6, max(len(runs) - 0.4, 0.6))
    axes.set_ylim(_floor(series), 1.0)
    axes.grid(axis="x", visible=False)
    axes.set_title("Figures over the runs (✓ approved, ✗ rejected)", pad=20)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _floor(series: Sequence[tuple[str, list[Estimate | None], str, Any, str]]) -> float:
    lows = [e.low if e.low is not None else e.value for _, found, *_ in series for e in found if e and e.value is not None]
    return max(0.0, min([0.5, *(low - 0.03 for low in lows if low is not None)]))


@_styled
def drift_figure(findings: Sequence[DriftFinding]) -> Figure:
    """Draw how far the new images are from the earlier ones, one row per class and quantity; warnings are filled."""
    figure = _figure(5.2, 1.4 + 0.36 * max(1, len(findings)))
    axes = figure.subplots()
    top = max([finding.statistic for finding in findings], default=0.1) * 1.1
    for row, finding in enumerate(findings):
        colour = VERMILION if finding.warning else BLUE
        axes.plot([0, finding.statistic], [row, row], color=colour, lw=2, alpha=0.6)
        axes.plot([finding.statistic], [row], marker="D" if finding.warning else "o", ms=6.5, color=colour, ls="")
        probability = "p < 0.001" if finding.p_value < 0.001 else f"p = {finding.p_value:.3f}"
        axes.annotate(
            f"{probability}{'  drift' if finding.warning else ''}",
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            fontweight="bold" if finding.warning else "normal",
            color=colour if finding.warning else QUIET,
            annotation_clip=False,
        )
    axes.set_yticks(range(len(findings)), [f"{finding.label} · {finding.quantity}" for finding in findings])
    for tick in axes.get_yticklabels():
        tick.set_color(INK)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(findings) - 0.4, -0.6)
    axes.set_xlim(0, top)
    axes.set_xlabel("distance of the new images (two-sample statistic)")
    axes.set_title("Do the new images look like the earlier ones?")
    return figure


# Ultrasound is read on dark screens: plots that show images are dark, whatever the page is.
_NIGHT, _NIGHT_INK, _NIGHT_QUIET = "#16181b", "#e6e9ed", "#a3acb8"
_ABOVE: dict[str, Any] = {"fontsize": 8.5, "fontweight": "normal", "pad": 4, "loc": "left"}


@_styled
def augmentations_figure(originals: Sequence[Pixels], variants: Sequence[Sequence[Pixels]], labels: Sequence[str]) -> Figure:
    """Return the images as they are and as training may see them.

    Args:
        originals: a few images, (H, W, 3).
        variants: as many lists of augmented versions, each of the same length, (H, W, 3).
        labels: the class of each image.
    """
    columns = 1 + len(variants[0])
    figure = _figure(1.3 * columns, 1.27 * len(originals) + 0.42, pad=0.045)
    figure.set_facecolor(_NIGHT)
    grid = figure.subplots(len(originals), columns, squeeze=False)
    for row, (original, seen, label) in enumerate(zip(originals, variants, labels)):
        for axes, pixels in zip(grid[row], [original, *seen]):
            _picture(axes, pixels)
        grid[row][0].set_ylabel(label, color=_NIGHT_INK, fontsize=9)
    for axes, title in zip(grid[0], ("as it is", "as training may see it")):
        axes.set_title(title, fontsize=9, fontweight="normal", color=_NIGHT_QUIET)
    return figure


def _picture(axes: Axes, pixels: npt.NDArray[Any]) -> None:
    axes.imshow(pixels)
    axes.set_facecolor(_NIGHT)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


@dataclass(frozen=True)
class GalleryEntry:
    """One wrong case with its thumbnail (H, W, 3) and, if available, its Grad-CAM heat map (h, w) in [0, 1]."""

    case: MisclassifiedImage
    thumbnail: Pixels
    heat: npt.NDArray[np.float32] | None


@_styled
def gallery_figure(entries: Sequence[GalleryEntry], title: str, positive_class: str, footnote: str) -> Figure:
    """Wrong cases: each image, beside it what speaks for the answer that was given, and the probabilities.

    Args:
        entries: at least one; twelve are plenty.
        title: over the whole figure.
        positive_class: whose probability is written over each.
        footnote: what the overlay means, or why there is none.
    """
    overlays = any(entry.heat is not None for entry in entries)
    cells_across, axes_across = (3, 2) if overlays else (6, 1)
    down = -(-len(entries) // cells_across)
    figure = _figure(9.6, down * (1.88 if overlays else 2.02) + 0.62, pad=0.045)
    figure.set_facecolor(_NIGHT)
    figure.suptitle(title, x=0.008, ha="left", fontsize=10.5, fontweight="bold", color=_NIGHT_INK)
    figure.supxlabel(footnote, x=0.008, ha="left", fontsize=8, color=_NIGHT_QUIET)
    grid = figure.subplots(down, cells_across * axes_across, squeeze=False).ravel()
    for axes in grid:
        axes.set_visible(False)
    for place, entry in enumerate(entries):
        cell = grid[place * axes_across : (place + 1) * axes_across]
        _picture(cell[0], entry.thumbnail)
        cell[0].set_visible(True)
        case = entry.case
        truth, answer = f"{_shorten(case.key)}\nis {case.label}", f"{positive_class} {case.positive_probability:.2f}"
        cell[0].set_title(truth if overlays else f"{truth}\n{answer}", color=_NIGHT_INK, **_ABOVE)
        if entry.heat is not None:
            _picture(cell[1], entry.thumbnail)
            cell[1].set_visible(True)
            height, width = entry.thumbnail.shape[:2]
            whole = (-0.5, width - 0.5, height - 0.5, -0.5)
            cell[1].imshow(entry.heat, cmap="inferno", alpha=0.5, vmin=0, vmax=1, extent=whole, interpolation="bicubic")
            cell[1].set_title(f"taken for {case.answer}\n{answer}", color=_NIGHT_QUIET, **_ABOVE)
    return figure


@dataclass(frozen=True)
class Example:
    """An image with a content finding: its thumbnail (H, W, 3)."""

    key: str
    label: str
    thumbnail: Pixels


@_styled
def findings_figure(lines: Sequence[tuple[str, Sequence[Example]]]) -> Figure:
    """Return some images of each content finding, a line per finding under its title; at least one line, six images across."""
    across = 6
    figure = _figure(9.6, 2.2 * len(lines), pad=0.045)
    figure.set_facecolor(_NIGHT)
    for part, (title, examples) in zip(figure.subfigures(len(lines), 1, squeeze=False).ravel(), lines):
        part.set_facecolor(_NIGHT)
        part.suptitle(title, x=0.008, ha="left", fontsize=10.5, fontweight="bold", color=_NIGHT_INK)
        for axes, example in zip_longest(part.subplots(1, across), examples):
            if example is None:
                axes.set_visible(False)
                continue
            _picture(axes, example.thumbnail)
            axes.set_title(f"{_shorten(example.key)}\n{example.label}", color=_NIGHT_INK, **_ABOVE)
    return figure


def _shorten(key: str, most: int = 20) -> str:
    """Return the file name in a key, short enough for a caption; what has no glyph (control characters, say) is shown as a
    box.
    """
    name = "".join(character if character.isprintable() else "\N{WHITE SQUARE}" for character in key.rsplit("/", 1)[-1])
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"
