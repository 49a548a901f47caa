"""What the image checks learned, kept in the bucket: a worker fetches what it lacks, and adds what it learned anew.

    <artifacts_prefix>/inspections/<version>/<kind>/<sha256>.parquet       shards, each named by its own digest

A shard is written once and never changed, so that workers which write at the same time lose nothing of each other's. Small ones
are merged when there are many; the merged one is written before they are removed. Nothing here can fail a run: what the bucket
does not give is learned again.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bcc_ops.dataset.inspection_cache import InspectionCache
from bcc_ops.dataset.inspection_shards import (
    FACTS,
    FINDINGS,
    KINDS,
    LARGEST_SHARD,
    ROWS_PER_SHARD,
    SEARCH,
    SIMILARITY,
    VERSION,
    Shard,
    places_of,
    read_shard,
    write_shard,
)
from bcc_ops.exceptions import ArtifactError, BccError, BucketNotFound, ObjectNotFound, StorageError, StorageUnavailable
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import inspections_root
from bcc_ops.runs.tables import read_digests

if TYPE_CHECKING:
    from bcc_ops.config import RetrainingConfig

log = logging.getLogger(__name__)

MERGED_FROM = 32
"""This many small shards of a kind are merged; at most this many searches are kept."""

SMALL = {FACTS: 4 * 2**20, FINDINGS: 2**19, SIMILARITY: 2**21}
"""Bytes, less than a full shard of the kind has. A larger one is no longer merged."""

_AT_ONCE = 4
_NAME = re.compile(rf"({'|'.join(KINDS)})/[0-9a-f]{{64}}\.parquet")


@dataclass(frozen=True)
class _Listed:
    """A shard in the bucket; `name` is its key below the folder of its version."""

    name: str
    size: int
    written: datetime

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]

    @property
    def sha256(self) -> str:
        return Path(self.name).stem


@contextmanager
def sharing_inspections(
    store: ObjectStore,
    artifacts_prefix: str,
    memory_path: Path,
    contents: Collection[str],
    config: RetrainingConfig,
    *,
    with_search: bool = True,
) -> Iterator[None]:
    """Fetch what other workers learned before the block, and keep what it learned, even if it fails.

    Args:
        store: the bucket.
        artifacts_prefix: under which everything is kept.
        memory_path: where this worker keeps what the checks learned of each content.
        contents: sha256 of the images that the block is about, complete when it ends. Of others, nothing is written: an image
            that was erased must not come back.
        config: `min_side` and `max_pixels` count.
        with_search: whether to keep the search of features, for the next one to go on from.
    """
    fetch_inspections(store, artifacts_prefix, memory_path)
    try:
        yield
    finally:
        with _never_failing("Other workers check anew what was learned here"):
            with InspectionCache(memory_path) as memory:
                _keep(_Place.of(store, artifacts_prefix), memory, frozenset(contents), config, with_search=with_search)


def fetch_inspections(store: ObjectStore, artifacts_prefix: str, memory_path: Path) -> None:
    """Fetch what other workers learned. Arguments are those of `sharing_inspections`."""
    with _never_failing("What other workers learned is not used, and all that is not known here is checked anew"):
        with InspectionCache(memory_path) as memory:
            _fetch(_Place.of(store, artifacts_prefix), memory)


def shards_about(store: ObjectStore, artifacts_prefix: str, digests: set[str]) -> Iterator[tuple[str, str]]:
    """Yield key and version id ("" in a bucket without versions) of the shards that have a row about one of these contents
    (sha256), of every method and also of those that were merged away.

    One that cannot be read may have such a row: it is named too. One shard is read at a time.
    """
    seen: set[tuple[str, str]] = set()
    complete = not digests
    while not complete:
        complete = True
        for entry in store.list_everything(inspections_root(artifacts_prefix)):
            key, version = entry["Key"], entry.get("VersionId", "")
            if (key, version) in seen or entry.get("DeleteMarker"):
                continue
            seen.add((key, version))
            try:
                if entry["Size"] > LARGEST_SHARD or not digests.isdisjoint(read_digests(store.get(key, version or None))):
                    yield key, version
            except ObjectNotFound:  # merged meanwhile: the one that has its rows now is found by another listing
                complete = False
            except (StorageUnavailable, BucketNotFound):
                raise
            except (ArtifactError, StorageError):
                yield key, version


@dataclass(frozen=True)
class _Place:
    store: ObjectStore
    folder: str

    @classmethod
    def of(cls, store: ObjectStore, artifacts_prefix: str) -> _Place:
        return cls(store, f"{inspections_root(artifacts_prefix)}{VERSION}/")

    def list(self) -> dict[str, _Listed]:
        """Return the shards by name; other objects are ignored."""
        found = {}
        for entry in self.store.list_objects(self.folder):
            name = entry["Key"].removeprefix(self.folder)
            if _NAME.fullmatch(name):
                found[name] = _Listed(name, entry["Size"], entry["LastModified"])
        return found

    def read(self, listed: _Listed) -> Shard | ArtifactError | StorageError | None:
        """Return a shard, why it is refused or cannot be read, or None if it is gone.

        Raises:
            StorageUnavailable, BucketNotFound: the others cannot be read either.
        """
        try:
            if listed.size > LARGEST_SHARD:
                raise ArtifactError(f"has more than {LARGEST_SHARD // 2**20} MiB")
            content, _ = self.store.get_with_etag(f"{self.folder}{listed.name}", at_most=LARGEST_SHARD)
            if hashlib.sha256(content).hexdigest() != listed.sha256:
                raise ArtifactError("is damaged: its name promises other content")
            return read_shard(listed.kind, content)
        except ObjectNotFound:
            return None
        except (StorageUnavailable, BucketNotFound):
            raise
        except (ArtifactError, StorageError) as error:
            return error

    def write(self, memory: InspectionCache, shard: Shard) -> int:
        """Write a shard unless it is known to be there; return its size, 0 if nothing was written."""
        content = write_shard(shard)
        name = f"{shard.kind}/{hashlib.sha256(content).hexdigest()}.parquet"
        if len(content) > LARGEST_SHARD:
            return 0
        is_there = memory.shards().get(name)
        if not is_there:
            self.store.put(f"{self.folder}{name}", content)
        memory.take_over(name, shard)
        return 0 if is_there else len(content)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.store.delete(f"{self.folder}{name}")


@contextmanager
def _never_failing(consequence: str) -> Iterator[None]:
    try:
        yield
    except BccError as error:
        log.warning("%s: %s", consequence, error)
    except Exception:  # a defect here must not cost a night, nor hide the block's own error
        log.exception("%s", consequence)


def _searches(listed: Mapping[str, _Listed]) -> list[_Listed]:
    """Return the searches, the oldest first."""
    return sorted((one for one in listed.values() if one.kind == SEARCH), key=lambda one: one.written)


def _fetch(place: _Place, memory: InspectionCache) -> None:
    """Read the shards that were not read here yet."""
    for _ in range(2):  # a shard that goes meanwhile was merged: the one that has its rows now is found by a second listing
        listed = place.list()
        memory.forget_shards(listed)
        known = memory.shards()
        wanted = [one for one in listed.values() if one.kind != SEARCH] + _searches(listed)[-1:]
        # The largest last: a row that is in several is known to be in that one, and the small ones can be merged away.
        missing = sorted((one for one in wanted if one.name not in known), key=lambda one: one.size)
        if missing:
            log.info(
                "reading %d shards of what other workers learned, %.1f MB", len(missing), sum(one.size for one in missing) / 1e6
            )
        if _read(place, memory, missing):
            return


def _read(place: _Place, memory: InspectionCache, missing: Sequence[_Listed]) -> bool:
    """Read shards, a few at once; return whether all were there."""
    complete = True
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(missing), _AT_ONCE):
            part = missing[start : start + _AT_ONCE]
            for one, shard in zip(part, pool.map(place.read, part)):
                if shard is None:
                    complete = False
                elif isinstance(shard, ArtifactError):
                    memory.refuse_shard(one.name)
                    log.warning(
                        "%s %s. It is ignored, and what it is about is checked anew; delete it",
                        place.store.uri(f"{place.folder}{one.name}"),
                        shard,
                    )
                elif isinstance(shard, StorageError):
                    log.warning("What it is about is checked anew: %s", shard)
                else:
                    memory.take_over(one.name, shard)
    return complete


def _keep(
    place: _Place, memory: InspectionCache, contents: frozenset[str], config: RetrainingConfig, *, with_search: bool
) -> None:
    written = 0
    for kind in (FACTS, FINDINGS, SIMILARITY):
        new = memory.places_not_shared(kind, contents, config.min_side, config.max_pixels)
        written += _write(place, memory, kind, new)
    if with_search:
        own = [search for search in memory.recall_searches() if contents.issuperset(search.contents)]
        if own:
            latest = max(enumerate(own), key=lambda numbered: (len(numbered[1].contents), numbered[0]))[1]
            written += place.write(memory, Shard(search=latest))
    if written:
        log.info("%.1f MB of what was learned here are in the bucket now", written / 1e6)
        _merge(place, memory)


def _write(place: _Place, memory: InspectionCache, kind: str, rows: Sequence[tuple[str, str]]) -> int:
    written = 0
    for start in range(0, len(rows), ROWS_PER_SHARD[kind]):
        part = rows[start : start + ROWS_PER_SHARD[kind]]
        shard = memory.recall_shared(kind, part)
        written += place.write(memory, shard) if shard else 0
        # A row that this worker would not share (it refuses the content, say) would keep a small shard for ever.
        memory.drop_places(kind, set(part).difference(places_of(shard)))
    return written


def _merge(place: _Place, memory: InspectionCache) -> None:
    """Merge the small shards of a kind that has many. Only what was read or written here is removed."""
    listed, known = place.list(), memory.shards()
    ours = [one for one in listed.values() if known.get(one.name)]
    for kind in (FACTS, FINDINGS, SIMILARITY):
        small = [one.name for one in ours if one.kind == kind and one.size < SMALL[kind]]
        if len(small) > MERGED_FROM:
            log.info("merging %d small shards of %s", len(small), kind)
            # First what an interrupted merge left: if that may not be removed, no merged shard is written every night.
            _delete_merged(place, memory, kind, small)
            _write(place, memory, kind, memory.places_in(kind, small))
            _delete_merged(place, memory, kind, small)
    searches = _searches(listed)
    if len(searches) > MERGED_FROM:
        place.delete(one.name for one in searches[:-1])


def _delete_merged(place: _Place, memory: InspectionCache, kind: str, names: Sequence[str]) -> None:
    """Remove those of these shards whose rows are all in others."""
    merged = [name for name in names if not memory.places_in(kind, [name])]
    place.delete(merged)
    memory.forget_shards(memory.shards().keys() - set(merged))
