from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bcc_ops import exceptions
from bcc_ops.exceptions import (
    ArtifactError,
    BccError,
    CacheError,
    ConfigError,
    DivergedError,
    ImageRefused,
    TrainingFailed,
    WeightsUnavailable,
)
from bcc_ops.runs.documents import ConfigDocument, Reference, SplitDocument
from bcc_ops.training.job_folder import LONGEST_FAILURE, JobFolder, TrainedFold, job_of_attempt, parse_failure
from tests.factories.trainings import image_at, lay_out
from tests.unit.report.samples import PATHS, config_document, fold_document


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    images = []
    for number, key in enumerate(["images/benign/a.png", "images/benign/../../b.png", "images/benign/a.png/c"]):
        path = tmp_path / f"{number}.png"
        path.write_bytes(f"image {number}".encode())
        images.append(image_at(path, key))
    return lay_out(tmp_path / "ml", images)


def test_what_goes_in_is_read_again_and_keys_may_be_anything(job: JobFolder) -> None:
    request = job.read_request()
    assert (request.fold, request.synthetic, request.paths) == (2, True, PATHS)
    assert request.reference("split").key == PATHS.document("split.json")
    assert job.read_document(ConfigDocument, request, "config") == config_document()
    rows = job.read_split(job.read_document(SplitDocument, request, "split"))
    places = job.image_places()
    assert {row.key: places[row.key].read_bytes() for row in rows} == {
        "images/benign/a.png": b"image 0",
        "images/benign/../../b.png": b"image 1",
        "images/benign/a.png/c": b"image 2",
    }
    assert {place.parent for place in places.values()} == {job.channel("images")}


def test_hyperparameters_are_texts_as_sagemaker_passes_them_on(job: JobFolder) -> None:
    values = json.loads((job.root / "input" / "config" / "hyperparameters.json").read_text())
    assert (values["fold"], values["synthetic"]) == ("2", "true")
    assert all(isinstance(value, str) for value in values.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fold": "6"}, "hyperparameters.json: fold: "),
        ({"fold": None}, "hyperparameters.json: fold: "),
        ({"colour": "red"}, "hyperparameters.json: colour: "),
        ({"version": "0.0.9"}, "bcc_ops 0.0.9 asks for this training, and .* is installed where it runs: install the same"),
    ],
)
def test_a_request_that_cannot_be_is_one_clear_sentence(job: JobFolder, change: dict[str, str | None], said: str) -> None:
    path = job.root / "input" / "config" / "hyperparameters.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=said):
        job.read_request()


def test_a_folder_without_a_request_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hyperparameters\.json cannot be read: No such file"):
        JobFolder(tmp_path).read_request()


@pytest.mark.parametrize("name", ["split.json", "split.parquet"])
def test_a_document_of_other_content_is_refused(job: JobFolder, name: str) -> None:
    path = job.channel("run") / name
    path.write_bytes(path.read_bytes() + b" ")
    request = job.read_request()
    with pytest.raises(ArtifactError, match=f"{name} is not the one that was asked for"):
        job.read_split(job.read_document(SplitDocument, request, "split"))


def test_weights_are_the_one_file_of_their_channel(tmp_path: Path) -> None:
    (tmp_path / "own.h5").write_bytes(b"weights")
    job = lay_out(tmp_path / "ml", [], weights=tmp_path / "own.h5")
    assert job.weights_file().read_bytes() == b"weights"
    (job.channel("weights") / "another.h5").write_bytes(b"")
    with pytest.raises(WeightsUnavailable, match="one file, and holds 2"):
        job.weights_file()


def trained() -> TrainedFold:
    named = {
        name: Reference.of(PATHS.document(f"fold-2.{ending}"), content)
        for name, ending, content in (("history", "csv", b"h"), ("model", "h5", b"m"), ("answers", "parquet", b"a"))
    }
    return TrainedFold(fold_document(2, **named), b"h", b"m", b"a")


