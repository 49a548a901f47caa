"""Which images have local features in common, and in one arrangement: candidates for near-duplicates.

Two features match if they share 24 bits at one of ten places and differ in at most 40 of 256 bits (locality-sensitive hashing
by bands, as for MinHash). What many features share tells nothing: a bucket with more than `ALIKE_AT_MOST` of them is
passed over. The matches of two images vote for a scale and a shift of one against the other.

A night has few new images. `extend_search` finds what a search from the beginning would find: matches of new features, and the
pairs that a bucket's growth or shrinking may have changed. It reads each image's features once, and once more if there are such
pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bcc_ops.dataset.fingerprints import DESCRIPTOR_BYTES, LEVEL_RATIO, Features, Fingerprint
from bcc_ops.dataset.similarity import hamming

log = logging.getLogger(__name__)

Pair = tuple[str, str]
"""Two sha256, the smaller first."""

ALIKE_AT_MOST = 20
"""So many features with one key are compared with one another; a logo in every scan would else match all others."""

_KEY_BYTES = 3
_KEYS = 10
_ALL_KEYS = 1 << (8 * _KEY_BYTES)
_LINE = 128
_FEATURE_BITS = 40
_CELL = 24.0
_GRIDS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5))
"""Of cells, each shifted by a part of one: a shift on a cell's edge is inside a cell of another grid."""

_LEAST_VOTES = 6
_IMAGES_AT_ONCE = 1000
_COMPARED_AT_ONCE = 500_000
_COUNTED_AT_ONCE = 500_000
_WORTH_EXTENDING = 0.25
_NUMBERS = 1 << 20
"""More than an image has features: a feature's id is its image's position times this, plus its own number."""


@dataclass(frozen=True)
class FeatureSearch:
    """What was searched, and what was found.

    Attributes:
        contents: sha256 of the images, sorted.
        pairs: those whose features agree.
    """

    contents: tuple[str, ...] = ()
    pairs: frozenset[Pair] = frozenset()


class _Block(NamedTuple):
    """Features of several images: `owner` is the position of each one's image, int64 (n,); `number` its own within it."""

    owner: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]
    points: npt.NDArray[np.float32]
    descriptors: npt.NDArray[np.uint8]

    def take(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> _Block:
        return _Block(self.owner[chosen], self.number[chosen], self.points[chosen], self.descriptors[chosen])

    @classmethod
    def joined(cls, blocks: Iterable[_Block]) -> _Block:
        blocks = [_NO_FEATURES, *blocks]
        return cls(
            np.concatenate([block.owner for block in blocks]),
            np.concatenate([block.number for block in blocks]),
            np.concatenate([block.points for block in blocks]),
            np.concatenate([block.descriptors for block in blocks]),
        )


_NO_FEATURES = _Block(
    np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.float32), np.zeros((0, DESCRIPTOR_BYTES), np.uint8)
)


def search_features(marks: Mapping[str, Fingerprint]) -> FeatureSearch:
    """Search all images, from the beginning.

    Args:
        marks: sha256 -> fingerprint. Features are loaded once, a thousand images at a time.
    """
    contents = tuple(sorted(marks))
    features = _load_all(marks, contents)
    one, other = _matches(features)
    pairs = _agreeing(features, one, other, len(contents))
    return FeatureSearch(contents, frozenset((contents[left], contents[right]) for left, right in pairs))


def extend_search(
    previous: FeatureSearch | None, marks: Mapping[str, Fingerprint], gone: Callable[[str], Features | None]
) -> FeatureSearch:
    """Search all images, given an earlier search of most of them. The result is that of `search_features`.

    Args:
        previous: the earlier search.
        marks: sha256 -> fingerprint.
        gone: the features of an image that the earlier search had and `marks` has not; None if they are not known.
    """
    contents = tuple(sorted(marks))
    known = frozenset(previous.contents) if previous else frozenset()
    added = [sha256 for sha256 in contents if sha256 not in known]
    left = [gone(sha256) for sha256 in sorted(known.difference(contents))]
    absent = [features for features in left if features is not None]
    if previous is None or len(absent) < len(left) or len(added) + len(left) > _WORTH_EXTENDING * len(contents):
        if previous is not None:
            log.info(
                "the last search has %d images that are gone, and %d are new: all %d are searched from the beginning",
                *(len(left), len(added), len(contents)),
            )
        return search_features(marks)
    if not added and not left:
        return previous
    return _Extension(previous, marks, contents, added, absent).result()


