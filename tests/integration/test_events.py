"""What wakes a run up: an asset, and S3's notifications from an SQS queue."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from airflow.sdk import AssetWatcher
from airflow.sdk.module_loading import import_string

from bcc_ops.config import Settings
from bcc_ops.sensors.events import images_asset

BURST = 500


@pytest.fixture
def sqs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a mocked SQS, which Airflow's connection points to as well."""
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.mock_sqs"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    connection = {"conn_type": "aws", "extra": {**keys, "endpoint_url": endpoint}}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    yield boto3.client("sqs", endpoint_url=endpoint, **keys)
    server.communicate("")


def notification(key: str) -> str:
    """As S3 sends it: the key is URL-encoded."""
    return json.dumps({"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": key}}}]})


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
def test_a_burst_of_notifications_becomes_a_handful_of_events_and_leaves_the_queue_empty(sqs: Any) -> None:
    queue = sqs.create_queue(QueueName="images")["QueueUrl"]
    bodies = ['{"Service": "Amazon S3", "Event": "s3:TestEvent"}']
    bodies += [notification(f"images/benign/benign+%28{n}%29.png") for n in range(BURST - 1)]
    for first in range(0, BURST, 10):
        entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies[first : first + 10])]
        sqs.send_message_batch(QueueUrl=queue, Entries=entries)
    path, arguments = watcher_of(queue).trigger.serialize()

    async def fire() -> Any:
        events = import_string(path)(**arguments).run()
        event = await anext(events)
        await events.aclose()
        return event.payload

    def waiting() -> int:
        attributes = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=attributes)["Attributes"]
        return sum(int(answer[name]) for name in attributes)

    fired = 0
    while waiting():
        payload = asyncio.run(asyncio.wait_for(fire(), 60))
        assert payload["status"] == "success"
        json.dumps(payload)
        fired += 1
    assert fired == 5
