"""Draw the run's plots and its stand-alone report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcc_ops.artifacts import SnapshotDocument
from bcc_ops.operators.base import BccOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class PublishPlotsOperator(BccOperator):
    """Write `plots/*.png` and `report.html` into the run's folder; return the reference to the latter.

    What the run has not got is left out, and the report says so. Doing it again writes the same.

    Args:
        snapshot, validation, class_weights, training, evaluation, gate: references to this run's documents; all but the
            first may be None.
    """

    template_fields: Sequence[str] = ("snapshot", "validation", "class_weights", "training", "evaluation", "gate")

    def __init__(
        self,
        *,
        snapshot: Any,
        validation: Any = None,
        class_weights: Any = None,
        training: Any = None,
        evaluation: Any = None,
        gate: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot
        self.validation = validation
        self.class_weights = class_weights
        self.training = training
        self.evaluation = evaluation
        self.gate = gate

    def work(self, context: Context) -> dict[str, str]:
        """Hand the references on, and write what comes of them."""
        from bcc_ops.report.publish import publish_report

        run = self.run_documents(self.snapshot)
        references = {f"{name}.json": getattr(self, name) for name in self.template_fields}
        report = publish_report(
            self.store, run.paths, run.config_document.run_id, references, fetch=self._local_files, say=self.log.info
        )
        self.log.info("the run's report: %s", report.uri)
        return report.to_xcom()

    def _local_files(self, keys: Iterable[str]) -> Mapping[str, Path]:
        """The files of a few of the snapshot's images; what is missing on this worker is fetched."""
        from bcc_ops.dataset.snapshot import read_images
        from bcc_ops.dataset.sync import sync_images

        wanted = set(keys)
        rows = [row for row in read_images(self.store, self.store.load(SnapshotDocument, self.snapshot)) if row.key in wanted]
        return {image.key: image.path for image in sync_images(self.store, rows, self.image_cache)}
