"""A fold's training as a job of Amazon SageMaker: what goes in, and what comes out. `operators.training_job` asks for it.

The job runs `training.entry` in `/opt/ml`. All that goes in and comes out is below the training's own folder in the bucket, where
a worker keeps its checkpoint, and is removed once the fold's document is there:

    sagemaker/input/run/        the run's documents, and images.json: key -> place in the channel `images`
    sagemaker/input/images.manifest     which objects the channel `images` has
    sagemaker/input/images/<sha256>     copies of those that a manifest cannot name
    sagemaker/input/weights/    the backbone's file, if the parameter `weights` names one
    sagemaker/checkpoints/      /opt/ml/checkpoints, as SageMaker keeps it
    sagemaker/output/<job>/output/model.tar.gz
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import posixpath
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from bcc_ops.config import Settings
from bcc_ops.dataset.image_cache import cache_error
from bcc_ops.exceptions import ArtifactError, BccError, ObjectChanged
from bcc_ops.runs.documents import FoldDocument
from bcc_ops.runs.paths import fold_file
from bcc_ops.runs.rows import ImageRow, SplitRow
from bcc_ops.runs.tables import count_rows
from bcc_ops.training.job_folder import JobFolder, TrainingRequest

LARGEST_FILES = MappingProxyType({"h5": 2_000_000_000, "parquet": 200_000_000, "csv": 10_000_000, "json": 1_000_000})
"""Bytes that are unpacked of each of a fold's files. The largest backbone of Keras has 0.6 GB."""

_LARGEST_HEADERS = 1_000_000
"""Bytes of everything else in the archive, which tarfile keeps in memory: a header has 512, and SageMaker writes some ten."""

_PLAIN = re.compile(r"[\w!()'-]([\w!()'. -]*[\w!()'-])?", re.ASCII)
"""A part of a key that is the same as a part of a path, on every file system and in a manifest."""


@dataclass(frozen=True)
class JobPlace:
    """Where a fold's jobs have their files.

    Attributes:
        bucket: the bucket.
        folder: the training's folder in it (`run_paths.checkpoint_folder`).
    """

    bucket: str
    folder: str

    def key(self, name: str) -> str:
        """Return the key of one of the files above."""
        return f"{self.folder}/sagemaker/{name}"

    def uri(self, name: str) -> str:
        """Return its address."""
        return f"s3://{self.bucket}/{self.key(name)}"

    @property
    def history(self) -> str:
        """The key of the history as it grows: `training.entry` keeps it beside its checkpoint."""
        return self.key(f"checkpoints/{self.folder}/history.csv")

    def output(self, job: str) -> str:
        """Return the key of what a job puts out."""
        return self.key(f"output/{job}/output/model.tar.gz")


# What goes in ---------------------------------------------------------------------------------------------------------


def job_name(bucket: str, request: TrainingRequest, number: int) -> str:
    """Return the name of a fold's job: the same for the same run, fold and number, and for no other.

    Args:
        bucket: the bucket that the run is in.
        request: names the run and the fold.
        number: which job of this fold it is, from 1 on.
    """
    digest = hashlib.sha256(f"{bucket}\0{request.artifacts_prefix}\0{request.run}".encode()).hexdigest()[:12]
    return f"bcc-{request.run[:16]}-{digest}-fold-{request.fold}-try-{number}"


class ImageChannel(NamedTuple):
    """The channel `images`: its manifest, images.json, and which images must be copied first: (image, key of the copy)."""

    manifest: bytes
    places: bytes
    copies: tuple[tuple[ImageRow, str], ...]


