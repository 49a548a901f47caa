"""From the bucket into the cache: only what is missing, every byte verified, whatever goes wrong on the way."""

from __future__ import annotations

import hashlib
import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.config import Config
from pydicom.uid import JPEGLSLossless

from bcc_ops.dataset.decoding import decode_rgb
from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.object_download import Transfer
from bcc_ops.dataset.snapshot import ImageRules, list_images
from bcc_ops.dataset.sync import Counts, LocalImage, sync_images, training_view
from bcc_ops.exceptions import AccessDenied, CacheError, ImageRefused, ObjectChanged, StorageError, StorageUnavailable
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.tables import ImageRow
from local.s3_server import S3Server
from tests.factories.dicom_files import MARKER, dicom_file
from tests.services.faulty_proxy import FAULTS, faulty, patience

RULES = ImageRules("images", ("benign", "malignant", "normal"), ("*_mask*",))
MakeStore = Callable[..., ObjectStore]


def put(store: ObjectStore, *keys: str) -> None:
    for key in keys:
        store.put(key, f"content of {key}".encode() * 50)


def rows_of(store: ObjectStore) -> list[ImageRow]:
    return list_images(store, RULES).images


def contents(images: list[LocalImage]) -> dict[str, bytes]:
    """What the files hold; each must be what its digest says."""
    held = {image.key: image.path.read_bytes() for image in images}
    assert all(hashlib.sha256(held[image.key]).hexdigest() == image.sha256 for image in images)
    return held


def client_at(server: S3Server, endpoint: str, **config: Any) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(**{"retries": {"max_attempts": 1, "mode": "standard"}, **config}),
    )


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache", 10**9)


def test_images_arrive_whole_and_in_the_order_of_the_snapshot(store: ObjectStore, cache: ImageCache) -> None:
    put(store, "images/normal/c.png", "images/benign/a.png", "images/malignant/b.png")
    images = sync_images(store, rows_of(store), cache)
    assert [(image.key, image.label) for image in images] == [
        ("images/benign/a.png", "benign"),
        ("images/malignant/b.png", "malignant"),
        ("images/normal/c.png", "normal"),
    ]
    assert contents(images)["images/malignant/b.png"] == b"content of images/malignant/b.png" * 50


def test_only_what_is_missing_is_fetched(store: ObjectStore, cache: ImageCache, s3_server: S3Server) -> None:
    put(store, "images/benign/a.png", "images/benign/b.png")
    sync_images(store, rows_of(store), cache)
    put(store, "images/benign/b.png", "images/benign/c.png")
    with faulty(s3_server, lambda path, number: None) as proxy:
        watched = ObjectStore(client_at(s3_server, proxy.endpoint), store.bucket)
        counts = Counts()
        sync_images(watched, rows_of(store), cache, counts=counts)
        assert {path.rpartition("/")[2] for path in proxy.requests if proxy.requests[path]} == {"c.png"}
    assert (counts.images, counts.fetched) == (3, 1)


def test_an_unchanged_snapshot_asks_the_store_for_nothing(store: ObjectStore, cache: ImageCache, s3_server: S3Server) -> None:
    put(store, "images/benign/a.png")
    rows = rows_of(store)
    sync_images(store, rows, cache)
    nowhere = ObjectStore(client_at(s3_server, "http://127.0.0.1:1"), store.bucket)
    assert len(sync_images(nowhere, rows, cache)) == 1


@pytest.mark.parametrize("versioned", [False, True])
def test_names_that_are_hard_to_spell_arrive_and_stay_in_the_cache(
    make_store: MakeStore, cache: ImageCache, tmp_path: Path, versioned: bool
) -> None:
    store = make_store(versioned=versioned)
    long = "/".join("k" * 200 for _ in range(6))
    keys = [
        "images/benign/benign (1).png",
        "images/benign/a+b.png",
        "images/benign/100%20.png",
        "images/benign/100%.png",
        "images/benign/naïve ✓.png",
        "images/benign/e\u0301.png",
        "images/benign/é.png",
        "images/benign/a?b&c=d#e.png",
        "images/benign/..hidden.png",
        "images/benign/tab\there.png",
        "images/benign/line\nbreak.png",
        "images/benign/case.png",
        "images/benign/CASE.png",
        "images/normal/case.png",
        f"images/benign/{long}"[:1020] + ".png",
    ]
    assert len(keys[-1].encode()) == 1024
    put(store, *keys)
    images = sync_images(store, rows_of(store), cache)
    assert contents(images) == {key: f"content of {key}".encode() * 50 for key in keys}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {
        path for path in (tmp_path / "cache").rglob("*") if path.is_file()
    }


