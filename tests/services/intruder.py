"""Somebody on the S3 server's machine, or a web page in a browser there, who has no credentials."""

from __future__ import annotations

import base64
import re
import socket
import ssl
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil

from local.s3_server import make_identity

ORIGIN = "http://evil.example"
FAKE = b'{"version": "fake"}'


def listening_ports(pid: int) -> set[int]:
    """Every TCP port on which a process listens."""
    connections = psutil.Process(pid).net_connections("tcp")
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def sockets(pid: int) -> set[Path]:
    """Every Unix socket of a process that has a path."""
    process = psutil.Process(pid)
    return {Path(process.cwd(), connection.laddr) for connection in process.net_connections("unix") if connection.laddr}


def file_ids(data: Path) -> list[str]:
    """Return SeaweedFS' own ids of what is stored under `data`: whoever once learnt one may ask a volume server for it."""
    ids = []
    for volume in sorted(data.glob("*.dat")):
        content = volume.read_bytes()
        number = re.search(r"(\d+)$", volume.stem)
        assert number
        if len(content) > 20:  # a header of 8 bytes, then cookie and id of the first file
            cookie, key = struct.unpack(">IQ", content[8:20])
            ids.append(f"{number[1]},{key:x}{cookie:08x}")
    return ids


@dataclass(frozen=True)
class Intruder:
    """Tries to list, read, overwrite and delete.

    Args:
        bucket, key: what to attack.
        secrets: words that no answer may hold unless the request held them too: content, and names of other keys.
        file_ids: see the function.
    """

    bucket: str
    key: str
    secrets: tuple[str, ...]
    file_ids: tuple[str, ...] = ()

    def break_in(self, doors: Iterable[int | Path]) -> list[str]:
        """Attack each port of loopback or Unix socket and return a line for each thing that succeeded."""
        return [success for door in doors for success in self._attack(door)]

    def _attack(self, door: int | Path) -> Iterator[str]:
        yield from self._by_http(door)
        yield from self._by_tls(door)
        yield from self._by_grpc(door)

    # HTTP --------------------------------------------------------------------------------------------------------------

    def _requests(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        folder, _, name = self.key.rpartition("/")
        objects = [f"/buckets/{self.bucket}/{self.key}", f"/{self.bucket}/{self.key}", *(f"/{id_}" for id_ in self.file_ids)]
        folders = [f"/buckets/{self.bucket}/{folder}/", f"/buckets/{self.bucket}/", f"/{self.bucket}"]
        yield from (("GET", path, {}) for path in (*objects, *folders))
        yield from (("HEAD", path, {}) for path in objects)
        for path in (
            *("/", f"/{self.bucket}?versions", f"/{self.bucket}?policy", "/status", "/metrics", "/ui/index.html"),
            *("/dir/status", "/vol/status", "/cluster/status", "/stats/disk", "/debug/pprof/heap?debug=1"),
            *(
                "/dir/assign",
                "/dir/lookup?volumeId=1&read=yes",
                "/?metadata=true",
                "/.tus/",
                "/api/files",
                "/object-store/buckets",
            ),
        ):
            yield "GET", path, {}
        yield "OPTIONS", f"/{self.bucket}/{self.key}", {"headers": {"Access-Control-Request-Method": "PUT"}}
        yield from (("PUT", path, {"content": FAKE}) for path in objects)
        # A browser sends this for any page, without asking first.
        upload = {"file": (name, FAKE, "application/json")}
        yield from (("POST", path, {"files": upload}) for path in (*objects, *folders, "/submit"))
        yield "POST", f"/{self.bucket}", {"files": {"key": (None, self.key), **upload}}
        for action in ("ListUsers", "CreateAccessKey&UserName=mini", "GetCallerIdentity"):
            yield "POST", f"/?Action={action}", {}
        yield from (("DELETE", path, {}) for path in objects)
        yield "DELETE", f"/buckets/{self.bucket}/{folder}?recursive=true&ignoreRecursiveError=true", {}
        yield "DELETE", f"/{self.bucket}", {}
        yield "GET", f"/col/delete?collection={self.bucket}", {}
        yield "GET", f"/vol/vacuum?collection={self.bucket}&garbageThreshold=0", {}

    def _by_http(self, door: int | Path) -> Iterator[str]:
        for scheme in ("http", "https"):
            address = f"{scheme}://127.0.0.1{f':{door}' if isinstance(door, int) else ''}"
            transport = httpx.HTTPTransport(verify=_unverified(), uds=None if isinstance(door, int) else str(door))
            with httpx.Client(base_url=address, transport=transport, timeout=60, trust_env=False) as client:
                for method, path, options in self._requests():
                    headers = {"Origin": ORIGIN, **options.get("headers", {})}
                    try:
                        answer = client.request(method, path, **{**options, "headers": headers})
                    except httpx.TransportError:
                        continue
                    what = f"{door}: {method} {scheme} {path}: {answer.status_code}"
                    told = [word for word in self.secrets if word.encode() in answer.content and word not in path]
                    if told:
                        yield f"{what} tells {told}"
                    if answer.is_success and (method not in ("GET", "OPTIONS") or "assign" in path or "delete" in path):
                        yield what
                    if self.bucket in path and "access-control-allow-origin" in answer.headers:
                        yield f"{what} lets pages of {answer.headers['access-control-allow-origin']} read it"

    def _by_tls(self, door: int | Path) -> Iterator[str]:
        """Shake hands without a certificate and with one of one's own: who is refused is sent no byte but an alert."""
        for context in (_unverified(), _unverified(base64.b64decode(make_identity()))):
            try:
                with (
                    _connect(door) as connection,
                    context.wrap_socket(connection, server_hostname="localhost") as secured,
                ):
                    secured.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    answer = secured.recv(1)
            except OSError:
                continue
            if answer:
                yield f"{door}: TLS answers a stranger"

    # gRPC --------------------------------------------------------------------------------------------------------------

    def _calls(self) -> Iterator[tuple[str, bytes]]:
        folder, _, name = f"/buckets/{self.bucket}/{self.key}".rpartition("/")
        entry = _text(1, folder) + _text(2, name)
        yield "/filer_pb.SeaweedFiler/ListEntries", _text(1, folder)
        yield "/filer_pb.SeaweedFiler/LookupDirectoryEntry", entry
        yield "/filer_pb.SeaweedFiler/CreateEntry", _text(1, folder) + _bytes(2, _text(1, "planted.png"))
        yield "/filer_pb.SeaweedFiler/DeleteEntry", entry + bytes([4 << 3, 1, 5 << 3, 1, 6 << 3, 1])
        yield "/master_pb.Seaweed/VolumeList", b""
        yield "/master_pb.Seaweed/CollectionDelete", _text(1, self.bucket)
        yield "/volume_server_pb.VolumeServer/DeleteCollection", _text(1, self.bucket)
        yield "/iam_pb.SeaweedIdentityAccessManagement/GetConfiguration", b""
        yield "/s3_pb.SeaweedS3IamCache/RemoveIdentity", _text(1, "mini")
        yield "/worker_pb.WorkerService/WorkerStream", b""

    def _by_grpc(self, door: int | Path) -> Iterator[str]:
        target = f"127.0.0.1:{door}" if isinstance(door, int) else f"unix:{door}"
        with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            for method, message in self._calls():
                try:
                    # A stream of answers reads a single one too.
                    next(iter(channel.unary_stream(method)(message, timeout=60)), None)
                    outcome = "OK"
                except grpc.RpcError as error:
                    outcome = error.code().name  # type: ignore[attr-defined]
                if outcome != "UNAVAILABLE":  # any other code is an answer of a server that took the call
                    yield f"{door}: gRPC {method}: {outcome}"


def _connect(door: int | Path) -> socket.socket:
    if isinstance(door, int):
        return socket.create_connection(("127.0.0.1", door), timeout=60)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(str(door))
    return connection


def _unverified(identity: bytes | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity:
        with tempfile.NamedTemporaryFile() as file:
            file.write(identity)
            file.flush()
            context.load_cert_chain(file.name)
    return context


def _bytes(field: int, value: bytes) -> bytes:
    """A protobuf field that holds bytes or a message, up to 127 bytes."""
    assert len(value) < 128
    return bytes([field << 3 | 2, len(value)]) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())
