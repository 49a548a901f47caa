"""What the image checks have learned of each content, kept between nights by the content's sha256.

One SQLite file on the worker's own disk. It holds nothing that cannot be learned again: a damaged one, or one of another
method, is thrown away. It also knows what of it is in the bucket, and in which shard (`dataset.shared_inspections`).
"""

from __future__ import annotations

import json
import logging
import sqlite3
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bcc_ops.dataset.content_findings import LOOKED_AT, WITH_TEXT
from bcc_ops.dataset.dicom import DicomTags
from bcc_ops.dataset.feature_search import FeatureSearch, Pair
from bcc_ops.dataset.fingerprints import DESCRIPTOR_BYTES, METHOD, Features, Fingerprint
from bcc_ops.dataset.image_cache import is_damage, throw_away
from bcc_ops.dataset.inspection_shards import FINDINGS, SIMILARITY, KnownContent, Shard, may_be_shared, method_of, places_of
from bcc_ops.dataset.properties import Properties
from bcc_ops.dataset.similarity import Similarity
from bcc_ops.exceptions import CacheError

log = logging.getLogger(__name__)

MEMORY_FILE = "checks/contents.sqlite3"
"""Where, under the worker's cache directory, the image checks remember what they learned."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (
    sha256 TEXT, min_side INTEGER, max_pixels INTEGER, reason TEXT, detail TEXT, width INTEGER, height INTEGER, mode TEXT,
    mean REAL, contrast REAL, synthetic INTEGER, properties TEXT, pixels TEXT, hash BLOB, points BLOB, descriptors BLOB,
    tags TEXT, PRIMARY KEY (sha256, min_side, max_pixels)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS similarity (
    one TEXT, other TEXT, similarity REAL, overlap REAL, PRIMARY KEY (one, other)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS findings (sha256 TEXT PRIMARY KEY, found TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feature_searches (number INTEGER PRIMARY KEY, contents TEXT, pairs TEXT);
CREATE TABLE IF NOT EXISTS shards (number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, refused INTEGER);
CREATE TABLE IF NOT EXISTS shared (
    kind TEXT, one TEXT, other TEXT, shard INTEGER, PRIMARY KEY (kind, one, other)) WITHOUT ROWID;
DROP TABLE IF EXISTS searches;
"""
_TABLES = ("facts", "findings", "similarity", "feature_searches", "shards", "shared")
_FORGET = "".join(f"DROP TABLE IF EXISTS {table};" for table in _TABLES)
_FACTS = ("reason", "detail", "width", "height", "mode", "mean", "contrast")
_REMEMBER = "INSERT OR REPLACE INTO facts VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_ROWS_A_COMMIT = 500
_SECONDS_A_COMMIT = 10.0
_SEARCHES_KEPT = 16


@dataclass(frozen=True)
class ContentFacts:
    """What is in one file. `reason` is "" for an image that can be used; else only `detail` counts too.

    `width` and `height` in pixels, `mode` as `DecodedImage.mode`, `mean` and `contrast` (standard deviation) of the gray
    values from 0 to 255.
    """

    reason: str = ""
    detail: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    mean: float = 0.0
    contrast: float = 0.0
    synthetic: bool = False
    properties: Properties | None = None
    fingerprint: Fingerprint | None = None
    tags: DicomTags | None = None
    """What is kept of a DICOM file beside its pixels; None for other formats."""


