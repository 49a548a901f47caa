"""The bytes of one object: whatever goes wrong on the way, they are the promised ones or there is one clear error."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.object_download import Transfer
from bcc_ops.dataset.sync import sync_images
from bcc_ops.exceptions import AccessDenied, StorageUnavailable
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import ImageRow
from local.s3_server import S3Server
from tests.factories.bucket_images import DENIED, client_at, contents, put, refusing, rows_of
from tests.services.faulty_proxy import FAULTS, faulty, patience


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache", 10**9)


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


ARCHIVED = (403, "InvalidObjectState", "The operation is not valid for the object's storage class")


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
