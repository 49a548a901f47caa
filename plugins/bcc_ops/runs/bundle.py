"""A run's documents in one object, so that a page reads them with one request instead of a dozen.

The bundle is a copy and decides nothing. Each document in it carries the ETag that it had when it was copied: a reader that has
listed the folder takes only what is still the same, and reads the others one by one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.record import RUN_DOCUMENTS

BUNDLE = "record.json"
LARGEST = 2**20
"""Bytes of the largest document included: a list of thousands of refused images is read when it is shown."""

_AT_ONCE = 8


def write_bundle(store: ObjectStore, paths: RunPaths) -> None:
    """Copy the documents that a run has by now into its bundle."""
    prefix = f"{paths.folder}/"
    listed = {entry["Key"].removeprefix(prefix): entry for entry in store.list_objects(prefix)}
    small = {name: entry for name, entry in listed.items() if name in RUN_DOCUMENTS and entry["Size"] <= LARGEST}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        contents = list(pool.map(lambda entry: store.get_with_etag(entry["Key"]), small.values()))
    files: dict[str, dict[str, str]] = {}
    for name, (content, etag) in zip(small, contents):
        with suppress(UnicodeDecodeError):  # somebody damaged it: it is read by itself, and reported as unreadable
            files[name] = {"etag": etag, "content": content.decode()}
    store.put(paths.document(BUNDLE), json.dumps({"files": files}).encode(), content_type="application/json")


def read_bundle(content: bytes, etags: Mapping[str, str]) -> dict[str, bytes]:
    """Return the documents of a bundle that are still what they were; none if it is damaged.

    Args:
        content: of the bundle.
        etags: file name -> ETag as it is now.
    """
    try:
        files = json.loads(content)["files"]
        return {name: file["content"].encode() for name, file in files.items() if name in etags and etags[name] == file["etag"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
