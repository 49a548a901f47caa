"""Bring the snapshot's images to this worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bcc_ops.operators.base import BccOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class DownloadImagesOperator(BccOperator):
    """Fetch what is missing of the snapshot's images and verify what is there, byte by byte.

    Returns counts: `{images, fetched, unreadable, mb, seconds}`. Images that the store lists and does not give are left to
    `check_images`, which refuses them.

    Args:
        run: the run's handle, from `snapshot_dataset`.
    """

    template_fields: Sequence[str] = ("run",)

    def __init__(self, *, run: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run

    def work(self, context: Context) -> dict[str, Any]:
        """Synchronise the cache. The tasks after this one trust it unless a file looks touched."""
        from dataclasses import asdict

        from bcc_ops.dataset.sync import Counts

        counts = Counts()
        self.local_images(self.load_run(self.run, context).snapshot, reread=True, counts=counts, unreadable={})
        self.log.info("%d images in %s, %d of them fetched now", counts.images, self.settings.cache_dir, counts.fetched)
        return asdict(counts)
