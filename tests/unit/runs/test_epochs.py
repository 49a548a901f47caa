from __future__ import annotations

import pytest

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import EpochRow
from bcc_ops.runs.epochs import describe_epoch, history_csv, parse_history

ROW = EpochRow(
    fold=2,
    epoch=3,
    loss=0.5,
    accuracy=0.75,
    held_out_loss=0.625,
    held_out_accuracy=0.7,
    held_out_balanced_accuracy=0.65,
    learning_rate=0.001,
    seconds=30.0,
    images_per_second=40.0,
)


def test_history_has_a_header_and_one_row_per_epoch_and_comes_back() -> None:
    content = history_csv([ROW])
    assert content.decode().splitlines() == [
        "fold,epoch,loss,accuracy,held_out_loss,held_out_accuracy,held_out_balanced_accuracy,learning_rate,seconds,images_per_second",
        "2,3,0.5,0.75,0.625,0.7,0.65,0.001,30.0,40.0",
    ]
    assert parse_history(content) == (ROW,)
    assert parse_history(b"") == ()


def test_a_history_of_an_older_release_is_read_as_that_of_its_one_model() -> None:
    header = "epoch,loss,accuracy,tuning_loss,tuning_accuracy,tuning_balanced_accuracy,learning_rate,seconds,images_per_second"
    assert parse_history(f"{header}\n3,0.5,0.75,0.625,0.7,0.65,0.001,30.0,40.0\n".encode()) == (
        ROW.model_copy(update={"fold": 1}),
    )


def test_a_row_that_is_not_an_epoch_is_named_by_its_line() -> None:
    with pytest.raises(ArtifactError, match=r"fold-2\.csv, line 3: loss: "):
        parse_history(history_csv([ROW]) + b"2,4,much,0,0,0,0,0,0,0\n", "fold-2.csv")


@pytest.mark.parametrize(
    ("planned", "head"),
    [
        ({}, "fold 2: epoch 3: "),
        ({"epochs": 16, "folds": 5}, "fold 2 of 5: epoch 3 of 16: "),
        ({"epochs": 16, "folds": 1}, "fold 2: epoch 3 of 16: "),
    ],
)
def test_an_epoch_is_described_in_one_line(planned: dict[str, int], head: str) -> None:
    line = describe_epoch(ROW, **planned)
    assert line.startswith(f"{head}loss 0.500, accuracy 0.750; held-out loss 0.625") and "\n" not in line
