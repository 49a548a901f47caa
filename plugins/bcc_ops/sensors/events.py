"""The events that start a run: an asset that stands for the images, and S3's notifications if a queue has them."""

from __future__ import annotations

from airflow.sdk import Asset, AssetWatcher

from bcc_ops.config import Settings

MESSAGES_AT_ONCE = 10
"""The most that SQS hands out in one answer."""
ANSWERS_A_LOOK = 10
SECONDS_BETWEEN_LOOKS = 30


def images_asset(settings: Settings) -> Asset:
    """Return the asset of the images' prefix.

    Anybody can announce new images by an event: a person in the UI, another DAG by its outlet, a program over
    REST. If `sqs_queue_url` is set, S3's notifications in that queue do. An event only wakes a run up: its sensor finds
    what is new in the listing. So a message is dropped when it is received, and many become one event.
    """
    watchers = []
    if settings.sqs_queue_url:
        from airflow.providers.common.messaging.triggers.msg_queue import MessageQueueTrigger

        trigger = MessageQueueTrigger(
            scheme="sqs",
            sqs_queue=settings.sqs_queue_url,
            aws_conn_id=settings.aws_conn_id,
            max_messages=MESSAGES_AT_ONCE,
            num_batches=ANSWERS_A_LOOK,
            waiter_delay=SECONDS_BETWEEN_LOOKS,
        )
        watchers.append(AssetWatcher(name="s3_notifications", trigger=trigger))
    name = f"bcc_images__{settings.instance}" if settings.instance else "breast_images"
    return Asset(name=name, uri=f"s3://{settings.bucket}/{settings.images_prefix}/", watchers=watchers)
