"""Decide which of the snapshot's images may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bcc_ops.operators.base import BccOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class CheckImagesOperator(BccOperator):
    """Check every image, find near-duplicates and conflicts, compare new images with old ones.

    Writes contents.parquet and checks.json; returns the reference to the latter. What it learned of the contents is shared with
    other workers through the bucket.

    Args:
        run: the run's handle, from `snapshot_dataset`.
    """

    template_fields: Sequence[str] = ("run",)

    def __init__(self, *, run: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run

    def work(self, context: Context) -> dict[str, str]:
        """Check the run's images."""
        from bcc_ops.dataset.image_checks import check_images, summary
        from bcc_ops.dataset.inspection_cache import MEMORY_FILE
        from bcc_ops.dataset.metadata_source import FILE_METADATA, read_metadata, write_metadata
        from bcc_ops.dataset.shared_inspections import sharing_inspections
        from bcc_ops.runs.previous import previous_contents
        from bcc_ops.runs.rows import ContentRow
        from bcc_ops.runs.tables import write_rows

        run = self.load_run(self.run, context)
        unreadable: dict[str, str] = {}
        images = self.local_images(run.snapshot, unreadable=unreadable)
        memory, contents = self.settings.cache_dir / MEMORY_FILE, {image.sha256 for image in images}
        previous = previous_contents(self.store, run.paths, run.snapshot)
        metadata = read_metadata(self.store, run.snapshot.metadata)
        with sharing_inspections(self.store, self.settings.artifacts_prefix, memory, contents, run.config):
            result = check_images(
                images,
                run.config,
                memory_path=memory,
                snapshot_digest=run.snapshot.digest,
                classes=run.snapshot.classes,
                previous=previous,
                unreadable=unreadable,
                metadata=metadata,
                table=run.snapshot.metadata,
                pseudonyms=lambda: self.pseudonyms,
            )
        rows = self.store.put_referenced(run.paths.document("contents.parquet"), write_rows(ContentRow, result.contents))
        document = result.document.model_copy(update={"contents": rows})
        if result.by_files.cells:
            told = self.store.put_referenced(run.paths.document(FILE_METADATA), write_metadata(result.by_files))
            document = document.model_copy(update={"file_metadata": told})
        for line in summary(document):
            self.log.info("%s", line)
        return self.store.save(run.paths.document("checks.json"), document).to_xcom()