def test_objects_from_before_versions_were_kept_arrive_by_their_null_version(store: ObjectStore, cache: ImageCache) -> None:
    put(store, "images/benign/a.png", "images/benign/b.png")
    rows = rows_of(store)
    first = sync_images(store, rows, cache)
    store.client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})
    now_null = rows_of(store)
    assert [row.version_id for row in now_null] == ["null", "null"]
    counts = Counts()
    assert sync_images(store, now_null, cache, counts=counts) == first
    assert counts.fetched == 0
    store.put("images/benign/b.png", b"another")
    again = sync_images(store, now_null, ImageCache(cache.directory.with_name("elsewhere"), 10**9))
    assert contents(again) == contents(first)


@pytest.mark.parametrize(
    ("key", "suits"),
    [
        ("images/benign/benign (1).png", True),
        ("images/benign/é+%20..png", True),
        ("images/benign//etc/passwd.png", False),
        ("/images/benign/a.png", False),
        ("images/benign/../a.png", False),
        ("images/benign/./a.png", False),
        ("images/benign/line\nbreak.png", False),
    ],
)
def test_names_that_obstore_would_change_are_left_to_boto3(store: ObjectStore, key: str, suits: bool) -> None:
    row = ImageRow(key, "benign", 1, "0" * 32, "", datetime.now(timezone.utc))
    assert Transfer(store).suits_obstore(row) is suits
    assert not Transfer(store).suits_obstore(row._replace(etag="0" * 32 + "-2"))


def test_a_view_for_training_holds_each_image_once_below_its_class(store: ObjectStore, cache: ImageCache, tmp_path: Path) -> None:
    put(store, "images/benign/x (1).PNG", "images/benign/X (1).png", "images/normal/x (1).png", "images/benign/sub/x (1).png")
    images = sync_images(store, rows_of(store), cache)
    view = training_view(images, tmp_path / "view")
    links = [path for path in view.rglob("*") if not path.is_dir()]
    assert {path.relative_to(view).parts[0] for path in links} == {"benign", "normal"}
    assert len({str(path).lower() for path in links}) == 4
    assert sorted(path.read_bytes() for path in links) == sorted(contents(images).values())
    assert training_view(images[:1], tmp_path / "view") == tmp_path / "view"
    assert len([path for path in view.rglob("*") if not path.is_dir()]) == 1


def test_a_view_never_leaves_its_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    keys = ["images/benign/../../../escape.png", "images/benign//etc/passwd.png", "images/benign/..png", "/etc/x.png"]
    images = [LocalImage(key, "benign", "0" * 64, tmp_path / "file") for key in keys]
    view = training_view(images, tmp_path / "deep" / "view")
    assert len(list((view / "benign").iterdir())) == 4
    assert {path for path in tmp_path.rglob("*") if path.is_symlink()} == set((view / "benign").iterdir())


def test_an_image_replaced_after_the_snapshot_ends_the_download_and_says_so(store: ObjectStore, cache: ImageCache) -> None:
    put(store, "images/benign/a.png", "images/benign/b.png")
    rows = rows_of(store)
    store.put("images/benign/b.png", b"another")
    with pytest.raises(ObjectChanged, match=r"images/benign/b.png was removed or replaced.*start a new run"):
        sync_images(store, rows, cache)
    assert len(sync_images(store, rows_of(store), cache)) == 2


