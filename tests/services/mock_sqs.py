"""moto's SQS behind a port: moto in a process cannot be asked by aiobotocore, and its own server needs Flask.

python -m tests.services.mock_sqs        prints its port and serves until its input ends
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any, ClassVar

import boto3
from moto import mock_aws

from tests.services.serving import AwsJsonHandler


class Handler(AwsJsonHandler):
    """Hands each request to moto's queue."""

    content_type = "application/x-amz-json-1.0"
    sqs: Any

    def answer(self, operation: str, parameters: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        answer = getattr(self.sqs, re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower())(**parameters)
        answer.pop("ResponseMetadata")
        return 200, answer


class Queue:
    """A queue on such a server, as S3's notifications fill it.

    Args:
        endpoint: the server's address.
    """

    KEYS: ClassVar[dict[str, Any]] = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._sqs: Any = boto3.client("sqs", endpoint_url=endpoint, **self.KEYS)
        self.url = self._sqs.create_queue(QueueName="images")["QueueUrl"]

    def send(self, bodies: Sequence[str]) -> None:
        """Messages, ten at a time."""
        for first in range(0, len(bodies), 10):
            entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies[first : first + 10])]
            self._sqs.send_message_batch(QueueUrl=self.url, Entries=entries)

    def waiting(self) -> int:
        """How many messages nobody has received and deleted."""
        attributes = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=attributes)["Attributes"]
        return sum(int(answer[name]) for name in attributes)


def notification(key: str) -> str:
    """A message as S3 sends it, with the key URL-encoded."""
    return json.dumps({"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": key}}}]})


@contextmanager
def queue() -> Iterator[Queue]:
    """A queue on a server of its own, in a process of its own."""
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "tests.services.mock_sqs"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield Queue(f"http://127.0.0.1:{server.stdout.readline().strip()}")
        server.communicate("")


def main() -> None:
    """Serve."""
    with mock_aws():
        Handler.sqs = boto3.client("sqs", region_name="us-east-1")
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
