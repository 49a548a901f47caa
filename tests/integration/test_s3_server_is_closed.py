"""The S3 server of `make run` and of the compose file gives nothing away without credentials, on any of its ports."""

from __future__ import annotations

import base64
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.prepare_bucket import prepare
from local.compose_stack import ComposeStack
from local.processes import Supervisor
from local.s3_server import ServerError, free_ports, serve
from local.stack import LocalStack
from tests.services.intruder import Intruder, file_ids, listening_ports, sockets

KEY = "models/champion.json"
CONTENT = b'{"version": "the model in use"}' + b" " * 5000
OTHER_KEY = "images/malignant/patient-17.png"


def fill(client: Any, bucket: str) -> None:
    """Two versions of the champion's pointer, and an image."""
    client.put_object(Bucket=bucket, Key=KEY, Body=b"{}")
    client.put_object(Bucket=bucket, Key=KEY, Body=CONTENT)
    client.put_object(Bucket=bucket, Key=OTHER_KEY, Body=b"an image")


def state(client: Any, bucket: str) -> dict[Any, bytes]:
    """Everything that is stored: content by key and version."""
    found = client.list_object_versions(Bucket=bucket)
    assert "DeleteMarkers" not in found
    return {
        (version["Key"], version["VersionId"], version["IsLatest"]): client.get_object(
            Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"]
        )["Body"].read()
        for version in found["Versions"]
    }


def assert_closed(pid: int, client: Any, bucket: str, data: Path) -> None:
    """Attack a server: nobody without credentials is told anything, and what is stored stays the same."""
    doors: set[int | Path] = {*listening_ports(pid), *sockets(pid)}
    assert int(client.meta.endpoint_url.rpartition(":")[2]) in doors
    # Another user's process cannot even talk to a socket.
    assert [door for door in doors if isinstance(door, Path) and door.stat().st_mode & 0o077] == []
    fill(client, bucket)
    before = state(client, bucket)
    ids = file_ids(data)
    assert ids

    succeeded = Intruder(bucket, KEY, (bucket, "the model in use", "patient-17"), tuple(ids)).break_in(doors)

    assert succeeded == []
    assert state(client, bucket) == before
    assert [found["Name"] for found in client.list_buckets()["Buckets"]] == [bucket]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LocalStack]:
    """The store of `make run`, without Airflow."""
    stack = LocalStack(tmp_path / "local", bucket="patients-of-the-clinic", say=lambda line: None)
    stack.supervisor = Supervisor(stack.home, stack.say)
    try:
        stack.start_store()
        yield stack
    finally:
        stack.stop()


def test_no_port_or_socket_of_the_local_server_gives_or_takes_anything_without_credentials(stack: LocalStack) -> None:
    assert_closed(stack.supervisor.pid("s3"), stack.s3.client(), stack.bucket, stack.home / "s3")


def test_other_users_of_the_machine_cannot_enter_the_local_servers_folder(stack: LocalStack) -> None:
    data = stack.home / "s3"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "identity.pem").stat().st_mode) == 0o600


def test_server_starts_on_the_open_folder_of_an_earlier_version_and_closes_it(tmp_path: Path) -> None:
    data = tmp_path / "s3"
    with serve(data) as server:
        server.client().create_bucket(Bucket="bucket")
        fill(server.client(), "bucket")
    (data / "identity.pem").unlink()
    data.chmod(0o755)
    with serve(data) as server:
        assert server.client().get_object(Bucket="bucket", Key=KEY)["Body"].read() == CONTENT
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


@pytest.mark.parametrize("identity", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nno certificate"])
def test_server_without_an_identity_does_not_start(identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.s3_server.make_identity", lambda: base64.b64encode(identity.encode()).decode())
    with pytest.raises(ServerError), serve(tmp_path / "s3", port=free_ports(1)[0]):
        pass


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="apt-get install docker-compose")
def test_no_port_or_socket_of_the_compose_files_server_gives_or_takes_anything_without_credentials(tmp_path: Path) -> None:
    stack = ComposeStack(tmp_path / "compose", say=lambda line: None)
    stack.supervisor = Supervisor(stack.folder, stack.say)
    try:
        stack.start_s3()
        prepare(stack.store, create=True)
        (server,) = (process.pid for process in stack.supervisor.processes("s3") if listening_ports(process.pid))
        assert_closed(server, stack.store.client, stack.store.bucket, stack.volume("s3"))
    finally:
        stack.supervisor.stop()
