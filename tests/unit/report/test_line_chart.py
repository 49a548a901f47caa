"""Charts as coordinates, by hand."""

from __future__ import annotations

import pytest

from bcc_ops.report.line_chart import line_chart


def test_points_rise_with_their_values_and_run_from_left_to_right() -> None:
    chart = line_chart("t", ["1", "2", "3"], [("a", [0.0, 0.5, 1.0])])
    (x0, y0), (x1, y1), (x2, y2) = chart.lines[0].marks
    assert x0 < x1 < x2
    assert y0 > y1 > y2
    assert y1 == pytest.approx((y0 + y2) / 2)
    assert (y0, "0.0") in chart.y_ticks
    assert (y2, "1.0") in chart.y_ticks


def test_a_missing_value_breaks_the_line() -> None:
    line = line_chart("t", ["1", "2", "3", "4"], [("a", [0.1, None, 0.2, 0.3])]).lines[0]
    assert [segment.count(",") for segment in line.segments] == [1, 2]
    assert len(line.marks) == 3


def test_intervals_become_whiskers() -> None:
    line = line_chart("t", ["1"], [("a", [(0.5, 0.4, 0.6)])]).lines[0]
    ((_, top, bottom),) = line.whiskers
    assert top < line.marks[0][1] < bottom


@pytest.mark.parametrize("values", [[0.0], [0.7, 0.7], [1e-9, 2e-9], [-3.0, 1000.0], []])
def test_any_values_can_be_laid_out(values: list[float]) -> None:
    chart = line_chart("t", [str(n) for n in range(len(values))], [("a", values)])
    assert all(0 <= y <= chart.height for _, y in chart.lines[0].marks)
    assert len(chart.y_ticks) >= 2


def test_many_abscissae_get_few_labels() -> None:
    assert len(line_chart("t", [str(n) for n in range(100)], [("a", [0.0] * 100)]).x_ticks) <= 8
