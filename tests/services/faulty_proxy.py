"""An HTTP proxy in front of the S3 server that goes wrong as networks and stores do."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from local.s3_server import S3Server
from tests.services.serving import serving

FAULTS = ("500", "503", "truncated", "reset", "stall", "altered")
"""An internal error; SlowDown; a body that ends early; a connection that is reset in the middle of the body; a body that
never goes on; a body with another byte in it."""

_ANSWERS = {
    "500": (500, b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"),
    "503": (503, b"<Error><Code>SlowDown</Code><Message>reduce your request rate</Message></Error>"),
}


def patience(fault: str) -> int:
    """Seconds for which a client should wait for each answer: some where one never comes, else more than any machine takes."""
    return 3 if fault == "stall" else 60


class FaultyProxy:
    """A running proxy.

    Args:
        behind: the server that requests are passed on to.
        plan: (path, number of the request for this path, from 1) -> a fault of `FAULTS`, or None.
        listings: ask the plan about listings, and not about GETs of objects.
        conflicts: how many conditional PUTs are answered with 409, as if another one was going on.
    """

    def __init__(
        self,
        behind: S3Server,
        plan: Callable[[str, int], str | None],
        listings: bool = False,
        conflicts: int = 0,
    ) -> None:
        self.behind = behind
        self.plan = plan
        self.listings = listings
        self.conflicts = conflicts
        self.requests: Counter[str] = Counter()
        self.released = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def handle_any(self) -> None:
                proxy.answer(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def client(self, fault: str) -> Any:
        """A client through the proxy that tries once, and waits for an answer as `patience` says."""
        through = replace(self.behind, endpoint=self.endpoint)
        return through.client(read_timeout=patience(fault), retries={"total_max_attempts": 1})

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Pass a request on, or let it go wrong."""
        path = urlsplit(handler.path)
        is_listing = "list-type=2" in path.query or path.query.startswith("versions") or "&versions" in path.query
        is_object = path.path.count("/") > 1 and not is_listing
        planned = handler.command == "GET" and (is_listing if self.listings else is_object)
        self.requests[path.path] += planned
        fault = self.plan(path.path, self.requests[path.path]) if planned else None
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if handler.command == "PUT" and self.conflicts > 0 and {"If-Match", "If-None-Match"} & set(handler.headers):
            self.conflicts -= 1
            content = b"<Error><Code>ConditionalRequestConflict</Code><Message>try again</Message></Error>"
            self._send(handler, 409, [("Content-Type", "application/xml")], content)
            return
        if fault in _ANSWERS:
            status, content = _ANSWERS[fault]
            self._send(handler, status, [("Content-Type", "application/xml")], content)
            return
        connection = http.client.HTTPConnection(urlsplit(self.behind.endpoint).netloc, timeout=30)
        connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():  # the host as signed, whatever it is
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        self._send(handler, response.status, response.getheaders(), content, fault)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        fault: str | None = None,
    ) -> None:
        handler.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                handler.send_header(name, value)
        if handler.command == "HEAD":
            length = {name.lower(): value for name, value in headers}.get("content-length", "0")
            handler.send_header("Content-Length", length)
            handler.end_headers()
            return
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if fault == "altered":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault not in ("truncated", "reset", "stall"):
            handler.wfile.write(content)
            return
        handler.wfile.write(content[: len(content) // 2])
        handler.wfile.flush()
        handler.close_connection = True
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.connection.close()
        if fault == "stall":
            self.released.wait(60)


@contextmanager
def faulty(
    behind: S3Server, plan: Callable[[str, int], str | None] = lambda path, number: None, listings: bool = False, **more: Any
) -> Iterator[FaultyProxy]:
    """A proxy for as long as the block lasts; arguments as for `FaultyProxy`."""
    proxy = FaultyProxy(behind, plan, listings, **more)
    with serving(proxy.server):
        try:
            yield proxy
        finally:
            proxy.released.set()
