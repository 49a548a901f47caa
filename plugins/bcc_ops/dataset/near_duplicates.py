"""Near-duplicates: images of one scan, brought into groups.

Exact copies share their bytes or their pixels. Candidates for the others come from two indexes: one of perceptual
hashes, which finds what is alike as a whole, and one of local features, which finds what was cropped, shifted or scaled.
Both work by sorting and by tables and never compare all with all. Every candidate is then confirmed on its pixels
(`similarity`), since a chain of false pairs would tie strangers together; only candidates that others have brought into one
group already are left out, since they decide nothing. Mirrored and turned copies are not looked for.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import faiss
import numpy as np
from cachetools import LRUCache, cached
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from bcc_ops.dataset.decoding import decode_rgb
from bcc_ops.dataset.feature_search import FeatureSearch, Pair, extend_search
from bcc_ops.dataset.fingerprints import HASH_BYTES, Features, Fingerprint, Gray, to_gray
from bcc_ops.dataset.resources import cores
from bcc_ops.dataset.similarity import Similarity, bounded, compare

if TYPE_CHECKING:
    from bcc_ops.config import RetrainingConfig

log = logging.getLogger(__name__)

LEAST_OVERLAP = 0.25
"""Images that share less of their area than this are not copies of one another, however similar that part is."""

_HASH_BLOCKS = 4
_ALIKE_AT_MOST = 20
"""So many contents with one hash are compared with one another; the rest only with their neighbours in the order of their
pixels' digests. A blank image would else be compared with all others."""

_NEAREST = 100
"""A content has about so many candidates by hash at most: the nearest. Real scans have up to 3. Hashes that somebody chose
to be near one another would else make all pairs candidates, and the pixels of each candidate are compared."""

_SEARCHED_AT_ONCE = 256

_COMPARED_AT_ONCE = 1000
"""So many candidates are compared side by side; then those are left out that are in one group by now. An archive with many
images of each scan has many times as many candidates as it takes to tie them."""

_BYTES_KEPT = 150_000_000


@dataclass(frozen=True)
class Thresholds:
    """From where on two images are near-duplicates.

    Attributes:
        hash_distance: perceptual hashes that differ in at most so many of 64 bits make a candidate.
        min_similarity: the similarity from which a candidate is a near-duplicate.
        min_similarity_by_hash: the same for candidates by hash: two signs together need less of each.
    """

    hash_distance: int
    min_similarity: float
    min_similarity_by_hash: float

    @classmethod
    def of(cls, config: RetrainingConfig) -> Thresholds:
        """Return the run's."""
        return cls(config.hash_distance, config.min_similarity, config.min_similarity_by_hash)

    def described(self) -> dict[str, float]:
        """For checks.json."""
        return {
            "hash_distance": self.hash_distance,
            "min_similarity": self.min_similarity,
            "min_similarity_by_hash": self.min_similarity_by_hash,
            "least_overlap": LEAST_OVERLAP,
        }


@dataclass(frozen=True)
class ComparedPair:
    """A candidate and what its pixels said.

    Attributes:
        pair: the two contents.
        bits: distance of their hashes, 0 to 64.
        similarity: of their pixels.
        needed: the similarity from which they count as near-duplicates.
        by_hash: whether the hash made them candidates (else the local features alone did).
    """

    pair: Pair
    bits: int
    similarity: Similarity
    needed: float
    by_hash: bool

    @property
    def accepted(self) -> bool:
        """Whether they are near-duplicates."""
        return self.similarity.similarity >= self.needed and self.similarity.overlap >= LEAST_OVERLAP

    @property
    def margin(self) -> float:
        """How far the similarity is from the threshold, either way."""
        return abs(self.similarity.similarity - self.needed)


@dataclass(frozen=True)
class NearDuplicates:
    """The outcome.

    Attributes:
        group_of: content -> group; a content without a copy is its own group.
        how: group -> how its members were found alike: "pixels", "perceptual", "shifted".
        compared: the candidates whose pixels were compared, sorted by their contents. See `_COMPARED_AT_ONCE`.
    """

    group_of: dict[str, str]
    how: dict[str, tuple[str, ...]]
    compared: tuple[ComparedPair, ...]

    def nearest(self, count: int) -> list[ComparedPair]:
        """Return the pairs that were accepted or rejected most narrowly."""
        return sorted(self.compared, key=lambda pair: (pair.margin, pair.pair))[:count]


class PairMemory(Protocol):
    """Where the last searches, and the similarity of pairs, are remembered."""

    def recall_searches(self) -> Sequence[FeatureSearch]:
        """Return the last few searches of features."""

    def remember_search(self, search: FeatureSearch) -> None:
        """Keep it."""

    def recall_features(self, sha256: str) -> Features | None:
        """Return an image's features, if they are known."""

    def recall_similarity(self, pairs: Iterable[Pair]) -> dict[Pair, Similarity]:
        """Return what is known of these pairs."""

    def remember_similarity(self, learned: Mapping[Pair, Similarity]) -> None:
        """Keep it."""