class InspectionCache:
    """The memory in one file; a context manager.

    Args:
        path: made, with its folder, if it is not there.

    Raises:
        CacheError: on entering or leaving: the file cannot be made, read or written, or turned out to be damaged and was
            thrown away, so that the next one starts over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reading = threading.Lock()

    def __enter__(self) -> InspectionCache:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open()
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                log.warning("%s is damaged (%s); what it held is learned again", self.path, error)
                throw_away(self.path)
                self._open()
        except (OSError, sqlite3.Error) as error:
            raise CacheError(f"{self.path} cannot be used: {error}") from None
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._db.close()
        if isinstance(error, sqlite3.Error):
            if is_damage(error):  # opening it had read no more than its first pages
                throw_away(self.path)
                raise CacheError(f"{self.path} is damaged and was thrown away: {error}") from error
            raise CacheError(f"{self.path} cannot be used: {error}") from error

    def _open(self) -> None:
        self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            if self._db.execute("PRAGMA user_version").fetchone()[0] != METHOD:
                self._db.executescript(f"{_FORGET} PRAGMA user_version={METHOD};")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error:
            self._db.close()
            raise

    def recall(self, contents: Iterable[str], min_side: int, max_pixels: int) -> dict[str, ContentFacts]:
        """Return what is known of these contents (sha256 -> facts), judged by the same limits. Others are absent."""
        query = (
            "SELECT reason, detail, width, height, mode, mean, contrast, synthetic, properties, pixels, hash, tags FROM facts "
            "WHERE sha256 = ? AND min_side = ? AND max_pixels = ?"
        )
        known: dict[str, ContentFacts] = {}
        for sha256 in sorted(contents):  # as they are in the file: else each row is a page from somewhere else
            row = self._db.execute(query, (sha256, min_side, max_pixels)).fetchone()
            if row:
                named = dict(zip(_FACTS, row))
                known[sha256] = ContentFacts(
                    **named,
                    synthetic=bool(row[7]),
                    properties=_properties(row[8]),
                    fingerprint=self._fingerprint(sha256, *row[9:11]),
                    tags=DicomTags(**json.loads(row[11])) if row[11] else None,
                )
        return known

    def remember(self, learned: Iterable[tuple[str, ContentFacts]], min_side: int, max_pixels: int) -> dict[str, ContentFacts]:
        """Keep (sha256, facts) pairs as they come and return them; what a killed task had learned is not lost.

        What is returned reads the features from the file, as what `recall` returns.
        """
        kept: dict[str, ContentFacts] = {}

        def rows() -> Iterator[tuple[object, ...]]:
            for sha256, facts in learned:
                mark = facts.fingerprint
                kept[sha256] = replace(facts, fingerprint=self._fingerprint(sha256, mark.pixels, mark.hash)) if mark else facts
                yield sha256, min_side, max_pixels, *_columns(facts)

        self._write_as_they_come(_REMEMBER, rows())
        return kept

    def recall_findings(self, contents: Iterable[str]) -> dict[str, str]:
        """Return what these contents were found to hold, as `ContentRow.findings`; those that were not looked at are absent."""
        known = {}
        for sha256 in sorted(contents):
            row = self._db.execute("SELECT found FROM findings WHERE sha256 = ?", (sha256,)).fetchone()
            if row:
                known[sha256] = str(row[0])
        return known

    def remember_findings(self, learned: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Keep (sha256, findings) pairs as they come and return them."""
        kept: dict[str, str] = {}

        def rows() -> Iterator[tuple[object, ...]]:
            for sha256, found in learned:
                kept[sha256] = found
                yield sha256, found

        self._write_as_they_come("INSERT OR REPLACE INTO findings VALUES (?,?)", rows())
        return kept

    def recall_features(self, sha256: str) -> Features | None:
        """Return the local features of a content, whatever limits it was judged by; None if they are not known."""
        query = "SELECT points, descriptors FROM facts WHERE sha256 = ? AND points IS NOT NULL LIMIT 1"
        with self._reading:
            row = self._db.execute(query, (sha256,)).fetchone()
        if row is None:
            return None
        points, descriptors = row
        return Features(
            np.frombuffer(points, np.float32).reshape(-1, 3), np.frombuffer(descriptors, np.uint8).reshape(-1, DESCRIPTOR_BYTES)
        )

    def has_facts(self, sha256: str) -> bool:
        """Return whether a content is known, whatever limits it was judged by."""
        return self._db.execute("SELECT 1 FROM facts WHERE sha256 = ? LIMIT 1", (sha256,)).fetchone() is not None

    def has_compared(self, sha256: str) -> bool:
        """Return whether a content is in a pair that was compared, or in a shard of the bucket."""
        query = (
            "SELECT 1 FROM similarity WHERE :sha256 IN (one, other) UNION ALL SELECT 1 FROM shared WHERE :sha256 IN (one, other) "
            "LIMIT 1"
        )
        return self._db.execute(query, {"sha256": sha256}).fetchone() is not None

    def _fingerprint(self, sha256: str, pixels: str | None, hash_: bytes | None) -> Fingerprint | None:
        if not isinstance(pixels, str) or not isinstance(hash_, bytes):
            return None

        def features() -> Features:
            found = self.recall_features(sha256)
            if found is None:
                raise CacheError(f"{self.path} has lost the features of {sha256:.12}; the next attempt learns them again")
            return found

        return Fingerprint(pixels, hash_, features)

    def recall_searches(self) -> list[FeatureSearch]:
        """Return the last few searches of features: those of the run's images, and those of its external test sets."""
        found = []
        for row in self._db.execute("SELECT contents, pairs FROM feature_searches ORDER BY number"):
            contents, pairs = (json.loads(column) for column in row)
            contents = tuple(map(sys.intern, contents))  # the searches have most of them in common
            found.append(FeatureSearch(contents, frozenset((contents[one], contents[other]) for one, other in pairs)))
        return found

    def remember_search(self, search: FeatureSearch) -> None:
        """Keep a search; the oldest ones are forgotten."""
        position = {sha256: number for number, sha256 in enumerate(search.contents)}
        pairs = sorted((position[one], position[other]) for one, other in search.pairs)
        row = (json.dumps(search.contents), json.dumps(pairs))
        self._write("INSERT INTO feature_searches (contents, pairs) VALUES (?,?)", [row])
        outdated = "DELETE FROM feature_searches WHERE number <= (SELECT max(number) FROM feature_searches) - ?"
        self._write(outdated, [(_SEARCHES_KEPT,)])

    def recall_similarity(self, pairs: Iterable[Pair]) -> dict[Pair, Similarity]:
        """Return how alike these pairs were found to be; pairs that were never compared are absent."""
        query = "SELECT similarity, overlap FROM similarity WHERE one = ? AND other = ?"
        known = {}
        for pair in pairs:
            row = self._db.execute(query, pair).fetchone()
            if row:
                known[pair] = Similarity(*row)
        return known

    def remember_similarity(self, learned: Mapping[Pair, Similarity]) -> None:
        """Keep how alike pairs are."""
        rows = [(*pair, *like) for pair, like in learned.items()]
        self._write("INSERT OR REPLACE INTO similarity VALUES (?,?,?,?)", rows)

    def shards(self) -> dict[str, bool]:
        """Return the shards of the bucket that were read or written here: name -> whether its rows are known here.

        Those that are not were refused, and are not read again.
        """
        return {name: not refused for name, refused in self._db.execute("SELECT name, refused FROM shards")}

    def forget_shards(self, kept: Collection[str]) -> None:
        """Forget the shards with other names: what was in them counts as not shared. It stays known here."""
        gone = [(name,) for name in self.shards() if name not in kept]
        if gone:
            with self._all_or_nothing():
                self._db.executemany("DELETE FROM shards WHERE name = ?", gone)
                self._db.execute("DELETE FROM shared WHERE shard NOT IN (SELECT number FROM shards)")

    def drop_places(self, kind: str, places: Iterable[tuple[str, str]]) -> None:
        """Forget in which shard these rows are."""
        self._write("DELETE FROM shared WHERE kind = ? AND one = ? AND other = ?", ((kind, *place) for place in places))

    def refuse_shard(self, name: str) -> None:
        """Remember not to read a shard again."""
        self._write("INSERT OR REPLACE INTO shards (name, refused) VALUES (?, 1)", [(name,)])

    def take_over(self, name: str, shard: Shard) -> None:
        """Remember that a shard is in the bucket, and its rows as far as they are not known here: all of that, or nothing."""
        if shard.search is not None and shard.search not in self.recall_searches():
            self.remember_search(shard.search)
        with self._all_or_nothing():
            number = self._db.execute("INSERT OR REPLACE INTO shards (name, refused) VALUES (?, 0)", (name,)).lastrowid
            self._db.executemany(_REMEMBER.replace("REPLACE", "IGNORE"), map(_as_facts, shard.facts))
            for sha256, found in shard.findings:
                known = self.recall_findings([sha256]).get(sha256, "")
                if not known.startswith(WITH_TEXT) and (not known or found.startswith(WITH_TEXT)):
                    self._db.execute("INSERT OR REPLACE INTO findings VALUES (?,?)", (sha256, found))
            rows = ((*pair, *alike) for pair, alike in shard.similarity)
            self._db.executemany("INSERT OR IGNORE INTO similarity VALUES (?,?,?,?)", rows)
            shared = ((shard.kind, *place, number) for place in places_of(shard))
            self._db.executemany("INSERT OR REPLACE INTO shared VALUES (?,?,?,?)", shared)

    def places_in(self, kind: str, names: Iterable[str]) -> list[tuple[str, str]]:
        """Return what is in these shards and in no other that was read later, as two of a row's keys: for `recall_shared`."""
        query = "SELECT one, other FROM shared WHERE kind = ? AND shard = (SELECT number FROM shards WHERE name = ?)"
        return [place for name in names for place in self._db.execute(query, (kind, name))]

    def places_not_shared(self, kind: str, contents: Collection[str], min_side: int, max_pixels: int) -> list[tuple[str, str]]:
        """Return what is known here of these contents and is in no shard, as `places_in` does."""
        if kind == SIMILARITY:
            rows = self._db.execute(
                "SELECT s.one, s.other FROM similarity s LEFT JOIN shared h "
                "ON h.kind = ? AND h.one = s.one AND h.other = s.other WHERE h.shard IS NULL",
                (kind,),
            )
            return [(one, other) for one, other in rows if one in contents and other in contents]
        if kind == FINDINGS:
            candidates = [(sha256, method_of(found)) for sha256, found in self.recall_findings(sorted(contents)).items()]
        else:
            candidates = [(sha256, f"{min_side} {max_pixels}") for sha256 in sorted(contents)]
        query = "SELECT 1 FROM shared WHERE kind = ? AND one = ? AND other = ?"
        return [place for place in candidates if self._db.execute(query, (kind, *place)).fetchone() is None]

    def recall_shared(self, kind: str, places: Sequence[tuple[str, str]]) -> Shard:
        """Return what is known of these places, as far as it may be in the bucket: nothing of DICOM or refused images."""
        if kind == SIMILARITY:
            return Shard(similarity=list(self.recall_similarity(places).items()))
        if kind == FINDINGS:
            found = self.recall_findings(sha256 for sha256, _ in places)
            return Shard(findings=[(sha256, what) for sha256, what in found.items() if method_of(what) in (LOOKED_AT, WITH_TEXT)])
        rows = []
        for sha256, limits in places:
            min_side, max_pixels = map(int, limits.split())
            facts = self.recall([sha256], min_side, max_pixels).get(sha256)
            if facts and not facts.reason and facts.tags is None and facts.properties and facts.fingerprint:
                known = KnownContent(
                    *(sha256, min_side, max_pixels, facts.width, facts.height, facts.mode, facts.mean, facts.contrast),
                    *(facts.synthetic, facts.properties, facts.fingerprint),
                )
                rows += [known] if may_be_shared(known) else []
        return Shard(facts=rows)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _write_as_they_come(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        pending: list[tuple[object, ...]] = []
        saved = time.monotonic()
        for row in rows:
            pending.append(row)
            if len(pending) == _ROWS_A_COMMIT or time.monotonic() - saved >= _SECONDS_A_COMMIT:
                self._write(statement, pending)
                pending, saved = [], time.monotonic()
        self._write(statement, pending)

    def _write(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(statement, rows)
        self._db.execute("COMMIT")


def knows_any(path: Path, contents: Iterable[str]) -> bool:
    """Return whether the memory in a file, if there is one, has learned something of one of these contents."""
    if not path.exists():
        return False
    with InspectionCache(path) as memory:
        names = sorted(contents)
        if memory.recall_findings(names) or any(memory.has_facts(sha256) for sha256 in names):
            return True
        if any(memory.has_compared(sha256) for sha256 in names):
            return True
        return any(not set(names).isdisjoint(search.contents) for search in memory.recall_searches())


def _columns(facts: ContentFacts) -> tuple[object, ...]:
    mark = facts.fingerprint
    arrays: tuple[object, ...] = (None,) * 4
    if mark:
        points, descriptors = mark.features()
        arrays = (mark.pixels, mark.hash, points.tobytes(), descriptors.tobytes())
    return (
        facts.reason,
        facts.detail,
        facts.width,
        facts.height,
        facts.mode,
        facts.mean,
        facts.contrast,
        facts.synthetic,
        json.dumps(facts.properties) if facts.properties else None,
        *arrays,
        json.dumps(asdict(facts.tags)) if facts.tags else None,
    )


def _as_facts(known: KnownContent) -> tuple[object, ...]:
    measures = {name: getattr(known, name) for name in ("width", "height", "mode", "mean", "contrast", "synthetic")}
    facts = ContentFacts(**measures, properties=known.properties, fingerprint=known.fingerprint)
    return (known.sha256, known.min_side, known.max_pixels, *_columns(facts))


def _properties(column: str | None) -> Properties | None:
    return Properties(*json.loads(column)) if column else None
