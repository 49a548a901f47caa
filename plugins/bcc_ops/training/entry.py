"""Train a fold's model as a process of its own, files in and files out: `python -m bcc_ops.training.entry --root DIR`.

`training.job_folder` describes the folder. The process needs neither Airflow nor a bucket nor credentials. It ends with

    0     the fold's files are in `model/`
    1     they are not; `output/failure` has one sentence that says why
    143   SIGTERM stopped it within a batch; its checkpoint is kept, and the same command goes on from there
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bcc_ops.dataset.decoding import decode_rgb, pixels_digest
from bcc_ops.dataset.dicom import keep_of_dicom
from bcc_ops.dataset.dicom_elements import is_dicom
from bcc_ops.dataset.image_cache import write_whole
from bcc_ops.dataset.resources import cores
from bcc_ops.dataset.sync import LocalImage
from bcc_ops.exceptions import ArtifactError, BccError, CacheError, ConfigError, TrainingInterrupted
from bcc_ops.runs.documents import ConfigDocument, SnapshotDocument, SplitDocument
from bcc_ops.runs.paths import checkpoint_folder
from bcc_ops.training.checkpoints import CheckpointFolder
from bcc_ops.training.job_folder import JobFolder
from bcc_ops.training.pretrained import backbone_weights, names_file

if TYPE_CHECKING:
    from bcc_ops.config import RetrainingConfig
    from bcc_ops.runs.rows import SplitRow
    from bcc_ops.training.run_training import FoldInputs, Weights

log = logging.getLogger(__name__)

DONE, FAILED, INTERRUPTED = 0, 1, 128 + signal.SIGTERM
"""Exit statuses. SageMaker takes every one but 0 for a failure, and a stopped job for a stopped job whatever its status."""


def train_in(job: JobFolder, stop: threading.Event) -> None:
    """Train what a folder asks for, and write there what comes of it.

    Args:
        job: the folder.
        stop: training stops within a batch once this is set.

    Raises:
        ConfigError, ArtifactError: the input cannot be used.
        BccError: as `run_training.train_fold` says.
    """
    request = job.read_request()
    config = job.read_document(ConfigDocument, request, "config")
    snapshot = job.read_document(SnapshotDocument, request, "snapshot")
    split = job.read_document(SplitDocument, request, "split")
    rows = job.read_split(split)
    from bcc_ops.training.run_training import FoldInputs, train_fold  # not before it is clear that there is something to train

    inputs = FoldInputs(
        fold=request.fold,
        config=config.config,
        config_digest=config.digest,
        snapshot=snapshot,
        split=split,
        split_reference=request.reference("split"),
        rows=rows,
        synthetic=request.synthetic,
        images=lambda: _images(job, inputs, stop),
        weights=lambda: _weights(job, config.config),
        scratch=job.scratch,
    )
    assert split.table is not None  # read_split has read it
    folder = checkpoint_folder(
        request.artifacts_prefix,
        snapshot_digest=snapshot.digest,
        config_digest=config.digest,
        split_digest=split.table.sha256,
        fold=request.fold,
    )
    checkpoints = CheckpointFolder(job.checkpoints, folder, None)
    trained = train_fold(request.paths, inputs, checkpoints, stop=stop, publish=partial(_keep_history, checkpoints.history))
    job.write_trained(trained)


def _keep_history(path: Path, history: bytes) -> None:
    """Show how far training is; a disk that does not take it is not a reason to lose a training that goes well."""
    try:
        with write_whole(path) as file:
            file.write(history)
    except CacheError as error:
        log.warning("the history is behind by now, training goes on: %s", error)


def _images(job: JobFolder, inputs: FoldInputs, stop: threading.Event) -> list[LocalImage]:
    """Return the files of the images that are trained on or held out, each compared with the split's digest.

    Raises:
        ArtifactError: one is missing, or is another one.
        TrainingInterrupted: it was stopped before training began.
    """
    places = job.image_places()

    def find(row: SplitRow) -> LocalImage:
        if stop.is_set():
            raise TrainingInterrupted("training was stopped from outside before it began")
        if row.key not in places:
            raise ArtifactError(f"the channel images lacks {row.key}, which is in the split")
        return LocalImage(row.key, row.label, row.sha256, verified_image(row, places[row.key], job.scratch))

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(find, [*inputs.trained_on, *inputs.held_out]))


def verified_image(row: SplitRow, path: Path, scratch: Path) -> Path:
    """Return the file that training reads: this one, or the PNG of a DICOM object.

    A worker keeps of such an object only the PNG: its pixels tell then whether it is the right one.

    Args:
        row: of the split.
        path: the file that is said to be this image.
        scratch: where the PNG is written.

    Raises:
        ArtifactError: it is missing, or another one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}, the image {row.key}, cannot be read: {error.strerror}") from None
    if is_dicom(content):
        path = scratch / "from-dicom" / row.sha256
        with write_whole(path) as file:
            file.write(keep_of_dicom(content))
    same = hashlib.sha256(content).hexdigest() == row.sha256
    if not same and not (row.pixels and pixels_digest(decode_rgb(path)) == row.pixels):
        raise ArtifactError(f"{path} is not the image {row.key} that the run's checks saw: its content differs")
    return path


def _weights(job: JobFolder, config: RetrainingConfig) -> Weights:
    weights = str(job.weights_file()) if names_file(config.architecture, config.weights) else config.weights
    return backbone_weights(config.architecture, weights, job.scratch, store=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bcc_ops.training.entry", description="Train a fold's model in a folder.")
    parser.add_argument("--root", type=Path, default=Path("/opt/ml"), help="the folder, laid out as SageMaker does it")
    parser.add_argument(
        "--stop-with-input", action="store_true", help="stop training once standard input ends: whoever started this is gone"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s: %(message)s", force=True)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if given.stop_with_input:
        threading.Thread(target=_stop_with_input, args=(stop,), daemon=True).start()
    job = JobFolder(given.root)
    try:
        train_in(job, stop)
    except BccError as error:
        log.error("%s", error)
        job.write_failure(error)
        return INTERRUPTED if isinstance(error, TrainingInterrupted) else FAILED
    except ModuleNotFoundError as error:
        log.exception("a package is missing")
        job.write_failure(ConfigError(f"{sys.executable}, the Python that trains, lacks the package {error.name}"))
        return FAILED
    except Exception as error:
        log.exception("training failed")
        job.write_failure(error)
        return FAILED
    return DONE


def _stop_with_input(stop: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):  # not by sys.stdin, whose lock a thread must not hold when Python ends
        pass
    stop.set()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Not by sys.exit: TensorFlow's input pipeline, left in the middle of an epoch, can wait for ever when Python takes it down.
    os._exit(status)
