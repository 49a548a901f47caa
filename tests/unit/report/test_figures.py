"""Figures: what is drawn of which document, and that no state outlives a call. Looks are for eyes."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from bcc_ops.report import figures
from bcc_ops.report.misclassified import MisclassifiedImage
from bcc_ops.runs.documents import Estimate
from bcc_ops.runs.history import RunSummary
from tests.unit.report import samples
from tests.unit.report.samples import loaded_by, summaries


def words(figure: object) -> str:
    from matplotlib.text import Text

    found = figure.findobj(Text)  # type: ignore[attr-defined]
    return " | ".join(text.get_text() for text in found if text.get_text())


def test_the_same_documents_give_the_same_bytes() -> None:
    def once() -> bytes:
        return figures.to_png(figures.history_figure(samples.epochs(), {2: (5,)}), synthetic=True)

    assert once() == once()


def test_synthetic_plots_carry_a_strip() -> None:
    plain, marked = (
        Image.open(io.BytesIO(figures.to_png(figures.history_figure(samples.epochs()), synthetic=synthetic)))
        for synthetic in (False, True)
    )
    assert marked.height == plain.height + 48
    assert marked.getpixel((5, 5)) == (255, 227, 163)
    assert "SYNTHETIC" in words(figures._synthetic_strip(9))


def test_history_draws_each_fold_twice_and_marks_where_it_resumed() -> None:
    figure = figures.history_figure(samples.epochs(), {2: (5,)})
    assert {"fold 1", "fold 5", "held out", "trained on", "fold 2 resumed"} <= set(words(figure).split(" | "))
    accuracy = [values for line in figure.axes[0].lines if len(values := np.asarray(line.get_ydata()).tolist()) == 12]
    of_fold_3 = [row for row in samples.epochs() if row.fold == 3]
    assert len(accuracy) == 10
    assert [row.accuracy for row in of_fold_3] in accuracy and [row.held_out_accuracy for row in of_fold_3] in accuracy
    assert "resumed" not in words(figures.history_figure(samples.epochs(folds=1)))


def test_class_counts_have_a_bar_per_fold_also_of_an_older_run() -> None:
    assert {"fold 1", "fold 5", "34"} <= set(words(figures.class_counts_figure(samples.split_document())).split(" | "))
    older = samples.split_document(counts={0: {"benign": 4, "malignant": 3, "normal": 2}, 1: {"benign": 1}})
    assert {"trained on (older release)", "fold 1"} <= set(words(figures.class_counts_figure(older)).split(" | "))


def test_confusion_matrix_gives_counts_and_shares_of_each_row() -> None:
    evaluation = samples.evaluation_document(champion=False)
    model = evaluation.challenger.model_copy(update={"confusion_matrix": ((8, 1, 1), (0, 0, 0), (0, 3, 1))})
    text = words(figures.confusion_figure(evaluation.model_copy(update={"challenger": model})))
    assert "80%" in text and "75%" in text and "25%" in text
    assert "malignant\n(0)" in text
    assert "Champion" not in text


def test_confusion_matrix_shows_both_models_on_the_same_images() -> None:
    assert "Champion" in words(figures.confusion_figure(samples.evaluation_document()))


def test_roc_gives_the_documents_figures_and_the_operating_point() -> None:
    text = words(figures.roc_figure(samples.evaluation_document(), samples.predictions()))
    assert "malignant  AUC 0.93 (0.90–0.96)" in text
    assert "operating point of malignant (from 0.31 on)" in text


def test_roc_leaves_out_a_class_that_has_no_image() -> None:
    columns = samples.predictions()
    keep = [index for index, label in enumerate(columns["label"]) if label != "normal"]
    columns = {name: [values[index] for index in keep] for name, values in columns.items()}
    assert "normal" not in words(figures.roc_figure(samples.evaluation_document(), columns))


def test_difference_names_the_side_that_the_whole_interval_lies_on() -> None:
    text = words(figures.difference_figure(samples.evaluation_document(), {"balanced_accuracy": 0.05}))
    assert "+0.024  better" in text
    assert "−0.061  worse" in text
    assert "+0.031  no clear difference" in text
    assert "macro F1" not in text


def test_trend_draws_runs_without_figures_too() -> None:
    runs = [*summaries(2), RunSummary("f9", samples.AS_OF, verdict="rejected", balanced_accuracy=Estimate.missing("no image"))]
    text = words(figures.trend_figure(runs, "malignant"))
    assert text.count("✓") - 1 == 2
    assert text.count("✗") - 1 == 1


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_gallery_holds_any_number_of_cases_with_and_without_heat(count: int) -> None:
    grey = np.full((32, 32, 3), 90, np.uint8)
    for heat in (None, np.ones((4, 4), np.float32)):
        entries = [
            figures.GalleryEntry(MisclassifiedImage(f"k/{n}.png", "malignant", "benign", 0.1), grey, heat) for n in range(count)
        ]
        figure = figures.gallery_figure(entries, "Missed", "malignant", "note")
        text = words(figure)
        assert (text.count("is malignant"), text.count("malignant 0.10")) == (count, count)
        assert text.count("taken for benign") == (0 if heat is None else count)
        assert figures.to_png(figure, synthetic=False)


def test_findings_have_a_line_each_under_their_title() -> None:
    grey = np.full((32, 32, 3), 90, np.uint8)
    some = [figures.Example(f"k/{n}.png", "normal", grey) for n in range(6)]
    figure = figures.findings_figure([("measuring marks: 6 of 40", some), ("Doppler colour: 1 of 1", some[:1])])
    text = words(figure)
    assert "measuring marks: 6 of 40" in text and "Doppler colour: 1 of 1" in text
    assert text.count("normal") == 7 and text.count("0.png") == 2
    assert sum(bool(axes.images) for axes in figure.axes) == 7
    assert figures.to_png(figure, synthetic=False)


HOSTILE_NAMES = (r"$\x$.png", "price $5_$ .png", "$", "a$b$c", "two\nlines\t.png", "\x00\x1b[31m.png", "\u202egnp.exe", "x" * 500)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_file_name_is_drawn_as_it_is_and_never_typeset(name: str) -> None:
    grey = np.full((32, 32, 3), 90, np.uint8)
    entries = [figures.GalleryEntry(MisclassifiedImage(f"k/{name}", "malignant", "benign", 0.1), grey, None)]
    examples = [figures.Example(f"k/{name}", "benign", grey)]
    drawn = (
        figures.gallery_figure(entries, "Missed", "malignant", "note"),
        figures.findings_figure([("Doppler colour: 1 of 1", examples)]),
    )
    for figure in drawn:
        assert figures.to_png(figure, synthetic=False)
        if name.startswith("$"):
            assert any(name in text.get_text() for text in figure.findobj(Text))


def test_drawing_leaves_no_state_behind() -> None:
    before = dict(matplotlib.rcParams)
    figures.to_png(figures.drift_figure(samples.checks_document().drift), synthetic=True)
    assert dict(matplotlib.rcParams) == before


def test_pages_load_no_plotting_library() -> None:
    assert not loaded_by("bcc_ops.report.page") & {"matplotlib", "tensorflow", "pyarrow"}