def test_what_comes_out_is_read_again(tmp_path: Path) -> None:
    JobFolder(tmp_path).write_trained(trained())
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "fold-2.csv",
        "fold-2.h5",
        "fold-2.json",
        "fold-2.parquet",
    ]
    assert JobFolder(tmp_path).read_trained(2) == trained()


@pytest.mark.parametrize("ending", ["h5", "parquet", "csv"])
def test_a_file_that_the_folds_document_does_not_promise_is_refused(tmp_path: Path, ending: str) -> None:
    JobFolder(tmp_path).write_trained(trained())
    (tmp_path / "model" / f"fold-2.{ending}").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=rf"fold-2\.{ending} is not the file that fold-2\.json promises"):
        JobFolder(tmp_path).read_trained(2)


def test_a_failure_is_one_short_line_and_comes_back_as_the_error_that_it_was(tmp_path: Path) -> None:
    job = JobFolder(tmp_path)
    assert job.read_failure() is None
    job.write_failure(DivergedError("the loss became nan\nin batch 3: try a lower learning_rate"))
    found = job.read_failure()
    assert type(found) is DivergedError
    assert str(found) == "the loss became nan in batch 3: try a lower learning_rate"
    job.write_failure(ConfigError("x" * 5000))
    assert len(job.failure.read_text()) == LONGEST_FAILURE


def test_of_a_failure_that_is_not_a_sentence_a_short_line_is_read(tmp_path: Path) -> None:
    job = JobFolder(tmp_path)
    job.failure.parent.mkdir()
    job.failure.write_bytes(b"DivergedError: \xff\x1b[2J\x00\nINFO: done " + b"x" * 10_000)
    found = job.read_failure()
    assert type(found) is DivergedError
    assert str(found).startswith("\ufffd [2J  INFO: done xxx") and len(str(found)) < LONGEST_FAILURE


def test_every_error_of_the_project_comes_back(tmp_path: Path) -> None:
    kinds = [kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, BccError)]
    kinds.remove(exceptions.NothingNew)  # the run would be skipped for it, and this training has failed
    for kind in kinds:
        error = kind("damaged", "no end") if kind is ImageRefused else kind("damaged: no end")
        JobFolder(tmp_path).write_failure(error)
        found = JobFolder(tmp_path).read_failure()
        assert (type(found), str(found)) == (kind, "damaged: no end")


@pytest.mark.parametrize(
    "sentence", ["OSError: [Errno 28] No space left on device", "Any: thing", "", "no error at all", "NothingNew: x"]
)
def test_what_is_not_an_error_of_the_project_is_a_failed_process_that_may_be_tried_again(sentence: str) -> None:
    found = parse_failure(sentence)
    assert type(found) is TrainingFailed and found.retryable
    assert sentence in str(found)


def test_an_attempt_has_a_folder_of_its_own_and_removes_what_a_killed_one_left(job: JobFolder, tmp_path: Path) -> None:
    request, folder = job.read_request(), tmp_path / "training"
    other = folder / f"{request.run}-3-x"
    other.mkdir(parents=True)
    of_a_killed_worker = folder / "20260101T020000Z__another-run-2-x"
    (of_a_killed_worker / "input").mkdir(parents=True)
    os.utime(of_a_killed_worker, (0, 0))
    for left in ("a", "b"):
        (folder / f"{request.run}-2-{left}" / "model").mkdir(parents=True)

    with pytest.raises(DivergedError):
        with job_of_attempt(folder, request) as attempt:
            assert set(folder.iterdir()) == {other, attempt.root}
            assert list(attempt.root.iterdir()) == []
            (attempt.root / "link").symlink_to(tmp_path / "0.png")
            raise DivergedError("the loss became nan")

    assert list(folder.iterdir()) == [other]
    assert (tmp_path / "0.png").exists()


def test_a_disk_that_takes_no_folder_is_trouble_with_the_cache(job: JobFolder, tmp_path: Path) -> None:
    request = job.read_request()
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot be used as a cache"):
        with job_of_attempt(tmp_path / "file", request):
            pass
    with pytest.raises(CacheError, match="cannot be used as a cache"):
        JobFolder(tmp_path / "file").write_input(request, {}, [], None)
