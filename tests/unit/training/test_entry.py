"""What the process does before it trains. Whole trainings are in tests/integration/test_training_process.py."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bcc_ops.dataset.decoding import decode_rgb, pixels_digest
from bcc_ops.dataset.dicom import keep_of_dicom
from bcc_ops.exceptions import ArtifactError, ConfigError
from bcc_ops.runs.rows import SplitRow
from bcc_ops.training.entry import FAILED, train_in, verified_image
from bcc_ops.training.job_folder import JobFolder
from tests.factories.dicom_files import dicom_file
from tests.factories.trainings import lay_out


def _row(content: bytes, pixels: str = "") -> SplitRow:
    return SplitRow("images/benign/a", hashlib.sha256(content).hexdigest(), "benign", "g", 2, pixels)


def _scan() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (80, 90), np.uint8)


def test_an_image_is_told_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    Image.fromarray(_scan()).save(path, "PNG")
    assert verified_image(_row(path.read_bytes()), path, tmp_path / "scratch") == path
    with pytest.raises(ArtifactError, match="is not the image images/benign/a that the run's checks saw"):
        verified_image(_row(b"another"), path, tmp_path / "scratch")
    with pytest.raises(ArtifactError, match="the image images/benign/a, cannot be read: No such file"):
        verified_image(_row(b"another"), tmp_path / "b", tmp_path / "scratch")


def test_a_dicom_object_becomes_the_png_that_a_worker_keeps_of_it(tmp_path: Path) -> None:
    content, path = dicom_file(_scan()), tmp_path / "a.dcm"
    path.write_bytes(content)
    found = verified_image(_row(content), path, tmp_path / "scratch")
    assert found.read_bytes() == keep_of_dicom(content)
    assert found.read_bytes().startswith(b"\x89PNG")


def test_the_png_of_a_dicom_object_is_told_by_its_pixels(tmp_path: Path) -> None:
    content, path = dicom_file(_scan()), tmp_path / "a.png"
    path.write_bytes(keep_of_dicom(content))
    pixels = pixels_digest(decode_rgb(path))
    assert verified_image(_row(content, pixels), path, tmp_path / "scratch") == path
    with pytest.raises(ArtifactError, match="is not the image"):
        verified_image(_row(content, "0" * 64), path, tmp_path / "scratch")


def test_another_release_is_refused_before_tensorflow_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = lay_out(tmp_path, [])
    monkeypatch.setattr("bcc_ops.__version__", "9.9.9")
    monkeypatch.setitem(sys.modules, "bcc_ops.training.run_training", None)
    with pytest.raises(ConfigError, match=r"asks for this training, and 9\.9\.9 is installed where it runs"):
        train_in(job, threading.Event())


def test_a_folder_without_input_ends_with_a_status_and_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bcc_ops.training.entry", "--root", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == FAILED
    sentence = JobFolder(tmp_path).failure.read_text()
    assert sentence.startswith("ConfigError: ") and "hyperparameters.json cannot be read" in sentence
    assert sentence.partition(": ")[2] in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_process_ends_without_python_taking_itself_down(tmp_path: Path) -> None:
    """TensorFlow's input pipeline can wait for ever then: nothing that waits may get its turn."""
    command = (
        "import atexit, runpy, sys; atexit.register(print, 'Python takes itself down'); sys.argv[1:] = ['--root', sys.argv[1]]; "
        "runpy.run_module('bcc_ops.training.entry', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == FAILED and "hyperparameters.json cannot be read" in done.stdout
    assert "Python takes itself down" not in done.stdout
