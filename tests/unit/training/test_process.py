"""What a worker does beside the process that trains. A script plays that process; whole trainings are in tests/integration."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bcc_ops.exceptions import ConfigError, DivergedError, TrainingFailed, TrainingInterrupted
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.training.checkpoints import CheckpointFolder
from bcc_ops.training.job_folder import JobFolder, TrainedFold
from bcc_ops.training.process import train_elsewhere
from tests.unit.training.test_job_folder import trained

FOLDER = "artifacts/checkpoints/abc-2"

Train = Callable[..., TrainedFold]


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    root = tmp_path / "job"
    root.mkdir()
    return JobFolder(root)


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "cache", FOLDER, None)


@pytest.fixture
def train(job: JobFolder, checkpoints: CheckpointFolder, tmp_path: Path) -> Train:
    """Train with an interpreter that does this instead; `root` is the folder, `kept` that of the checkpoint."""

    def do(
        script: str, publish: Callable[[bytes], None] = lambda history: None, stop: threading.Event | None = None
    ) -> TrainedFold:
        python = tmp_path / "python"
        python.write_text(
            f"#!{sys.executable} -S\nimport os, signal, sys\nfrom pathlib import Path\n"
            f"root = Path(sys.argv[4])\nkept = root / 'checkpoints' / '{FOLDER}'\n"
            "def write(path, content):\n"
            "    path.with_name('part').write_text(content)\n"
            "    path.with_name('part').replace(path)\n"
            f"{script}\n"
        )
        python.chmod(0o700)
        stop = stop or threading.Event()
        return train_elsewhere(str(python), job, 2, checkpoints, stop=stop, publish=publish)

    return do


def test_it_starts_the_entry_point_in_the_folder_without_settings_or_credentials(
    train: Train, job: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.write_trained(trained())
    for name in ("AIRFLOW_CONN_AWS_DEFAULT", "AWS_SECRET_ACCESS_KEY", "BCC_METADATA_SALT", "PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    found = train("(root / 'seen').write_text(' '.join([*sys.argv[1:], os.getcwd(), *os.environ.values()]))")

    assert found == trained()
    seen = (job.root / "seen").read_text()
    assert seen.startswith(f"-m bcc_ops.training.entry --root {job.root} --stop-with-input {job.root}")
    assert "secret" not in seen
    assert os.environ["PATH"] in seen


def test_what_it_says_is_in_the_log_at_its_level(train: Train, job: JobFolder, caplog: pytest.LogCaptureFixture) -> None:
    job.write_trained(trained())
    with caplog.at_level(logging.INFO):
        train("print('INFO: epoch 1'); print('WARNING: slow', flush=True); print('Traceback of C++: x', file=sys.stderr)")
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [("INFO", "epoch 1"), ("WARNING", "slow"), ("INFO", "Traceback of C++: x")]


def test_its_history_and_its_checkpoint_are_handed_on_while_it_trains(
    train: Train, job: JobFolder, checkpoints: CheckpointFolder, store: ObjectStore, tmp_path: Path
) -> None:
    job.write_trained(trained())
    checkpoints.store = store
    histories: list[bytes] = []

    def publish(history: bytes) -> None:
        histories.append(history)
        (tmp_path / f"seen-{history.decode()}").touch()

    train(
        "for epoch in '12':\n"
        "    write(kept / 'checkpoint.npz', 'after ' + epoch)\n"
        "    write(kept / 'history.csv', epoch)\n"
        f"    while not Path({str(tmp_path)!r}, 'seen-' + epoch).exists(): pass\n",
        publish,
    )

    assert histories == [b"1", b"2"]
    assert store.get(checkpoints.key) == b"after 2"
    assert checkpoints.path.read_text() == "after 2"


def test_what_it_wrote_last_is_handed_on_after_its_end(train: Train, job: JobFolder) -> None:
    job.write_trained(trained())
    histories: list[bytes] = []
    train("write(kept / 'history.csv', 'all')", histories.append)
    assert histories == [b"all"]


def test_why_it_failed_is_the_error_that_it_was(train: Train) -> None:
    with pytest.raises(DivergedError, match=r"^the loss became nan$"):
        train(
            "(root / 'output').mkdir()\n"
            "(root / 'output' / 'failure').write_text('DivergedError: the loss became nan')\n"
            "sys.exit(1)"
        )


def test_a_process_that_is_killed_may_be_tried_again(train: Train) -> None:
    with pytest.raises(TrainingFailed, match=r"was killed \(SIGKILL\), most often because this machine's memory"):
        train("os.kill(os.getpid(), signal.SIGKILL)")


def test_an_interpreter_without_the_package_is_a_wrong_setting_and_tells_what_it_said(train: Train) -> None:
    with pytest.raises(
        ConfigError, match=r"BCC_TRAINING_PYTHON: .*status 1 before .* said: No module named bcc_ops\. Ask `bcc-ops"
    ):
        train("sys.exit('No module named bcc_ops')")


def test_an_interpreter_that_is_not_there_is_a_wrong_setting(job: JobFolder, checkpoints: CheckpointFolder) -> None:
    with pytest.raises(ConfigError, match=r"BCC_TRAINING_PYTHON: /nowhere/python cannot be started: No such file"):
        train_elsewhere("/nowhere/python", job, 2, checkpoints, stop=threading.Event(), publish=lambda history: None)


WAITS = """
def stopped(*_):
    (root / 'output').mkdir()
    (root / 'output' / 'failure').write_text('TrainingInterrupted: its checkpoint is kept')
    sys.exit(143)
