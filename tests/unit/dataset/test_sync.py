"""From the bucket into the cache: only what is missing, every byte verified, whatever goes wrong on the way."""

from __future__ import annotations

import hashlib
import itertools
import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import JPEGLSLossless

from bcc_ops.dataset.decoding import decode_rgb
from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.object_download import Transfer
from bcc_ops.dataset.snapshot import list_images
from bcc_ops.dataset.sync import Counts, LocalImage, sync_images, training_view
from bcc_ops.exceptions import AccessDenied, ImageRefused, ObjectChanged, StorageError
from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import S3Server
from tests.factories.bucket_images import DENIED, RULES, client_at, contents, put, refusing, rows_of, start_child, write_table
from tests.factories.dicom_files import MARKER, dicom_file
from tests.services.faulty_proxy import faulty

MakeStore = Callable[..., ObjectStore]


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


def test_a_view_names_every_image_so_that_keras_reads_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    keys = ["images/benign/scan.dcm", "images/benign/IM0001", "images/benign/1.2.840.113619", "images/benign/x.JPG"]
    view = training_view([LocalImage(key, "benign", "0" * 64, tmp_path / "file") for key in keys], tmp_path / "view")
    assert [path.suffix for path in sorted((view / "benign").iterdir())] == [".png", ".png", ".png", ".jpg"]


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


EXPIRED = (400, "ExpiredToken", "The provided token has expired")


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


def test_two_processes_on_one_cache_do_each_other_no_harm(store: ObjectStore, s3_server: S3Server, tmp_path: Path) -> None:
    put(store, *(f"images/benign/{n}.png" for n in range(300)))
    rows = write_table(store, tmp_path / "rows.parquet")
    children = [start_child(s3_server, store, tmp_path / "rows.parquet", tmp_path / "cache") for _ in range(2)]
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
    rows = write_table(store, tmp_path / "rows.parquet")
    files = tmp_path / "cache" / "files"
    requests = itertools.count(1)
    with faulty(s3_server, lambda path, number: "stall" if next(requests) > REQUESTS_ANSWERED else None) as proxy:
        server = replace(s3_server, endpoint=proxy.endpoint)
        child = start_child(server, store, tmp_path / "rows.parquet", tmp_path / "cache")
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
