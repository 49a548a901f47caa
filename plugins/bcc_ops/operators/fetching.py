"""Images beyond the run's own: external ones, or a few for a smoke test."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bcc_ops.config import Settings
from bcc_ops.storage import ObjectStore

if TYPE_CHECKING:
    from bcc_ops.dataset.sync import LocalImage
    from bcc_ops.tables import ImageRow


def image_fetcher(store: ObjectStore, settings: Settings) -> Callable[[list[ImageRow]], list[LocalImage]]:
    """A function that brings images of the bucket into this worker's cache."""

    def fetch(rows: list[ImageRow]) -> list[LocalImage]:
        from bcc_ops.dataset.sync import ImageCache, sync_images

        cache = ImageCache(settings.cache_dir, int(settings.cache_budget_gb * 1e9))
        return sync_images(store, rows, cache)

    return fetch
