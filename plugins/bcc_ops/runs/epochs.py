"""history.csv: one row per epoch, written as epochs end and read by the report and by `make run`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from pydantic import ValidationError

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import EpochRow


def history_csv(rows: Sequence[EpochRow]) -> bytes:
    """Return history.csv: a header, and one row per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(EpochRow.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    return text.getvalue().encode()


def parse_history(content: bytes) -> tuple[EpochRow, ...]:
    """Read the rows of a history.csv.

    Raises:
        ArtifactError: a row is not an epoch; the message names its line.
    """
    rows = []
    reader = csv.DictReader(io.StringIO(content.decode("utf-8", errors="replace")))
    for row in reader:
        try:
            rows.append(EpochRow.model_validate({name: row.get(name) for name in EpochRow.model_fields}))
        except ValidationError as error:
            problem = error.errors()[0]
            raise ArtifactError(f"history.csv, line {reader.line_num}: {problem['loc'][0]}: {problem['msg']}") from None
    return tuple(rows)


def describe_epoch(row: EpochRow, epochs: int | None = None) -> str:
    """Describe an epoch in one line; `epochs` is how many are planned, if that is known."""
    of_all = f"/{epochs}" if epochs else ""
    return (
        f"epoch {row.epoch}{of_all}: loss {row.loss:.3f}, accuracy {row.accuracy:.3f}; tuning loss {row.tuning_loss:.3f}, "
        f"accuracy {row.tuning_accuracy:.3f}, balanced {row.tuning_balanced_accuracy:.3f}; "
        f"{row.images_per_second:.0f} images/s, {row.seconds:.0f} s"
    )
