"""Where an unfinished training survives: one file, in this worker's cache and in the bucket.

It is named by the snapshot's, the parameters' and the split's digests and by the fold, so that a retry finds it anywhere, and
another run about the same images with the same parameters and the same split goes on from it too.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bcc_ops.dataset.image_cache import write_whole
from bcc_ops.exceptions import CacheError, StorageError
from bcc_ops.runs.documents import EpochRow
from bcc_ops.runs.object_store import ObjectStore

log = logging.getLogger(__name__)

_FORMAT = 5
_NOTE = "checkpoint_digests"
ABANDONED_AFTER = 14 * 24 * 3600
"""Seconds since it was written after which nobody comes back for a checkpoint, or for what else a training left here."""


@dataclass(frozen=True)
class Checkpoint:
    """What training had reached at the end of an epoch.

    Attributes:
        variables: of the model and then the optimizer, in their order: weights, moments, averages, random states.
        weights: of the model that training would end with now.
        rows: the epochs so far.
        resumed_after: for each earlier resumption, how many epochs were done by then.
        seconds: spent so far, over all attempts.
    """

    variables: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    rows: tuple[EpochRow, ...]
    resumed_after: tuple[int, ...]
    seconds: float

    @property
    def epochs(self) -> int:
        """How many epochs are done."""
        return len(self.rows)

    def to_bytes(self, training: str) -> bytes:
        """Return the checkpoint as an `.npz` file.

        Args:
            training: names what it is a checkpoint of; `from_bytes` refuses it for anything else.
        """
        meta = {
            "format": _FORMAT,
            "training": training,
            "rows": [row.model_dump(mode="json") for row in self.rows],
            "resumed_after": self.resumed_after,
            "seconds": self.seconds,
        }
        arrays = {f"variable{position}": array for position, array in enumerate(self.variables)}
        arrays |= {f"weight{position}": array for position, array in enumerate(self.weights)}
        file = io.BytesIO()
        np.savez(file, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, training: str) -> Checkpoint:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is damaged, of another format or of another training.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                meta = json.loads(arrays["meta"].tobytes())
                if meta["format"] != _FORMAT:
                    raise ValueError(f"format {meta['format']}, not {_FORMAT}")
                if meta["training"] != training:
                    raise ValueError(f"it is of the training {meta['training']!r}")
                return cls(
                    _numbered(arrays, "variable"),
                    _numbered(arrays, "weight"),
                    tuple(EpochRow.model_validate(row) for row in meta["rows"]),
                    tuple(meta["resumed_after"]),
                    float(meta["seconds"]),
                )
        except Exception as error:  # zipfile and numpy raise anything on damaged headers: NotImplementedError, zlib.error, …
            raise ValueError(f"{type(error).__name__}: {error}") from None

    def fits(self, variables: Sequence[Any], weights: Sequence[Any]) -> bool:
        """Return whether it holds an array for each of these variables, of its shape."""
        return [array.shape for array in self.variables] == [tuple(v.shape) for v in variables] and (
            [array.shape for array in self.weights] == [tuple(v.shape) for v in weights]
        )


def _numbered(arrays: Any, name: str) -> tuple[np.ndarray, ...]:
    count = sum(entry.startswith(name) for entry in arrays.files)
    return tuple(arrays[f"{name}{position}"] for position in range(count))


class Notes(Protocol):
    """A few values that outlive a task's attempt and that nobody else writes: Airflow's `task_state_store` is one."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or `default`."""

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""


