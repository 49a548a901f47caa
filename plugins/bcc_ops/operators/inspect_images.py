"""Inspect a slice of the snapshot's images, beside other workers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bcc_ops.operators.base import BccOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)


class InspectImagesOperator(BccOperator):
    """Learn what `check_images` needs to know of each image by itself, and leave it in the bucket.

    A retry goes on from what is known on this worker or in the bucket. If no attempt finishes, the last one leaves the slice to
    `check_images`, which runs when all slices are done and inspects what is not known by then. So one slice cannot stop a
    night.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        part: positions in the snapshot of the slice's first image and the one after its last; the task is mapped over it.
    """

    template_fields: Sequence[str] = ("run", "part")

    def __init__(self, *, run: Any, part: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.part = part

    def work(self, context: Context) -> None:
        """Inspect the slice."""
        from bcc_ops.dataset.image_checks import inspect_images
        from bcc_ops.dataset.inspection_cache import MEMORY_FILE, InspectionCache
        from bcc_ops.dataset.shared_inspections import sharing_inspections

        run, (start, stop) = self.load_run(self.run, context), self.part
        about = f"images {start + 1} to {stop} of {run.snapshot.images.key}"
        if is_last_of_several(context["ti"]):
            log.warning(
                "No attempt to inspect %s finished, so they are left to check_images. The logs of the attempts say why; "
                "if the worker was killed, it needs more memory or fewer tasks at once",
                about,
            )
            return
        log.info("inspecting %s", about)
        images = self.local_images(run.snapshot, part=slice(start, stop), unreadable={})
        memory_path, contents = self.settings.cache_dir / MEMORY_FILE, {image.sha256 for image in images}
        prefix = self.settings.artifacts_prefix
        with sharing_inspections(self.store, prefix, memory_path, contents, run.config, with_search=False):
            with InspectionCache(memory_path) as memory:
                inspect_images(images, run.config, memory, pseudonyms=lambda: self.pseudonyms)


def is_last_of_several(attempt: Any) -> bool:
    """Return whether this attempt of a task (its `ti`) is the last one, after others. A cleared task begins anew."""
    return bool(attempt.try_number > max(attempt.max_tries, 1))