def test_an_image_removed_after_the_snapshot_ends_the_download_and_says_so(store: ObjectStore, cache: ImageCache) -> None:
    put(store, "images/benign/a.png")
    rows = rows_of(store)
    store.client.delete_object(Bucket=store.bucket, Key="images/benign/a.png")
    with pytest.raises(ObjectChanged, match=r"images/benign/a.png was removed or replaced"):
        sync_images(store, rows, cache)


def test_with_versions_the_images_of_the_snapshot_arrive_whatever_happened_since(
    make_store: MakeStore, cache: ImageCache
) -> None:
    store = make_store(versioned=True)
    put(store, "images/benign/a.png", "images/benign/b.png")
    rows = rows_of(store)
    store.put("images/benign/a.png", b"another")
    store.client.delete_object(Bucket=store.bucket, Key="images/benign/b.png")
    assert contents(sync_images(store, rows, cache))["images/benign/a.png"] == b"content of images/benign/a.png" * 50


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_leaves_no_trace(store: ObjectStore, cache: ImageCache, s3_server: S3Server, fault: str) -> None:
    put(store, *(f"images/benign/{n}.png" for n in range(12)))
    with faulty(s3_server, lambda path, number: fault if number <= 1 else None) as proxy:
        shaky = ObjectStore(client_at(s3_server, proxy.endpoint, read_timeout=patience(fault)), store.bucket)
        images = sync_images(shaky, rows_of(store), cache)
        assert all(count > 1 for path, count in proxy.requests.items() if path.endswith(".png"))
    assert contents(images) == {f"images/benign/{n}.png": f"content of images/benign/{n}.png".encode() * 50 for n in range(12)}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow
def test_a_lasting_fault_is_one_clear_error_and_nothing_wrong_in_the_cache(
    store: ObjectStore, cache: ImageCache, s3_server: S3Server, fault: str
) -> None:
    put(store, "images/benign/good.png", "images/benign/bad.png")
    with faulty(s3_server, lambda path, number: fault if path.endswith("bad.png") else None) as proxy:
        shaky = ObjectStore(client_at(s3_server, proxy.endpoint, read_timeout=patience(fault)), store.bucket)
        with pytest.raises(StorageUnavailable, match=r"images/benign/bad\.png: given up after 4 attempts") as caught:
            sync_images(shaky, rows_of(store), cache)
    assert "\n" not in str(caught.value)
    held = [path for path in (cache.directory / "files").rglob("*") if path.is_file()]
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in held)
    assert len(contents(sync_images(store, rows_of(store), cache))) == 2


def test_wrong_credentials_are_told_as_such(store: ObjectStore, cache: ImageCache, s3_server: S3Server) -> None:
    put(store, "images/benign/a.png")
    rows = rows_of(store)
    wrong = S3Server(s3_server.endpoint, s3_server.access_key, "wrong", s3_server.pid)
    with pytest.raises(AccessDenied, match=r"images/benign/a\.png"):
        sync_images(ObjectStore(client_at(wrong, wrong.endpoint), store.bucket), rows, cache)


def put_with_own_key(store: ObjectStore, key: str) -> None:
    """Put an object that only its uploader can read: it is listed as all others are."""
    store.client.put_object(Bucket=store.bucket, Key=key, Body=b"secret", SSECustomerAlgorithm="AES256", SSECustomerKey="k" * 32)


def test_an_object_that_only_its_uploader_can_read_is_left_out_and_told(store: ObjectStore, cache: ImageCache) -> None:
    put(store, *(f"images/benign/{n}.png" for n in range(4)))
    put_with_own_key(store, "images/benign/2x.png")
    rows, unreadable, counts = rows_of(store), {}, Counts()
    assert len(rows) == 5
    images = sync_images(store, rows, cache, counts=counts, unreadable=unreadable)
    assert [image.key for image in images] == [f"images/benign/{n}.png" for n in range(4)]
    assert list(unreadable) == ["images/benign/2x.png"]
    assert "must provide the customer key" in unreadable["images/benign/2x.png"]
    assert (counts.images, counts.fetched, counts.unreadable) == (5, 4, 1)
    with pytest.raises(StorageError, match=r"images/benign/2x\.png: .* must provide the customer key"):
        sync_images(store, rows, cache)