def image_channel(
    images: Sequence[ImageRow], digests: Mapping[str, str], listed: Mapping[str, tuple[str, int]], place: JobPlace
) -> ImageChannel:
    """Choose how each image gets into the job.

    A manifest names objects by key and takes the newest version of each. So an image is named in it if it is the newest version
    of its key, and if the key is a path: of letters, digits, spaces and `!()_'.-`, and not a folder of another one. Others are
    copied.

    Args:
        images: of the snapshot; those that are trained on or held out.
        digests: key -> sha256 of the image.
        listed: key -> ETag and size of the newest version.
        place: where the copies go.

    Raises:
        ObjectChanged: an image was changed or deleted, and the bucket keeps no versions.
    """
    named = {image.key for image in images if listed.get(image.key) == (image.etag, image.size) and _is_path(image.key)}
    folders = {folder for key in named for folder in _folders(key)}
    places: dict[str, str] = {}
    copies = []
    for image in images:
        if image.key in named and image.key not in folders:
            places[image.key] = image.key
            continue
        if not image.version_id and listed.get(image.key) != (image.etag, image.size):
            raise ObjectChanged(
                f"s3://{place.bucket}/{image.key} was changed or deleted since the snapshot, and the bucket keeps no versions: "
                "start a new run"
            )
        places[image.key] = place.key(f"input/images/{digests[image.key]}")
        copies.append((image, places[image.key]))
    manifest = [{"prefix": f"s3://{place.bucket}/"}, *dict.fromkeys(places.values())]
    return ImageChannel(json.dumps(manifest).encode(), json.dumps(places).encode(), tuple(copies))


def _is_path(key: str) -> bool:
    return all(_PLAIN.fullmatch(part) for part in key.split("/"))


def _folders(key: str) -> Iterator[str]:
    while key := key.rpartition("/")[0]:
        yield key


def job_request(name: str, request: TrainingRequest, place: JobPlace, settings: Settings, *, weights: bool) -> dict[str, Any]:
    """Return what CreateTrainingJob is asked for. The job has no network: SageMaker itself brings its files and takes them away.

    Args:
        name: of the job.
        request: the fold of the run.
        place: where the job's files are.
        settings: of the deployment; complete for SageMaker.
        weights: whether the backbone's weights are a file.
    """
    channels = {"run": ("S3Prefix", "input/run/"), "images": ("ManifestFile", "input/images.manifest")}
    if weights:
        channels["weights"] = ("S3Prefix", "input/weights/")
    longest = settings.sagemaker_max_runtime_minutes * 60
    spot_wait = settings.sagemaker_spot_wait_minutes * 60
    asked: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": settings.sagemaker_role_arn,
        "AlgorithmSpecification": {
            "TrainingImage": settings.sagemaker_image_uri,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python", "-m", "bcc_ops.training.entry"],
        },
        "HyperParameters": request.hyperparameters,
        "InputDataConfig": [
            {
                "ChannelName": channel,
                "DataSource": {
                    "S3DataSource": {"S3DataType": kind, "S3Uri": place.uri(where), "S3DataDistributionType": "FullyReplicated"}
                },
            }
            for channel, (kind, where) in channels.items()
        ],
        "OutputDataConfig": {"S3OutputPath": place.uri("output")},
        "CheckpointConfig": {"S3Uri": place.uri("checkpoints"), "LocalPath": "/opt/ml/checkpoints"},
        "ResourceConfig": {
            "InstanceType": settings.sagemaker_instance_type,
            "InstanceCount": 1,
            "VolumeSizeInGB": settings.sagemaker_volume_gb,
        },
        "StoppingCondition": {
            "MaxRuntimeInSeconds": longest,
            **({"MaxWaitTimeInSeconds": longest + spot_wait} if spot_wait else {}),
        },
        "EnableManagedSpotTraining": spot_wait > 0,
        "EnableNetworkIsolation": True,
        "Tags": [
            {"Key": "bcc:bucket", "Value": place.bucket},
            {"Key": "bcc:run", "Value": request.run},
            {"Key": "bcc:fold", "Value": str(request.fold)},
        ],
    }
    if settings.sagemaker_subnets:
        asked["VpcConfig"] = {
            "Subnets": re.split(r"\s*,\s*", settings.sagemaker_subnets),
            "SecurityGroupIds": re.split(r"\s*,\s*", settings.sagemaker_security_groups),
        }
    return asked


