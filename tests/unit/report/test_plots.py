"""Which plots a run has."""

from __future__ import annotations

import io

import pytest
from matplotlib.figure import Figure
from PIL import Image

from bcc_ops.report import figures
from bcc_ops.report.plots import draw_plots
from bcc_ops.runs.record import RunRecord, read_record
from tests.unit.report import samples
from tests.unit.report.samples import loaded_by, summaries


def test_a_whole_run_has_every_plot_that_shows_no_image() -> None:
    run = read_record(samples.whole_run().get)
    drawn = draw_plots(run, samples.predictions(), summaries(3))
    assert set(drawn) == {
        *("history", "class_counts", "confusion_matrix", "roc", "precision_recall"),
        *("reliability", "difference", "trend", "drift"),
    }
    for png in drawn.values():
        picture = Image.open(io.BytesIO(png))
        assert picture.width >= 750
        assert len(picture.getcolors(2**24) or ()) > 10


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw_plots(RunRecord(), None, []) == {}


def test_without_champion_no_difference_is_drawn() -> None:
    run = RunRecord(evaluation=samples.evaluation_document(champion=False))
    assert set(draw_plots(run, None, [])) == {"confusion_matrix", "reliability"}


def test_difference_shows_the_margins_that_the_gate_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They shrink as evidence grows: those of the parameters are not what decided."""
    given: list[object] = []
    monkeypatch.setattr(figures, "difference_figure", lambda document, margins: given.append(margins) or Figure())
    whole = read_record(samples.whole_run().get)
    draw_plots(RunRecord(config=whole.config, evaluation=whole.evaluation, gate=whole.gate), None, [])
    assert given == [{"malignant_sensitivity": 0.05}]


def test_figures_load_neither_pyplot_nor_a_gui() -> None:
    assert not loaded_by("bcc_ops.report.plots") & {"matplotlib.pyplot", "tkinter", "tensorflow"}
