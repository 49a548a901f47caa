"""Training as a process of its own, files in and files out: what the worker trains, bit by bit, without what a worker has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bcc_ops.config import Settings
from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.snapshot import read_images
from bcc_ops.dataset.sync import sync_images
from bcc_ops.exceptions import TrainingInterrupted
from bcc_ops.operators.base import Run
from bcc_ops.operators.train_model import TrainModelOperator
from bcc_ops.runs.documents import FoldDocument, Reference, SplitDocument
from bcc_ops.runs.epochs import parse_history
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.training.entry import DONE, FAILED, INTERRUPTED
from bcc_ops.training.job_folder import JobFolder, TrainingRequest
from tests.integration.conftest import CONTEXT, Trained
from tests.services.held_training import EPOCHS, HOLD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each starts TensorFlow two or three times

Begin = Callable[..., subprocess.Popen[str]]
TRAIN = """
import sys, json
from bcc_ops.operators.train_model import TrainModelOperator
TrainModelOperator(task_id="train_model", **json.loads(sys.argv[1])).execute({"run_id": "manual__2"})
"""
ALONE = """
import sys
from bcc_ops.installation import TRAINING_PACKAGES, WORKER_PACKAGES
blocked = {"airflow", "boto3", "botocore", "aiobotocore", *WORKER_PACKAGES} - {*TRAINING_PACKAGES}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"a training has no {name}", name=name)
sys.meta_path.insert(0, Blocked())
"""
ENTER = """
import runpy
sys.argv = ["entry", *sys.argv[1:]]
runpy.run_module("bcc_ops.training.entry", run_name="__main__")
"""
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras"):
            raise ModuleNotFoundError(f"Airflow has no {name}", name=name)
sys.meta_path.insert(0, Blocked())
"""
OF_THE_ATTEMPT = {"seconds", "seconds_per_epoch", "images_per_second", "peak_memory_mb", "history"}
"""Fields of a fold's document that differ between two trainings that are the same; the history has seconds in it."""


def _lay_out(place: ObjectStore, references: dict[str, Any], root: Path, cache: Path) -> JobFolder:
    """Lay out the training of the second fold of a run in a folder."""
    run = Run.load(place, "artifacts", references["run"])
    split_reference = Reference.model_validate(references["split"])
    split = place.load(SplitDocument, references["split"])
    assert split.table is not None
    named = {**run.references, "split": split_reference}
    documents = {f"{one}.json": place.get_referenced(reference) for one, reference in named.items()}
    documents["split.parquet"] = place.get_referenced(split.table)
    images = sync_images(place, read_images(place, run.snapshot), ImageCache(cache, 10**9))
    job = JobFolder(root)
    job.write_input(TrainingRequest.of(run.paths, 2, named, synthetic=True), documents, images, None)
    return job


@pytest.fixture
def lay_out(place: ObjectStore, tmp_path: Path) -> Callable[[dict[str, Any]], JobFolder]:
    """Lay out the training of the second fold of a run that was started."""
    return lambda references: _lay_out(place, references, tmp_path / "ml", tmp_path / "cache")


