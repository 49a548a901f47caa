from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from local.s3_server import S3Server, start


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
