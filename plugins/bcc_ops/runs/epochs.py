"""fold-<n>.csv: one row per epoch of a fold's model, written as epochs end and read by the report and by `make run`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from pydantic import ValidationError

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import EpochRow
from bcc_ops.runs.upgrade import RENAMED_FIELDS


def history_csv(rows: Sequence[EpochRow]) -> bytes:
    """Return a history: a header, and one row per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(EpochRow.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    return text.getvalue().encode()


def parse_history(content: bytes, name: str = "history.csv") -> tuple[EpochRow, ...]:
    """Read the rows of a history, also of one that an older release wrote.

    Args:
        content: of the file.
        name: of the file, for the message.

    Raises:
        ArtifactError: a row is not an epoch; the message names its line.
    """
    rows = []
    reader = csv.DictReader(io.StringIO(content.decode("utf-8", errors="replace")))
    columns = {RENAMED_FIELDS.get(column, column): column for column in reader.fieldnames or ()}
    # An older release trained one model and wrote no fold.
    fields = [field for field in EpochRow.model_fields if field in columns or field != "fold"]
    for row in reader:
        try:
            rows.append(EpochRow.model_validate({field: row.get(columns.get(field, field)) for field in fields}))
        except ValidationError as error:
            problem = error.errors()[0]
            raise ArtifactError(f"{name}, line {reader.line_num}: {problem['loc'][0]}: {problem['msg']}") from None
    return tuple(rows)


def describe_place(fold: int, epoch: int, *, folds: int | None = None, epochs: int | None = None) -> str:
    """Return how far a fold's model is: `fold 3 of 5: epoch 7 of 24`; without the totals that are not known.

    Args:
        fold: the fold that the model holds out.
        epoch: the last one that it finished.
        folds: how many models the run trains. Of a single one it is not said.
        epochs: how many are planned.
    """
    of_folds = f" of {folds}" if folds and folds > 1 else ""
    of_epochs = f" of {epochs}" if epochs else ""
    return f"fold {fold}{of_folds}: epoch {epoch}{of_epochs}"


def describe_epoch(row: EpochRow, epochs: int | None = None, folds: int | None = None) -> str:
    """Describe an epoch in one line; `epochs` and `folds` are how many are planned, if that is known."""
    return (
        f"{describe_place(row.fold, row.epoch, folds=folds, epochs=epochs)}: loss {row.loss:.3f}, accuracy {row.accuracy:.3f}; "
        f"held-out loss {row.held_out_loss:.3f}, accuracy {row.held_out_accuracy:.3f}, "
        f"balanced {row.held_out_balanced_accuracy:.3f}; {row.images_per_second:.0f} images/s, {row.seconds:.0f} s"
    )
