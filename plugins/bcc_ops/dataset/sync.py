"""Snapshot -> files on this worker: only what is missing is fetched, and every byte is verified.

The files are in the worker's cache, shared by all runs. Whatever task needs images asks here with its snapshot, so
that a task on another host than the one that downloaded is only slower, never wrong.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from bcc_ops.dataset.image_cache import Arrival, ImageCache, cache_error
from bcc_ops.dataset.object_download import Transfer
from bcc_ops.dataset.snapshot import identity
from bcc_ops.exceptions import BucketNotFound, ConfigError, ObjectChanged, StorageError
from bcc_ops.runs.object_store import ObjectStore

if TYPE_CHECKING:
    from bcc_ops.dataset.dicom import GivesPseudonyms
    from bcc_ops.runs.rows import ImageRow

__all__ = ["ImageCache", "LocalImage", "sync_images", "training_view"]

log = logging.getLogger(__name__)

PARALLEL = 16
PROGRESS_EVERY = 5.0
_BATCH = 256
_REFUSED_WITHOUT_ARRIVAL = 100
"""If the store refuses this many objects and gives none, the rest is not requested."""


@dataclass(frozen=True)
class LocalImage:
    """An image of the snapshot and the file that holds it. `sha256` is of the object's bytes: of a DICOM object, the file holds
    its pixels only."""

    key: str
    label: str
    sha256: str
    path: Path


@dataclass(frozen=True)
class _Refusal:
    """An object that the store does not give, and what it said."""

    key: str
    error: StorageError


@dataclass
class Counts:
    """What a synchronisation did. `mb` and `seconds` are of what was fetched, `unreadable` counts what the store refused."""

    images: int = 0
    fetched: int = 0
    unreadable: int = 0
    mb: float = 0.0
    seconds: float = 0.0


def sync_images(
    store: ObjectStore,
    rows: Sequence[ImageRow],
    cache: ImageCache,
    *,
    reread: bool = False,
    parallel: int = PARALLEL,
    counts: Counts | None = None,
    unreadable: dict[str, str] | None = None,
    pseudonyms: GivesPseudonyms | None = None,
) -> list[LocalImage]:
    """Return the files of a snapshot's images, in the snapshot's order.

    An object may be listed and still not be readable: archived, or encrypted with a key that is not ours. Whoever uploads can
    make such objects, so they must not stop a run; a bucket that refuses everything must.

    Args:
        store: the bucket.
        rows: the snapshot's images.
        cache: where they are stored; what this snapshot uses is not evicted while this process lives.
        reread: digest again what is already there, against damage that left size and time as they were.
        parallel: objects fetched at once.
        counts: filled in, for reporting.
        unreadable: filled in with key -> why the store refuses this object while it gives others; these are left out of the
            result. None: such an object is an error.
        pseudonyms: of the patients in DICOM files; None keeps nothing of who they are.

    Raises:
        ObjectChanged: an object is no longer the one that the snapshot lists.
        StorageError: the store failed, or refused objects that are not `unreadable`. What had arrived stays in the cache.
        CacheError: the disk is full, or the cache cannot be written.
    """
    counts = Counts() if counts is None else counts
    counts.images = len(rows)
    names = [_identity_in(store.bucket, row) for row in rows]
    held = cache.find(names, reread=reread)
    missing = [(name, row) for name, row in zip(names, rows) if name not in held]
    if missing:
        needed = sum(row.size for _, row in missing)
        log.info("%d of %d images are in %s; fetching %.1f MB", len(held), len(rows), cache.directory, needed / 1e6)
        cache.make_room(needed)
        arrived, refused = _fetch_all(Transfer(store, pseudonyms=pseudonyms), missing, cache, parallel, counts)
        held.update(arrived)
        if refused:
            readable = (row for name, row in zip(names, rows) if name in held)
            _keep_refusals(store, refused, next(readable, None), counts, unreadable)
    return [
        LocalImage(row.key, row.label, held[name], cache.path_of(held[name])) for name, row in zip(names, rows) if name in held
    ]


def _keep_refusals(
    store: ObjectStore, refused: list[_Refusal], readable: ImageRow | None, counts: Counts, unreadable: dict[str, str] | None
) -> None:
    """Fill in `unreadable`, if it is the objects that cannot be read and not the bucket.

    Args:
        readable: an image that could be read. The store is asked about it once more, since permissions end and tokens expire.

    Raises:
        StorageError: nothing can be read, or nobody asked for `unreadable`.
    """
    if unreadable is None or readable is None:
        raise refused[0].error
    try:
        store.head(readable.key)
    except StorageError as error:
        raise (error if error.retryable else refused[0].error) from None  # an answer to HEAD has no words
    unreadable.update((refusal.key, str(refusal.error)) for refusal in refused)
    counts.unreadable = len(refused)
    log.warning("the store lists %d images but does not give them; the first: %s", len(refused), refused[0].error)


def _identity_in(bucket: str, row: ImageRow) -> bytes:
    return hashlib.sha256(f"{bucket}\0{row.key}\0{identity(row)}\0{row.size}".encode()).digest()


def _fetch_all(
    transfer: Transfer, missing: list[tuple[bytes, ImageRow]], cache: ImageCache, parallel: int, counts: Counts
) -> tuple[dict[bytes, str], list[_Refusal]]:
    """Fetch what is missing: identity -> sha256 of what arrived, and what the store refused for good."""
    incoming = cache.incoming()
    progress = _Progress(len(missing), sum(row.size for _, row in missing))
    tasks = iter(enumerate(missing))
    taking, stop = threading.Lock(), threading.Event()
    done: queue.SimpleQueue[Arrival | Exception | None] = queue.SimpleQueue()
    refused: list[_Refusal] = []

    def work() -> None:
        """Fetch until nothing is left or something failed; each worker ends with None."""
        try:
            while not stop.is_set():
                with taking:
                    task = next(tasks, None)
                if task is None:
                    return
                number, (name, row) = task
                path = incoming / str(number)
                try:
                    fetched = transfer.fetch(row, path)
                    done.put(Arrival(name, path, fetched.sha256, row.size, fetched.file_sha256))
                except StorageError as error:
                    if error.retryable or isinstance(error, (ObjectChanged, BucketNotFound)):
                        raise
                    refused.append(_Refusal(row.key, error))
                    if len(refused) > _REFUSED_WITHOUT_ARRIVAL and not progress.images:
                        raise
        except OSError as error:
            done.put(cache_error(cache.directory, error))
        except Exception as error:
            done.put(error)
        finally:
            done.put(None)

    workers = [threading.Thread(target=work, name=f"fetch-{n}", daemon=True) for n in range(min(parallel, len(missing)))]
    for worker in workers:
        worker.start()
    arrived: dict[bytes, str] = {}
    try:
        for batch in _batches(done, len(workers), progress):
            cache.publish(batch)
            arrived.update((arrival.identity, arrival.sha256) for arrival in batch)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    counts.fetched, counts.mb, counts.seconds = progress.images, progress.bytes / 1e6, progress.seconds
    log.info("fetched %d images, %.1f MB, in %.1f s", counts.fetched, counts.mb, counts.seconds)
    return arrived, sorted(refused, key=lambda refusal: refusal.key)


def _batches(done: queue.SimpleQueue[Arrival | Exception | None], workers: int, progress: _Progress) -> Iterator[list[Arrival]]:
    """Yield what the workers fetched, some hundred at a time; after the last batch, the first failure is raised."""
    batch: list[Arrival] = []
    failure: Exception | None = None
    while workers:
        try:
            result = done.get(timeout=PROGRESS_EVERY)
        except queue.Empty:
            progress.tell()
            continue
        if result is None:
            workers -= 1
        elif isinstance(result, Exception):
            failure = failure or result
            break
        else:
            batch.append(result)
            progress.count(result.size)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
    if failure is not None:
        raise failure


class _Progress:
    """Tells every few seconds how far the download is."""

    def __init__(self, images: int, size: int) -> None:
        self._all_images, self._all_bytes = images, size
        self._began = self._told = time.monotonic()
        self.images = self.bytes = 0

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def count(self, size: int) -> None:
        """One more image."""
        self.images += 1
        self.bytes += size
        self.tell()

    def tell(self) -> None:
        """Log, if it is time."""
        now = time.monotonic()
        if now - self._told < PROGRESS_EVERY:
            return
        self._told = now
        rate = self.bytes / self.seconds
        left = f"about {(self._all_bytes - self.bytes) / rate:.0f} s left" if rate else "nothing arrived yet"
        log.info(
            "fetched %d of %d images, %.1f of %.1f MB, %.1f MB/s, %s",
            *(self.images, self._all_images, self.bytes / 1e6, self._all_bytes / 1e6, rate / 1e6, left),
        )


def training_view(images: Sequence[LocalImage], directory: Path) -> Path:
    """Return one folder per class with links into the cache, for `image_dataset_from_directory`.

    The links' names keep what is readable of the keys' and are different for different keys, on file systems that
    ignore case too. They sort as the keys do.

    Args:
        images: in the snapshot's order.
        directory: becomes the view; a view that is there already is replaced.

    Returns:
        `directory`.

    Raises:
        ConfigError: a class' name cannot name a folder.
        CacheError: the links cannot be made.
    """
    building = directory.with_name(f".{directory.name}-{uuid.uuid4().hex[:8]}")
    try:
        for label in sorted({image.label for image in images}):
            if label in ("", ".", "..") or "/" in label or "\0" in label:
                raise ConfigError(f"the class {label!r} cannot name a folder")
            (building / label).mkdir(parents=True)
        for number, image in enumerate(sorted(images, key=lambda image: image.key)):
            (building / image.label / _link_name(number, image.key)).symlink_to(image.path.absolute())
        if directory.is_symlink() or directory.is_file():
            directory.unlink()
        elif directory.exists():
            shutil.rmtree(directory)
        building.replace(directory)
    except OSError as error:
        raise cache_error(directory, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return directory


_KERAS_READS = (".png", ".jpg", ".jpeg", ".bmp")
"""`image_dataset_from_directory` silently skips other names."""


def _link_name(number: int, key: str) -> str:
    name = PurePosixPath(key.rpartition("/")[2])
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name.stem)[:60].strip("-")
    suffix = name.suffix.lower()
    return f"{number:07d}-{readable}{suffix if suffix in _KERAS_READS else '.png'}"  # of DICOM, the cache holds a PNG
