"""Read a run's folder for a page: by ETag, from bounded memory if it is there, otherwise in parallel."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bcc_ops.exceptions import ArtifactError, ObjectNotFound
from bcc_ops.runs.bundle import BUNDLE, read_bundle
from bcc_ops.runs.object_store import ObjectStore

MOST_BYTES = 16 * 2**20
"""An object larger than this is not shown: it is downloaded, piece by piece."""


class ContentCache:
    """The most recently used objects, by key and ETag, up to so many bytes together. Safe between threads."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._held: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._size

    def get(self, key: str, etag: str) -> bytes | None:
        """Return the object's content if this very version of it is held."""
        with self._lock:
            content = self._held.get((key, etag))
            if content is not None:
                self._held.move_to_end((key, etag))
            return content

    def put(self, key: str, etag: str, content: bytes) -> None:
        """Hold an object, and let go of those that were not used for longest."""
        with self._lock:
            previous = self._held.pop((key, etag), b"")
            self._held[key, etag] = content
            self._size += len(content) - len(previous)
            while self._size > self._budget:
                _, dropped = self._held.popitem(last=False)
                self._size -= len(dropped)


@dataclass(frozen=True)
class Listed:
    """An object as its folder's listing has it."""

    key: str
    etag: str
    size: int


class FolderReader:
    """One folder of the bucket, as it was when it was listed.

    Args:
        folder: without a slash at its end.
        cache, fetchers: shared by all pages.
    """

    def __init__(self, store: ObjectStore, folder: str, cache: ContentCache, fetchers: ThreadPoolExecutor) -> None:
        self._store, self._cache, self._fetchers = store, cache, fetchers
        prefix = f"{folder}/"
        self.files: Mapping[str, Listed] = {
            entry["Key"][len(prefix) :]: Listed(entry["Key"], entry["ETag"].strip('"'), entry["Size"])
            for entry in store.list_objects(prefix)
        }

    def read(self, name: str) -> bytes | None:
        """Return the content of a file by its name below the folder; None if there is none.

        Raises:
            ArtifactError: it is too large for a page.
        """
        listed = self.files.get(name)
        if listed is None:
            return None
        if listed.size > MOST_BYTES:
            raise ArtifactError(f"{name} has {listed.size} bytes, too many for a page: download it")
        content = self._cache.get(listed.key, listed.etag)
        if content is None:
            try:
                content = self._store.get(listed.key)
            except ObjectNotFound:
                return None
            self._cache.put(listed.key, listed.etag, content)
        return content

    def reader(self, names: Iterable[str]) -> Callable[[str], bytes | None]:
        """Fetch several files at once; the answer gives their content by name, and raises what fetching one raised.

        What the run's bundle has is not fetched one by one.
        """
        self._unpack_bundle()
        fetched = {name: self._fetchers.submit(self.read, name) for name in names}
        return lambda name: fetched[name].result()

    def _unpack_bundle(self) -> None:
        """Put the documents of the run's bundle into the cache, as far as they are still what they were."""
        try:
            bundle = self.read(BUNDLE)
        except ArtifactError:
            return
        etags = {name: listed.etag for name, listed in self.files.items()}
        for name, content in read_bundle(bundle or b"", etags).items():
            self._cache.put(self.files[name].key, self.files[name].etag, content)
