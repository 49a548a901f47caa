"""The object store: what the pipeline needs of S3, with a boto3 client handed in.

Every error of botocore leaves here as one of the project's own, in one line that names the bucket or the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from bcc_ops.exceptions import (
    AccessDenied,
    ArtifactError,
    BucketNotFound,
    ObjectNotFound,
    PreconditionFailed,
    StorageError,
    StorageUnavailable,
    WriteConflict,
)
from bcc_ops.runs.documents import D, Document, Reference, parse_document

if TYPE_CHECKING:
    from tenacity import Retrying
    from types_boto3_s3 import S3Client

_KINDS: Mapping[str, type[StorageError]] = {
    **dict.fromkeys(("NoSuchBucket",), BucketNotFound),
    **dict.fromkeys(("PreconditionFailed", "412"), PreconditionFailed),
    **dict.fromkeys(("ConditionalRequestConflict", "409"), WriteConflict),
    **dict.fromkeys(("NoSuchKey", "NoSuchVersion", "404", "NotFound"), ObjectNotFound),
    **dict.fromkeys(("InvalidObjectState",), StorageError),  # archived (GLACIER): a 403 that says nothing about permissions
    **dict.fromkeys(("AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"), AccessDenied),
    **dict.fromkeys(("ExpiredToken", "InvalidToken", "NoCredentialsError", "PartialCredentialsError"), AccessDenied),
    **dict.fromkeys(("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling"), StorageUnavailable),
}
"""S3's error codes, and the names of botocore's errors that have none, by what they mean to the pipeline."""

_HINTS: Mapping[type[StorageError], str] = {
    BucketNotFound: "the bucket does not exist: make it with `aws s3 mb`, or correct BCC_BUCKET",
    ObjectNotFound: "there is no such object",
    AccessDenied: "check the connection's credentials and its policy",
}

_NO_CREDENTIALS = (
    "in a task: Airflow lacks the connection that BCC_AWS_CONN_ID names, or it has no login; "
    "`airflow connections add` makes it, and `python -m bcc_ops doctor` says how"
)


@dataclass(frozen=True)
class ObjectHead:
    """What the store says of an object without its content. `etag` is without quotes."""

    key: str
    size: int
    etag: str
    last_modified: datetime
    version_id: str | None
    metadata: Mapping[str, str]


def translate(error: Exception, what: str) -> StorageError:
    """Return the project's error for one of botocore's.

    Args:
        error: a ClientError or another BotoCoreError.
        what: what was tried, for the message: `reading s3://bucket/key`.
    """
    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code") or type(error).__name__)
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    no_answer = not response
    fallback = StorageUnavailable if no_answer or status >= 500 else StorageError
    kind = _KINDS.get(code, AccessDenied if status == 403 else fallback)
    said = response.get("Error", {}).get("Message") or (str(error) if no_answer else code)
    hint = _NO_CREDENTIALS if code == "NoCredentialsError" else _HINTS.get(kind)
    return kind(f"{what}: {said}" + (f" ({hint})" if hint else ""))


def _conflicts_retried() -> Retrying:
    """Attempt a write until it meets no other writer's: S3 answers 409 then and asks to try again."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

    wait = wait_random_exponential(multiplier=0.1, max=2)
    return Retrying(retry=retry_if_exception_type(WriteConflict), stop=stop_after_attempt(6), wait=wait, reraise=True)


