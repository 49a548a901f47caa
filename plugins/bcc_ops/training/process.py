"""Train a fold's model with another Python than this one: the process of `training.entry`, and what a worker does beside it.

The worker has the bucket, and the process has TensorFlow. The worker hands on what the process writes while it trains;
what the process says goes into the task's log.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL, Signals

from bcc_ops.exceptions import BccError, ConfigError, TrainingFailed, TrainingInterrupted
from bcc_ops.installation import training_environment
from bcc_ops.training.checkpoints import CheckpointFolder
from bcc_ops.training.job_folder import JobFolder, TrainedFold

log = logging.getLogger(__name__)

MODULE = "bcc_ops.training.entry"

_LOOK_EVERY = 0.5
"""Seconds between two looks at what the process has written, and at whether it is to stop."""
_ENDS_WITHIN = 5.0
"""Seconds that a process has to end by itself once nobody waits for its model any more."""
MOST_LINES, LONGEST_LINE = 50_000, 2_000
"""Of what the process says, and characters of each. A training says some hundred lines; the rest is read and forgotten."""


def train_elsewhere(
    python: str,
    job: JobFolder,
    fold: int,
    checkpoints: CheckpointFolder,
    *,
    stop: threading.Event,
    publish: Callable[[bytes], None],
) -> TrainedFold:
    """Train what a folder asks for with another Python; arguments are those of `run_training.train_fold` otherwise.

    Args:
        python: path of the interpreter; its environment has the package in this version, and TensorFlow.
        job: the folder, with its input.
        fold: the one that is held out.
        checkpoints: where each epoch is kept, on this machine and in the bucket.
        stop: the process is asked to stop once this is set.
        publish: takes the history as it grows.

    Raises:
        ConfigError: the interpreter cannot be started, or does not have what training needs.
        TrainingFailed: the process was killed, or failed with an error that is not the project's own.
        BccError: as `train_fold` says.
    """
    checkpoints.take_over()
    _link(job.checkpoints / checkpoints.folder, checkpoints.path.parent)
    history, checkpoint = _Watched(checkpoints.history), _Watched(checkpoints.path)

    def hand_on() -> None:
        if checkpoint.has_changed():
            checkpoints.hand_on()
        if history.has_changed():
            publish(checkpoints.history.read_bytes())

    last = ""
    with _started(python, job) as process:
        lines = _lines_of(process)
        while True:
            if stop.is_set():
                process.terminate()
            try:
                line = lines.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                if process.poll() is not None:  # a process that it left behind keeps its output open
                    break
            else:
                if line is None:
                    break
                last = line or last
                _say(line)
            hand_on()
        status = process.wait()
    hand_on()
    if status == 0:
        return job.read_trained(fold)
    raise job.read_failure() or _reason(python, status, last, stopped=stop.is_set())


def _link(link: Path, folder: Path) -> None:
    """Let the process keep its checkpoint where a retry on this worker looks for one, with this Python or another."""
    folder.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder.absolute())


class _Watched:
    """A file that another process replaces now and then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()

    def has_changed(self) -> bool:
        """Return whether it was replaced since the last call."""
        before, self._seen = self._seen, self._stamp()
        return self._seen not in (before, None)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns


@contextmanager
def _started(python: str, job: JobFolder) -> Iterator[subprocess.Popen[str]]:
    """Start the process, and leave none behind: its input ends with this process, however that ends, and then it stops. What it
    started itself is killed with its group."""
    try:
        process = subprocess.Popen(
            [python, "-m", MODULE, "--root", str(job.root), "--stop-with-input"],
            cwd=job.root,
            env=training_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigError(f"BCC_TRAINING_PYTHON: {python} cannot be started: {error.strerror}") from None
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_ENDS_WITHIN)
                except subprocess.TimeoutExpired:
                    process.kill()
            with suppress(ProcessLookupError, PermissionError):  # nobody is left of the group, or only what ended
                os.killpg(process.pid, SIGKILL)


def _lines_of(process: subprocess.Popen[str]) -> queue.SimpleQueue[str | None]:
    """Return the lines that the process says, as they come, cut to `LONGEST_LINE`; None is the last."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        with suppress(ValueError):  # closed, since nobody waits for the process any more
            for number, line in enumerate(iter(partial(process.stdout.readline, LONGEST_LINE), "")):
                if number < MOST_LINES:
                    lines.put(line.strip())
                elif number == MOST_LINES:
                    lines.put(f"WARNING: it has said {MOST_LINES:,} lines; the rest is left out")
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _say(line: str) -> None:
    level, _, message = line.partition(": ")
    if level in ("INFO", "WARNING", "ERROR"):
        log.log(getattr(logging, level), "%s", message)
    elif line:
        log.info("%s", line)


def _reason(python: str, status: int, last: str, *, stopped: bool) -> BccError:
    """Return why a process ended without saying so."""
    if stopped:
        return TrainingInterrupted("training was stopped from outside before it began")
    if status < 0:
        return TrainingFailed(
            f"the training process was killed ({Signals(-status).name}), most often because this machine's memory did not "
            "suffice; a retry goes on from its checkpoint"
        )
    return ConfigError(
        f"BCC_TRAINING_PYTHON: {python} ended with status {status} before training began"
        f"{f', and said: {last}' if last else ''}. Ask `bcc-ops doctor` on this worker"
    )
