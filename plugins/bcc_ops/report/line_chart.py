"""Small line charts as SVG coordinates, for pages that draw no PNG: the epochs so far, the figures over the runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 12, 14, 34


@dataclass(frozen=True)
class Line:
    """One series: its name, the `points` of its polylines (several where values are missing) and its marks.

    `look` numbers its colour and marks. A `faint` one is thin and dashed, has no marks, and is not in the legend.
    """

    name: str
    look: int
    faint: bool
    segments: tuple[str, ...]
    marks: tuple[tuple[float, float], ...]
    whiskers: tuple[tuple[float, float, float], ...]
    """(x, top, bottom) of each interval."""


@dataclass(frozen=True)
class LineChart:
    """What a template needs to draw the chart into a `WIDTH` x `HEIGHT` view box."""

    title: str
    lines: tuple[Line, ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    bottom: float = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


Value = float | tuple[float, float | None, float | None] | None


def line_chart(
    title: str,
    x_labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[Value]]],
    faint: Sequence[tuple[str, Sequence[Value]]] = (),
) -> LineChart:
    """Lay a chart out. Series with intervals are shifted a little sideways, so that the intervals do not cover each other.

    Args:
        title: for people and for assistive technology.
        x_labels: one label per abscissa, in order.
        series: name and values, as many as there are labels: a number, a number with its interval, or None.
        faint: the same, of a thin line for each series, in its colour.
    """
    numbers = [bound for _, values in (*series, *faint) for value in values for bound in _bounds(value)]
    low, high, step = _nice(min(numbers, default=0.0), max(numbers, default=1.0))
    span = max(len(x_labels) - 1, 1)

    def x_at(index: int) -> float:
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        inner = (WIDTH - _LEFT - _RIGHT - 24) * index / span
        return round(_LEFT + 12 + inner if len(x_labels) > 1 else middle, 1)

    def y_at(value: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low), 1)

    every = -(-len(x_labels) // 8)
    return LineChart(
        title=title,
        lines=tuple(
            _line(name, values, x_at, y_at, look=look, faint=is_faint)
            for is_faint, lines in ((True, faint), (False, series))
            for look, (name, values) in enumerate(lines)
        ),
        y_ticks=tuple(
            (y_at(low + i * step), f"{low + i * step:.{_decimals(step)}f}") for i in range(round((high - low) / step) + 1)
        ),
        x_ticks=tuple((x_at(index), label) for index, label in enumerate(x_labels) if index % every == 0),
    )


def _line(
    name: str, values: Sequence[Value], x_at: Callable[[int], float], y_at: Callable[[float], float], *, look: int, faint: bool
) -> Line:
    segments: list[list[str]] = [[]]
    marks, whiskers = [], []
    for index, value in enumerate(values):
        if value is None:
            segments.append([])
            continue
        middle, low, high = value if isinstance(value, tuple) else (value, None, None)
        x, y = round(x_at(index) + (4.0 * look if low is not None else 0.0), 1), y_at(middle)
        segments[-1].append(f"{x},{y}")
        marks.append((x, y))
        if low is not None and high is not None:
            whiskers.append((x, y_at(high), y_at(low)))
    return Line(name, look, faint, tuple(" ".join(points) for points in segments if points), tuple(marks), tuple(whiskers))


def _bounds(value: Value) -> list[float]:
    if value is None:
        return []
    return [bound for bound in value if bound is not None] if isinstance(value, tuple) else [value]


def _nice(low: float, high: float) -> tuple[float, float, float]:
    """Return a range of round numbers around [low, high], and the step between its ticks."""
    width = max(high - low, 1e-3)
    power = 10 ** math.floor(math.log10(width / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if width / (factor * power) <= 5)
    bottom = math.floor(low / step) * step
    return bottom, max(math.ceil(high / step) * step, bottom + step), step


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step)) + (1 if f"{step:e}".startswith("2.5") else 0))
