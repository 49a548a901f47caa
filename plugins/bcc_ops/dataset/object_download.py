"""One object's bytes, as the listing promised them: by obstore if possible, otherwise by boto3.

obstore (Rust's object_store) costs a fraction of boto3's time on many small objects (docs/benchmarks.md). It takes
endpoint and credentials from the boto3 client. boto3 serves what obstore cannot: names that obstore would change,
objects whose ETag is not their MD5 (S3 then holds a checksum that boto3 verifies), clients with settings of their own;
and it has the last word on every failure, so that an error has S3's words.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import chain
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from bcc_ops.dataset.dicom import GivesPseudonyms, keep_of_dicom
from bcc_ops.dataset.dicom_elements import HEAD, is_dicom
from bcc_ops.exceptions import ObjectChanged, ObjectNotFound, PreconditionFailed, StorageUnavailable
from bcc_ops.runs.object_store import ObjectStore

if TYPE_CHECKING:
    from bcc_ops.runs.rows import ImageRow

log = logging.getLogger(__name__)

ATTEMPTS = 4
_MD5 = re.compile(r"[0-9a-f]{32}")
# object_store drops empty and dot segments and refuses control characters: it would ask for another object.
_NAMED_OTHERWISE = re.compile(r"//|^/|/$|(?:^|/)\.{1,2}(?:/|$)|[\x00-\x1f\x7f]")
_CREDENTIALS_LAST = timedelta(minutes=5)
_FIRST_PAUSE = 0.2
_FAST_FAILURES = 64
_LONGEST_SILENCE = 20.0


class Fetched(NamedTuple):
    """What was written. `sha256` is of the object, `file_sha256` of the file if something else is kept of it, else None."""

    sha256: str
    file_sha256: str | None


class _NotAsPromised(Exception):
    """The bytes that arrived are not those that the listing describes."""


class Transfer:
    """Fetches objects of one bucket; may be shared between threads.

    Args:
        store: the bucket. Its client's endpoint and credentials serve obstore too.
        attempts: how often an object is requested before the store counts as unavailable.
        pseudonyms: of the patients in DICOM files; None keeps nothing of who they are.
    """

    def __init__(self, store: ObjectStore, attempts: int = ATTEMPTS, pseudonyms: GivesPseudonyms | None = None) -> None:
        self.store = store
        self.pseudonyms = pseudonyms
        self.attempts = attempts
        self._fast = _obstore_for(store)
        self._fast_failures = 0
        self._etags_are_md5 = True
        self._asking = threading.Lock()

    def fetch(self, image: ImageRow, target: Path) -> Fetched:
        """Write an object's content to `target`; of a DICOM file, what is kept of it.

        Raises:
            ObjectChanged: the object is gone, or no longer the one that the listing saw.
            StorageUnavailable: the store failed, or sent something else, time and again.
            StorageError: it refused.
            OSError: the file cannot be written.
        """
        if self.suits_obstore(image):
            try:
                fetched = self._write(image, self._by_obstore(image), target)
            except (_NotAsPromised, StorageUnavailable) as error:
                log.debug("%s: %s", image.key, error)
                self._count_fast_failure()
            else:
                self._fast_failures = 0
                return fetched
        problem: Exception | None = None
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(_FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1))  # noqa: S311 (spreads the retries)
            try:
                return self._write(image, self._by_boto3(image), target)
            except (_NotAsPromised, StorageUnavailable) as error:
                problem = error
            except (ObjectNotFound, PreconditionFailed):
                raise ObjectChanged(
                    f"{self.store.uri(image.key)} was removed or replaced after the snapshot was taken; "
                    "start a new run, which takes a fresh one"
                ) from None
        raise StorageUnavailable(f"{self.store.uri(image.key)}: given up after {self.attempts} attempts: {problem}")

    def _count_fast_failure(self) -> None:
        """If obstore never succeeds (another region, a signature that it cannot make), stop paying for it."""
        self._fast_failures += 1
        if self._fast_failures >= _FAST_FAILURES and self._fast is not None:
            self._fast = None
            log.warning("%d downloads in a row failed with obstore: the rest goes through boto3", self._fast_failures)

    def suits_obstore(self, image: ImageRow) -> bool:
        """Return whether obstore asks for this very object, and its ETag verifies what comes."""
        if self._fast is None or _NAMED_OTHERWISE.search(image.key):
            return False
        return self._etags_are_md5 and bool(_MD5.fullmatch(image.etag))

    def _by_obstore(self, image: ImageRow) -> Iterator[bytes]:
        import obstore

        options: dict[str, Any] = {"if_match": f'"{image.etag}"'}
        if image.version_id:
            options["version"] = image.version_id
        try:
            yield from obstore.get(self._fast, image.key, options=options).stream()
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise StorageUnavailable(f"obstore: {error}") from None

    def _by_boto3(self, image: ImageRow) -> Iterator[bytes]:
        return self.store.stream(image.key, image.version_id or None, if_etag=image.etag)

    def _write(self, image: ImageRow, chunks: Iterator[bytes], target: Path) -> Fetched:
        sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        head, chunks = _peek(chunks)
        with _nameless(target.parent) if is_dicom(head) else open(target, "wb", opener=_read_only) as file:
            for chunk in chunks:
                sha256.update(chunk)
                md5.update(chunk)
                size += len(chunk)
                file.write(chunk)
            if size != image.size:
                raise _NotAsPromised(f"{size} bytes arrived instead of {image.size}")
            if _MD5.fullmatch(image.etag) and md5.hexdigest() != image.etag and self._etag_must_be_md5(image):
                raise _NotAsPromised(f"the bytes that arrived have the MD5 {md5.hexdigest()} and not the ETag {image.etag}")
            return Fetched(sha256.hexdigest(), _keep(file, target, self.pseudonyms) if is_dicom(head) else None)

    def _etag_must_be_md5(self, image: ImageRow) -> bool:
        """Return whether a mismatch is damage. Objects encrypted with a key of KMS or of the customer have other ETags."""
        with self._asking:
            if self._etags_are_md5:
                self._etags_are_md5 = self.store.etag_is_md5(image.key, image.version_id or None)
                if not self._etags_are_md5:
                    log.info("ETags in %s are not MD5 sums (encrypted objects): boto3 verifies checksums", self.store.bucket)
                    # What just arrived has the right size only; it is fetched again with its checksum.
                    return True
        return self._etags_are_md5


def _peek(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the first bytes that come, enough to tell a DICOM file, and all that comes, these included."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEAD:
            break
    return head, chain((head,), chunks)


def _nameless(directory: Path) -> IO[bytes]:
    """Return a file without a name: what a killed process had fetched of a patient's data is in no directory."""
    return TemporaryFile(dir=directory)