class CheckpointFolder:
    """The one checkpoint of a training, in the cache and, if a store is given, in the bucket.

    Others can write to the bucket, so a checkpoint from there counts only if its digest was noted when it was saved. After a
    task was cleared there is no note, and a checkpoint counts if it names this very training.

    Args:
        cache_dir: this worker's cache.
        folder: the training's folder, below the cache and in the bucket (`run_paths.checkpoint_folder`).
        store: the bucket; None keeps the checkpoint on this machine alone.
        notes: where digests are noted; None notes nothing.
    """

    def __init__(self, cache_dir: Path, folder: str, store: ObjectStore | None, notes: Notes | None = None) -> None:
        self.path = cache_dir / folder / "checkpoint.npz"
        self.folder = folder
        self.store = store
        self.notes = notes
        self._noted: list[str] | None = None

    @property
    def key(self) -> str:
        """The checkpoint's key in the bucket."""
        return f"{self.folder}/checkpoint.npz"

    @property
    def history(self) -> Path:
        """Where a training in a process of its own keeps the history of its epochs, beside the checkpoint."""
        return self.path.with_name("history.csv")

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint in the place of the one before.

        A disk or a bucket that does not take it only causes a warning: a training that goes well must not be lost.
        """
        content = checkpoint.to_bytes(self.folder)
        self._keep_here(content)
        self._keep_in_bucket(content)

    def take_over(self) -> None:
        """Keep the best checkpoint that there is on this machine, for a training in a process that knows no bucket."""
        found = self.load()
        if found is not None:
            self._keep_here(found.to_bytes(self.folder))

    def hand_on(self) -> None:
        """Keep in the bucket what such a process has saved on this machine."""
        content = self._read_cache()
        if content is not None:
            self._keep_in_bucket(content)

    def _keep_here(self, content: bytes) -> None:
        try:
            with write_whole(self.path) as file:
                file.write(content)
        except CacheError as error:
            log.warning("the checkpoint is not kept on this worker: %s", error)

    def _keep_in_bucket(self, content: bytes) -> None:
        if self.store is None:
            return
        self._note(hashlib.sha256(content).hexdigest())
        try:
            self.store.put(self.key, content)
        except StorageError as error:
            log.warning("the checkpoint is not kept in the bucket: %s", error)

    def load(self) -> Checkpoint | None:
        """Return the checkpoint with the most epochs; None if there is none. A damaged one is ignored with a warning."""
        found = []
        for origin, read in ((str(self.path), self._read_cache), (f"the bucket's {self.key}", self._read_bucket)):
            content = read()
            if content is None:
                continue
            try:
                found.append(Checkpoint.from_bytes(content, self.folder))
            except ValueError as error:
                log.warning("the checkpoint in %s is ignored: it is damaged or of another kind (%s)", origin, error)
        return max(found, key=lambda checkpoint: checkpoint.epochs, default=None)

    def _read_cache(self) -> bytes | None:
        return self.path.read_bytes() if self.path.exists() else None

    def _read_bucket(self) -> bytes | None:
        if self.store is None or self.store.head(self.key) is None:
            return None
        content, noted = self.store.get(self.key), self._read_notes()
        if noted and hashlib.sha256(content).hexdigest() not in noted:
            log.warning("the checkpoint in the bucket's %s is ignored: it is not the one that this task saved", self.key)
            return None
        return content

    def _note(self, digest: str) -> None:
        """Note a digest beside the one before: whichever of the two the bucket holds after a crash, it is known."""
        if self.notes is None:
            return
        self._noted = [*self._read_notes()[-1:], digest]
        try:
            self.notes.set(_NOTE, self._noted)
        except Exception as error:  # an API server that is away must not end a training
            log.warning("the digest of the checkpoint could not be noted, training goes on: %s", error)

    def _read_notes(self) -> list[str]:
        if self._noted is None:
            noted = self.notes.get(_NOTE) if self.notes is not None else None
            self._noted = [str(digest) for digest in noted] if isinstance(noted, list) else []
        return self._noted

    def clear(self) -> None:
        """Remove it: the training is done. What cannot be removed is named in a warning.

        This also removes what trainings that never ended, or ended on another worker, left here long ago.
        """
        abandoned = time.time() - ABANDONED_AFTER
        try:
            if self.store is not None:
                self.store.delete_folder(self.folder)
            for path in self.path.parent.glob("*"):
                path.unlink(missing_ok=True)
            for path in self.path.parent.parent.glob("*/*"):
                with suppress(FileNotFoundError):  # the training of another fold tidies up too
                    if path.stat().st_mtime < abandoned:
                        path.unlink()
        except (OSError, StorageError) as error:
            log.warning("the checkpoint %s could not be removed: %s", self.folder, error)
