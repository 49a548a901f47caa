"""Decide which of the snapshot's images may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bcc_ops.artifacts import SnapshotDocument
from bcc_ops.operators.base import BccOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class ValidateImagesOperator(BccOperator):
    """Check every image, find near copies and conflicts, compare new images with old ones.

    Writes contents.parquet and validation.json; returns the reference to the latter.

    Args:
        snapshot: reference to snapshot.json.
    """

    template_fields: Sequence[str] = ("snapshot",)

    def __init__(self, *, snapshot: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot

    def work(self, context: Context) -> dict[str, str]:
        """Validate the run's images."""
        from bcc_ops.dataset.run_tables import previous_contents
        from bcc_ops.dataset.validation import MEMORY_FILE, summary, validate_images
        from bcc_ops.tables import ContentRow, write_rows

        run = self.run_documents(self.snapshot)
        snapshot = self.store.load(SnapshotDocument, self.snapshot)
        result = validate_images(
            self.local_images(self.snapshot),
            run.config,
            memory_path=self.settings.cache_dir / MEMORY_FILE,
            snapshot_digest=snapshot.digest,
            classes=snapshot.classes,
            previous=previous_contents(self.store, run.paths, snapshot),
        )
        rows = self.store.put_referenced(run.paths.document("contents.parquet"), write_rows(ContentRow, result.contents))
        document = result.document.model_copy(update={"contents": rows})
        for line in summary(document):
            self.log.info("%s", line)
        return self.store.save(run.paths.document("validation.json"), document).to_xcom()
