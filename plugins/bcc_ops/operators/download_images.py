"""Bring the snapshot's images to this worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from bcc_ops.operators.base import BccOperator, Run

if TYPE_CHECKING:
    from airflow.sdk import Context

    from bcc_ops.dataset.sync import LocalImage
    from bcc_ops.runs.rows import ImageRow


class DownloadImagesOperator(BccOperator):
    """Fetch what is missing of the snapshot's images and verify what is there, byte by byte.

    The XCom `counts` is `{images, fetched, unreadable, mb, seconds}`. Images that the store lists but does not give are left to
    `check_images`, which refuses them. The task returns slices of the snapshot, over which `inspect_images` is mapped: none if
    few images are new.

    Args:
        run: the run's handle, from `snapshot_dataset`.
    """

    template_fields: Sequence[str] = ("run",)

    def __init__(self, *, run: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run

    def work(self, context: Context) -> list[tuple[int, int]]:
        """Synchronise the cache. The tasks after this one trust it unless a file looks touched."""
        from dataclasses import asdict

        from bcc_ops.dataset.snapshot import read_images
        from bcc_ops.dataset.sync import Counts

        run, counts = self.load_run(self.run, context), Counts()
        rows = read_images(self.store, run.snapshot)
        images = self.fetch_images(rows, reread=True, counts=counts, unreadable={})
        self.log.info("%d images in %s, %d of them fetched now", counts.images, self.settings.cache_dir, counts.fetched)
        context["ti"].xcom_push(key="counts", value=asdict(counts))
        return self._slices(run, rows, images)

    def _slices(self, run: Run, rows: Sequence[ImageRow], images: Sequence[LocalImage]) -> list[tuple[int, int]]:
        from bcc_ops.dataset.inspection_cache import MEMORY_FILE, InspectionCache
        from bcc_ops.dataset.inspection_slices import PER_SLICE, cut_slices, not_inspected
        from bcc_ops.dataset.shared_inspections import fetch_inspections
        from bcc_ops.runs.previous import previous_contents

        content_of = {image.key: image.sha256 for image in images}
        memory_path = self.settings.cache_dir / MEMORY_FILE
        new: Set[str] = frozenset(content_of.values())
        if len(new) <= PER_SLICE:
            return []
        previous = previous_contents(self.store, run.paths, run.snapshot) or ()
        with InspectionCache(memory_path) as memory:
            new = not_inspected(new, previous, memory, run.config)
        if len(new) > PER_SLICE:  # what others learned is read only if it may matter
            fetch_inspections(self.store, self.settings.artifacts_prefix, memory_path)
            with InspectionCache(memory_path) as memory:
                new = not_inspected(new, previous, memory, run.config)
        slices = cut_slices([content_of.get(row.key) for row in rows], new)
        if slices:
            self.log.info("nobody has inspected %d contents: %d tasks share them", len(new), len(slices))
        return slices
