"""Objects in a bucket that stand for images, and what a cache made of them: nobody decodes them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from bcc_ops.dataset.snapshot import ImageRules, list_images
from bcc_ops.dataset.sync import LocalImage
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import ImageRow
from bcc_ops.runs.tables import write_rows
from local.s3_server import S3Server
from tests.services.faulty_proxy import faulty

RULES = ImageRules("images", ("benign", "malignant", "normal"), ("*_mask*",))


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


_CHILD = """
import sys
from pathlib import Path
from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.sync import sync_images
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import ImageRow
from bcc_ops.runs.tables import read_rows
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


def start_child(server: S3Server, store: ObjectStore, rows: Path, directory: Path, budget: int = 10**9) -> subprocess.Popen[str]:
    arguments = [server.endpoint, server.access_key, server.secret_key, store.bucket, str(rows), str(directory), str(budget)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def write_table(store: ObjectStore, path: Path) -> list[ImageRow]:
    rows = rows_of(store)
    path.write_bytes(write_rows(ImageRow, rows))
    return rows


DENIED = (403, "AccessDenied", "Access Denied")
"""Status, code and message of an answer."""


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