ARCHIVED = (403, "InvalidObjectState", "The operation is not valid for the object's storage class")
DENIED = (403, "AccessDenied", "Access Denied")
EXPIRED = (400, "ExpiredToken", "The provided token has expired")


@pytest.mark.parametrize("answer", [ARCHIVED, DENIED], ids=["archived", "of another account"])
def test_a_refusal_of_one_object_is_told_apart_from_one_of_the_bucket(
    store: ObjectStore, cache: ImageCache, s3_server: S3Server, answer: tuple[int, str, str]
) -> None:
    put(store, "images/benign/a.png", "images/benign/b.png")
    rows, unreadable = rows_of(store), {}
    with refusing(s3_server, answer, lambda path: path.endswith("b.png")) as client:
        images = sync_images(ObjectStore(client, store.bucket), rows, cache, unreadable=unreadable)
    assert [image.key for image in images] == ["images/benign/a.png"]
    assert unreadable == {"images/benign/b.png": unreadable["images/benign/b.png"]}
    assert answer[2] in unreadable["images/benign/b.png"]


@pytest.mark.parametrize("answer", [DENIED, EXPIRED], ids=["denied", "expired"])
@pytest.mark.parametrize("held", [0, 2])
def test_a_bucket_that_refuses_everything_fails_whatever_is_held(
    store: ObjectStore, cache: ImageCache, s3_server: S3Server, answer: tuple[int, str, str], held: int
) -> None:
    put(store, *(f"images/benign/{n}.png" for n in range(4)))
    rows, unreadable = rows_of(store), {}
    sync_images(store, rows[:held], cache)
    with (
        refusing(s3_server, answer, lambda path: path.endswith(".png")) as client,
        pytest.raises(AccessDenied),
    ):
        sync_images(ObjectStore(client, store.bucket), rows, cache, unreadable=unreadable)
    assert unreadable == {}


@contextmanager
def refusing(server: S3Server, answer: tuple[int, str, str], refused: Callable[[str], bool]) -> Iterator[Any]:
    """A client of the server that answers so to every look at these paths."""
    with faulty(server) as proxy:
        passed_on = proxy.answer

        def answer_some(handler: Any) -> None:
            if not refused(handler.path):
                return passed_on(handler)
            status, code, message = answer
            content = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            return proxy._send(handler, status, [("Content-Type", "application/xml")], content)

        proxy.answer = answer_some  # type: ignore[method-assign]
        yield client_at(server, proxy.endpoint)


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


_CHILD = """
import sys
from pathlib import Path
from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.sync import sync_images
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.tables import ImageRow, read_rows
from local.s3_server import S3Server
endpoint, access, secret, bucket, rows, directory, budget = sys.argv[1:]
store = ObjectStore(S3Server(endpoint, access, secret, 0).client(), bucket)
cache = ImageCache(Path(directory), int(budget))
print("begun", flush=True)
images = sync_images(store, read_rows(ImageRow, Path(rows).read_bytes()), cache)
assert all(image.path.exists() for image in images)
print("done", flush=True)
sys.stdin.read()
"""


