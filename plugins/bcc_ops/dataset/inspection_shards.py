"""What the image checks learned, as Parquet shards for the bucket: rows to bytes, and back.

Whoever can write to the bucket can write a shard. So reading one has bounds, and every value is looked at: a shard that could
not have been written here is refused as a whole. A shard has nothing of refused images, no tags and no
measures of DICOM images, and of text in an image only the names of findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, get_type_hints

import numpy as np

from bcc_ops import config
from bcc_ops.dataset.content_findings import LOOKED_AT, WITH_TEXT
from bcc_ops.dataset.decoding import FORMATS
from bcc_ops.dataset.feature_search import FeatureSearch, Pair
from bcc_ops.dataset.fingerprints import DESCRIPTOR_BYTES, HASH_BYTES, METHOD, Fingerprint
from bcc_ops.dataset.properties import Properties
from bcc_ops.dataset.similarity import Similarity
from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.tables import read_columns, write_columns

LAYOUT = 1
"""Goes up whenever the columns of a shard change."""

VERSION = f"{LAYOUT}-{METHOD}-{LOOKED_AT}"
"""Version of the shards' content, and the name of their folder: no other version is read."""

LARGEST_SHARD = 64 * 2**20
"""Bytes. A larger one is neither written nor read."""

FACTS, FINDINGS, SIMILARITY, SEARCH = KINDS = ("facts", "findings", "similarity", "search")
"""What a shard may hold. A search is one shard; the others are as many as there are."""

ROWS_PER_SHARD: Mapping[str, int] = {FACTS: 1_000, FINDINGS: 50_000, SIMILARITY: 50_000, SEARCH: 2_000_000}

MOST_FEATURES = 1_000
"""Of an image in a shard. An image has 300, or a few more that are equally strong."""

_STAMP = "bcc_ops.inspections"
_SMALLEST_SCALE, _LARGEST_SCALE = 0.5, 16.0
_LARGEST_PROPERTY = 65_535.0
_POINT_BYTES = 12
_LONGEST = {"str": 300, "bytes": MOST_FEATURES * DESCRIPTOR_BYTES}
_LONGEST_MODE = 32

_COLUMNS: Mapping[str, Mapping[str, str]] = {
    FACTS: {
        **{"sha256": "bytes 32", "min_side": "int", "max_pixels": "int", "width": "int", "height": "int", "mode": "str"},
        **{"mean": "float", "contrast": "float", "synthetic": "bool"},
        **{name: kind.__name__ for name, kind in get_type_hints(Properties).items()},
        **{"pixels": "bytes 32", "hash": f"bytes {HASH_BYTES}", "points": "bytes", "descriptors": "bytes"},
    },
    FINDINGS: {"sha256": "bytes 32", "found": "str"},
    SIMILARITY: {"one": "bytes 32", "other": "bytes 32", "similarity": "float", "overlap": "float"},
    SEARCH: {"content": "bytes 32", "agrees_with": "bytes 32"},
}


class KnownContent(NamedTuple):
    """What is known of a usable image: the limits that it was judged by, and its measures as `ContentFacts` has them."""

    sha256: str
    min_side: int
    max_pixels: int
    width: int
    height: int
    mode: str
    mean: float
    contrast: float
    synthetic: bool
    properties: Properties
    fingerprint: Fingerprint


Findings = tuple[str, str]
"""sha256, and `ContentRow.findings`."""


@dataclass(frozen=True)
class Shard:
    """The rows of one shard; of the four, one is filled."""

    facts: Sequence[KnownContent] = ()
    findings: Sequence[Findings] = ()
    similarity: Sequence[tuple[Pair, Similarity]] = ()
    search: FeatureSearch | None = None

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if self.search is not None:
            return SEARCH
        return FACTS if self.facts else FINDINGS if self.findings else SIMILARITY

    def __bool__(self) -> bool:
        return bool(self.facts or self.findings or self.similarity or self.search is not None)


def places_of(shard: Shard) -> Iterator[tuple[str, str]]:
    """Yield what each row is about, as two words: a content and its limits or its method, or the two contents of a pair.

    Findings with text are about the same content without text, too: they say more.
    """
    yield from ((known.sha256, f"{known.min_side} {known.max_pixels}") for known in shard.facts)
    for sha256, found in shard.findings:
        yield sha256, method_of(found)
        if method_of(found) == WITH_TEXT:
            yield sha256, LOOKED_AT
    yield from (pair for pair, _ in shard.similarity)


def method_of(found: str) -> str:
    """Return the method by which findings were found."""
    return found.partition(" ")[0]


def may_be_shared(known: KnownContent) -> bool:
    """Return whether `read_shard` takes this row: thousands of features, or limits that others would not believe, stay here."""
    try:
        _known_content(*_facts_row(known))
    except (TypeError, ValueError):
        return False
    return True


