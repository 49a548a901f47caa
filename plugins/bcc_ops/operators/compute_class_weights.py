"""Split the usable images, count the classes and weigh them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bcc_ops.artifacts import ValidationDocument
from bcc_ops.operators.base import BccOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class ComputeClassWeightsOperator(BccOperator):
    """Put every usable image into train, tuning or validation, and weigh the classes of the train partition.

    Writes split.parquet and class_weights.json; returns the reference to the latter.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        validation: reference to this run's validation.json.
    """

    template_fields: Sequence[str] = ("run", "validation")

    def __init__(self, *, run: Mapping[str, str], validation: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.validation = validation

    def work(self, context: Context) -> dict[str, str]:
        """Split the run's images."""
        from bcc_ops.dataset.run_tables import previous_split, read_contents
        from bcc_ops.dataset.splits import describe_split, split_images
        from bcc_ops.tables import SplitRow, write_rows

        run = self.load_run(self.run)
        validation = self.store.load(ValidationDocument, self.validation)
        contents = read_contents(self.store, validation)
        previous = previous_split(self.store, run.paths.artifacts_prefix, run.snapshot.previous_run)
        split = split_images(contents, previous, run.config, run.snapshot.classes)
        rows = self.store.put_referenced(run.paths.document("split.parquet"), write_rows(SplitRow, split.rows))
        document = describe_split(split, run.config, run.snapshot.classes, run.snapshot.previous_run, rows)
        self.log.info("counts %s, weights %s, %d carried forward", document.counts, document.weights, split.carried_forward)
        return self.store.save(run.paths.document("class_weights.json"), document).to_xcom()
