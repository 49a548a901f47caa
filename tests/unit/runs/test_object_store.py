from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from bcc_ops.exceptions import (
    AccessDenied,
    ArtifactError,
    BucketNotFound,
    ObjectNotFound,
    PreconditionFailed,
    StorageUnavailable,
)
from bcc_ops.runs.documents import ApprovalDocument, Reference
from bcc_ops.runs.index import assessed_runs, find_run, list_runs
from bcc_ops.runs.object_store import ObjectStore, split_uri, translate
from bcc_ops.runs.paths import RunPaths
from local.s3_server import S3Server, free_ports
from tests.unit.report.samples import config_document

ANSWER = ApprovalDocument(approved=True, by="ann", at=datetime(2026, 1, 1, tzinfo=timezone.utc), timed_out=False)


def test_a_document_comes_back_by_its_reference(store: ObjectStore) -> None:
    reference = store.save("a/b.json", ANSWER)
    assert reference == Reference(key="a/b.json", sha256=hashlib.sha256(ANSWER.to_json()).hexdigest())
    assert store.load(ApprovalDocument, reference.to_xcom()) == ANSWER


def test_a_reference_to_something_that_changed_is_refused(store: ObjectStore) -> None:
    reference = store.save("a.json", ANSWER)
    store.save("a.json", ANSWER.model_copy(update={"by": "bob"}))
    with pytest.raises(ArtifactError, match="has changed"):
        store.load(ApprovalDocument, reference)


def test_a_reference_holds_in_a_bucket_that_was_restored_under_another_name(store: ObjectStore) -> None:
    reference = store.save("a/b.json", ANSWER)
    restored = ObjectStore(store.client, f"{store.bucket}-restored")
    store.client.create_bucket(Bucket=restored.bucket)
    restored.put("a/b.json", store.get("a/b.json"))
    assert restored.load(ApprovalDocument, reference) == ANSWER


def test_create_only_lets_one_of_many_writers_win(store: ObjectStore) -> None:
    def write(number: int) -> bool:
        try:
            store.put("once", str(number).encode(), create_only=True)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(write, range(16))) == 1


def test_a_write_over_another_etag_than_the_one_read_is_refused(store: ObjectStore) -> None:
    first = store.put("pointer", b"1")
    store.put("pointer", b"2", if_etag=first)
    with pytest.raises(PreconditionFailed):
        store.put("pointer", b"3", if_etag=first)
    assert store.get("pointer") == b"2"


def test_metadata_and_absence_are_seen_by_head(store: ObjectStore) -> None:
    store.put("m", b"x", metadata={"sha256": "abc"})
    head = store.head("m")
    assert head is not None
    assert (head.size, head.metadata) == (1, {"sha256": "abc"})
    assert store.head("no such key") is None
    assert store.find(ApprovalDocument, "no such key") is None


def test_a_version_is_copied_as_it_was(make_store: Callable[..., ObjectStore]) -> None:
    store = make_store(versioned=True)
    store.put("images/ü (1).png", b"before", tags={"a": "b"})
    old = store.head("images/ü (1).png")
    store.put("images/ü (1).png", b"after")
    store.copy("images/ü (1).png", "copies/old", old.version_id)
    store.copy("images/ü (1).png", "copies/new")
    assert (store.get("copies/old"), store.get("copies/new")) == (b"before", b"after")
    assert store.client.get_object_tagging(Bucket=store.bucket, Key="copies/old")["TagSet"] == []
    with pytest.raises(ObjectNotFound, match=r"copying s3://.*/images/none to s3://.*/copies/none"):
        store.copy("images/none", "copies/none")


def test_a_listing_goes_over_page_ends(make_store: Callable[..., ObjectStore]) -> None:
    store = make_store(versioned=True)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda n: store.put(f"p/{n:04d}", b""), range(1005)))
    store.client.delete_object(Bucket=store.bucket, Key="p/0000")
    assert store.is_versioned()
    assert len(list(store.list_objects("p/"))) == 1004
    versions = list(store.list_versions("p/"))
    assert (len(versions), sum(bool(version.get("DeleteMarker")) for version in versions)) == (1006, 1)


