"""Waits in the triggerer until a listing of the images is worth a look by a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TriggerEvent

from bcc_ops.dataset.arrivals import ArrivalWatch, utc_now
from bcc_ops.dataset.snapshot import ImageRules, Listing, ListingBuilder
from bcc_ops.exceptions import BccError, NothingNew, StorageError
from bcc_ops.runs.object_store import translate


class NewImagesTrigger(BaseTrigger):
    """List the images now and then; fire when they are new and settled, when waiting is over, or when S3 fails for good.

    Args:
        aws_conn_id: the connection to S3.
        bucket: the bucket.
        rules: `ImageRules` as a list: prefix, classes, names to ignore, bytes of an image at most.
        versioned: whether the bucket keeps versions.
        gives_way_in: the DAG whose queued runs end the waiting while nothing is new; "" for none.
        watch: an `ArrivalWatch` as a dict. All that the trigger knows is in here, so that a restart loses nothing.
    """

    def __init__(
        self, *, aws_conn_id: str, bucket: str, rules: list[Any], versioned: bool, gives_way_in: str, watch: dict[str, Any]
    ) -> None:
        super().__init__()
        self.aws_conn_id = aws_conn_id
        self.bucket = bucket
        self.rules = rules
        self.versioned = versioned
        self.gives_way_in = gives_way_in
        self.watch = watch

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and what makes another that goes on where this one is."""
        return (
            "bcc_ops.triggers.new_images.NewImagesTrigger",
            {
                "aws_conn_id": self.aws_conn_id,
                "bucket": self.bucket,
                "rules": self.rules,
                "versioned": self.versioned,
                "gives_way_in": self.gives_way_in,
                "watch": self.watch,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: `{"watch": …}` for the worker to look for itself.

        With `"error"` if S3 failed for good, with `"gives_way"` if another run is queued and nothing is new.
        """
        watch = ArrivalWatch.from_dict(self.watch)
        while True:
            await asyncio.sleep(min(watch.pause(utc_now()), watch.poke_interval))
            another_run_waits = watch.idle and await self._another_run_waits()
            if another_run_waits:
                watch.hurry()
            if not watch.is_due(utc_now()):
                continue
            try:
                try:
                    listing = await self._list()
                except StorageError as error:
                    self.log.warning("%s (failed look %d)", error, watch.failures + 1)
                    watch.failed(error, utc_now())
                    continue
                if watch.look(listing, utc_now()) == "settled":
                    break
            except NothingNew:
                break  # the worker looks once more and says so
            except BccError as error:
                yield TriggerEvent({"watch": watch.to_dict(), "error": type(error).__name__, "message": str(error)})
                return
            finally:
                self.watch = watch.to_dict()
            if watch.idle and another_run_waits:
                yield TriggerEvent({"watch": watch.to_dict(), "gives_way": True})
                return
            self.log.info("%d images, digest %.12s: waiting", len(listing.images), listing.digest)
        yield TriggerEvent({"watch": watch.to_dict()})

    async def _another_run_waits(self) -> bool:
        return bool(self.gives_way_in) and await asyncio.to_thread(queued_runs, self.gives_way_in) > 0

    async def _list(self) -> Listing:
        from botocore.exceptions import BotoCoreError, ClientError

        rules = ImageRules(self.rules[0], tuple(self.rules[1]), tuple(self.rules[2]), *self.rules[3:])
        builder = ListingBuilder(rules, self.versioned)
        try:
            async with await S3Hook(aws_conn_id=self.aws_conn_id).get_async_conn() as client:
                pages = client.get_paginator("list_object_versions" if self.versioned else "list_objects_v2")
                async for page in pages.paginate(Bucket=self.bucket, Prefix=f"{rules.prefix}/"):
                    builder.add_page(page)
        except (BotoCoreError, ClientError) as error:
            raise translate(error, f"listing s3://{self.bucket}/{rules.prefix}/") from error
        return await asyncio.to_thread(_finish, builder)


def queued_runs(dag_id: str) -> int:
    """Return how many runs of a DAG are waiting to start.

    The days of a backfill are among them, though Airflow counts their active runs apart and they wait for none of ours:
    a trigger may ask how many runs there are, and not of which type.
    """
    count: int = RuntimeTaskInstance.get_dr_count(dag_id=dag_id, states=["queued"])
    return count


def _finish(builder: ListingBuilder) -> Listing:
    """Sort and digest: seconds for a million keys, which in the event loop would hold up every other trigger."""
    listing = builder.build()
    _ = listing.digest
    return listing
