"""The images on a worker: what is damaged, evicted or in use."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest

from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.sync import Counts, sync_images
from bcc_ops.exceptions import CacheError
from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import S3Server
from tests.factories.bucket_images import contents, put, rows_of, start_child, write_table


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache", 10**9)


@pytest.mark.parametrize("damage", ["shorter", "altered", "gone"])
def test_a_file_damaged_by_hand_is_noticed_and_fetched_again(store: ObjectStore, cache: ImageCache, damage: str) -> None:
    put(store, "images/benign/a.png", "images/benign/b.png")
    rows = rows_of(store)
    victim = sync_images(store, rows, cache)[0].path
    victim.chmod(0o644)
    if damage == "gone":
        victim.unlink()
    elif damage == "shorter":
        victim.write_bytes(victim.read_bytes()[:-1])
    else:
        victim.write_bytes(b"X" + victim.read_bytes()[1:])
    counts = Counts()
    images = sync_images(store, rows, cache, counts=counts)
    assert counts.fetched == 1
    assert contents(images)["images/benign/a.png"] == b"content of images/benign/a.png" * 50


def test_damage_that_leaves_size_and_time_is_noticed_by_rereading(store: ObjectStore, cache: ImageCache) -> None:
    put(store, "images/benign/a.png")
    rows = rows_of(store)
    victim = sync_images(store, rows, cache)[0].path
    status = victim.stat()
    victim.chmod(0o644)
    victim.write_bytes(b"X" + victim.read_bytes()[1:])
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    counts = Counts()
    contents(sync_images(store, rows, cache, reread=True, counts=counts))
    assert counts.fetched == 1


def test_a_file_that_was_only_touched_is_not_fetched_again(store: ObjectStore, cache: ImageCache) -> None:
    put(store, "images/benign/a.png")
    rows = rows_of(store)
    os.utime(sync_images(store, rows, cache)[0].path)
    counts = Counts()
    sync_images(store, rows, cache, counts=counts)
    assert counts.fetched == 0


@pytest.mark.parametrize("wreck", [b"", b"this is no database" * 100])
def test_a_damaged_index_costs_a_download_and_nothing_else(store: ObjectStore, tmp_path: Path, wreck: bytes) -> None:
    put(store, "images/benign/a.png")
    rows = rows_of(store)
    first = ImageCache(tmp_path / "cache", 10**9)
    sync_images(store, rows, first)
    first.close()
    (tmp_path / "cache" / "index.sqlite3").write_bytes(wreck)
    again = ImageCache(tmp_path / "cache", 10**9)
    counts = Counts()
    contents(sync_images(store, rows, again, counts=counts))
    assert counts.fetched == 1


def test_an_index_damaged_behind_its_first_pages_costs_one_attempt(store: ObjectStore, tmp_path: Path) -> None:
    put(store, "images/benign/a.png")
    rows = rows_of(store)
    first = ImageCache(tmp_path / "cache", 10**9)
    sync_images(store, rows, first)
    first.close()
    index = tmp_path / "cache" / "index.sqlite3"
    content = index.read_bytes()
    index.write_bytes(content[:4096] + b"x" * (len(content) - 4096))  # the first page alone is whole

    with pytest.raises(CacheError, match="is damaged and was thrown away"):
        sync_images(store, rows, ImageCache(tmp_path / "cache", 10**9))

    counts = Counts()
    sync_images(store, rows, ImageCache(tmp_path / "cache", 10**9), counts=counts)
    assert counts.fetched == 1


def _sized(store: ObjectStore, cache: ImageCache, name: str, size: int) -> Path:
    """One object of that many bytes, through the cache."""
    key = f"images/benign/{name}.png"
    store.put(key, name.encode() * size)
    [row] = [row for row in rows_of(store) if row.key == key]
    return sync_images(store, [row], cache)[0].path


def test_what_was_used_longest_ago_is_evicted_first(store: ObjectStore, tmp_path: Path) -> None:
    def on_a_new_day() -> ImageCache:
        return ImageCache(tmp_path / "cache", 2500, pin_outlives_process=0.0)

    paths = {}
    for name in ("a", "b", "a", "c"):  # "a" is used again on the third day
        cache = on_a_new_day()
        paths[name] = _sized(store, cache, name, 1000)
        cache.close()
    assert [name for name, path in sorted(paths.items()) if path.exists()] == ["a", "c"]


def test_what_a_live_run_uses_is_kept_beyond_the_budget(
    store: ObjectStore, s3_server: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, "images/benign/held.png")
    write_table(store, tmp_path / "rows.parquet")
    holder = start_child(s3_server, store, tmp_path / "rows.parquet", tmp_path / "cache")
    assert holder.stdout is not None
    assert [holder.stdout.readline().strip() for _ in range(2)] == ["begun", "done"]
    [held] = (tmp_path / "cache" / "files").glob("?/*")
    with caplog.at_level(logging.WARNING):
        other = ImageCache(tmp_path / "cache", 500, pin_outlives_process=0.0)
        _sized(store, other, "b", 1000)
        assert held.exists()
        assert "BCC_CACHE_BUDGET_GB" in caplog.text
    other.close()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    _sized(store, ImageCache(tmp_path / "cache", 500, pin_outlives_process=0.0), "c", 400)
    assert not held.exists()


def test_between_two_tasks_of_a_run_nothing_of_it_is_evicted(store: ObjectStore, tmp_path: Path) -> None:
    download = ImageCache(tmp_path / "cache", 500)
    held = _sized(store, download, "a", 1000)
    download.close()
    _sized(store, ImageCache(tmp_path / "cache", 500), "b", 1000)
    assert held.exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    store: ObjectStore, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "images/benign/a.png")
    monkeypatch.setattr("bcc_ops.dataset.image_cache.shutil.disk_usage", lambda path: _Free(10))
    with pytest.raises(CacheError, match=r"needs 0\.0 MB more and its disk has 0\.0 MB left; make room there") as caught:
        sync_images(store, rows_of(store), cache)
    assert "\n" not in str(caught.value)
    assert not list((cache.directory / "incoming").rglob("*.png"))


class _Free:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_process_that_begins_while_another_looks_for_dead_ones_keeps_what_it_fetches(tmp_path: Path) -> None:
    looking = ImageCache(tmp_path / "cache", 10**9)
    pins = looking.pin().parent
    begun: list[Path] = []
    locked = ImageCache._is_locked

    class Beginning(ImageCache):
        @staticmethod
        def _is_locked(pin: Path) -> bool:
            if not begun:  # after the pins were listed, and before the directories of what is being fetched would be
                begun.append(ImageCache(tmp_path / "cache", 10**9).incoming())
            return locked(pin)

    looking.__class__ = Beginning
    looking._drop_dead(pins)
    assert begun and begun[0].is_dir()
