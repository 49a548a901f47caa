from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcc_ops.runs.documents import FOLDS
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import write_answers, write_rows
from benchmarks.training import CLASSES, list_images, markdown


def _measured(folder: Path, wrong_outside_of_fold_1: int = 0) -> None:
    """What a benchmark of one seed leaves: 30 images per fold, a third of each class, answered rightly but for some."""
    rows = [SplitRow(f"{i}", f"{i}", CLASSES[i % 3], f"{i}", i // 30 + 1) for i in range(150)]
    answers = np.array([[0.8 if name == row.label else 0.1 for name in CLASSES] for row in rows])
    answers[30 : 30 + wrong_outside_of_fold_1] = answers[30 : 30 + wrong_outside_of_fold_1, ::-1]
    (folder / "split.parquet").write_bytes(write_rows(SplitRow, rows))
    (folder / "seed-1-out_of_fold.parquet").write_bytes(write_answers(rows, CLASSES, answers))
    for fold in FOLDS:
        part = {"wall_seconds": 100.0 + fold, "cpu_seconds": 150.0, "epoch_seconds": 90.0, "peak_memory_mb": 2000.0 + fold}
        (folder / f"1-fold-{fold}.json").write_text(json.dumps(part))
    there: dict[str, Any] = {
        "labels": [1, 1, 0, 0, 2, 2],
        "groups": ["a", "b", "c", "d", "e", "f"],
        "file": [[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]],
        "average": [[0.1, 0.8, 0.1]] * 2 + [[0.8, 0.1, 0.1]] * 4,
        "folds": [[[0.1, 0.8, 0.1]] * 2 + [[0.8, 0.1, 0.1]] * 4],
    }
    file = {"seconds": 2.0, "file_mb": 14.0, "combined": "mean of the answers of 5 models", "elsewhere": {"there": there}}
    (folder / "1-file.json").write_text(json.dumps(file))


@pytest.fixture
def rows_of(tmp_path: Path) -> dict[str, list[str]]:
    """First cell of a row -> the others."""
    _measured(tmp_path, wrong_outside_of_fold_1=12)
    table = (line.strip("|").split("|") for line in markdown(tmp_path, [1]).splitlines() if line.startswith("|"))
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in table}


def test_the_pooled_folds_stand_beside_the_first_one_with_how_much_narrower_their_interval_is(
    rows_of: dict[str, list[str]],
) -> None:
    # of 12 images a third is benign and a third normal; mirrored, these 8 are wrong and the malignant ones stay right
    pooled, mean, alone, narrower, notebook = rows_of["accuracy"]
    assert (pooled[:5], mean, alone[:5], notebook) == ("0.947", "0.947", "1.000", "")
    assert float(narrower.removesuffix("x")) > 1


def test_what_it_costs_is_said_beside_one_fold(rows_of: dict[str, list[str]]) -> None:
    assert rows_of["five, one after the other"] == ["515 s (5.1 times one)"]
    assert rows_of["peak memory"] == ["2,005 MB"]
    assert rows_of["the file"] == ["14.0 MB, mean of the answers of 5 models"]


def test_the_file_is_judged_elsewhere_with_and_without_normal_images(rows_of: dict[str, list[str]]) -> None:
    file, against_benign, average, *_ = rows_of["there"]
    assert file.startswith("0.875 (")  # 7 of 8 pairs of a malignant and another image are in order
    assert against_benign.startswith("0.750 (")  # 3 of 4
    assert average.startswith("1.000")


def test_masks_are_no_images(tmp_path: Path) -> None:
    for name in ("benign (1).png", "benign (1)_mask.png"):
        (tmp_path / "benign").mkdir(exist_ok=True)
        (tmp_path / "benign" / name).write_bytes(name.encode())
    (image,) = list_images(tmp_path)
    assert (image.label, image.path.name) == ("benign", "benign (1).png")
