from __future__ import annotations

from datetime import datetime, timezone

import pytest

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.tables import ContentRow, ImageRow, SplitRow, read_predictions, read_rows, write_predictions, write_rows

IMAGE = ImageRow("images/benign/ä (1).png", "benign", 12, "etag", "", datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=timezone.utc))
CONTENT = ContentRow("k", "benign", "0" * 64, 500, 400, "L", 81.5, 40.25, False, "g", "")
SPLIT = SplitRow("k", "0" * 64, "benign", "g", "train")


@pytest.mark.parametrize("row", [IMAGE, CONTENT, SPLIT])
def test_rows_come_back_as_they_were(row: ImageRow | ContentRow | SplitRow) -> None:
    assert read_rows(type(row), write_rows(type(row), [row, row])) == [row, row]
    assert read_rows(type(row), write_rows(type(row), [])) == []


def test_the_same_rows_give_the_same_bytes() -> None:
    assert write_rows(SplitRow, [SPLIT]) == write_rows(SplitRow, [SPLIT])


@pytest.mark.parametrize("content", [b"", b"no parquet", write_rows(SplitRow, [SPLIT])])
def test_another_table_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError):
        read_rows(ImageRow, content)


def test_predictions_keep_a_gap_where_the_champion_was_not_asked() -> None:
    table = write_predictions(
        ["a", "b"],
        ["benign", "normal"],
        ["g", "h"],
        {"challenger": {"benign": [0.75, 0.25]}, "champion": {"benign": [None, 0.5]}},
    )
    assert read_predictions(table) == {
        "key": ["a", "b"],
        "label": ["benign", "normal"],
        "group": ["g", "h"],
        "challenger_benign": [0.75, 0.25],
        "champion_benign": [None, 0.5],
    }
