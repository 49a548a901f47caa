"""The folder of a training that runs as a process of its own: what goes in, and what comes out. It is SageMaker's `/opt/ml`.

    input/config/hyperparameters.json   `TrainingRequest`, every value as text
    input/data/run/                     config.json, snapshot.json, split.json, split.parquet: the run's, byte for byte
    input/data/run/images.json          key -> where its image is in the channel `images`
    input/data/images/…                 the images
    input/data/weights/<file>           the backbone's weights, if the parameter `weights` names a file
    checkpoints/…                       what a next attempt goes on from, and the history as it grows
    model/fold-<n>.h5 .parquet .csv .json
    output/failure                      one sentence that says why training failed

Nothing in it is trusted for its name: documents are compared with the digests of the request, images with those of the split.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import bcc_ops
from bcc_ops import exceptions
from bcc_ops.dataset.image_cache import cache_error
from bcc_ops.dataset.sync import LocalImage
from bcc_ops.exceptions import ArtifactError, BccError, ConfigError, TrainingFailed, WeightsUnavailable
from bcc_ops.runs.documents import D, FoldDocument, Reference, SplitDocument, parse_document
from bcc_ops.runs.paths import RunPaths, fold_file
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import read_rows
from bcc_ops.training.checkpoints import ABANDONED_AFTER

DOCUMENTS = ("config", "snapshot", "split")
"""The run's documents that go in, without `.json`. `split.json` names `split.parquet`."""

LONGEST_FAILURE = 1024
"""Characters that SageMaker shows of `output/failure`."""

_ENDINGS = ("h5", "parquet", "csv")


def files_of_run(documents: Mapping[str, Reference], table: Reference) -> dict[str, Reference]:
    """Return file name in the channel `run` -> reference.

    Args:
        documents: the run's, by their names in `DOCUMENTS`.
        table: split.parquet.
    """
    return {**{f"{name}.json": documents[name] for name in DOCUMENTS}, "split.parquet": table}


@dataclass(frozen=True)
class TrainedFold:
    """What a training ends with: the contents of a fold's document, history, model file and table of answers."""

    document: FoldDocument
    history: bytes
    model: bytes
    answers: bytes


class TrainingRequest(BaseModel):
    """Which fold of which run is to be trained.

    Attributes:
        version: of the package that asks; another one might train otherwise.
        fold: the one that is held out.
        artifacts_prefix, run: name the run's folder, which the fold's document refers to.
        config, snapshot, split: sha256 of the run's documents.
        synthetic: whether images that the project drew itself are among them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    fold: int = Field(ge=1, le=5)
    artifacts_prefix: str
    run: str
    config: str
    snapshot: str
    split: str
    synthetic: bool

    @classmethod
    def of(cls, paths: RunPaths, fold: int, documents: Mapping[str, Reference], *, synthetic: bool) -> TrainingRequest:
        """Return this release's request.

        Args:
            paths: of the run's documents.
            fold: the one that is held out.
            documents: by their names in `DOCUMENTS`.
            synthetic: as above.
        """
        digests = {name: documents[name].sha256 for name in DOCUMENTS}
        prefix, run = paths.artifacts_prefix, paths.folder_name
        return cls(version=bcc_ops.__version__, fold=fold, artifacts_prefix=prefix, run=run, synthetic=synthetic, **digests)

    @property
    def hyperparameters(self) -> dict[str, str]:
        """The request as SageMaker passes it on: every value as text."""
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in dict(self).items()}

    @property
    def paths(self) -> RunPaths:
        """Of the run's documents in the bucket."""
        return RunPaths(self.artifacts_prefix, self.run)

    def reference(self, document: str) -> Reference:
        """Return the reference to one of the run's documents, by its name in `DOCUMENTS`."""
        return Reference(key=self.paths.document(f"{document}.json"), sha256=getattr(self, document))