def _start_child(server: S3Server, store: ObjectStore, rows: Path, directory: Path, budget: int = 10**9) -> subprocess.Popen[str]:
    arguments = [server.endpoint, server.access_key, server.secret_key, store.bucket, str(rows), str(directory), str(budget)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _write_table(store: ObjectStore, path: Path) -> list[ImageRow]:
    from bcc_ops.runs.tables import write_rows

    rows = rows_of(store)
    path.write_bytes(write_rows(ImageRow, rows))
    return rows


def test_two_processes_on_one_cache_do_each_other_no_harm(store: ObjectStore, s3_server: S3Server, tmp_path: Path) -> None:
    put(store, *(f"images/benign/{n}.png" for n in range(300)))
    rows = _write_table(store, tmp_path / "rows.parquet")
    children = [_start_child(s3_server, store, tmp_path / "rows.parquet", tmp_path / "cache") for _ in range(2)]
    for child in children:
        child.communicate("")
        assert child.returncode == 0
    counts = Counts()
    assert len(contents(sync_images(store, rows, ImageCache(tmp_path / "cache", 10**9), counts=counts))) == 300
    assert counts.fetched == 0


REQUESTS_ANSWERED = 900
"""Of 1,200: a download that nobody disturbs does not come to its end before it is killed, however slow the killer is."""


@pytest.mark.slow
@pytest.mark.parametrize("files_before_the_kill", [1, 300])
def test_a_kill_in_the_middle_leaves_a_good_cache(
    store: ObjectStore, s3_server: S3Server, tmp_path: Path, files_before_the_kill: int
) -> None:
    put(store, *(f"images/benign/{n:04d}.png" for n in range(1200)))
    rows = _write_table(store, tmp_path / "rows.parquet")
    files = tmp_path / "cache" / "files"
    requests = itertools.count(1)
    with faulty(s3_server, lambda path, number: "stall" if next(requests) > REQUESTS_ANSWERED else None) as proxy:
        server = replace(s3_server, endpoint=proxy.endpoint)
        child = _start_child(server, store, tmp_path / "rows.parquet", tmp_path / "cache")
        while len(list(files.glob("?/*"))) < files_before_the_kill:
            assert child.poll() is None, "it ended by itself"
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    left = list(files.glob("?/*"))
    assert files_before_the_kill <= len(left) < 1200
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in left)
    cache = ImageCache(tmp_path / "cache", 10**9)
    counts = Counts()
    assert len(contents(sync_images(store, rows, cache, counts=counts))) == 1200
    assert counts.fetched < 1200 or files_before_the_kill == 1  # files are taken in by some hundred at a time
    assert [path.name for path in (tmp_path / "cache" / "incoming").iterdir()] == [cache.pin().name]


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
    _write_table(store, tmp_path / "rows.parquet")
    holder = _start_child(s3_server, store, tmp_path / "rows.parquet", tmp_path / "cache")
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


def _fill(server: S3Server, bucket: str, directory: Path, outcome: Any) -> None:
    """In a process of its own: no file may grow beyond 512 bytes, which is how a full disk looks to a writer."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = ObjectStore(server.client(), bucket)
    rows = rows_of(store)
    cache = ImageCache(directory, 10**9)
    cache.find([])
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
    try:
        sync_images(store, rows, cache)
    except BaseException as error:
        outcome.put((type(error).__name__, str(error), getattr(error, "retryable", None)))
    else:
        outcome.put(("nothing", "", None))


def test_a_disk_that_fills_up_is_one_clear_error(store: ObjectStore, s3_server: S3Server, tmp_path: Path) -> None:
    put(store, "images/benign/a.png", "images/benign/b.png")
    outcome: Any = multiprocessing.get_context("spawn").Queue()
    filler = multiprocessing.get_context("spawn").Process(
        target=_fill, args=(s3_server, store.bucket, tmp_path / "cache", outcome)
    )
    filler.start()
    name, message, retryable = outcome.get(timeout=60)
    filler.join()
    assert (name, retryable) == ("CacheError", True)
    assert "is full; make room there, or set BCC_CACHE_DIR" in message
    assert "\n" not in message
    assert not list((tmp_path / "cache" / "files").rglob("*.png"))


def test_objects_encrypted_with_a_key_of_kms_are_verified_by_their_checksum(
    store: ObjectStore, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their ETag looks like an MD5 and is none; the local server has no KMS, so its answer to HEAD is replaced."""
    put(store, *(f"images/benign/{n}.png" for n in range(3)))
    rows = rows_of(store)
    etags = {row.key: hashlib.md5(row.key.encode(), usedforsecurity=False).hexdigest() for row in rows}
    real = store.stream
    asked: list[str] = []

    def stream(key: str, version_id: str | None = None, if_etag: str | None = None) -> Any:
        assert if_etag == etags[key]
        asked.append(key)
        return real(key, version_id)

    monkeypatch.setattr(store, "stream", stream)
    monkeypatch.setattr(store, "etag_is_md5", lambda key, version_id=None: False)
    images = sync_images(store, [row._replace(etag=etags[row.key]) for row in rows], cache)
    assert len(contents(images)) == 3
    assert set(asked) == set(etags)


