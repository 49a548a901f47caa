"""What wakes a run up: an asset, and S3's notifications from an SQS queue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import AssetWatcher
from airflow.sdk.module_loading import import_string

from bcc_ops.config import Settings
from bcc_ops.sensors.events import images_asset
from tests.services.mock_sqs import Queue, notification, queue

BURST = 500


@pytest.fixture
def sqs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """A queue that Airflow's connection points to."""
    with queue() as opened:
        connection = {"conn_type": "aws", "extra": {**Queue.KEYS, "endpoint_url": opened.endpoint}}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        yield opened


def watcher_of(queue_url: str) -> AssetWatcher:
    [watcher] = images_asset(Settings(sqs_queue_url=queue_url)).watchers
    return watcher


def test_the_asset_stands_for_the_images_prefix() -> None:
    asset = images_asset(Settings(bucket="scans", images_prefix="labelled"))
    assert (asset.name, asset.uri) == ("breast_images", "s3://scans/labelled")
    assert not asset.watchers


def test_the_queue_is_watched_only_where_one_is_configured_and_its_trigger_serialises() -> None:
    path, arguments = watcher_of("https://sqs.eu-west-1.amazonaws.com/1/images").trigger.serialize()
    assert path == "airflow.providers.amazon.aws.triggers.sqs.SqsSensorTrigger"
    assert arguments["sqs_queue"] == "https://sqs.eu-west-1.amazonaws.com/1/images"
    assert arguments["aws_conn_id"] == "aws_default"
    assert (arguments["max_messages"], arguments["num_batches"]) == (10, 10)
    assert arguments["delete_message_on_reception"] is True
    assert json.loads(json.dumps(arguments)) == arguments


@pytest.mark.slow
def test_a_burst_of_notifications_becomes_a_handful_of_events_and_leaves_the_queue_empty(sqs: Queue) -> None:
    sqs.send(['{"Service": "Amazon S3", "Event": "s3:TestEvent"}'])
    sqs.send([notification(f"images/benign/benign+%28{n}%29.png") for n in range(BURST - 1)])
    path, arguments = watcher_of(sqs.url).trigger.serialize()

    async def fire() -> Any:
        events = import_string(path)(**arguments).run()
        event = await anext(events)
        await events.aclose()
        return event.payload

    fired = 0
    while sqs.waiting():
        payload = asyncio.run(asyncio.wait_for(fire(), 60))
        assert payload["status"] == "success"
        json.dumps(payload)
        fired += 1
    assert fired == 5