@dataclass(frozen=True)
class JobFolder:
    """The folder of one training.

    Attributes:
        root: the folder; `/opt/ml` in a container of SageMaker.
    """

    root: Path

    @property
    def model(self) -> Path:
        """Folder of what comes out."""
        return self.root / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder that outlives the process."""
        return self.root / "checkpoints"

    @property
    def failure(self) -> Path:
        """The file that says why training failed."""
        return self.root / "output" / "failure"

    @property
    def scratch(self) -> Path:
        """Folder for what memory does not hold."""
        return self.root / "scratch"

    def channel(self, name: str) -> Path:
        """Return the folder of a part of the input."""
        return self.root / "input" / "data" / name

    @property
    def _hyperparameters(self) -> Path:
        return self.root / "input" / "config" / "hyperparameters.json"

    # What goes in -----------------------------------------------------------------------------------------------------

    def write_input(
        self,
        request: TrainingRequest,
        documents: Mapping[str, bytes],
        images: Iterable[LocalImage],
        weights: Path | None,
    ) -> None:
        """Lay out the input; images and weights are linked, not copied.

        Args:
            request: what is asked for.
            documents: file name -> content, of `DOCUMENTS` and of the split's table.
            images: those that are trained on or held out.
            weights: the backbone's file; None if the parameters name none.

        Raises:
            CacheError: the disk does not take it.
        """
        try:
            for folder in (self._hyperparameters.parent, *map(self.channel, ("run", "images", "weights"))):
                folder.mkdir(parents=True, exist_ok=True)
            self._hyperparameters.write_text(json.dumps(request.hyperparameters))
            for name, content in documents.items():
                (self.channel("run") / name).write_bytes(content)
            places = {image.key: image.sha256 for image in images}  # a key may be anything, "../x" or "a//b" too
            for image in images:
                link = self.channel("images") / image.sha256
                if not link.is_symlink():
                    link.symlink_to(image.path.absolute())
            (self.channel("run") / "images.json").write_text(json.dumps(places))
            if weights is not None:
                (self.channel("weights") / weights.name).symlink_to(weights.absolute())
        except OSError as error:
            raise cache_error(self.root, error) from error

    def read_request(self) -> TrainingRequest:
        """Return what is asked for.

        Raises:
            ConfigError: it is missing, is not a request, or another release of the package asks.
        """
        try:
            request = TrainingRequest.model_validate(json.loads(self._hyperparameters.read_bytes()))
        except OSError as error:
            raise ConfigError(f"{self._hyperparameters} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            problem = error.errors()[0]
            raise ConfigError(f"hyperparameters.json: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
        except ValueError as error:
            raise ConfigError(f"hyperparameters.json is not JSON: {error}") from None
        if request.version != bcc_ops.__version__:
            raise ConfigError(
                f"bcc_ops {request.version} asks for this training, and {bcc_ops.__version__} is installed where it runs: "
                "install the same version in both places"
            )
        return request

    def read_document(self, kind: type[D], request: TrainingRequest, name: str) -> D:
        """Return one of the run's documents, by its name in `DOCUMENTS`.

        Raises:
            ArtifactError: it is missing, or not the one that the request names.
        """
        reference = request.reference(name)
        return parse_document(kind, self._referenced(reference), f"{name}.json")

    def read_split(self, split: SplitDocument) -> list[SplitRow]:
        """Return the rows of split.parquet.

        Raises:
            ArtifactError: it is missing, or not the one that split.json names.
        """
        if split.table is None:
            raise ArtifactError("split.json names no split.parquet: there is nothing to train on")
        return read_rows(SplitRow, self._referenced(split.table))

    def _referenced(self, reference: Reference) -> bytes:
        path = self.channel("run") / PurePosixPath(reference.key).name
        content = _read(path)
        if hashlib.sha256(content).hexdigest() != reference.sha256:
            raise ArtifactError(f"{path} is not the one that was asked for: its sha256 is not {reference.sha256}")
        return content

    def image_places(self) -> dict[str, Path]:
        """Return key -> file of the channel `images`.

        Raises:
            ArtifactError: images.json is missing or is not such a table.
        """
        try:
            places = json.loads(_read(self.channel("run") / "images.json"))
            return {str(key): self.channel("images") / str(place) for key, place in places.items()}
        except (ValueError, AttributeError) as error:
            raise ArtifactError(f"images.json is not a table of keys and places: {error}") from None

    def weights_file(self) -> Path:
        """Return the one file of the channel `weights`.

        Raises:
            WeightsUnavailable: there is none, or there are several.
        """
        folder = self.channel("weights")
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        if len(files) != 1:
            raise WeightsUnavailable(f"{folder} must hold the backbone's weights, one file, and holds {len(files)}")
        return files[0]

    # What comes out ---------------------------------------------------------------------------------------------------

    def write_trained(self, trained: TrainedFold) -> None:
        """Write a fold's files, its document last."""
        fold = trained.document.fold
        self.model.mkdir(parents=True, exist_ok=True)
        for ending, content in zip(_ENDINGS, (trained.model, trained.answers, trained.history)):
            (self.model / fold_file(fold, ending)).write_bytes(content)
        (self.model / fold_file(fold, "json")).write_bytes(trained.document.to_json())

    def read_trained(self, fold: int) -> TrainedFold:
        """Read a fold's files.

        Raises:
            ArtifactError: one is missing, or not the one that the document promises.
        """
        path = self.model / fold_file(fold, "json")
        document = parse_document(FoldDocument, _read(path), path.name)
        contents = {}
        for ending, reference in zip(_ENDINGS, (document.model, document.answers, document.history)):
            contents[ending] = _read(self.model / fold_file(fold, ending))
            if hashlib.sha256(contents[ending]).hexdigest() != reference.sha256:
                raise ArtifactError(f"{fold_file(fold, ending)} is not the file that {path.name} promises: train again")
        return TrainedFold(document, contents["csv"], contents["h5"], contents["parquet"])

    def write_failure(self, error: BaseException) -> None:
        """Write down in one sentence why training failed; `parse_failure` reads it."""
        sentence = " ".join(f"{type(error).__name__}: {error}".split())
        self.failure.parent.mkdir(parents=True, exist_ok=True)
        self.failure.write_text(sentence[:LONGEST_FAILURE], encoding="utf-8")

    def read_failure(self) -> BccError | None:
        """Return in a sentence why training failed; None if it left no such file."""
        if not self.failure.is_file():
            return None
        with self.failure.open("rb") as file:
            text = file.read(4 * LONGEST_FAILURE).decode(errors="replace")
        return parse_failure("".join(c if c.isprintable() else " " for c in text)[:LONGEST_FAILURE])