@contextmanager
def _telling(what: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise translate(error, what) from error


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/key` as (bucket, key).

    Raises:
        ValueError: it is not such an address.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket or not key:
        raise ValueError(f"{uri!r} is not an s3://bucket/key address")
    return bucket, key


class ObjectStore:
    """One bucket.

    Args:
        client: a boto3 S3 client; it may be shared between threads.
        bucket: the bucket's name.
    """

    def __init__(self, client: S3Client, bucket: str) -> None:
        self.client = client
        self.bucket = bucket

    def uri(self, key: str) -> str:
        """Return the address of `key` in this bucket."""
        return f"s3://{self.bucket}/{key}"

    def check(self) -> None:
        """Make sure that the bucket is there and answers to these credentials."""
        with _telling(f"opening the bucket {self.bucket}"):
            try:
                self.client.head_bucket(Bucket=self.bucket)
            except self.client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:  # HEAD has no body to say more
                    raise BucketNotFound(f"the bucket {self.bucket} does not exist") from None
                raise

    def is_versioned(self) -> bool:
        """Return whether the bucket keeps versions, so that a past moment can be listed exactly."""
        with _telling(f"asking whether {self.bucket} keeps versions"):
            return self.client.get_bucket_versioning(Bucket=self.bucket).get("Status") == "Enabled"

    def list_objects(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """Yield the objects under `prefix`, page by page, as boto3 gives them: Key, Size, ETag, LastModified."""
        with _telling(f"listing s3://{self.bucket}/{prefix}"):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                yield from page.get("Contents", ())

    def list_versions(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """Yield all versions and delete markers under `prefix`; a marker has `DeleteMarker: True`.

        Within a page the store lists versions and markers separately, so they are not in order of time.
        """
        with _telling(f"listing the versions of s3://{self.bucket}/{prefix}"):
            for page in self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=prefix):
                yield from page.get("Versions", ())
                for marker in page.get("DeleteMarkers", ()):
                    yield {**marker, "DeleteMarker": True}

    def list_everything(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """Yield all versions and delete markers under `prefix`, or the objects if the bucket keeps no versions."""
        return self.list_versions(prefix) if self.is_versioned() else self.list_objects(prefix)

    def list_folders(self, prefix: str) -> list[str]:
        """Return the "folders" right under `prefix` (which ends with a slash), each with a slash at its end, sorted."""
        folders: list[str] = []
        with _telling(f"listing s3://{self.bucket}/{prefix}"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
            for page in pages:
                folders.extend(entry["Prefix"] for entry in page.get("CommonPrefixes", ()))
        return sorted(folders)

    def head(self, key: str) -> ObjectHead | None:
        """Return what the store says of `key`, or None if there is no such object."""
        try:
            with _telling(f"looking at {self.uri(key)}"):
                answer = self.client.head_object(Bucket=self.bucket, Key=key)
        except ObjectNotFound:
            return None
        return ObjectHead(
            key,
            answer["ContentLength"],
            answer["ETag"].strip('"'),
            answer["LastModified"],
            answer.get("VersionId"),
            answer["Metadata"],
        )

    def get(self, key: str, version_id: str | None = None) -> bytes:
        """Return the content of an object."""
        return self.get_with_etag(key, version_id)[0]

    def get_with_etag(self, key: str, version_id: str | None = None, at_most: int | None = None) -> tuple[bytes, str]:
        """Return the content of an object, or its first `at_most` bytes, and its ETag without quotes for a conditional write."""
        version: dict[str, Any] = {"VersionId": version_id} if version_id else {}
        with _telling(f"reading {self.uri(key)}"):
            answer = self.client.get_object(Bucket=self.bucket, Key=key, **version)
            # botocore verifies the length and the checksum only of what is read to its end
            cut = at_most if at_most is not None and answer["ContentLength"] > at_most else None
            with closing(answer["Body"]) as body:
                return body.read(cut), answer["ETag"].strip('"')

    def stream(self, key: str, version_id: str | None = None, if_etag: str | None = None) -> Iterator[bytes]:
        """Yield the content of an object in pieces of at most 1 MiB, its checksum verified if the store holds one.

        Raises:
            PreconditionFailed: the object has another ETag than `if_etag`.
        """
        extra: dict[str, Any] = {"VersionId": version_id} if version_id else {}
        if if_etag is not None:
            extra["IfMatch"] = f'"{if_etag}"'
        with _telling(f"reading {self.uri(key)}"):
            answer = self.client.get_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED", **extra)
            yield from answer["Body"].iter_chunks(1 << 20)

    def etag_is_md5(self, key: str, version_id: str | None = None) -> bool:
        """Return whether the ETag of an object that was written in one part is its MD5: not if encrypted with KMS or own keys."""
        version = {"VersionId": version_id} if version_id else {}
        with _telling(f"looking at {self.uri(key)}"):
            answer = self.client.head_object(Bucket=self.bucket, Key=key, **version)  # type: ignore[arg-type]
        return answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer

    def put(
        self,
        key: str,
        content: bytes,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        create_only: bool = False,
        if_etag: str | None = None,
    ) -> str:
        """Write an object whole and return its new ETag, without quotes.

        Args:
            create_only: only if there is none (`If-None-Match: *`).
            if_etag: only over the object with this ETag (`If-Match`).

        Raises:
            PreconditionFailed: the condition did not hold, or another writer was first.
            WriteConflict: other conditional writes to this object were in progress at each of a few attempts.
        """
        extra: dict[str, Any] = {}
        if metadata:
            extra["Metadata"] = dict(metadata)
        if tags:
            extra["Tagging"] = urlencode(tags)
        if create_only:
            extra["IfNoneMatch"] = "*"
        if if_etag is not None:
            extra["IfMatch"] = f'"{if_etag}"'
        for attempt in _conflicts_retried():
            with attempt, _telling(f"writing {self.uri(key)}"):
                answer = self.client.put_object(Bucket=self.bucket, Key=key, Body=content, ContentType=content_type, **extra)
        return answer["ETag"].strip('"')

    def copy(self, key: str, to: str, version_id: str | None = None) -> None:
        """Copy an object, or a version of it, to another key of the bucket, inside the store; tags are left behind."""
        source: dict[str, str] = {"Bucket": self.bucket, "Key": key} | ({"VersionId": version_id} if version_id else {})
        with _telling(f"copying {self.uri(key)} to {self.uri(to)}"):
            self.client.copy_object(Bucket=self.bucket, Key=to, CopySource=source, TaggingDirective="REPLACE")  # type: ignore[arg-type]

    def put_referenced(self, key: str, content: bytes, content_type: str = "application/octet-stream") -> Reference:
        """Write an object and return the reference to it."""
        self.put(key, content, content_type=content_type)
        return Reference.of(key, content)

    def put_file(self, key: str, path: Path, content_type: str = "application/octet-stream") -> Reference:
        """Write a local file and return the reference to it."""
        return self.put_referenced(key, path.read_bytes(), content_type)

    def get_referenced(self, reference: Reference) -> bytes:
        """Return the content that a reference promises.

        Raises:
            ArtifactError: what is there now is something else.
        """
        content = self.get(reference.key)
        if hashlib.sha256(content).hexdigest() != reference.sha256:
            raise ArtifactError(f"{self.uri(reference.key)} has changed since the reference to it was made")
        return content

    def reference(self, key: str) -> Reference:
        """Return the reference to what is stored at a key now."""
        return Reference.of(key, self.get(key))

    def save(self, key: str, document: Document) -> Reference:
        """Write a document and return the reference to it."""
        return self.put_referenced(key, document.to_json(), "application/json")

    def load(self, kind: type[D], reference: Reference | Mapping[str, str] | None) -> D:
        """Read the document that a reference (or its plain dict from XCom) promises.

        Raises:
            ArtifactError: it is not there with that content, or an earlier task handed on no reference.
        """
        if reference is None:
            raise ArtifactError(
                f"an earlier task handed on no {kind.__name__}: a task marked successful by hand does no work. Clear it"
            )
        reference = reference if isinstance(reference, Reference) else Reference.model_validate(dict(reference))
        return parse_document(kind, self.get_referenced(reference), self.uri(reference.key))

    def load_key(self, kind: type[D], key: str) -> D:
        """Read the document at a key, whatever its content."""
        return parse_document(kind, self.get(key), self.uri(key))

    def find(self, kind: type[D], key: str) -> D | None:
        """Read the document at a key, or None if there is none."""
        try:
            return self.load_key(kind, key)
        except ObjectNotFound:
            return None

    def delete(self, key: str) -> None:
        """Remove an object; if there is none, nothing happens."""
        with _telling(f"removing {self.uri(key)}"):
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def delete_folder(self, folder: str) -> int:
        """Remove every object under `folder` and return how many there were. For checkpoints that are no longer needed."""
        keys = [entry["Key"] for entry in self.list_objects(f"{folder.rstrip('/')}/")]
        with _telling(f"removing s3://{self.bucket}/{folder}"):
            for key in keys:
                self.client.delete_object(Bucket=self.bucket, Key=key)
        return len(keys)
