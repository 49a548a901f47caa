"""Split the usable images, count the classes and weigh them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bcc_ops.operators.base import BccOperator
from bcc_ops.runs.documents import ChecksDocument

if TYPE_CHECKING:
    from airflow.sdk import Context


class SplitDatasetOperator(BccOperator):
    """Put every usable image into train, tuning or checks, and weigh the classes of the train partition.

    Writes split.parquet and split.json; returns the reference to the latter.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        checks: reference to this run's checks.json.
    """

    template_fields: Sequence[str] = ("run", "checks")

    def __init__(self, *, run: Mapping[str, str], checks: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.checks = checks

    def work(self, context: Context) -> dict[str, str]:
        """Split the run's images."""
        from bcc_ops.dataset.splits import describe_split, split_images
        from bcc_ops.runs.previous import previous_split, read_contents
        from bcc_ops.runs.tables import SplitRow, write_rows

        run = self.load_run(self.run)
        checks = self.store.load(ChecksDocument, self.checks)
        contents = read_contents(self.store, checks)
        previous = previous_split(self.store, run.paths.artifacts_prefix, run.snapshot.previous_run)
        split = split_images(contents, previous, run.config, run.snapshot.classes)
        rows = self.store.put_referenced(run.paths.document("split.parquet"), write_rows(SplitRow, split.rows))
        document = describe_split(split, run.config, run.snapshot.classes, run.snapshot.previous_run, rows)
        self.log.info("counts %s, weights %s, %d carried forward", document.counts, document.weights, split.carried_forward)
        return self.store.save(run.paths.document("split.json"), document).to_xcom()