@pytest.fixture
def job_of_trained(trained: Trained, tmp_path: Path) -> JobFolder:
    """The training that the worker has done, laid out."""
    return _lay_out(trained.store, trained.references, tmp_path / "ml", tmp_path / "cache")


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the training in a folder, in a process that can import neither Airflow nor clients of the bucket; `first` is code
    that it begins with."""
    begun = []

    def start(job: JobFolder, *options: str, first: str = "", **how: Any) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "AWS", "BCC"))}
        command = [sys.executable, "-c", ALONE + first + ENTER, "--root", str(job.root), *options]
        begun.append(
            subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how)
        )
        return begun[-1]

    yield start
    for process in begun:
        with process:
            process.kill()


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate()
    return process.returncode, said


def _wait_for_epochs(job: JobFolder, process: subprocess.Popen[str], epochs: int) -> None:
    def history() -> list[Path]:
        return list(job.checkpoints.glob("**/history.csv"))

    while not history() or len(parse_history(history()[0].read_bytes())) < epochs:
        assert process.poll() is None, _finish(process)
        time.sleep(0.02)


def _metrics(history: bytes) -> list[dict[str, Any]]:
    return [row.model_dump(exclude={"seconds", "images_per_second"}) for row in parse_history(history)]


def test_the_process_trains_the_workers_model_bit_by_bit_and_needs_neither_airflow_nor_the_bucket(
    trained: Trained, job_of_trained: JobFolder, begin: Begin
) -> None:
    place, job, document = trained.store, job_of_trained, trained.document

    status, said = _finish(begin(job))

    assert status == DONE, said
    assert "fold 2: epoch 3 of 3" in said
    assert not job.failure.exists()
    found = job.read_trained(2)
    assert found.model == place.get_referenced(document.model)
    assert found.answers == place.get_referenced(document.answers)
    assert _metrics(found.history) == _metrics(place.get_referenced(document.history))
    assert found.document.model_dump(exclude=OF_THE_ATTEMPT) == document.model_dump(exclude=OF_THE_ATTEMPT)
    assert sorted(path.name for path in job.model.iterdir()) == ["fold-2.csv", "fold-2.h5", "fold-2.json", "fold-2.parquet"]


def test_a_process_killed_after_an_epoch_goes_on_from_its_checkpoint_to_the_same_model(
    trained: Trained, job_of_trained: JobFolder, begin: Begin
) -> None:
    job, undisturbed = job_of_trained, trained.document
    process = begin(job, first=HOLD)
    _wait_for_epochs(job, process, EPOCHS)
    process.kill()
    assert _finish(process)[0] == -signal.SIGKILL
    assert not job.model.exists()

    status, said = _finish(begin(job))

    assert status == DONE, said
    found = job.read_trained(2)
    assert found.document.resumed_after_epochs == (EPOCHS,)
    assert found.answers == trained.store.get_referenced(undisturbed.answers)
    assert _metrics(found.history) == _metrics(trained.store.get_referenced(undisturbed.history))


@pytest.mark.parametrize("how", ["SIGTERM", "its input ends"])
def test_a_process_that_is_stopped_keeps_its_checkpoint_and_says_so(
    start: Callable[..., dict[str, Any]], lay_out: Callable[..., JobFolder], begin: Begin, how: str
) -> None:
    job = lay_out(start())
    process = begin(job, "--stop-with-input", first=HOLD, stdin=subprocess.PIPE)
    _wait_for_epochs(job, process, EPOCHS)

    if how == "SIGTERM":
        process.terminate()
    else:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None

    status, said = _finish(process)
    assert status == INTERRUPTED, said
    assert job.failure.read_text().startswith("TrainingInterrupted: training was stopped from outside; its checkpoint is kept")
    assert list(job.checkpoints.glob("**/checkpoint.npz"))
    assert not job.model.exists()


def test_an_image_that_is_not_the_one_that_was_checked_ends_it_with_one_sentence(
    start: Callable[..., dict[str, Any]], lay_out: Callable[..., JobFolder], begin: Begin
) -> None:
    job = lay_out(start(epochs=1))
    places = sorted(job.channel("images").iterdir())
    content = places[1].read_bytes()
    places[0].unlink()
    places[0].write_bytes(content)

    status, said = _finish(begin(job))

    assert status == FAILED, said
    sentence = job.failure.read_text()
    assert sentence.startswith("ArtifactError: ") and "that the run's checks saw" in sentence and "\n" not in sentence
    assert "Traceback" not in said


@pytest.fixture
def training_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter with an environment of its own, which the deployment names for training: the folder of its packages."""
    venv.create(tmp_path / "own", symlinks=True)
    (packages,) = (tmp_path / "own").glob("lib/python*/site-packages")
    (packages / "own.pth").write_text(f"{sysconfig.get_path('purelib')}\n{Path('plugins').absolute()}\n")
    monkeypatch.setenv("BCC_TRAINING_PYTHON", str(tmp_path / "own" / "bin" / "python"))
    return packages


def test_a_worker_without_tensorflow_trains_with_the_python_that_the_deployment_names(
    place: ObjectStore, start: Callable[..., dict[str, Any]], trained: Trained, training_python: Path
) -> None:
    references = start("manual__2", epochs=3, folds=3)

    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + TRAIN, json.dumps(references)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    folder = f"artifacts/runs/{references['run']['folder']}"
    document = place.load_key(FoldDocument, f"{folder}/fold-2.json")
    assert (document.fold, document.epochs, document.synthetic) == (2, 3, True)
    assert document.history.key == f"{folder}/fold-2.csv"
    for named in (document.model, document.history, document.answers):
        place.get_referenced(named)
    cache = Settings.from_environment().cache_dir
    assert list((cache / "training").iterdir()) == []
    assert list(place.list_objects("artifacts/checkpoints")) == []
    here = trained.document  # by the same parameters, in a run of another name
    assert place.get_referenced(document.model) == trained.store.get_referenced(here.model)


def test_a_training_that_was_killed_on_one_worker_goes_on_with_its_own_python_on_another(
    place: ObjectStore,
    start: Callable[..., dict[str, Any]],
    training_python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    references = start()
    (training_python / "held.py").write_text(HOLD)
    held = training_python / "with_held.pth"  # each line of such a file that begins with `import` is run when Python starts
    held.write_text("import held\n")
    operator = TrainModelOperator(task_id="train_model", **references)
    published = operator._publish

    def publish(key: str, history: bytes) -> None:
        published(key, history)
        if len(parse_history(history)) == EPOCHS:
            operator.on_kill()

    monkeypatch.setattr(operator, "_publish", publish)
    with pytest.raises(TrainingInterrupted, match="its checkpoint is kept"):
        operator.execute(CONTEXT)
    assert len(parse_history(place.get(f"artifacts/runs/{references['run']['folder']}/fold-2.csv"))) == EPOCHS

    held.unlink()
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "another-worker"))
    document = place.load(FoldDocument, TrainModelOperator(task_id="train_model", **references).execute(CONTEXT))

    assert document.resumed_after_epochs == (EPOCHS,)
    assert document.epochs == 6
    assert list(place.list_objects("artifacts/checkpoints")) == []
