"""What goes into a job of SageMaker and what comes out. Whole jobs are in tests/integration/test_training_on_sagemaker.py."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bcc_ops.config import Settings
from bcc_ops.exceptions import ArtifactError, CacheError, ObjectChanged
from bcc_ops.runs.documents import Reference
from bcc_ops.runs.rows import ImageRow, SplitRow
from bcc_ops.training import sagemaker
from bcc_ops.training.job_folder import JobFolder, TrainingRequest
from bcc_ops.training.sagemaker import (
    LARGEST_FILES,
    JobPlace,
    image_channel,
    is_same_request,
    job_name,
    job_request,
    require_an_answer_each,
    require_asked_for,
    unpack_output,
)
from tests.unit.report.samples import PATHS, fold_document, reference

PLACE = JobPlace("breast-images", "artifacts/checkpoints/abc-2")
REQUEST = TrainingRequest.of(
    PATHS, 2, {name: reference(f"{name}.json") for name in ("config", "snapshot", "split")}, synthetic=True
)
SETTINGS = Settings(
    train_on="sagemaker",
    sagemaker_role_arn="arn:aws:iam::123456789012:role/bcc",
    sagemaker_image_uri="123456789012.dkr.ecr.eu-central-1.amazonaws.com/bcc:1",
    sagemaker_instance_type="ml.g5.xlarge",
)


def _image(key: str, etag: str = "e", version: str = "") -> ImageRow:
    return ImageRow(key, "benign", 7, etag, version, datetime(2026, 1, 1, tzinfo=timezone.utc))


def _channel(*images: ImageRow, listed: dict[str, tuple[str, int]] | None = None) -> Any:
    digests = {image.key: f"sha-of-{image.key[-5:]}" for image in images}
    return image_channel(images, digests, listed or {image.key: (image.etag, image.size) for image in images}, PLACE)


def test_images_that_are_still_there_are_named_in_the_manifest_and_not_copied() -> None:
    channel = _channel(_image("images/benign/benign (1).png"), _image("images/normal/a_b-c.d!'x.dcm"))
    assert json.loads(channel.manifest) == [
        {"prefix": "s3://breast-images/"},
        "images/benign/benign (1).png",
        "images/normal/a_b-c.d!'x.dcm",
    ]
    assert json.loads(channel.places) == {key: key for key in json.loads(channel.manifest)[1:]}
    assert channel.copies == ()


@pytest.mark.parametrize(
    "key",
    [
        "images/a/../b.png",
        "images//b.png",
        "/b.png",
        "images/b/",
        "images/ü.png",
        "images/a\n.png",
        "images/ b.png",
        "images/.b",
        "i/.",
    ],
)
def test_an_image_whose_key_is_not_a_path_is_copied(key: str) -> None:
    image = _image(key)
    channel = _channel(image)
    copy = PLACE.key(f"input/images/sha-of-{key[-5:]}")
    assert channel.copies == ((image, copy),)
    assert json.loads(channel.places) == {key: copy}
    assert json.loads(channel.manifest)[1:] == [copy]


def test_of_a_file_and_a_folder_of_the_same_name_one_is_copied() -> None:
    one, other = _image("images/a.png"), _image("images/a.png/b.png")
    channel = _channel(one, other)
    assert channel.copies == ((one, PLACE.key("input/images/sha-of-a.png")),)
    assert json.loads(channel.places)[other.key] == other.key


@pytest.mark.parametrize("listed", [{}, {"images/a.png": ("new", 7)}, {"images/a.png": ("e", 8)}], ids=["gone", "new", "longer"])
def test_an_image_that_has_changed_is_copied_in_the_version_of_the_snapshot(listed: dict[str, tuple[str, int]]) -> None:
    image = _image("images/a.png", version="v1")
    listed["images/other.png"] = ("e", 7)
    assert _channel(image, listed=listed).copies == ((image, PLACE.key("input/images/sha-of-a.png")),)
    with pytest.raises(ObjectChanged, match=r"s3://breast-images/images/a.png was changed or deleted .* start a new run"):
        _channel(_image("images/a.png"), listed=listed)


def test_a_jobs_name_is_of_its_run_fold_and_number_and_fits() -> None:
    name = job_name("breast-images", REQUEST, 12)
    assert re.fullmatch(r"bcc-20261122T020000Z-[0-9a-f]{12}-fold-2-try-12", name)
    others = [
        job_name("another", REQUEST, 12),
        job_name("breast-images", REQUEST.model_copy(update={"artifacts_prefix": "x"}), 12),
        job_name("breast-images", REQUEST.model_copy(update={"run": "20261122T020000Z__b"}), 12),
        job_name("breast-images", REQUEST.model_copy(update={"fold": 3}), 12),
        job_name("breast-images", REQUEST, 13),
    ]
    assert len({name, *others}) == 6
    assert job_name("breast-images", REQUEST.model_copy(update={"synthetic": False}), 12) == name
    assert len(name) <= 63


def test_a_job_has_no_network_and_its_files_are_below_the_trainings_folder() -> None:
    asked = job_request("bcc-1", REQUEST, PLACE, SETTINGS, weights=False)
    assert asked["EnableNetworkIsolation"] is True
    assert asked["HyperParameters"]["fold"] == "2"
    assert asked["StoppingCondition"] == {"MaxRuntimeInSeconds": 240 * 60}
    assert asked["EnableManagedSpotTraining"] is False
    assert "VpcConfig" not in asked
    addresses = re.findall(r"s3://[^'\"]*", str(asked))
    assert len(addresses) == 4
    assert all(address.startswith("s3://breast-images/artifacts/checkpoints/abc-2/sagemaker/") for address in addresses)
    assert PLACE.output("bcc-1") == f"{asked['OutputDataConfig']['S3OutputPath']}/bcc-1/output/model.tar.gz".split("/", 3)[3]


def test_spot_a_vpc_and_a_file_of_weights_are_asked_for_if_they_are_configured() -> None:
    more = {"sagemaker_spot_wait_minutes": 30, "sagemaker_subnets": "subnet-0a, subnet-0b", "sagemaker_security_groups": "sg-0c"}
    asked = job_request("bcc-1", REQUEST, PLACE, Settings(**{**dict(SETTINGS), **more}), weights=True)
    assert asked["EnableManagedSpotTraining"] is True
    assert asked["StoppingCondition"] == {"MaxRuntimeInSeconds": 240 * 60, "MaxWaitTimeInSeconds": 270 * 60}
    assert asked["VpcConfig"] == {"Subnets": ["subnet-0a", "subnet-0b"], "SecurityGroupIds": ["sg-0c"]}
    assert [channel["ChannelName"] for channel in asked["InputDataConfig"]] == ["run", "images", "weights"]


def test_a_job_is_the_same_if_it_trains_the_same_with_the_same_image_on_whatever_instance() -> None:
    asked = job_request("bcc-1", REQUEST, PLACE, SETTINGS, weights=False)
    job = {**asked, "ResourceConfig": {"InstanceType": "ml.p3.2xlarge"}, "SecondaryStatus": "Training"}
    assert is_same_request(asked, job)
    assert not is_same_request(asked, {**job, "HyperParameters": {**job["HyperParameters"], "split": "0" * 64}})
    assert not is_same_request(asked, {**job, "AlgorithmSpecification": {"TrainingImage": "another"}})


def _archive(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _file(name: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), content


def _folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE
    return member, b""


def _link(name: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member, b""


def test_the_folds_files_are_unpacked_in_whatever_pieces_they_come(tmp_path: Path) -> None:
    content = _archive(_folder("."), _file("./fold-2.h5", b"m" * 5000), _file("fold-2.json", b"{}"))
    unpack_output([content[n : n + 7] for n in range(0, len(content), 7)], JobFolder(tmp_path), 2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == {
        "fold-2.h5": b"m" * 5000,
        "fold-2.json": b"{}",
    }


@pytest.mark.parametrize(
    "member",
    [
        _file("../fold-2.h5"),
        _file("/fold-2.h5"),
        _file("more/fold-2.h5"),
        _file("fold-3.h5"),
        _file("code.py"),
        _link("fold-2.h5", tarfile.SYMTYPE),
        _link("fold-2.h5", tarfile.LNKTYPE),
    ],
    ids=lambda member: f"{member[0].name}-{member[0].type.decode()}",
)
def test_an_archive_with_anything_else_is_refused(tmp_path: Path, member: tuple[tarfile.TarInfo, bytes]) -> None:
    with pytest.raises(ArtifactError, match="which is not a file of the fold"):
        unpack_output([_archive(member)], JobFolder(tmp_path / "ml"), 2)
    assert list((tmp_path / "ml" / "model").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["ml"]


@pytest.mark.parametrize("ending", LARGEST_FILES)
def test_a_file_that_is_larger_than_any_fold_has_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    assert LARGEST_FILES["json"] <= 1_000_000 and LARGEST_FILES["csv"] <= 10_000_000  # they are read into memory
    monkeypatch.setattr(sagemaker, "LARGEST_FILES", {ending: 99_999})
    with pytest.raises(ArtifactError, match=rf"has fold-2\.{ending} with 100,000 bytes, and it may have 99,999 at most"):
        unpack_output([_archive(_file(f"fold-2.{ending}", bytes(100_000)))], JobFolder(tmp_path), 2)
    assert list((tmp_path / "model").iterdir()) == []


def _with_holes(size: int) -> bytes:
    """A file that consists of a hole of this many bytes, as GNU tar writes it: the archive itself is small."""
    header = bytearray(tarfile.TarInfo("fold-2.h5").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:398], header[398:410] = b"%011o\0" % size, b"%011o\0" % 0
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) + bytes(1024))


def test_a_file_of_holes_fills_no_disk(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has 'fold-2\.h5', which is not a file of the fold"):
        unpack_output([_with_holes(30_000_000)], JobFolder(tmp_path), 2)
    assert list((tmp_path / "model").iterdir()) == []


def _long_name() -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo("././@LongLink")
    member.type = tarfile.GNUTYPE_LONGNAME
    return member, b"x" * 3_000_000


@pytest.mark.parametrize(
    "members",
    [[_folder(f"{number}") for number in range(3000)], [_long_name()], [_file("fold-2.h5")] * 2],
    ids=["folders", "a long name", "a file twice"],
)
def test_an_archive_with_more_than_a_folds_files_is_given_up_before_it_fills_the_memory(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    with pytest.raises(ArtifactError, match=r"has more than the files of a fold|or is there twice"):
        unpack_output([_archive(*members)], JobFolder(tmp_path), 2)


def test_an_archive_whose_headers_nest_too_deep_is_damaged(tmp_path: Path) -> None:
    name = tarfile.TarInfo("././@LongLink")
    name.type = tarfile.GNUTYPE_LONGNAME
    with pytest.raises(ArtifactError, match=r"model\.tar\.gz is damaged"):
        unpack_output([_archive(*[(name, b"x")] * 900)], JobFolder(tmp_path), 2)


def test_a_disk_that_does_not_take_the_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "ml").write_text("in the way")
    with pytest.raises(CacheError, match="cannot be used as a cache: Not a directory"):
        unpack_output([_archive(_file("fold-2.h5"))], JobFolder(tmp_path / "ml"), 2)


@pytest.mark.parametrize("content", [b"", b"no archive", _archive(_file("fold-2.h5", b"m" * 99_000))[:-40], _archive(mode="w:")])
def test_a_damaged_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"model\.tar\.gz is damaged"):
        unpack_output([content], JobFolder(tmp_path), 2)


@pytest.mark.parametrize(
    ("fold", "changes"),
    [
        (3, {}),
        (2, {"snapshot_digest": "0" * 64}),
        (2, {"model": reference("model.h5")}),
        (2, {"split": reference("config.json")}),
    ],
)
def test_a_model_that_was_not_asked_for_is_refused(fold: int, changes: dict[str, Any]) -> None:
    good = fold_document(2)
    digests = {"snapshot_digest": good.snapshot_digest, "config_digest": good.config_digest}
    assert good.split == Reference(key=PATHS.document("split.json"), sha256=REQUEST.split)
    require_asked_for(good, REQUEST, **digests)
    with pytest.raises(ArtifactError, match=r"not the model of fold 2 .* that was asked for"):
        require_asked_for(fold_document(fold, **changes), REQUEST, **digests)


def test_equal_answers_without_end_are_counted_and_not_read() -> None:
    many = 3_000_000
    column = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), many), pa.array(["x"]))
    file = io.BytesIO()
    pq.write_table(pa.table({"key": column}), file)
    assert len(file.getvalue()) < 100_000
    with pytest.raises(ArtifactError, match="has 3,000,000 answers, and the fold has 1 images"):
        require_an_answer_each(file.getvalue(), [SplitRow("a", "", "", "", 2), SplitRow("b", "", "", "", 3)], 2)
    with pytest.raises(ArtifactError, match="no Parquet file"):
        require_an_answer_each(b"answers", [], 2)
