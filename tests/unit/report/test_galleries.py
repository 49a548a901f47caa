"""Which images the galleries show. How they are drawn is tested with `figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcc_ops.report import figures
from bcc_ops.report.galleries import (
    AUGMENTED_VERSIONS,
    MOST_CASES,
    THUMBNAIL_SIDE,
    draw_augmentations,
    draw_findings,
    draw_galleries,
    shown_cases,
)
from bcc_ops.report.misclassified import Misclassified, MisclassifiedImage
from bcc_ops.runs.documents import ContentFinding
from bcc_ops.runs.rows import ContentRow

CLASSES = ("benign", "malignant", "normal")


def cases(missed: int, false_alarms: int, threshold: float | None = 0.31) -> Misclassified:
    one = tuple(MisclassifiedImage(f"m{number}", "malignant", "benign", 0.1) for number in range(missed))
    other = tuple(MisclassifiedImage(f"f{number}", "normal", "malignant", 0.9) for number in range(false_alarms))
    return Misclassified(one, other, threshold)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the figures are asked to draw."""
    asked: list[Any] = []
    for name in ("gallery_figure", "augmentations_figure", "findings_figure"):
        monkeypatch.setattr(figures, name, lambda *given: asked.append(given))
    monkeypatch.setattr(figures, "to_png", lambda figure, synthetic: b"png")
    return asked


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A white image, twice as wide as it is high."""
    Image.new("RGB", (200, 100), "white").save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def gallery(cases: Misclassified, paths: dict[str, Path], explain: Any = None, hidden: Any = ()) -> dict[str, bytes]:
    asked = {"classes": CLASSES, "positive_class": "malignant", "why_not": "No heat.", "keep_aspect": True, "synthetic": False}
    return draw_galleries(cases, paths, explain=explain, hidden=hidden, **asked)  # type: ignore[arg-type]


def test_the_worst_of_each_kind_are_shown() -> None:
    shown = [case.key for case in shown_cases(cases(MOST_CASES + 3, 2), ())]
    assert shown == [*(f"m{number}" for number in range(MOST_CASES)), "f0", "f1"]


def test_an_image_whose_text_may_name_a_patient_is_never_shown_and_the_next_worst_takes_its_place(
    drawn: list[Any], wide: Path
) -> None:
    hidden = {"m0", "f0"}
    every = cases(MOST_CASES + 3, 1)
    assert [case.key for case in shown_cases(every, hidden)] == [f"m{number}" for number in range(1, MOST_CASES + 1)]
    paths = dict.fromkeys(("m0", "m1", "f0"), wide)
    assert gallery(every, paths, hidden=hidden) == {"missed_cancers": b"png"}
    ((entries, heading, *_),) = drawn
    assert [entry.case.key for entry in entries] == ["m1"]
    assert "1 of 15" in heading and heading.endswith("; not shown, since their text may be a name: 1")


def test_a_kind_without_a_case_or_without_a_file_has_no_gallery(drawn: list[Any], wide: Path) -> None:
    assert gallery(cases(0, 0), {}) == {}
    assert gallery(cases(1, 1), {"f0": wide}) == {"false_alarms": b"png"}
    ((entries, heading, *_),) = drawn
    assert [entry.case.key for entry in entries] == ["f0"]
    assert heading == "Called malignant, but it is not: 1 of 1, malignant from a probability of 0.31 on"


def test_each_case_is_explained_by_the_answer_that_was_given(drawn: list[Any], wide: Path) -> None:
    asked: list[Any] = []

    def explain(paths: Any, answers: Any) -> np.ndarray:
        asked.append((list(paths), list(answers)))
        return np.ones((len(paths), 4, 4), np.float32)

    assert list(gallery(cases(2, 1, None), dict.fromkeys(("m0", "m1", "f0"), wide), explain)) == [
        "missed_cancers",
        "false_alarms",
    ]
    assert asked == [([wide, wide], [0, 0]), ([wide], [1])]
    assert drawn[0][1].endswith("malignant by the highest probability") and "Grad-CAM" in drawn[0][3]
    entry = drawn[0][0][0]
    assert entry.heat.shape == (4, 4)
    assert entry.thumbnail.shape == (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
    assert entry.thumbnail[0].max() == 0 and entry.thumbnail[THUMBNAIL_SIDE // 2].min() == 255, "as the model saw it: padded"


def test_augmentations_are_drawn_beside_their_image_within_its_part_of_the_square(drawn: list[Any], wide: Path) -> None:
    boxes = []

    def augment(pixels: np.ndarray, random: np.random.Generator, box: Any) -> np.ndarray:
        boxes.append(box)
        return pixels + random.integers(1, 9, dtype=np.uint8)

    def draw() -> Any:
        draw_augmentations([("benign", wide)], augment, keep_aspect=True, seed=1, synthetic=False)
        return drawn.pop()

    (original,), (variants,), labels = draw()
    assert labels == ["benign"] and len(variants) == AUGMENTED_VERSIONS
    assert original[0].max() == 0 and (boxes[0].top, boxes[0].bottom) == (56, 168)
    assert [int(one[0, 0, 0]) for one in variants] == [int(one[0, 0, 0]) for one in draw()[1][0]], "by its seed"


def test_a_finding_is_drawn_with_names_and_classes_and_how_many_there_are(drawn: list[Any], wide: Path) -> None:
    rows = [
        ContentRow(key, label, key, 9, 9, "L", 90.0, 9.0, False, key, "", findings="1t calipers")
        for key, label in (("a", "benign"), ("b", "malignant"), ("gone", "normal"))
    ]
    found = [
        ContentFinding(finding=name, action="report", images=number, labels={}, keys=())
        for name, number in (("calipers", 40), ("doppler", 1))
    ]
    shown = {"calipers": rows, "doppler": [rows[2]]}
    assert draw_findings(shown, found, {"a": wide, "b": wide}, synthetic=False) == b"png"
    (((title, examples),),) = drawn.pop()
    assert title == "measuring marks: 2 of 40"
    assert [(one.key, one.label) for one in examples] == [("a", "benign"), ("b", "malignant")]
    assert examples[0].thumbnail.shape == (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3) and examples[0].thumbnail[0].max() == 0
    assert draw_findings(shown, found, {}, synthetic=False) is None
