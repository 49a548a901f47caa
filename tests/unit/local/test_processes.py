"""Supervised processes: ended with their supervisor, started again when they die, found again after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from local.processes import AlreadyRunning, ProcessMark, Supervisor, end_stale, stop_owner

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
# as Airflow's supervisor does with a task: a fork, in a process group of its own, that ignores SIGTERM
_FORK = """
import os, signal, time
if os.fork() == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
"""
STUBBORN_FAMILY = [sys.executable, "-c", _FORK]
SUPERVISING = """
import sys, time
from pathlib import Path
from local.processes import Supervisor
supervisor = Supervisor(Path(sys.argv[1]))
supervisor.start("family", sys.argv[2:], {})
print("up", flush=True)
time.sleep(600)
"""


def _until(condition: Callable[[], bool], within: float = 120.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "what was awaited did not come about"
        time.sleep(0.05)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, lines: list[str]) -> Iterator[Supervisor]:
    running = Supervisor(tmp_path, lines.append)
    yield running
    running.stop(patience=1)


def test_stop_ends_a_component_with_all_that_it_forked(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, print)
    supervisor.start("family", STUBBORN_FAMILY, os.environ)
    _until(lambda: len(supervisor.processes("family")) == 2)
    family = supervisor.processes("family")
    supervisor.stop(patience=1)
    assert not [process for process in family if process.is_running()]
    assert not (tmp_path / "processes.json").exists()


def test_a_component_that_dies_is_started_again_and_it_is_said(supervisor: Supervisor, lines: list[str]) -> None:
    supervisor.start("sleeper", SLEEPER, os.environ)
    first = supervisor.pid("sleeper")
    os.kill(first, signal.SIGKILL)
    _until(lambda: supervisor.pid("sleeper") != first)
    assert psutil.pid_exists(supervisor.pid("sleeper"))
    assert "sleeper died (exit status -9) and is restarted" in lines[0]
    recorded = json.loads((supervisor.folder / "processes.json").read_text())
    assert recorded["components"][0]["pid"] == supervisor.pid("sleeper")


def test_a_component_that_does_not_stay_up_is_given_up(
    supervisor: Supervisor, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local.processes._DEATHS_TOLERATED", 1)
    supervisor.start("failing", [sys.executable, "-c", "raise SystemExit('no such table')"], os.environ)
    _until(lambda: supervisor.broken is not None)
    assert "failing does not stay up (exit status 1): see" in str(supervisor.broken)
    assert "no such table" in supervisor.log_path("failing").read_text()


def test_a_second_supervisor_of_the_folder_is_refused(supervisor: Supervisor) -> None:
    with pytest.raises(AlreadyRunning, match=rf"running already \(process {os.getpid()}, .*make stop"):
        Supervisor(supervisor.folder)


def test_what_a_killed_supervisor_left_is_ended_at_the_next_start(tmp_path: Path) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", SUPERVISING, str(tmp_path), *STUBBORN_FAMILY], stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None and killed.stdout.readline() == "up\n"
    record = json.loads((tmp_path / "processes.json").read_text())
    mark = ProcessMark(**record["components"][0])
    _until(lambda: len(mark.session_members()) == 2)
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert len(mark.session_members()) == 2, "nobody was there to end them"

    lines: list[str] = []
    Supervisor(tmp_path, lines.append).stop()
    assert mark.session_members() == []
    assert lines == ["An earlier run was killed; ended what it had left running: family."]


def test_make_stop_ends_a_live_supervisor(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", SUPERVISING, str(tmp_path), *SLEEPER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "up\n"
    with owner:  # this one dies of the SIGTERM, so that what it started is left to `stop_owner`
        threading.Thread(target=owner.wait, daemon=True).start()  # as its shell would
        ended = stop_owner(tmp_path)
    assert ended == ["supervisor", "family"]


def test_an_id_that_was_given_to_another_process_is_left_alone(tmp_path: Path) -> None:
    bystander = subprocess.Popen(SLEEPER, start_new_session=True)
    try:
        earlier = {"name": "scheduler", "pid": bystander.pid, "started": time.time() - 3600}
        (tmp_path / "processes.json").write_text(json.dumps({"owner": earlier, "components": [earlier]}))
        assert end_stale(tmp_path) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("content", ["", "{", '{"owner": 1}', "[]"])
def test_a_damaged_record_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / "processes.json").write_text(content)
    assert end_stale(tmp_path) == []
    Supervisor(tmp_path).stop()