def test_each_failure_is_told_by_its_own_error(store: ObjectStore, s3_server: S3Server) -> None:
    with pytest.raises(ObjectNotFound, match="nothing-here"):
        store.get("nothing-here")
    with pytest.raises(BucketNotFound, match="no-such-bucket"):
        ObjectStore(store.client, "no-such-bucket").check()
    intruder = S3Server(s3_server.endpoint, "local", "wrong", s3_server.pid)
    with pytest.raises(AccessDenied, match="credentials"):
        ObjectStore(intruder.client(), store.bucket).get("key")
    (port,) = free_ports(1)
    silent = S3Server(f"http://127.0.0.1:{port}", "a", "b", 0)
    with pytest.raises(StorageUnavailable, match=str(port)):
        ObjectStore(silent.client(retries={"max_attempts": 0}), "b").get("key")


@pytest.mark.parametrize("uri", ["", "s3://", "s3://bucket", "s3://bucket/", "http://bucket/key"])
def test_what_is_no_s3_address_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="address"):
        split_uri(uri)


def test_runs_are_listed_by_the_moment_of_their_images(store: ObjectStore) -> None:
    days = [RunPaths.of("artifacts", datetime(2026, 1, day, tzinfo=timezone.utc), f"run:{day}") for day in (1, 2, 3)]
    for paths in days:
        store.put(paths.document("snapshot.json"), b"{}")
    store.put(days[2].document("gate.json"), b"{}")
    store.put(days[0].document("gate.json"), b"{}")
    store.put("artifacts/runs/notes/gate.json", b"{}")
    assert list_runs(store, "artifacts") == days
    assert assessed_runs(store, "artifacts") == [days[0], days[2]]
    assert find_run(store, "artifacts", "run:2") == days[1]
    assert find_run(store, "artifacts", "run:9") is None


def test_a_folder_whose_documents_name_another_run_is_refused(store: ObjectStore) -> None:
    paths = RunPaths.of("artifacts", datetime(2026, 1, 1, tzinfo=timezone.utc), "mine")
    store.save(paths.document("config.json"), config_document().model_copy(update={"run_id": "planted"}))
    with pytest.raises(ArtifactError, match="holds the documents of the run 'planted', not of 'mine'"):
        find_run(store, "artifacts", "mine")


def test_a_folder_of_an_older_release_is_found_by_the_run_that_its_config_names(store: ObjectStore) -> None:
    older = RunPaths("artifacts", "20260101T000000Z__nightly")
    store.save(older.document("config.json"), config_document().model_copy(update={"run_id": "nightly"}))
    assert find_run(store, "artifacts", "nightly") == older
    store.save(older.document("config.json"), config_document().model_copy(update={"run_id": "another"}))
    assert find_run(store, "artifacts", "nightly") is None


def test_a_folder_is_removed_whole_and_nothing_beside_it(store: ObjectStore) -> None:
    for key in ("c/a/1", "c/a/2", "c/ab/3"):
        store.put(key, b"")
    assert store.delete_folder("c/a") == 2
    assert [entry["Key"] for entry in store.list_objects("c/")] == ["c/ab/3"]


def test_an_object_is_removed_and_one_that_is_gone_is_no_error(store: ObjectStore) -> None:
    store.put("a", b"1")
    store.put("ab", b"2")
    store.delete("a")
    store.delete("a")
    assert [entry["Key"] for entry in store.list_objects("")] == ["ab"]


def test_missing_credentials_and_a_missing_bucket_are_told_with_the_command_that_helps() -> None:
    lacking = translate(NoCredentialsError(), "listing s3://bucket/images")
    assert isinstance(lacking, AccessDenied) and "`airflow connections add`" in str(lacking)
    error = ClientError({"Error": {"Code": "NoSuchBucket", "Message": "gone"}}, "ListObjectsV2")
    gone = translate(error, "listing s3://bucket/images")
    assert isinstance(gone, BucketNotFound) and "`aws s3 mb`" in str(gone) and "does not exist" in str(gone)
