"""moto's SQS behind a port: moto in a process cannot be asked by aiobotocore, and its own server needs Flask.

python -m tests.integration.mock_sqs        prints its port and serves until its input ends
"""

from __future__ import annotations

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from moto import mock_aws


class Handler(BaseHTTPRequestHandler):
    """A request of the JSON protocol names the operation in a header and holds its parameters as they are."""

    protocol_version = "HTTP/1.1"
    sqs: Any

    def do_POST(self) -> None:
        operation = re.sub(r"(?<!^)(?=[A-Z])", "_", self.headers["X-Amz-Target"].split(".")[1]).lower()
        parameters = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = getattr(self.sqs, operation)(**parameters)
        answer.pop("ResponseMetadata")
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


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
