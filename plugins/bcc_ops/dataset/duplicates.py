"""Near copies: images of one scan, found by exact pixels, by perceptual hash and by comparing pixels.

Candidates come from an index over the hashes; what is only alike in outline (all scans of one machine are) is told from
a copy by correlating the aligned, band-passed pixels.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import cv2
import faiss
import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from bcc_ops.dataset.decoding import decode_rgb

if TYPE_CHECKING:
    from bcc_ops.config import RetrainingConfig

log = logging.getLogger(__name__)

METHOD = 1
"""Goes up whenever decoding, fingerprints or the comparison of pixels change: what was learned otherwise is forgotten."""

Pair = tuple[str, str]
"""Two sha256, the smaller first."""

_HASH_BYTES = 8
DESCRIPTOR_BYTES = 32


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image to find its near copies.

    Attributes:
        pixels: sha256 over shape and pixels.
        hash: 64-bit perceptual hash, 8 bytes.
        points: float32 (n, 2), x and y of the local features, in pixels.
        descriptors: uint8 (n, 32), theirs.
    """

    pixels: str
    hash: bytes
    points: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class Likeness:
    """How alike two images are where they overlap. `similarity` from -1 to 1, `overlap` as a part of the smaller one."""

    similarity: float
    overlap: float
    shifted: bool


@dataclass(frozen=True)
class Thresholds:
    """From where on two images are near copies."""

    hash_distance: int
    copy_similarity: float

    @classmethod
    def of(cls, config: RetrainingConfig) -> Thresholds:
        """The run's."""
        return cls(config.hash_distance, config.copy_similarity)

    def described(self) -> dict[str, float]:
        """For validation.json."""
        return {"hash_distance": self.hash_distance, "copy_similarity": self.copy_similarity}


@dataclass(frozen=True)
class NearCopies:
    """The outcome: content -> group, group -> how its members were found, and every pair that was compared."""

    group_of: dict[str, str]
    how: dict[str, tuple[str, ...]]
    compared: dict[Pair, Likeness]
    accepted: frozenset[Pair]


class PairMemory(Protocol):
    """Where the likeness of pairs is remembered."""

    def recall_likeness(self, pairs: Iterable[Pair]) -> dict[Pair, Likeness]:
        """What is known of these pairs."""

    def remember_likeness(self, learned: Mapping[Pair, Likeness]) -> None:
        """Keep it."""


def fingerprint(rgb: np.ndarray) -> Fingerprint:
    """Fingerprint of an image, uint8 (height, width, 3)."""
    digest = hashlib.sha256(str(rgb.shape).encode() + np.ascontiguousarray(rgb).tobytes()).hexdigest()
    bits = imagehash.phash(Image.fromarray(rgb)).hash
    return Fingerprint(digest, np.packbits(bits).tobytes(), np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8))


def find_near_copies(
    marks: Mapping[str, Fingerprint], paths: Mapping[str, Path], thresholds: Thresholds, memory: PairMemory
) -> NearCopies:
    """Group contents that are near copies of one another.

    Args:
        marks: sha256 -> fingerprint.
        paths: sha256 -> a file with that content.
        thresholds: from where on two are near copies.
        memory: asked first, told afterwards.
    """
    links: dict[Pair, str] = {}
    by_pixels: defaultdict[str, list[str]] = defaultdict(list)
    for sha256 in sorted(marks):
        by_pixels[marks[sha256].pixels].append(sha256)
    for same in by_pixels.values():
        links.update({(same[0], other): "pixels" for other in same[1:]})
    distinct = [same[0] for same in by_pixels.values()]

    close = hash_neighbours([marks[sha256].hash for sha256 in distinct], thresholds.hash_distance)
    candidates = {_pair(distinct[one], distinct[other]): distance for one, other, distance in close}
    compared = memory.recall_likeness(candidates)
    missing = [pair for pair in candidates if pair not in compared]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        learned = dict(zip(missing, pool.map(lambda pair: compare(*(decode_rgb(paths[one]) for one in pair)), missing)))
    memory.remember_likeness(learned)
    compared |= learned
    accepted = {pair for pair, like in compared.items() if like.similarity >= 0.2}
    links.update(dict.fromkeys(accepted, "perceptual"))
    group_of, how = _components(sorted(marks), links)
    return NearCopies(group_of, how, compared, frozenset(accepted))


def hash_neighbours(hashes: Sequence[bytes], distance: int) -> list[tuple[int, int, int]]:
    """Pairs of hashes that differ in at most `distance` bits: (index, larger index, bits)."""
    if not hashes:
        return []
    table = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, _HASH_BYTES)
    index = faiss.IndexBinaryFlat(8 * _HASH_BYTES)
    index.add(table)
    limits, bits, found = index.range_search(table, distance + 1)
    own = np.repeat(np.arange(len(table)), np.diff(limits.astype(np.int64)))
    later = found > own
    return list(zip(own[later].tolist(), found[later].tolist(), bits[later].astype(int).tolist()))


def compare(one: np.ndarray, other: np.ndarray) -> Likeness:
    """Correlate two images, uint8 (height, width, 3), after bringing them to one size and the best shift."""
    size = (256, 256)
    first, second = (
        _texture(cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)) for rgb in (one, other)
    )
    peak = np.fft.irfft2(np.fft.rfft2(first) * np.conj(np.fft.rfft2(second))).max()
    energy = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return Likeness(float(peak) / energy if energy else 0.0, 1.0, False)


def _texture(gray: np.ndarray) -> np.ndarray:
    gray = gray.astype(np.float32)
    high = gray - cv2.GaussianBlur(gray, (0, 0), 4)
    local = np.sqrt(cv2.GaussianBlur(high * high, (0, 0), 8))
    return np.asarray(np.clip(high / (local + 2), -3, 3))


def _pair(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)


def _components(contents: Sequence[str], links: Mapping[Pair, str]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    place = {sha256: position for position, sha256 in enumerate(contents)}
    ends = np.array([[place[one], place[other]] for one, other in links], np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(len(contents), len(contents)))
    _, component = connected_components(graph, directed=False)
    name: dict[int, str] = {}
    for sha256, number in zip(contents, component):  # contents are sorted: a group is named by its smallest digest
        name.setdefault(int(number), sha256)
    group_of = {sha256: name[int(number)] for sha256, number in zip(contents, component)}
    how: defaultdict[str, set[str]] = defaultdict(set)
    for (one, _), way in links.items():
        how[group_of[one]].add(way)
    return group_of, {group: tuple(sorted(ways)) for group, ways in how.items()}
