"""`make run`, interrupted in every way, and then done: nothing is left running and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bcc_ops.runs.documents import GateDocument, TrainingDocument, parse_document
from local.processes import ProcessMark
from local.s3_server import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

REPOSITORY = Path(__file__).resolve().parents[2]
PARAMS = "architecture=cnn weights=none image_size=64 epochs=6 folds=2"


class MakeRun:
    """A `make run` as its user sees it: lines, signals, an exit status."""

    def __init__(self, home: Path, **variables: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "BCC_", "AWS_"))}
        environment = {**clean, "LOCAL": str(home), "PYTHONPATH": str(REPOSITORY / "plugins"), "PARAMS": PARAMS, **variables}
        self.home = home
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "local", "run"],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                print(f"  | {line}", end="")
                self.lines.append(line)

    def said(self, text: str) -> bool:
        """Whether a line had this in it."""
        return any(text in line for line in self.lines)

    def wait_for(self, text: str, within: float) -> None:
        """Wait for a line."""
        deadline = time.monotonic() + within
        while not self.said(text):
            assert self.process.poll() is None, f"it ended with {self.process.returncode} before it said {text!r}"
            assert time.monotonic() < deadline, f"it did not say {text!r} within {within:.0f} s"
            time.sleep(0.2)

    def wait(self, within: float) -> int:
        """Wait for the end; returns the exit status."""
        status = self.process.wait(within)
        self._reader.join(10)
        return status

    def family(self) -> list[psutil.Process]:
        """The processes that it started, and theirs."""
        marks = json.loads((self.home / "processes.json").read_text())["components"]
        return [process for mark in marks for process in ProcessMark(**mark).session_members()]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "local"
    subprocess.run(
        [sys.executable, "-m", "local", "stop"],
        cwd=REPOSITORY,
        env={**os.environ, "LOCAL": str(tmp_path / "local"), "PYTHONPATH": str(REPOSITORY / "plugins")},
        check=False,
    )


def test_an_interrupted_run_is_taken_up_and_ends_in_a_verdict(home: Path) -> None:
    port = str(free_ports(1)[0])

    interrupted = MakeRun(home, PORT=port)
    interrupted.wait_for("Uploaded 360 files", within=300)
    started = interrupted.family()
    assert len(started) >= 5
    os.kill(interrupted.process.pid, signal.SIGINT)
    assert interrupted.wait(within=180) == 130
    assert not [process for process in started if process.is_running()]

    killed = MakeRun(home, PORT=port)
    killed.wait_for("train_model (fold 1) …", within=600)
    assert killed.said("Uploaded nothing") and killed.said("360 were there already")
    left = killed.family()
    killed.process.kill()
    assert killed.wait(within=60) == -signal.SIGKILL
    assert [process for process in left if process.is_running()], "nobody was there to end them"

    done = MakeRun(home, PORT=port, ONCE="1")
    assert done.wait(within=900) == 0
    assert done.said("ended what it had left running") and done.said("Taking up local__")
    assert not [process for process in left if process.is_running()]
    assert done.said("The images are synthetic") and done.said("Verdict: ")

    (copy,) = (home / "runs").iterdir()
    for name in ("config.json", "snapshot.json", "checks.json", "evaluation.json", "model.h5", "report.html"):
        assert (copy / name).stat().st_size > 0
    assert list(copy.glob("plots/*.png"))
    # SeaweedFS gives its .vif files a mode of their own. They describe its volumes, without content, in a folder of mode 0700.
    kept = [path for path in (home, *home.rglob("*")) if not path.is_symlink() and path.suffix != ".vif"]
    assert [path for path in kept if path.stat().st_mode & 0o077] == []
    password = json.loads((home / "passwords.json").read_text())["admin"]
    assert done.said(f"password in {home / 'passwords.json'}") and not done.said(password)
    gate = parse_document(GateDocument, (copy / "gate.json").read_bytes(), "gate.json")
    training = parse_document(TrainingDocument, (copy / "training.json").read_bytes(), "training.json")
    assert gate.synthetic and training.synthetic
    assert training.epochs == 6 and len(training.folds) == 2