signal.signal(signal.SIGTERM, stopped)
write(kept / 'history.csv', str(os.getpid()))
while True: signal.pause()
"""


def test_it_is_asked_to_stop_once_the_task_is(train: Train) -> None:
    stop = threading.Event()
    with pytest.raises(TrainingInterrupted, match="its checkpoint is kept"):
        train(WAITS, lambda history: stop.set(), stop)


@pytest.mark.parametrize("script", [WAITS, WAITS.replace("stopped)", "signal.SIG_IGN)")], ids=["asked", "killed"])
def test_no_process_is_left_behind_whatever_ends_the_task(train: Train, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr("bcc_ops.training.process._ENDS_WITHIN", 0.5)
    begun: list[int] = []

    def times_out(history: bytes) -> None:
        begun.append(int(history))
        raise KeyboardInterrupt  # as Airflow's own time-out of a task, it is not an Exception

    with pytest.raises(KeyboardInterrupt):
        train(script, times_out)
    with pytest.raises(ProcessLookupError):
        os.kill(begun[0], 0)


STAYS = """
alive = open(root / 'alive', 'w')
if not os.fork():
    signal.pause()
"""


def test_a_process_that_it_leaves_behind_keeps_nobody_waiting_and_does_not_stay(train: Train, job: JobFolder) -> None:
    job.write_trained(trained())
    os.mkfifo(job.root / "alive")
    alive = os.open(job.root / "alive", os.O_RDONLY | os.O_NONBLOCK)
    assert train(STAYS) == trained()
    os.set_blocking(alive, True)
    assert os.read(alive, 1) == b"", "the pipe ends with the last process that holds it"
    os.close(alive)


def test_what_it_says_is_cut_and_the_rest_is_read_and_forgotten(
    train: Train, job: JobFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcc_ops.training.process.MOST_LINES", 3)
    monkeypatch.setattr("bcc_ops.training.process.LONGEST_LINE", 10)
    job.write_trained(trained())
    with caplog.at_level(logging.INFO):
        train("print('x' * 15)\nfor number in range(100_000): print(number)")
    said = [record.getMessage() for record in caplog.records]
    assert said == ["x" * 10, "x" * 5, "0", "it has said 3 lines; the rest is left out"]