def is_same_request(asked: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Return whether a job, as DescribeTrainingJob tells it, trains what is asked for, with the same image."""
    image, asked_image = (described["AlgorithmSpecification"].get("TrainingImage") for described in (job, asked))
    return bool(image == asked_image and job.get("HyperParameters") == asked["HyperParameters"])


# What comes out -------------------------------------------------------------------------------------------------------


def unpack_output(pieces: Iterable[bytes], job: JobFolder, fold: int) -> None:
    """Unpack model.tar.gz into a folder: the fold's files, and nothing else.

    Args:
        pieces: the archive's content.
        job: the folder; `JobFolder.read_trained` then compares the files with their digests.
        fold: the one that is held out.

    Raises:
        ArtifactError: it is damaged, holds anything else, or more than `LARGEST_FILES`.
        CacheError: the disk does not take it.
    """
    expected = {fold_file(fold, ending): most for ending, most in LARGEST_FILES.items()}
    content = _Bounded(gzip.GzipFile(fileobj=_Pieces(pieces)))
    try:
        job.model.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=content, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                if not member.isdir():
                    _unpack_member(archive, member, content, job, expected)
    except gzip.BadGzipFile as error:
        raise ArtifactError(f"model.tar.gz is damaged: {error}") from None
    except (BccError, MemoryError):
        raise
    except OSError as error:
        raise cache_error(job.root, error) from error
    except Exception as error:  # tarfile raises anything on damaged headers: ReadError, ValueError, RecursionError, …
        raise ArtifactError(f"model.tar.gz is damaged: {' '.join(str(error).split())[:200]}") from None


def _unpack_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, content: _Bounded, job: JobFolder, expected: dict[str, int]
) -> None:
    name = posixpath.normpath(member.name)
    if not member.isreg() or member.issparse() or name not in expected:  # holes in a file take no room in the archive
        raise ArtifactError(f"model.tar.gz has {member.name[:100]!r}, which is not a file of the fold, or is there twice")
    most = expected.pop(name)
    if not 0 <= member.size <= most:
        raise ArtifactError(f"model.tar.gz has {name} with {member.size:,} bytes, and it may have {most:,} at most")
    content.allowed += member.size
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    with (job.model / name).open("wb") as unpacked:
        shutil.copyfileobj(file, unpacked)


def require_asked_for(document: FoldDocument, request: TrainingRequest, *, snapshot_digest: str, config_digest: str) -> None:
    """Make sure that a fold's document is the one that was asked for, and refers to the run's own files.

    Raises:
        ArtifactError: it is of another run, of another fold, or of other images or parameters.
    """
    asked = (request.fold, request.reference("split"), snapshot_digest, config_digest)
    files = {request.paths.document(fold_file(request.fold, ending)) for ending in ("h5", "parquet", "csv")}
    found = (document.fold, document.split, document.snapshot_digest, document.config_digest)
    if found != asked or {document.model.key, document.answers.key, document.history.key} != files:
        raise ArtifactError(f"model.tar.gz is not the model of fold {request.fold} of {request.run} that was asked for")


def require_an_answer_each(answers: bytes, rows: Iterable[SplitRow], fold: int) -> None:
    """Make sure that a fold's table of answers has as many rows as the fold has images, before anybody reads it.

    Args:
        answers: the table's content.
        rows: the run's split.parquet.
        fold: the one that is held out.

    Raises:
        ArtifactError: it has more or fewer rows, or cannot be read.
    """
    found, images = count_rows(answers), sum(row.fold == fold for row in rows)
    if found != images:
        raise ArtifactError(f"{fold_file(fold, 'parquet')} has {found:,} answers, and the fold has {images:,} images")


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        taken = self._left[: len(buffer)]
        buffer[: len(taken)] = taken
        self._left = self._left[len(taken) :]
        return len(taken)


class _Bounded:
    """A file that ends a reader who takes more of it than is allowed: sizes in an archive's headers promise nothing.

    Attributes:
        allowed: bytes that may still be read.
    """

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file
        self.allowed = _LARGEST_HEADERS

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.allowed -= len(content)
        if self.allowed < 0:
            raise ArtifactError("model.tar.gz has more than the files of a fold")
        return content