@contextmanager
def job_of_attempt(folder: Path, request: TrainingRequest) -> Iterator[JobFolder]:
    """Make a folder for one attempt at a training, and remove it afterwards; also what killed attempts left, of this training or
    long ago.

    Args:
        folder: where the folders of this worker's attempts are.
        request: what will be asked for.

    Raises:
        CacheError: the folder cannot be made.
    """
    name = f"{request.run}-{request.fold}-"
    abandoned = time.time() - ABANDONED_AFTER
    for left in folder.glob("*"):
        with suppress(OSError):  # another fold's attempt removes its own
            if left.name.startswith(name) or left.stat().st_mtime < abandoned:
                shutil.rmtree(left, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        root = Path(tempfile.mkdtemp(prefix=name, dir=folder))
    except OSError as error:
        raise cache_error(folder, error) from error
    try:
        yield JobFolder(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def parse_failure(sentence: str) -> BccError:
    """Return the error that `JobFolder.write_failure` wrote down: the project's own again, or else `TrainingFailed`.

    Never `NothingNew`: a run is skipped for it, and this one has failed.
    """
    name, _, message = sentence.partition(": ")
    kind: Any = getattr(exceptions, name, None)
    others = (exceptions.ImageRefused, exceptions.NothingNew)
    if isinstance(kind, type) and issubclass(kind, BccError) and kind not in others:
        return kind(message)
    if name == exceptions.ImageRefused.__name__:
        return exceptions.ImageRefused(*message.partition(": ")[::2])
    return TrainingFailed(f"the training process failed: {sentence}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