def find_near_duplicates(
    marks: Mapping[str, Fingerprint], paths: Mapping[str, Path], thresholds: Thresholds, memory: PairMemory
) -> NearDuplicates:
    """Group contents that are near-duplicates of one another.

    Args:
        marks: sha256 -> fingerprint.
        paths: sha256 -> a file with that content.
        thresholds: from where on two are near-duplicates.
        memory: asked first, told afterwards.
    """
    links: dict[Pair, str] = {}
    by_pixels: defaultdict[str, list[str]] = defaultdict(list)
    for sha256 in sorted(marks):
        by_pixels[marks[sha256].pixels].append(sha256)
    for same in by_pixels.values():
        links.update({(same[0], other): "pixels" for other in same[1:]})

    # In an order by what the images show: which candidates are left out does not depend on the bytes of their files.
    contents = [same[0] for _, same in sorted(by_pixels.items())]
    place = {sha256: number for number, sha256 in enumerate(contents)}
    candidates = _find_candidates(contents, marks, thresholds, memory)
    ordered = sorted(candidates.all, key=lambda pair: sorted((place[pair[0]], place[pair[1]])))
    comparison = _Comparison(marks, paths, thresholds, memory, candidates.by_hash)
    tied = DisjointSet(contents)
    compared: list[ComparedPair] = []
    for start in range(0, len(ordered), _COMPARED_AT_ONCE):
        undecided = [pair for pair in ordered[start : start + _COMPARED_AT_ONCE] if not tied.connected(*pair)]
        for one in comparison.of(undecided):
            compared.append(one)
            if one.accepted:
                tied.merge(*one.pair)
                links[one.pair] = "perceptual" if one.by_hash else "shifted"
    compared.sort(key=lambda one: one.pair)
    group_of, how = group_contents(sorted(marks), links)
    log.info(
        "%d candidates for near-duplicates, %d compared, %d accepted",
        *(len(ordered), len(compared), sum(one.accepted for one in compared)),
    )
    return NearDuplicates(group_of, how, tuple(compared))


def compare_sets(
    sets: tuple[Collection[str], Collection[str]],
    marks: Mapping[str, Fingerprint],
    paths: Mapping[str, Path],
    thresholds: Thresholds,
    memory: PairMemory,
) -> tuple[ComparedPair, ...]:
    """Compare the contents of two sets with one another, and none with those of its own set.

    Args:
        sets: sha256 of the contents of each. A content that is in both is left alone.
        marks, paths, thresholds, memory: as in `find_near_duplicates`.

    Returns:
        Every candidate, sorted by its contents; equal pixels in two files are one too. Where several files of a set have the
        same pixels, one of them stands for all in the pairs of the other set's files.
    """
    one, other = (frozenset(contents) for contents in sets)
    apart = (one ^ other) & marks.keys()
    alike: defaultdict[tuple[bool, str], list[str]] = defaultdict(list)
    for sha256 in sorted(apart):
        alike[sha256 in one, marks[sha256].pixels].append(sha256)
    # Of files with the same pixels, one stands for all: many would crowd out one another's candidates.
    copies = {same[0]: same for same in alike.values()}
    # In the order of the sets: two files with the same pixels, one of each set, are not ordered by their digests then.
    candidates = _find_candidates(sorted(copies, key=one.__contains__), marks, thresholds, memory)
    across = sorted(pair for pair in candidates.all if (pair[0] in one) != (pair[1] in one))
    pairs = [
        replace(found, pair=(min(copy, partner), max(copy, partner)))
        for found in _Comparison(marks, paths, thresholds, memory, candidates.by_hash).of(across)
        for stand_in, partner in (found.pair, found.pair[::-1])
        for copy in copies[stand_in]
    ]
    return tuple(sorted({found.pair: found for found in pairs}.values(), key=lambda found: found.pair))


class _Candidates(NamedTuple):
    all: frozenset[Pair]
    by_hash: frozenset[Pair]


def _find_candidates(
    contents: Sequence[str], marks: Mapping[str, Fingerprint], thresholds: Thresholds, memory: PairMemory
) -> _Candidates:
    """Search candidates by hashes and by features; what they are is in `ComparedPair`."""
    ordered = sorted(contents, key=lambda sha256: marks[sha256].pixels)
    near = hash_neighbours([marks[sha256].hash for sha256 in ordered], thresholds.hash_distance)
    by_hash = frozenset((min(ordered[i], ordered[j]), max(ordered[i], ordered[j])) for i, j, _ in near)
    return _Candidates(by_hash | _feature_pairs({sha256: marks[sha256] for sha256 in contents}, memory), by_hash)


