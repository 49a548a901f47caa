from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from local.s3_server import S3Server, serve, start


class _Interrupted:
    def list_buckets(self) -> None:
        raise KeyboardInterrupt


def test_a_signal_while_the_server_starts_leaves_none_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def launch(*words: Any, **named: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*words, **named))
        return started[-1]

    popen = subprocess.Popen
    monkeypatch.setattr("local.s3_server.subprocess.Popen", launch)
    monkeypatch.setattr(S3Server, "client", lambda self, **config: _Interrupted())

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "data", "key", "secret")

    assert started[0].poll() is not None


def test_a_server_listens_on_no_port_that_another_one_would_want_too(tmp_path: Path) -> None:
    with serve(tmp_path / "data") as server:
        process = psutil.Process(server.pid)
        connections, words = process.net_connections("tcp"), process.cmdline()
    listening = {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
    chosen = {int(word.rpartition("=")[2]) for word in words if ".port" in word}
    assert int(server.endpoint.rpartition(":")[2]) in listening
    assert listening <= chosen | {port + 10_000 for port in chosen}  # gRPC's are 10,000 higher
