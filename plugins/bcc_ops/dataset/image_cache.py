"""The images' cache on a worker: files named by their sha256, and an index of which object has which content.

    files/<a>/<sha256>      the images, read-only; of a DICOM object, what `dataset.dicom` keeps of it, by the object's sha256
    index.sqlite3           object -> sha256; sha256 -> size, modification time, last use; sha256 of DICOM -> that of its file
    pins/<start>-<id>       one per process, locked while it lives: what was used since <start> is not evicted
    incoming/<start>-<id>/  what that process is fetching

A file enters by a rename and leaves by an unlink, both inside a transaction of the index: a kill at any moment leaves a
good cache, and two processes on one cache do each other no harm. The index holds nothing that cannot be fetched again;
a damaged one is thrown away. The directory must be on a disk of this machine (locks of network file systems vary).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bcc_ops.dataset.dicom import METHOD
from bcc_ops.dataset.resources import cores
from bcc_ops.exceptions import CacheError

log = logging.getLogger(__name__)

PIN_OUTLIVES_PROCESS = 6 * 3600.0
"""Seconds: the tasks of a run are processes of their own, and what one fetched must be there for the next."""
_INDEX = "index.sqlite3"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS contents (sha256 TEXT PRIMARY KEY, size INTEGER, modified_ns INTEGER, used_ns INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (identity BLOB PRIMARY KEY, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS converted (sha256 TEXT PRIMARY KEY, file_sha256 TEXT, method INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS objects_of_content ON objects (sha256);
CREATE INDEX IF NOT EXISTS contents_by_use ON contents (used_ns);
"""


@dataclass(frozen=True)
class Arrival:
    """A file that was fetched and verified and waits in `incoming` to be published.

    `sha256` and `size` are of what was fetched. `file_sha256` is of the file if something else is kept of it, else None.
    """

    identity: bytes
    path: Path
    sha256: str
    size: int
    file_sha256: str | None = None


class _Recorded(NamedTuple):
    """What the index says of a file. `method` is the one that made it; None if it is as it was fetched."""

    stamp: tuple[int, int]
    file_sha256: str
    method: int | None


