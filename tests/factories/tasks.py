"""Tasks as Airflow would do them, on a bucket of the test's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bcc_ops.config import Settings
from bcc_ops.runs.object_store import ObjectStore
from tests.unit.report.samples import RUN_ID


class Events(dict[Any, Any]):
    """The events of a task's outlets: each asset has one."""

    def __missing__(self, asset: Any) -> Any:
        self[asset] = SimpleNamespace(extra={})
        return self[asset]


def context(user: str | None = "ana") -> Any:
    """What a task is told of the run of the samples, which this user triggered."""
    return {"run_id": RUN_ID, "outlet_events": Events(), "dag_run": SimpleNamespace(triggering_user_name=user)}


def in_bucket(operator: Any, store: ObjectStore, **settings: Any) -> Any:
    """Return the operator, at work in this bucket and without a cache of images."""
    operator.__dict__["store"] = store
    operator.__dict__["settings"] = Settings(bucket=store.bucket, **settings)
    operator.__dict__["image_cache"] = None
    return operator
