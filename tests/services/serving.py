"""Servers of the standard library, for as long as a test needs them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer
from typing import Any


@contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Serve in a thread until the block ends, then close."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class AwsJsonHandler(BaseHTTPRequestHandler):
    """AWS' JSON protocol: a request names the operation in a header and holds its parameters as they are."""

    protocol_version = "HTTP/1.1"
    content_type = "application/x-amz-json-1.1"

    def answer(self, operation: str, parameters: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer."""
        raise NotImplementedError

    def do_POST(self) -> None:
        operation = self.headers["X-Amz-Target"].split(".")[1]
        status, answer = self.answer(operation, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        content = json.dumps(answer, default=_as_json).encode()
        self.send_response(status)
        self.send_header("Content-Type", self.content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _as_json(value: Any) -> float:
    assert isinstance(value, datetime)
    return value.timestamp()
