from __future__ import annotations

import pytest

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import EpochRow
from bcc_ops.runs.epochs import describe_epoch, history_csv, parse_history

ROW = EpochRow(
    epoch=3,
    loss=0.5,
    accuracy=0.75,
    tuning_loss=0.625,
    tuning_accuracy=0.7,
    tuning_balanced_accuracy=0.65,
    learning_rate=0.001,
    seconds=30.0,
    images_per_second=40.0,
)


def test_history_has_a_header_and_one_row_per_epoch_and_comes_back() -> None:
    content = history_csv([ROW])
    assert content.decode().splitlines() == [
        "epoch,loss,accuracy,tuning_loss,tuning_accuracy,tuning_balanced_accuracy,learning_rate,seconds,images_per_second",
        "3,0.5,0.75,0.625,0.7,0.65,0.001,30.0,40.0",
    ]
    assert parse_history(content) == (ROW,)
    assert parse_history(b"") == ()


def test_a_row_that_is_not_an_epoch_is_named_by_its_line() -> None:
    with pytest.raises(ArtifactError, match=r"history\.csv, line 3: loss: "):
        parse_history(history_csv([ROW]) + b"4,much,0,0,0,0,0,0,0\n")


@pytest.mark.parametrize(("planned", "head"), [(None, "epoch 3: "), (16, "epoch 3/16: ")])
def test_an_epoch_is_described_in_one_line(planned: int | None, head: str) -> None:
    line = describe_epoch(ROW, planned)
    assert line.startswith(f"{head}loss 0.500, accuracy 0.750") and "\n" not in line