def _keep(file: IO[bytes], target: Path, pseudonyms: GivesPseudonyms | None) -> str:
    """Write what is kept of a DICOM file to `target` and return its sha256."""
    file.flush()
    kept = keep_of_dicom(memoryview(mmap(file.fileno(), 0, access=ACCESS_READ)), pseudonyms)
    with open(target, "wb", opener=_read_only) as place:
        place.write(kept)
    return hashlib.sha256(kept).hexdigest()


def _read_only(path: str, flags: int) -> int:
    Path(path).unlink(missing_ok=True)
    return os.open(path, flags, 0o400)


def _obstore_for(store: ObjectStore) -> Any:
    """obstore's store for the same bucket, or None if the client has settings that obstore cannot be given."""
    from botocore import UNSIGNED
    from obstore.store import S3Store

    client: Any = store.client
    config = client.meta.config
    endpoint = client.meta.endpoint_url
    credentials = client._get_credentials()  # botocore has no public way from a client to its credentials
    accelerated = (config.s3 or {}).get("use_accelerate_endpoint")
    own_certificates = client._endpoint.http_session._verify is not True and endpoint.startswith("https:")
    if config.signature_version is UNSIGNED or credentials is None or ":" in store.bucket:
        return None
    if accelerated or own_certificates or config.proxies:
        return None

    def frozen() -> dict[str, Any]:
        now = credentials.get_frozen_credentials()
        expiry = datetime.now(timezone.utc) + _CREDENTIALS_LAST
        return {"access_key_id": now.access_key, "secret_access_key": now.secret_key, "token": now.token, "expires_at": expiry}

    silence = timedelta(seconds=min(config.read_timeout, _LONGEST_SILENCE))
    return S3Store(
        store.bucket,
        endpoint=endpoint,
        region=client.meta.region_name,
        credential_provider=frozen,
        client_options={"allow_http": True, "connect_timeout": silence, "read_timeout": silence, "timeout": "1h"},
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=60)},
    )