def write_shard(shard: Shard) -> bytes:
    """Return a shard as a Parquet file."""
    rows: Iterable[Sequence[Any]]
    if shard.search is not None:
        rows = _search_rows(shard.search)
    elif shard.facts:
        rows = (_facts_row(known) for known in shard.facts)
    elif shard.findings:
        rows = ((bytes.fromhex(sha256), found) for sha256, found in shard.findings)
    else:
        rows = ((*map(bytes.fromhex, pair), *alike) for pair, alike in shard.similarity)
    return write_columns(_COLUMNS[shard.kind], rows, (_STAMP, VERSION))


def read_shard(kind: str, content: bytes) -> Shard:
    """Return the rows of a shard.

    Args:
        kind: one of `KINDS`, that it must be.
        content: of the file; anybody may have written it.

    Raises:
        ArtifactError: it is damaged, of another version, too large, or holds what no image check can have learned. The message
            is the end of a sentence about it.
    """
    if len(content) > LARGEST_SHARD:
        raise ArtifactError(f"has more than {LARGEST_SHARD // 2**20} MiB")
    rows = read_columns(_COLUMNS[kind], content, (_STAMP, VERSION), most_rows=ROWS_PER_SHARD[kind], longest=_LONGEST)
    try:
        if kind == FACTS:
            return Shard(facts=[_known_content(*row) for row in rows])
        if kind == FINDINGS:
            return Shard(findings=[_findings(*row) for row in rows])
        if kind == SIMILARITY:
            return Shard(similarity=[_similarity(*row) for row in rows])
        return Shard(search=_search(list(rows)))
    except (TypeError, ValueError, AttributeError) as error:  # an empty cell, or a value that is refused here
        raise ArtifactError(f"holds what no image check can have learned ({error})") from None


def _facts_row(known: KnownContent) -> tuple[Any, ...]:
    points, descriptors = known.fingerprint.features()
    return (
        *(bytes.fromhex(known.sha256), *known[1:9], *known.properties),
        *(bytes.fromhex(known.fingerprint.pixels), known.fingerprint.hash),
        *(points.astype("<f4").tobytes(), descriptors.tobytes()),
    )


def _known_content(sha256: bytes, *values: Any) -> KnownContent:
    min_side, max_pixels, width, height, mode, mean, contrast, synthetic = values[:8]
    properties, (pixels, hash_, points, descriptors) = Properties(*values[8:-4]), values[-4:]
    _require(0 < min_side <= min(width, height) and width * height <= max_pixels, "a size that its own limits refuse")
    _require(0 <= mean <= 255 and 0 <= contrast <= 255, "a gray value")
    _require(0 < len(mode) <= _LONGEST_MODE and mode.isprintable() and isinstance(synthetic, bool), "a mode")
    _require(properties.file_format in FORMATS and properties.file_bytes > 0, "a format")
    _require(all(0 <= value <= _LARGEST_PROPERTY for value in properties[2:]), "a property")
    _require(len(points) % _POINT_BYTES == 0, "points")
    found = np.frombuffer(points, "<f4").astype(np.float32).reshape(-1, 3)
    _require(len(found) <= MOST_FEATURES and len(descriptors) == len(found) * DESCRIPTOR_BYTES, "features")
    bounds = np.array([width, height, _LARGEST_SCALE], np.float32)
    _require(bool(np.all((found >= 0) & (found <= bounds) & (found[:, 2:] > _SMALLEST_SCALE))), "a point outside the image")
    marks = np.frombuffer(descriptors, np.uint8).reshape(-1, DESCRIPTOR_BYTES)
    mark = Fingerprint.of(pixels.hex(), bytes(hash_), found, marks)
    measures = (min_side, max_pixels, width, height, mode, mean, contrast, synthetic)
    return KnownContent(sha256.hex(), *measures, properties, mark)


def _findings(sha256: bytes, found: str) -> Findings:
    method, *names = found.split(" ")
    _require(method in (LOOKED_AT, WITH_TEXT) and names == [name for name in config.FINDINGS if name in names], "findings")
    return sha256.hex(), found


def _similarity(one: bytes, other: bytes, similarity: float, overlap: float) -> tuple[Pair, Similarity]:
    _require(one < other and -1.001 <= similarity <= 1.001 and 0 <= overlap <= 1, "a similarity")
    return (one.hex(), other.hex()), Similarity(similarity, overlap)


def _search_rows(search: FeatureSearch) -> Iterator[tuple[bytes, bytes | None]]:
    yield from ((bytes.fromhex(sha256), None) for sha256 in search.contents)
    yield from ((bytes.fromhex(one), bytes.fromhex(other)) for one, other in sorted(search.pairs))


def _search(rows: Sequence[tuple[bytes, bytes | None]]) -> FeatureSearch:
    contents = [content for content, other in rows if other is None]
    pairs = [(one, other) for one, other in rows if other is not None]
    known = set(contents)
    _require(all(one < other for one, other in pairwise(contents)), "contents out of order")
    _require(all(one < other and one in known and other in known for one, other in pairs), "a pair of unknown contents")
    return FeatureSearch(
        tuple(content.hex() for content in contents), frozenset((one.hex(), other.hex()) for one, other in pairs)
    )


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
