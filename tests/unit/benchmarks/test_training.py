from __future__ import annotations

from pathlib import Path
from typing import Any

from bcc_ops.dataset.sync import LocalImage
from bcc_ops.runs.tables import SplitRow, write_rows
from benchmarks.training import divide, other_splits

BENIGN, MALIGNANT, NORMAL = [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]


def _run(answers_about_malignant: list[list[float]]) -> dict[str, Any]:
    """A run about four malignant images, and a benign and a normal one that it is right about."""
    labels = [0, 2, 1, 1, 1, 1]
    return {
        "labels": labels,
        "final": [BENIGN, NORMAL, *answers_about_malignant],
        "tuning_labels": labels,
        "tuning": [BENIGN, NORMAL, *[MALIGNANT] * 4],
        "wanted_sensitivity": 0.5,
    }


def test_figures_on_several_splits_stand_beside_their_mean_and_spread() -> None:
    all_found, half_found = _run([MALIGNANT] * 4), _run([MALIGNANT, MALIGNANT, BENIGN, BENIGN])
    lines = other_splits(all_found, {"7": half_found})
    table = {line.split(" | ")[0].strip("| "): [cell.strip() for cell in line.strip("|").split("|")[1:]] for line in lines[2:]}
    assert table[""] == ["goal", "the split above", "`split_salt` 7", "mean", "standard deviation"]
    # 1 and 2/4: mean 0.75, sample deviation sqrt(2 * 0.25^2)
    assert table["malignant sensitivity"] == ["0.88", "1.000", "0.500", "**0.750**", "0.354"]
    # (1 + 1/2 + 1) / 3 is 0.833
    assert table["balanced accuracy"] == ["0.82", "1.000", "0.833", "**0.917**", "0.118"]
    assert table["sensitivity at the operating point"] == ["", "1.000", "0.500", "**0.750**", "0.354"]
    assert table["specificity at the operating point"] == ["", "1.000", "1.000", "**1.000**", "0.000"]


def test_each_salt_has_a_split_of_its_own(tmp_path: Path) -> None:
    images = [LocalImage(f"images/benign/{name}.png", "benign", name, Path(name)) for name in "abc"]
    for file, partitions in {"split": ("train", "tuning", "validation"), "split-7": ("validation", "train", "train")}.items():
        rows = [SplitRow(image.key, image.sha256, "benign", image.key, side) for image, side in zip(images, partitions)]
        (tmp_path / f"{file}.parquet").write_bytes(write_rows(SplitRow, rows))
    assert divide(images, tmp_path) == {"train": [images[0]], "tuning": [images[1]], "validation": [images[2]]}
    assert divide(images, tmp_path, "7") == {"train": images[1:], "tuning": [], "validation": [images[0]]}
