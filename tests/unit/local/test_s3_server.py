from __future__ import annotations

import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from local.s3_server import S3Server, free_ports, serve, start


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


def test_a_port_is_chosen_once_though_nothing_listens_on_it_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    class EachTwice(random.Random):
        drawn: int | None = None

        def randrange(self, *bounds: int) -> int:  # type: ignore[override]
            again, self.drawn = self.drawn, None
            if again is None:
                again = self.drawn = super().randrange(*bounds)
            return again

    draw = EachTwice()
    monkeypatch.setattr("local.s3_server.random.Random", lambda: draw)
    first, second = free_ports(1), free_ports(2)
    assert len({*first, *second}) == 3
    with socket.socket() as server:
        server.bind(("127.0.0.1", first[0]))  # the choice does not stand in its own way


def test_another_process_does_not_choose_the_same_ports() -> None:
    ours = free_ports(1)[0]
    other = f"""
import random
from types import SimpleNamespace
from local import s3_server
draws = iter([{ours}, {ours}, *range(21999, 12000, -1)])  # until one is free
s3_server.random = SimpleNamespace(Random=lambda: SimpleNamespace(randrange=lambda *bounds: next(draws)))
print(s3_server.free_ports(1)[0])
"""
    answer = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=True)
    assert int(answer.stdout) != ours
