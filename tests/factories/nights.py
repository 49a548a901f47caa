"""What happens in a bucket from night to night: images arrive, and runs see them."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

from bcc_ops.dataset.arrivals import ArrivalCheck
from bcc_ops.dataset.snapshot import list_images
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.runs.documents import SnapshotDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.sensors.new_images import NewImagesSensor
from tests.factories.runs import give_verdict

PARAMS = {"settle_seconds": 0, "wait_for_images_minutes": 60}


def context_of(run_type: str, run_id: str = "", logical_date: datetime | None = None, **params: Any) -> Any:
    now = datetime.now(timezone.utc)
    pushed: dict[str, Any] = {}
    dates = {"logical_date": logical_date} if logical_date else {}
    return {
        "run_id": run_id or f"{run_type}__{now.isoformat()}",
        "dag_run": SimpleNamespace(run_type=run_type, run_after=logical_date or now),
        "ti": SimpleNamespace(get_previous_dagrun=lambda state: None, xcom_push=lambda key, value: pushed.update({key: value})),
        "pushed": pushed,
        "params": {**PARAMS, **params},
        **dates,
    }


def upload(store: ObjectStore, *names: str) -> None:
    for name in names:
        store.put(f"images/{name}.png", f"{name} {time.time_ns()}".encode())


def assess(store: ObjectStore, run_id: str, as_of: datetime) -> SnapshotDocument:
    """A whole run that ends in a verdict, as far as this part is concerned."""
    context = context_of("manual", run_id)
    return give_verdict(store, snapshot_as_of(as_of, context))


def snapshot_as_of(as_of: datetime, context: Any) -> dict[str, str]:
    arrivals = sighted(as_of, context)
    return dict(SnapshotDatasetOperator(task_id="snapshot", arrivals=arrivals).execute(context))


def sighted(as_of: datetime, context: Any) -> dict[str, Any]:
    """What the sensor of a run sees as of a moment."""
    sensor = NewImagesSensor(task_id="wait")
    check = ArrivalCheck(sensor.store, sensor.settings, sensor.deployment.resolve(context["params"]))
    listing = list_images(sensor.store, check.rules, as_of)
    return {"as_of": as_of.isoformat(), "images": len(listing.images), "digest": listing.digest, "change": None}


def now() -> datetime:
    return datetime.now(timezone.utc)


def past_second() -> datetime:
    """This second, once it is over: S3 tells whole seconds, so that only what comes now is told to be later."""
    moment = now().replace(microsecond=0)
    while (left := moment + timedelta(seconds=1) - now()) > timedelta():
        time.sleep(left.total_seconds())
    return moment