def test_progress_is_told_while_it_lasts(
    store: ObjectStore, cache: ImageCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, *(f"images/benign/{n}.png" for n in range(5)))
    monkeypatch.setattr("bcc_ops.dataset.sync.PROGRESS_EVERY", 0.0)
    with caplog.at_level(logging.INFO):
        sync_images(store, rows_of(store), cache, parallel=1)
    assert "fetched 1 of 5 images, 0.0 of 0.0 MB, " in caplog.text
    assert " MB/s, about 0 s left" in caplog.text


def test_the_listing_and_the_download_agree_on_a_past_moment(make_store: MakeStore, cache: ImageCache) -> None:
    store = make_store(versioned=True)
    put(store, "images/benign/a.png")
    [row] = rows_of(store)
    while datetime.now(timezone.utc) <= row.last_modified.replace(microsecond=999999):
        time.sleep(0.05)
    store.put("images/benign/a.png", b"another")
    then = list_images(store, RULES, row.last_modified)
    assert contents(sync_images(store, then.images, cache)) == {"images/benign/a.png": b"content of images/benign/a.png" * 50}


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


def test_of_dicom_the_cache_holds_the_pixels_and_nothing_else(
    store: ObjectStore, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.arange(96 * 96, dtype=np.uint8).reshape(96, 96)
    scan = dicom_file(picture, JPEGLSLossless)
    store.put("images/benign/scan.dcm", scan)
    store.put("images/benign/IM0002", scan[:-100])
    store.put("images/benign/named otherwise.png", scan)
    rows = rows_of(store)
    images = {image.key.rpartition("/")[2]: image for image in sync_images(store, rows, cache)}
    assert images["scan.dcm"].sha256 == images["named otherwise.png"].sha256 == hashlib.sha256(scan).hexdigest()
    assert np.array_equal(decode_rgb(images["scan.dcm"].path)[:, :, 0], picture)
    with pytest.raises(ImageRefused, match="truncated"):
        decode_rgb(images["IM0002"].path)
    everything = b"".join(path.read_bytes() for path in cache.directory.rglob("*") if path.is_file())
    assert MARKER.encode() not in everything and b"1.2.3.4.5" not in everything

    kept = images["scan.dcm"].path.read_bytes()
    counts = Counts()
    sync_images(store, rows, cache, reread=True, counts=counts)
    assert counts.fetched == 0
    images["scan.dcm"].path.chmod(0o600)
    images["scan.dcm"].path.write_bytes(b"damaged")
    sync_images(store, rows, cache, reread=True, counts=counts)
    assert counts.fetched == 2 and images["scan.dcm"].path.read_bytes() == kept
    monkeypatch.setattr("bcc_ops.dataset.image_cache.METHOD", -1)
    sync_images(store, rows, cache, counts=counts)
    assert counts.fetched == 3  # as it was made by another release
    assert sync_images(store, rows, ImageCache(cache.directory.with_name("other worker"), 10**9))[0].path.read_bytes() == (
        images["IM0002"].path.read_bytes()
    )


def test_a_file_of_a_patient_is_in_no_directory_while_it_is_fetched(store: ObjectStore, cache: ImageCache) -> None:
    store.put("images/benign/scan.dcm", dicom_file(np.zeros((96, 96), np.uint8)))
    seen: list[list[str]] = []

    def looking(chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            seen.append([path.name for path in cache.directory.rglob("*") if path.is_file() and path.stat().st_size > 1_000])

    transfer = Transfer(store)
    [row] = rows_of(store)
    target = cache.incoming() / "0"
    transfer._write(row, looking(transfer._by_boto3(row)), target)
    assert seen and not any(seen)
    assert MARKER.encode() not in target.read_bytes()
