from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcc_ops.dataset.feature_search import FeatureSearch
from bcc_ops.dataset.fingerprints import Fingerprint
from bcc_ops.dataset.inspection_cache import ContentFacts, InspectionCache
from bcc_ops.dataset.similarity import Similarity
from bcc_ops.exceptions import CacheError


def facts(number: int) -> ContentFacts:
    rng = np.random.default_rng(number)
    mark = Fingerprint.of("p", bytes(8), rng.random((5, 3), np.float32), rng.integers(0, 256, (5, 32), dtype=np.uint8))
    return ContentFacts(width=number, height=2, mode="RGB", mean=1.5, contrast=2.5, synthetic=True, fingerprint=mark)


def test_facts_come_back_as_they_were(tmp_path):
    refused = ContentFacts(reason="empty", detail="the file has no content")
    with InspectionCache(tmp_path / "deep" / "memory.sqlite3") as memory:
        memory.remember([("a", facts(3)), ("b", refused)], 64, 1000)
    with InspectionCache(tmp_path / "deep" / "memory.sqlite3") as memory:
        known = memory.recall(["a", "b", "c"], 64, 1000)
        assert memory.recall(["a"], 65, 1000) == {}
        mark, expected = known["a"].fingerprint, facts(3).fingerprint
        assert all(np.array_equal(one, other) for one, other in zip(mark.features(), expected.features(), strict=True))
    assert set(known) == {"a", "b"}
    assert known["b"] == refused
    assert (mark.pixels, mark.hash) == (expected.pixels, expected.hash)
    assert (known["a"].width, known["a"].synthetic) == (3, True)


def test_what_took_long_to_learn_is_kept_before_the_rest_is_known(tmp_path, monkeypatch):
    """A task that is killed among large images loses seconds of work."""
    now = [0.0]
    monkeypatch.setattr("bcc_ops.dataset.inspection_cache.time.monotonic", lambda: now[0])

    def learn():
        for name, seconds in (("slow", 9), ("slower", 9), ("unsaved", 1)):
            now[0] += seconds
            yield name, facts(1)
        raise KeyboardInterrupt

    with InspectionCache(tmp_path / "memory.sqlite3") as memory, pytest.raises(KeyboardInterrupt):
        memory.remember(learn(), 64, 1000)
    with InspectionCache(tmp_path / "memory.sqlite3") as memory:
        assert set(memory.recall(["slow", "slower", "unsaved"], 64, 1000)) == {"slow", "slower"}


def test_an_image_without_features_comes_back_too(tmp_path):
    bare = Fingerprint.of("p", bytes(8), np.zeros((0, 3), np.float32), np.zeros((0, 32), np.uint8))
    with InspectionCache(tmp_path / "memory.sqlite3") as memory:
        memory.remember([("a", ContentFacts(width=1, fingerprint=bare))], 64, 1000)
        features = memory.recall(["a"], 64, 1000)["a"].fingerprint.features()
    assert (features.points.shape, features.descriptors.shape) == ((0, 3), (0, 32))


def test_damage_behind_the_first_pages_costs_one_attempt_and_nothing_else(tmp_path):
    path = tmp_path / "memory.sqlite3"
    names = [f"{number:03}" for number in range(200)]
    with InspectionCache(path) as memory:
        memory.remember([(name, facts(1)) for name in names], 64, 1000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"x" * (len(content) // 2))

    with pytest.raises(CacheError, match="is damaged and was thrown away") as caught:
        with InspectionCache(path) as memory:
            memory.recall(names, 64, 1000)

    assert caught.value.retryable
    with InspectionCache(path) as memory:
        assert memory.recall(names, 64, 1000) == {}


def test_a_memory_that_somebody_else_writes_is_not_taken_for_damaged(tmp_path, monkeypatch):
    path = tmp_path / "memory.sqlite3"
    with InspectionCache(path) as memory:
        memory.remember([("a", facts(1))], 64, 1000)
        connect: Any = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda *args, timeout, **kwargs: connect(*args, timeout=0, **kwargs))
        memory._db.execute("BEGIN IMMEDIATE")
        with pytest.raises(CacheError, match="locked"):
            with InspectionCache(path) as other:
                other.remember([("b", facts(2))], 64, 1000)
        memory._db.execute("COMMIT")
        assert set(memory.recall(["a"], 64, 1000)) == {"a"}
    assert path.exists()


def test_similarity_is_kept_by_pair(tmp_path):
    with InspectionCache(tmp_path / "memory.sqlite3") as memory:
        memory.remember_similarity({("a", "b"): Similarity(0.25, 0.5)})
        assert memory.recall_similarity([("a", "b"), ("a", "c")]) == {("a", "b"): Similarity(0.25, 0.5)}


def test_only_the_last_searches_are_kept(tmp_path):
    searches = [FeatureSearch(("a", f"b{number:02}"), frozenset({("a", f"b{number:02}")})) for number in range(20)]
    with InspectionCache(tmp_path / "memory.sqlite3") as memory:
        assert memory.recall_searches() == []
        for search in searches:
            memory.remember_search(search)
        assert memory.recall_searches() == searches[-16:]


def _remember_many(path: str, start: int) -> int:
    with InspectionCache(Path(path)) as memory:
        for number in range(start, start + 20):
            memory.remember([(str(number), facts(number))], 64, 1000)
    return start


def test_two_processes_may_learn_at_once(tmp_path):
    path = tmp_path / "memory.sqlite3"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(_remember_many, [(str(path), 0), (str(path), 20)])
    with InspectionCache(path) as memory:
        assert len(memory.recall(map(str, range(40)), 64, 1000)) == 40
