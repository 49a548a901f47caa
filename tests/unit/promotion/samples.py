"""Versions made by hand, and a client that fails where a test wants it to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from botocore.exceptions import ClientError

from bcc_ops.models.registry import ModelRegistry, Pointer, version_name
from bcc_ops.promotion.promote import Upload
from bcc_ops.runs.documents import Estimate, GateDocument, ModelDocument, OperatingPoint, Reference
from bcc_ops.runs.object_store import ObjectStore
from tests.unit.report.samples import evaluation_document, gate_document

AS_OF = datetime(2026, 11, 22, 2, tzinfo=timezone.utc)
NOW = AS_OF + timedelta(hours=1)
CLASSES = ("benign", "malignant", "normal")
POINT = OperatingPoint(
    threshold=0.31,
    wanted_sensitivity=0.9,
    chosen_on="tuning part: 20 positive and 54 other images",
    sensitivity=Estimate(value=0.88, low=0.75, high=0.95),
    specificity=Estimate(value=0.83, low=0.75, high=0.9),
)


def model_document(registry: ModelRegistry, content: bytes, days: int = 0, **changes: Any) -> ModelDocument:
    sha256 = hashlib.sha256(content).hexdigest()
    as_of = AS_OF + timedelta(days=days)
    version = version_name(as_of, sha256)
    fields: dict[str, Any] = {
        "version": version,
        "classes": CLASSES,
        "positive_class": "malignant",
        "image_size": 256,
        "preprocessing": "raw 0-255 RGB",
        "architecture": "efficientnet_lite0",
        "operating_point": POINT,
        "temperature": 1.2,
        "synthetic": False,
        "as_of": as_of,
        "run": f"{as_of:%Y%m%dT%H%M%SZ}__manual-{days}",
        "snapshot_digest": "d" * 64,
        "split": Reference(key=registry.key(version, "split.parquet"), sha256="5" * 64),
        "model": Reference(key=registry.key(version, "model.h5"), sha256=sha256),
        "evaluation": Reference(key=registry.key(version, "evaluation.json"), sha256="e" * 64),
    }
    return ModelDocument(**{**fields, **changes})


def upload(registry: ModelRegistry, content: bytes = b"weights", days: int = 0, **changes: Any) -> Upload:
    return Upload(
        model_document(registry, content, days, **changes), content, b"split", b"answers", evaluation_document(), "# Card\n"
    )


def approved(pointer: Pointer | None) -> GateDocument:
    champion = pointer.champion if pointer else None
    return gate_document(
        "approved" if pointer else "approved_without_champion",
        champion_version=champion.version if champion else None,
        champion_etag=pointer.etag if pointer else None,
    )


class FailingClient:
    """A client whose `put_object` or `get_object` fails when `fails(operation, key)` says so, before or after the store acted.

    Args:
        after: the store did what was asked, and only the answer was lost.
    """

    def __init__(self, client: Any, fails: Callable[[str, str], bool], error: BaseException, after: bool = False) -> None:
        self._client, self._fails, self._error, self._after = client, fails, error, after
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name not in ("put_object", "get_object", "head_object", "delete_object"):
            return method

        def call(**arguments: Any) -> Any:
            self.calls.append((name, arguments["Key"]))
            if self._fails(name, arguments["Key"]):
                if self._after:
                    method(**arguments)
                raise self._error
            return method(**arguments)

        return call


def client_error(code: str, status: int) -> ClientError:
    answer = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "PutObject")  # type: ignore[arg-type]


def failing_registry(
    store: ObjectStore, fails: Callable[[str, str], bool], error: BaseException, after: bool = False
) -> tuple[ModelRegistry, FailingClient]:
    client = FailingClient(store.client, fails, error, after)
    return ModelRegistry(ObjectStore(client, store.bucket), "models"), client  # type: ignore[arg-type]