class _Comparison:
    """Compares the pixels of candidates, and remembers what it saw of an image for as long as there is room."""

    def __init__(
        self,
        marks: Mapping[str, Fingerprint],
        paths: Mapping[str, Path],
        thresholds: Thresholds,
        memory: PairMemory,
        by_hash: Collection[Pair],
    ) -> None:
        self.marks, self.paths, self.thresholds, self.memory, self.by_hash = marks, paths, thresholds, memory, by_hash
        kept = cached(LRUCache(_BYTES_KEPT, getsizeof=lambda view: view[1].nbytes), lock=threading.Lock())
        self._view_of = kept(self._load_view)

    def of(self, pairs: Sequence[Pair]) -> list[ComparedPair]:
        """Return what the pixels of each pair say, in the same order: as remembered, or else compared and then remembered."""
        known = self.memory.recall_similarity(pairs)
        missing = [pair for pair in pairs if pair not in known]
        with ThreadPoolExecutor(cores()) as pool:
            learned = dict(zip(missing, pool.map(self._similarity, missing)))
        self.memory.remember_similarity(learned)
        return [self._judged(pair, known.get(pair) or learned[pair]) for pair in pairs]

    def _judged(self, pair: Pair, similarity: Similarity) -> ComparedPair:
        by_hash = pair in self.by_hash
        needed = self.thresholds.min_similarity_by_hash if by_hash else self.thresholds.min_similarity
        return ComparedPair(pair, bits=self._bits(pair), similarity=similarity, needed=needed, by_hash=by_hash)

    def _bits(self, pair: Pair) -> int:
        one, other = (int.from_bytes(self.marks[sha256].hash, "big") for sha256 in pair)
        return (one ^ other).bit_count()

    def _similarity(self, pair: Pair) -> Similarity:
        # The other order may give another answer. What the images look like decides on it, not the bytes of their files.
        one, other = sorted(pair, key=lambda sha256: (self.marks[sha256].hash, self.marks[sha256].pixels))
        return compare(self._view_of(one), self._view_of(other))

    def _load_view(self, sha256: str) -> tuple[Features, Gray]:
        return bounded(self.marks[sha256].features(), to_gray(decode_rgb(self.paths[sha256])))


def hash_neighbours(hashes: Sequence[bytes], distance: int) -> list[tuple[int, int, int]]:
    """Pairs of hashes that differ in at most `distance` bits, as (index, larger index, bits), sorted.

    Exact up to 11 bits: four 16-bit tables are probed with all keys that differ in one bit (or two), and of 7 (or 11)
    differing bits no more than one (or two) can be in each. Equal hashes are indexed once; see `_ALIKE_AT_MOST`. Of hundreds that
    are near one another, the nearest are found; see `_NEAREST`.
    """
    if not hashes:
        return []
    table = np.frombuffer(b"".join(hashes), np.uint64)
    values, place = np.unique(table, return_inverse=True)
    keys = values.view(np.uint8).reshape(-1, HASH_BYTES)
    index = faiss.IndexBinaryMultiHash(8 * HASH_BYTES, _HASH_BLOCKS, 8 * HASH_BYTES // _HASH_BLOCKS)
    index.nflip = distance // _HASH_BLOCKS
    index.add(keys)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for position, value in enumerate(place.tolist()):
        members[value].append(position)

    pairs: set[tuple[int, int, int]] = set()
    for same in members.values():
        for start, one in enumerate(same):
            pairs.update((one, other, 0) for other in same[start + 1 : start + _ALIKE_AT_MOST])
    for start in range(0, len(keys), _SEARCHED_AT_ONCE):
        limits, bits, found = index.range_search(keys[start : start + _SEARCHED_AT_ONCE], distance + 1)
        for one, (begin, end) in enumerate(itertools.pairwise(limits.tolist()), start):
            order = begin + np.lexsort((found[begin:end], bits[begin:end]))
            taken = 0
            for other, differing in zip(found[order].tolist(), bits[order].tolist()):
                if other == one:
                    continue
                if taken >= _NEAREST:
                    break
                near = members[other][:_ALIKE_AT_MOST]
                taken += len(near)
                for left in members[one][:_ALIKE_AT_MOST]:
                    pairs.update((min(left, right), max(left, right), int(differing)) for right in near)
    return sorted(pairs)


def _feature_pairs(marks: Mapping[str, Fingerprint], memory: PairMemory) -> frozenset[Pair]:
    earlier = memory.recall_searches()
    nearest = min(earlier, key=lambda search: len(marks.keys() ^ set(search.contents)), default=None)
    search = extend_search(nearest, marks, memory.recall_features)
    if search is not nearest:
        memory.remember_search(search)
    return search.pairs


def group_contents(contents: Sequence[str], links: Mapping[Pair, str]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Find the connected components: content -> group, and group -> the ways by which its members were linked.

    Args:
        contents: sorted; a group is named by its smallest.
        links: pair -> how it was found.
    """
    place = {sha256: position for position, sha256 in enumerate(contents)}
    ends = np.array([[place[one], place[other]] for one, other in links], np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(len(contents), len(contents)))
    _, component = connected_components(graph, directed=False)
    name: dict[int, str] = {}
    for sha256, number in zip(contents, component.tolist()):
        name.setdefault(number, sha256)
    group_of = {sha256: name[number] for sha256, number in zip(contents, component.tolist())}
    how: defaultdict[str, set[str]] = defaultdict(set)
    for (one, _), way in links.items():
        how[group_of[one]].add(way)
    return group_of, {group: tuple(sorted(ways)) for group, ways in how.items()}
