"""A run's documents in one object: a copy that decides nothing. What it saves the pages is tested with them."""

from __future__ import annotations

import json

import pytest

from bcc_ops.runs import bundle
from bcc_ops.runs.bundle import BUNDLE, read_bundle, write_bundle
from bcc_ops.runs.object_store import ObjectStore
from tests.unit.report.samples import PATHS


def etags(store: ObjectStore) -> dict[str, str]:
    return {entry["Key"].rpartition("/")[2]: entry["ETag"].strip('"') for entry in store.list_objects(f"{PATHS.folder}/")}


@pytest.fixture
def bundled(store: ObjectStore) -> ObjectStore:
    """A run with two documents, and beside them a model file and a document that somebody damaged."""
    for name, content in (("config.json", b"{}"), ("gate.json", b"[1]"), ("checks.json", b"\xff\xfe"), ("model.h5", b"weights")):
        store.put(PATHS.document(name), content)
    write_bundle(store, PATHS)
    return store


def test_a_bundle_holds_the_documents_and_no_other_file(bundled: ObjectStore) -> None:
    content = bundled.get(PATHS.document(BUNDLE))
    assert read_bundle(content, etags(bundled)) == {"config.json": b"{}", "gate.json": b"[1]"}


def test_a_document_that_was_rewritten_or_removed_since_is_not_taken_from_the_bundle(bundled: ObjectStore) -> None:
    content = bundled.get(PATHS.document(BUNDLE))
    bundled.put(PATHS.document("gate.json"), b"[2]")
    bundled.client.delete_object(Bucket=bundled.bucket, Key=PATHS.document("config.json"))
    assert read_bundle(content, etags(bundled)) == {}


def test_a_large_document_is_left_to_whoever_shows_it(bundled: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "LARGEST", 2)
    write_bundle(bundled, PATHS)
    assert list(json.loads(bundled.get(PATHS.document(BUNDLE)))["files"]) == ["config.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"files": ["gate.json"]}',
        b'{"files": {"gate.json": 1}}',
        b"\xff\xfe",
        b'{"files": ' + b"[" * 200_000,
    ],
    ids=["empty", "cut short", "a list", "no files", "files that are a list", "a number", "invalid UTF-8", "nested too deeply"],
)
def test_a_damaged_bundle_holds_nothing(content: bytes) -> None:
    assert read_bundle(content, {"gate.json": "e"}) == {}