def sha256_of_file(path: Path) -> str:
    """Return sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class ImageCache:
    """The cache in one directory.

    Args:
        directory: made if it is not there.
        budget_bytes: what the files may take together. What live runs need stays even beyond it.
        pin_outlives_process: seconds for which a run's images are kept after the process that used them ended.

    Raises:
        CacheError: on first use, if the directory cannot be written.
    """

    def __init__(self, directory: Path, budget_bytes: int, pin_outlives_process: float = PIN_OUTLIVES_PROCESS) -> None:
        self.directory = directory
        self.budget_bytes = budget_bytes
        self.pin_outlives_process = pin_outlives_process

    def path_of(self, sha256: str) -> Path:
        """Return the path of the content with this digest, or None if it is not there."""
        # Sixteen folders and not 256: to make those took a seventh of a cold download of 600 images.
        return self.directory / "files" / sha256[0] / sha256

    def find(self, identities: Iterable[bytes], *, reread: bool = False) -> dict[bytes, str]:
        """Return which objects are here: identity -> sha256. They are kept from now on until this process ends.

        A file whose size or modification time is not as recorded is read again; one with another content is removed, and so is
        one that an older release made of DICOM.

        Args:
            identities: the objects asked for.
            reread: read and digest every file, not only those that look touched.
        """
        self.pin()
        used = time.time_ns()
        with self._transaction() as index:
            found: dict[bytes, str] = {}
            recorded: dict[str, _Recorded] = {}
            query = (
                "SELECT sha256, size, modified_ns, coalesce(file_sha256, sha256), method FROM objects "
                "JOIN contents USING (sha256) LEFT JOIN converted USING (sha256) WHERE identity = ?"
            )
            for identity in identities:
                row = index.execute(query, (identity,)).fetchone()
                if row:
                    found[identity] = row[0]
                    recorded[row[0]] = _Recorded((row[1], row[2]), *row[3:])
            index.executemany("UPDATE contents SET used_ns = ? WHERE sha256 = ?", ((used, sha256) for sha256 in recorded))
        damaged = self._damaged(recorded, reread)
        return {identity: sha256 for identity, sha256 in found.items() if sha256 not in damaged}

    def _damaged(self, recorded: dict[str, _Recorded], reread: bool) -> set[str]:
        """Return which contents are not what they were; they are removed. Unchanged ones that only look touched are recorded
        again.
        """
        suspects = [
            sha256
            for sha256, known in recorded.items()
            if reread or self._stamp(sha256) != known.stamp or known.method not in (None, METHOD)
        ]
        if not suspects:
            return set()

        def is_good(sha256: str) -> bool:
            known = recorded[sha256]
            try:
                return known.method in (None, METHOD) and sha256_of_file(self.path_of(sha256)) == known.file_sha256
            except OSError:
                return False

        with ThreadPoolExecutor(cores()) as readers:
            good = dict(zip(suspects, readers.map(is_good, suspects)))
        damaged = {sha256 for sha256 in suspects if not good[sha256]}
        with self._transaction() as index:
            for sha256 in suspects:
                if sha256 in damaged:
                    self._remove(index, sha256)
                elif (stamp := self._stamp(sha256)) != recorded[sha256].stamp:
                    index.execute("UPDATE contents SET size = ?, modified_ns = ? WHERE sha256 = ?", (*stamp, sha256))
        if damaged:
            log.warning("%d files in %s were damaged, gone or outdated and are fetched again", len(damaged), self.directory)
        return damaged

    def _stamp(self, sha256: str) -> tuple[int, int]:
        try:
            status = self.path_of(sha256).stat()
        except OSError:
            return (-1, -1)
        return (status.st_size, status.st_mtime_ns)

    def incoming(self) -> Path:
        """Return a directory on the cache's disk for what this process is fetching."""
        directory = self.directory / "incoming" / self.pin().name
        with self._telling():
            directory.mkdir(parents=True, exist_ok=True)
        return directory

    def publish(self, arrivals: Sequence[Arrival]) -> None:
        """Take fetched files into the cache. The same content twice is kept once."""
        used = time.time_ns()
        with self._transaction() as index:
            for arrival in arrivals:
                place = self.path_of(arrival.sha256)
                with self._telling():
                    try:
                        arrival.path.replace(place)
                    except FileNotFoundError:
                        place.parent.mkdir(parents=True, exist_ok=True)
                        arrival.path.replace(place)
                size, modified = self._stamp(arrival.sha256)
                index.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?)", (arrival.sha256, size, modified, used))
                index.execute("INSERT OR REPLACE INTO objects VALUES (?, ?)", (arrival.identity, arrival.sha256))
                if arrival.file_sha256 is not None:
                    row = (arrival.sha256, arrival.file_sha256, METHOD)
                    index.execute("INSERT OR REPLACE INTO converted VALUES (?, ?, ?)", row)
        with suppress(OSError):
            os.utime(self.pin())

    def make_room(self, needed: int) -> None:
        """Evict what was used longest ago until `needed` more bytes fit the budget; never what a live run uses.

        Raises:
            CacheError: the disk does not have that many bytes left.
        """
        floor = self._oldest_pin()
        with self._transaction() as index:
            held = index.execute("SELECT coalesce(sum(size), 0) FROM contents").fetchone()[0]
            evicted = 0
            if held + needed > self.budget_bytes:
                self._sweep(index)
            rows = index.execute("SELECT sha256, size FROM contents WHERE used_ns < ? ORDER BY used_ns", (floor,)).fetchall()
            for sha256, size in rows:
                if held - evicted + needed <= self.budget_bytes:
                    break
                self._remove(index, sha256)
                evicted += size
        if evicted:
            log.info("evicted %.1f MB of images that no live run uses from %s", evicted / 1e6, self.directory)
        if held - evicted + needed > self.budget_bytes:
            log.warning(
                "the images of the live runs take %.1f GB, more than the cache's budget of %.1f GB (BCC_CACHE_BUDGET_GB)",
                (held - evicted + needed) / 1e9,
                self.budget_bytes / 1e9,
            )
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise CacheError(
                f"{self.directory} needs {needed / 1e6:.1f} MB more and its disk has {free / 1e6:.1f} MB left; "
                "make room there, or set BCC_CACHE_DIR to a larger disk"
            )

    def _remove(self, index: sqlite3.Connection, sha256: str) -> None:
        index.execute("DELETE FROM objects WHERE sha256 = ?", (sha256,))
        index.execute("DELETE FROM contents WHERE sha256 = ?", (sha256,))
        index.execute("DELETE FROM converted WHERE sha256 = ?", (sha256,))
        with self._telling():
            self.path_of(sha256).unlink(missing_ok=True)

    def _sweep(self, index: sqlite3.Connection) -> None:
        """Remove files that the index does not know: their process was killed between rename and commit."""
        known = {sha256 for (sha256,) in index.execute("SELECT sha256 FROM contents")}
        for path in (self.directory / "files").glob("?/*"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def pin(self) -> Path:
        """Make this process' pin; what is used from its beginning on is not evicted while the process lives."""
        return self._pin[0]

    @cached_property
    def _pin(self) -> tuple[Path, int]:
        pins = self.directory / "pins"
        name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
        with self._telling():
            pins.mkdir(parents=True, exist_ok=True)
            unlocked = pins / f".{name}"
            lock = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            unlocked.rename(pins / name)  # nobody ever sees a pin by this name that is not locked
        self._drop_dead(pins)
        return pins / name, lock

    def close(self) -> None:
        """Let go of the index and the pin, as the process' end does."""
        index, pin = self.__dict__.pop("_index", None), self.__dict__.pop("_pin", None)
        if index is not None:
            index.close()
        if pin is not None:
            shutil.rmtree(self.directory / "incoming" / pin[0].name, ignore_errors=True)
            os.close(pin[1])

    def _drop_dead(self, pins: Path) -> None:
        """Remove what dead processes were fetching, and their pins once those have outlived them for long enough."""
        incoming = self.directory / "incoming"
        # Listed before the pins: a process makes its pin first, so that one which begins meanwhile is not taken for dead.
        directories = list(incoming.iterdir()) if incoming.exists() else []
        alive = {pin.name for pin in pins.iterdir() if self._is_locked(pin)}
        for directory in directories:
            if directory.name not in alive:
                shutil.rmtree(directory, ignore_errors=True)
        for pin in pins.iterdir():
            with suppress(FileNotFoundError):
                if pin.name not in alive and time.time() - pin.stat().st_mtime > self.pin_outlives_process:
                    pin.unlink()

    def _oldest_pin(self) -> int:
        """Nanoseconds since the epoch: what was used before is used by no live run."""
        own = self.pin()
        self._drop_dead(own.parent)
        return min(int(pin.name.lstrip(".").split("-")[0]) for pin in own.parent.iterdir())

    @staticmethod
    def _is_locked(pin: Path) -> bool:
        try:
            probe = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(probe)
        return False

    @cached_property
    def _index(self) -> sqlite3.Connection:
        with self._telling():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.chmod(0o700)  # images of patients: earlier releases left the folder open
            try:
                return self._open_index()
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                log.warning("the index of %s is damaged (%s); its images are fetched again", self.directory, error)
                throw_away(self.directory / _INDEX)
                return self._open_index()

    def _open_index(self) -> sqlite3.Connection:
        index = sqlite3.connect(self.directory / _INDEX, timeout=60, isolation_level=None)
        try:
            # Nothing is lost with the index but time, so no commit waits for the disk.
            index.execute("PRAGMA synchronous = OFF")
            index.executescript(_SCHEMA)
        except sqlite3.Error:
            index.close()
            raise
        return index

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._telling():
            index = self._index
            index.execute("BEGIN IMMEDIATE")
            try:
                yield index
                index.execute("COMMIT")
            except BaseException:
                index.execute("ROLLBACK")
                raise

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cache_error(self.directory, error) from error
        except sqlite3.Error as error:
            if is_damage(error) and "_index" in self.__dict__:  # opening it had read no more than its first pages
                self.__dict__.pop("_index").close()
                throw_away(self.directory / _INDEX)
                raise CacheError(f"the index of {self.directory} is damaged and was thrown away: {error}") from error
            raise CacheError(f"the cache's index in {self.directory}: {error}; removing the directory is safe") from error


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether SQLite says that a file is not a database (any more), for which it has no class of errors.

    Locked, full and not writable are an `OperationalError`.
    """
    return type(error) is sqlite3.DatabaseError


def throw_away(database: Path) -> None:
    """Remove an SQLite file and its journals."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write to, which replaces the one at `path` once the block has ended well.

    Raises:
        CacheError: the disk does not take it. Nothing is left of it.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise cache_error(path.parent, error) from error
    finally:
        part.unlink(missing_ok=True)


def cache_error(directory: Path, error: OSError) -> CacheError:
    """Return the project's error for an operating system's, in one line."""
    if error.errno in _FULL:
        return CacheError(f"the disk of {directory} is full; make room there, or set BCC_CACHE_DIR to a larger disk")
    return CacheError(f"{directory} cannot be used as a cache: {error.strerror or error} (BCC_CACHE_DIR names it)")
