"""The pages' memory: bounded, and by ETag."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.web import run_reader
from bcc_ops.web.run_reader import ContentCache, FolderReader


def test_cache_never_holds_more_than_its_budget_and_lets_the_oldest_go() -> None:
    cache = ContentCache(1000)
    for number in range(20):
        cache.put(f"key{number}", "etag", bytes(100))
        assert cache.get("key0", "etag") is not None, "what is in use stays"
        assert cache.size <= 1000
    assert cache.get("key19", "etag") is not None
    assert cache.get("key1", "etag") is None
    cache.put("huge", "etag", bytes(2000))
    assert cache.size == 0


def test_cache_knows_an_object_by_its_etag() -> None:
    cache = ContentCache(1000)
    cache.put("key", "one", b"1")
    assert cache.get("key", "two") is None
    cache.put("key", "one", b"22")
    assert cache.size == 2


def test_folder_reads_each_object_once_and_refuses_large_ones(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("run/a.json", b"{}")
    store.put("run/large.json", bytes(2000))
    store.put("runaway/a.json", b"other")
    monkeypatch.setattr(run_reader, "MOST_BYTES", 1000)
    asked: list[str] = []
    monkeypatch.setattr(store, "get", lambda key, get=store.get: asked.append(key) or get(key))
    with ThreadPoolExecutor(2) as fetchers:
        cache = ContentCache(10_000)
        for _ in range(3):
            folder = FolderReader(store, "run", cache, fetchers)
            assert set(folder.files) == {"a.json", "large.json"}
            read = folder.reader(["a.json", "b.json"])
            assert (read("a.json"), read("b.json")) == (b"{}", None)
        with pytest.raises(ArtifactError, match="download it"):
            folder.read("large.json")
    assert asked == ["run/a.json"]