class _Bucketed:
    """The features that share a key with some others, for each of the ten places, and how many there are of each key.

    Args:
        keys: for each place, the keys that count.
    """

    def __init__(self, keys: Sequence[npt.NDArray[np.int64]]) -> None:
        self.counts: list[npt.NDArray[np.int64]] = []
        self._ranks: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]] = []
        for of_place in map(np.unique, keys):
            before_line = np.searchsorted(of_place, np.arange(0, _ALL_KEYS, _LINE))
            in_line = np.zeros(_ALL_KEYS, np.uint8)  # from 1 on: a key with 0 does not count
            in_line[of_place] = 1 + np.arange(len(of_place)) - before_line[of_place // _LINE]
            self.counts.append(np.zeros(len(of_place), np.int64))
            self._ranks.append((before_line, in_line))

    def numbers(self, place: int, keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return which of the keys count, and the bucket of each of these: how many keys that count are below it.

        That number is looked up in two steps, a line of keys and the place in it. A binary search takes five times as long.
        """
        before_line, in_line = self._ranks[place]
        rank = in_line[keys]
        hits = np.flatnonzero(rank)
        return hits, before_line[keys[hits] // _LINE] + rank[hits] - 1

    def count(self, block: _Block) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Count features; return for each place which of them may matter, and their buckets: those not overfull before."""
        kept = []
        for place in range(_KEYS):
            hits, buckets = self.numbers(place, _keys(block.descriptors, place))
            open_before = self.counts[place][buckets] <= ALIKE_AT_MOST
            self.counts[place] += np.bincount(buckets, minlength=len(self.counts[place]))
            kept.append((hits[open_before], buckets[open_before]))
        return kept


class _Extension:
    """An earlier search, and what is new and gone since. See `extend_search`."""

    def __init__(
        self,
        previous: FeatureSearch,
        marks: Mapping[str, Fingerprint],
        contents: Sequence[str],
        added: Sequence[str],
        absent: Sequence[Features],
    ) -> None:
        self.previous, self.marks, self.contents = previous, marks, contents
        self.position = {sha256: number for number, sha256 in enumerate(contents)}
        new = set(added)
        self.staying = [sha256 for sha256 in contents if sha256 not in new]
        self.added = frozenset(self.position[sha256] for sha256 in added)
        self.new = _Block.joined(_blocks(marks, added, self.position))
        self.absent = np.concatenate([np.zeros((0, DESCRIPTOR_BYTES), np.uint8), *(features.descriptors for features in absent)])

    def result(self) -> FeatureSearch:
        """Return the search of all images."""
        with_new, changed = self._changed()
        found = frozenset(map(self._named, with_new | self._agree_now(changed)))
        outdated = frozenset(map(self._named, changed))
        staying = (pair for pair in self.previous.pairs - outdated if self.position.keys() >= set(pair))
        return FeatureSearch(tuple(self.contents), found.union(staying))

    def _named(self, pair: tuple[int, int]) -> Pair:
        one, other = pair
        return self.contents[one], self.contents[other]

    def _agreed_before(self, pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
        # Positions follow the order of names, so that the smaller name is first here too.
        return {pair for pair in pairs if self._named(pair) in self.previous.pairs}

    def _members(self, buckets: _Bucketed) -> list[tuple[_Block, npt.NDArray[np.int64]]]:
        """Return, for each place, the staying and then the new features of the buckets, with the bucket of each."""
        found: list[list[tuple[_Block, npt.NDArray[np.int64]]]] = [[] for _ in range(_KEYS)]
        for block in _blocks(self.marks, self.staying, self.position):
            for place, (hits, numbers) in enumerate(buckets.count(block)):
                found[place].append((block.take(hits), numbers))
        self.stayed = [counts.copy() for counts in buckets.counts]
        for place, (hits, numbers) in enumerate(buckets.count(self.new)):
            found[place].append((self.new.take(hits), numbers))
        return [(_Block.joined([block for block, _ in parts]), np.concatenate([n for _, n in parts])) for parts in found]

    def _changed(self) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        """Return the pairs with a new image that agree, and the pairs of staying ones that may agree otherwise than before."""
        concerned = np.concatenate([self.new.descriptors, self.absent])
        buckets = _Bucketed([_keys(concerned, place) for place in range(_KEYS)])
        doubtful: set[tuple[int, int]] = set()
        earlier: list[_Block] = []
        partners: list[_Block] = []
        for place, (everything, in_bucket) in enumerate(self._members(buckets)):
            now, stayed = buckets.counts[place], self.stayed[place]
            _, gone = buckets.numbers(place, _keys(self.absent, place))
            before = stayed + np.bincount(gone, minlength=len(stayed))
            closed, opened = (before <= ALIKE_AT_MOST) & (now > ALIKE_AT_MOST), (before > ALIKE_AT_MOST) & (now <= ALIKE_AT_MOST)
            doubtful |= self._agreed_before(self._pairs_in(everything, in_bucket, closed))
            kept = now[in_bucket] <= ALIKE_AT_MOST
            block, numbers = everything.take(kept), in_bucket[kept]
            one, other = _within_buckets(numbers)
            is_new = np.isin(block.owner, list(self.added))
            counts = is_new[one] | is_new[other] | opened[numbers[one]]
            one, other = _similar(block, one[counts], other[counts])
            among_old = ~(is_new[one] | is_new[other])
            votes_more = _owner_pairs(block, one[among_old], other[among_old])
            doubtful |= votes_more - self._agreed_before(votes_more)
            later = block.owner[one] > block.owner[other]
            one, other = np.where(later, other, one), np.where(later, one, other)
            earlier.append(block.take(one[~among_old]))
            partners.append(block.take(other[~among_old]))
        return self._agreeing_matches(_Block.joined(earlier), _Block.joined(partners)), doubtful

    def _pairs_in(self, block: _Block, numbers: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]) -> set[tuple[int, int]]:
        kept = chosen[numbers] & ~np.isin(block.owner, list(self.added))
        one, other = _within_buckets(numbers[kept])
        return _owner_pairs(block.take(kept), one, other)

    def _agreeing_matches(self, earlier: _Block, later: _Block) -> set[tuple[int, int]]:
        """Return the pairs of images that agree, from matches; a match may be there several times."""
        ids = np.column_stack([earlier.owner * _NUMBERS + earlier.number, later.owner * _NUMBERS + later.number])
        _, once = np.unique(ids, axis=0, return_index=True)
        both = _Block.joined([earlier.take(once), later.take(once)])
        matches = np.arange(len(once))
        return set(_agreeing(both, matches, matches + len(once), len(self.contents)))

    def _agree_now(self, pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return those of the pairs that agree, by the features of both and the size of their buckets today."""
        if not pairs:
            return pairs
        concerned = [self.contents[owner] for owner in sorted({owner for pair in pairs for owner in pair})]
        features = _Block.joined(_blocks(self.marks, concerned, self.position))
        wanted = np.array([one * len(self.contents) + other for one, other in pairs])
        matches = [self._matches_of(wanted, features, place) for place in range(_KEYS)]
        keys = [_keys(features.descriptors[one], place) for place, (one, _) in enumerate(matches)]
        buckets = _Bucketed(keys)
        for block in _blocks(self.marks, self.contents, self.position):
            buckets.count(block)
        earlier, later = [], []
        for place, (one, other) in enumerate(matches):
            is_open = buckets.counts[place][buckets.numbers(place, keys[place])[1]] <= ALIKE_AT_MOST
            earlier.append(features.take(one[is_open]))
            later.append(features.take(other[is_open]))
        return self._agreeing_matches(_Block.joined(earlier), _Block.joined(later))

    def _matches_of(
        self, wanted: npt.NDArray[np.int64], features: _Block, place: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the matches of wanted pairs at a place; the buckets of some may be overfull with features of other images."""
        found = [np.zeros((2, 0), np.int64)]
        for left, right in _matches_at(place, features):
            one, other = np.minimum(left, right), np.maximum(left, right)
            chosen = np.isin(features.owner[one] * len(self.contents) + features.owner[other], wanted)
            found.append(np.stack([one[chosen], other[chosen]]))
        one, other = np.concatenate(found, axis=1)
        return one, other


def _blocks(marks: Mapping[str, Fingerprint], contents: Sequence[str], position: Mapping[str, int]) -> Iterator[_Block]:
    """Yield the features of images, those of a thousand at a time."""
    for start in range(0, len(contents), _IMAGES_AT_ONCE):
        names = contents[start : start + _IMAGES_AT_ONCE]
        loaded = [marks[sha256].features() for sha256 in names]
        sizes = [len(features.points) for features in loaded]
        yield _Block(
            np.repeat(np.array([position[sha256] for sha256 in names], np.int64), sizes),
            np.concatenate([np.arange(size) for size in sizes]),
            np.concatenate([features.points for features in loaded]),
            np.concatenate([features.descriptors for features in loaded]),
        )


def _load_all(marks: Mapping[str, Fingerprint], contents: Sequence[str]) -> _Block:
    """Return the features of all images, which are never held twice."""
    position = {sha256: number for number, sha256 in enumerate(contents)}
    owner, points, descriptors = bytearray(), bytearray(), bytearray()
    for block in _blocks(marks, contents, position):
        owner += block.owner.tobytes()
        points += block.points.tobytes()
        descriptors += block.descriptors.tobytes()
    owners = np.frombuffer(owner, np.int64)
    return _Block(
        owners,
        np.broadcast_to(np.int64(0), owners.shape),  # a feature is known by its index here
        np.frombuffer(points, np.float32).reshape(-1, 3),
        np.frombuffer(descriptors, np.uint8).reshape(-1, DESCRIPTOR_BYTES),
    )


def _keys(descriptors: npt.NDArray[np.uint8], place: int) -> npt.NDArray[np.int64]:
    """Return each feature's key at one of the ten places, int64 (n,) below 2 ** 24."""
    # Four bytes at once, of which three count: byte by byte takes six times as long.
    words = descriptors[:, place * _KEY_BYTES : place * _KEY_BYTES + 4].view("<u4")[:, 0]
    keys: npt.NDArray[np.int64] = (words & np.uint32(_ALL_KEYS - 1)).astype(np.int64)
    return keys


def _matches(features: _Block) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the features of different images that match: two arrays of indexes, the first feature of the earlier image."""
    count = max(len(features.owner), 1)
    found: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for place in range(_KEYS):
        for left, right in _matches_at(place, features):
            found.append(np.minimum(left, right) * count + np.maximum(left, right))
        found = [_each_once(found)]
    return found[0] // count, found[0] % count


def _matches_at(place: int, features: _Block) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    keys = _keys(features.descriptors, place)
    order = np.argsort(keys, kind="stable")
    sizes = np.diff(np.flatnonzero(np.diff(keys[order], prepend=-1)), append=len(order))
    kept = order[np.repeat(sizes <= ALIKE_AT_MOST, sizes)]
    del order, sizes
    for one, other in _neighbours(keys[kept]):
        yield _similar(features, kept[one], kept[other])


def _each_once(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Return all numbers, sorted and each once. The list is emptied: there are too many to have them twice."""
    numbers = np.concatenate(parts)
    parts.clear()
    numbers.sort()
    once = np.ones(len(numbers), np.bool_)
    once[1:] = numbers[1:] != numbers[:-1]
    return numbers[once]


def _neighbours(ordered: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield all pairs of entries with one number, in parts, as two arrays of indexes.

    Args:
        ordered: sorted numbers, none of them more than `ALIKE_AT_MOST` times.
    """
    for lag in range(1, ALIKE_AT_MOST):
        same = np.flatnonzero(ordered[:-lag] == ordered[lag:])
        if not len(same):
            return
        for start in range(0, len(same), _COMPARED_AT_ONCE):
            part = same[start : start + _COMPARED_AT_ONCE]
            yield part, part + lag


def _within_buckets(numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return all pairs of entries with one number, as two arrays of indexes. At most `ALIKE_AT_MOST` entries have the same."""
    order = np.argsort(numbers, kind="stable")
    pairs = list(_neighbours(numbers[order]))
    one, other = (np.concatenate([np.zeros(0, np.int64), *side]) for side in zip(*pairs)) if pairs else (order[:0], order[:0])
    return order[one], order[other]


def _similar(
    block: _Block, one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return those pairs of features that are of different images and differ in few bits."""
    kept = [np.zeros(0, np.int64)]
    for start in range(0, len(one), _COMPARED_AT_ONCE):
        left, right = one[start : start + _COMPARED_AT_ONCE], other[start : start + _COMPARED_AT_ONCE]
        near = hamming(block.descriptors[left], block.descriptors[right]) <= _FEATURE_BITS
        kept.append(start + np.flatnonzero(near & (block.owner[left] != block.owner[right])))
    chosen = np.concatenate(kept)
    return one[chosen], other[chosen]


def _owner_pairs(block: _Block, one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> set[tuple[int, int]]:
    owners = np.sort(np.column_stack([block.owner[one], block.owner[other]]), axis=1)
    return {(left, right) for left, right in np.unique(owners, axis=0).tolist() if left != right}


def _agreeing(features: _Block, one: npt.NDArray[np.int64], other: npt.NDArray[np.int64], images: int) -> list[tuple[int, int]]:
    """Return the pairs of images whose matches agree in shift and scale, by position, sorted.

    Args:
        features: of all images concerned.
        one, other: matches, each once, as indexes of features; `one` of the earlier image, sorted by these images.
        images: how many there are.
    """
    agreed: list[tuple[int, int]] = []
    for part in _parts(features.owner[one]):
        agreed += _agreeing_of(features, one[part], other[part], images)
    return agreed


def _parts(owners: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Yield sorted owners in parts of about `_COUNTED_AT_ONCE`, none of which ends within an owner's."""
    if not len(owners):
        return
    begins = np.flatnonzero(np.diff(owners, prepend=-1))
    wanted = np.arange(0, len(owners), _COUNTED_AT_ONCE)
    cuts = np.unique(begins[np.searchsorted(begins, wanted, side="right") - 1])
    yield from map(slice, cuts.tolist(), [*cuts[1:].tolist(), len(owners)])


def _agreeing_of(
    features: _Block, one: npt.NDArray[np.int64], other: npt.NDArray[np.int64], images: int
) -> list[tuple[int, int]]:
    points, owner = features.points, features.owner
    pairs, place, matches = np.unique(owner[one] * images + owner[other], return_inverse=True, return_counts=True)
    enough = matches[place] >= _LEAST_VOTES
    place, one, other = place[enough], one[enough], other[enough]
    agreed = np.zeros(len(pairs), np.bool_)
    # A cell is so many pixels of one of the two images. Both are tried: else the digests of their files would decide which.
    for fixed, moved in ((one, other), (other, one)):
        factor = points[fixed, 2] / points[moved, 2]
        level = np.rint(np.log(factor) / np.log(LEVEL_RATIO)).astype(np.int64)
        shift = points[fixed, :2] - factor[:, None] * points[moved, :2]
        for offset in _GRIDS:
            cell = np.floor(shift / _CELL + offset).astype(np.int64)
            agreed[place[_often(place, level, cell[:, 0], cell[:, 1])]] = True
    return [divmod(number, images) for number in pairs[agreed].tolist()]


def _often(*columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return one index of each combination of values that at least `_LEAST_VOTES` rows have."""
    order = np.lexsort(columns)
    if not len(order):
        return order
    changes = np.zeros(len(order) - 1, np.bool_)
    for column in columns:
        changes |= np.diff(column[order]) != 0
    begins = np.concatenate([[0], np.flatnonzero(changes) + 1])
    often: npt.NDArray[np.int64] = order[begins[np.diff(begins, append=len(order)) >= _LEAST_VOTES]]
    return often
