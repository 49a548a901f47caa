from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcc_ops import cli
from bcc_ops.config import NO_FINDINGS
from bcc_ops.doctor import Facts
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.runs.documents import EvaluationDocument, parse_document
from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import S3Server
from tests.conftest import REPOSITORY
from tests.unit.promotion.samples import AS_OF, NOW, model_document, upload
from tests.unit.test_doctor import HEALTHY

CLASSES = ("benign", "malignant", "normal")


@dataclass
class ByName:
    """Is sure of what the file's folder says."""

    image_size: int = 64
    classes_count: int = 3
    keep_aspect: bool = False

    def predict(self, paths: Sequence[Path], batch_size: int = 32) -> np.ndarray:
        known = [CLASSES.index(path.parent.name) for path in paths]
        return (np.eye(3)[known] * 0.7 + 0.1).astype(np.float32)


def picture(seed: int) -> bytes:
    content = io.BytesIO()
    generator = np.random.default_rng(seed)
    blocks = np.kron(generator.integers(0, 255, (16, 16), dtype=np.uint8), np.ones((8, 8), np.uint8))
    Image.fromarray(blocks).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, label in enumerate(CLASSES):
        (tmp_path / "images" / label).mkdir(parents=True)
        for image in range(8):
            (tmp_path / "images" / label / f"{image}.png").write_bytes(picture(number * 100 + image))
    return tmp_path / "images"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for a model; what it answers is `ByName`'s."""
    monkeypatch.setattr("bcc_ops.models.classifier.load_classifier", lambda path, keep_aspect: ByName(keep_aspect=keep_aspect))
    (tmp_path / "version").mkdir()
    path = tmp_path / "version" / "model.h5"
    path.write_bytes(b"weights")
    return path


def beside(model: Path, content: bytes = b"weights", **changes: Any) -> None:
    registry = ModelRegistry(ObjectStore(None, "bucket"), "models")  # type: ignore[arg-type]
    (model.parent / "model.json").write_bytes(model_document(registry, content, **changes).to_json())


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


# Help and wrong use ---------------------------------------------------------------------------------------------------


def commands() -> list[str]:
    found = re.search(r"\{([a-z,]+)\}", cli.parser().format_usage())
    assert found is not None
    return found.group(1).split(",")


@pytest.mark.parametrize("command", commands())
def test_every_command_is_in_the_readme_and_helps(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"bcc-ops {command}" in (REPOSITORY / "README.md").read_text()
    with pytest.raises(SystemExit) as ended:
        run(command, "--help")
    assert ended.value.code == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["guess"], ["predict"], ["predict", "m.h5"], ["evaluate", "m.h5"], ["check"], ["models", "x"]]
)
def test_wrong_use_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said
    return said


# check ----------------------------------------------------------------------------------------------------------------


def test_check_writes_the_finding_as_a_document(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", folder, "--json", tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text())["checks"]["checked"] == 24
    assert "malignant" in capsys.readouterr().out


def test_check_of_a_folder_that_cannot_be_split_is_a_finding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for image in sorted((folder / "normal").iterdir())[1:]:
        image.unlink()
    assert run("check", folder) == 1
    assert "no split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "min_side"], "PARAM=VALUE"),
        (["--set", "min_side=-3"], "min_side"),
        (["--set", "nonsense=1"], "nonsense"),
        (["--json", "/nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_a_wrong_option_is_one_line(folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", folder, *arguments) == 1
    assert said in error_of(capsys)


def test_no_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", tmp_path / "gone") == 1
    assert "gone" in error_of(capsys)


# evaluate -------------------------------------------------------------------------------------------------------------


def test_evaluate_leaves_out_what_a_run_would_and_writes_the_document(folder: Path, model: Path, tmp_path: Path) -> None:
    beside(model)
    same = picture(1)
    (folder / "benign" / "double.png").write_bytes(same)
    (folder / "malignant" / "double.png").write_bytes(same)
    (folder / "normal" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "evaluation.json"
    assert run("evaluate", model, folder, "--json", out, "--set", "max_refused_fraction=0.5") == 0
    document = parse_document(EvaluationDocument, out.read_bytes(), "out")
    assert document.challenger.images == 23  # 24, less the one that is under two labels
    assert document.challenger.accuracy.value == 1.0
    assert document.challenger.operating_point.threshold == 0.31
    assert (document.as_of, document.comparison, document.synthetic) == (None, None, False)


class MissesOnB(ByName):
    """Calls every image with a number of 5 or more benign."""

    def predict(self, paths: Sequence[Path], batch_size: int = 32) -> np.ndarray:
        answers = super().predict(paths)
        answers[[int(path.stem) >= 5 for path in paths]] = (0.8, 0.1, 0.1)
        return answers


def test_evaluate_tells_the_subgroups_that_a_table_in_the_folder_makes_and_no_patient(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    beside(model)
    monkeypatch.setattr("bcc_ops.models.classifier.load_classifier", lambda path, keep_aspect: MissesOnB(keep_aspect=keep_aspect))
    rows = [f"*/{number}.png,Kim {number},{'Scanner A' if number < 5 else 'Scanner B'},[b]x[/b]" for number in range(10)]
    for label, number in ((label, number) for label in CLASSES for number in (8, 9)):
        (folder / label / f"{number}.png").write_bytes(picture(1000 + CLASSES.index(label) * 100 + number))
    (folder / "metadata.csv").write_text("\n".join(["key,patient_id,device,room", *rows]))
    out = tmp_path / "evaluation.json"

    assert run("evaluate", model, folder, "--json", out, "--set", "min_subgroup_images=15") == 0

    document = parse_document(EvaluationDocument, out.read_bytes(), "out")
    told = {part.value: (part.by, part.images, part.positive_groups, part.positive_sensitivity.value) for part in document.slices}
    assert told == {"Scanner A": ("device", 15, 5, 1.0), "Scanner B": ("device", 15, 5, 0.0)}
    assert [part.positive_specificity.value for part in document.slices] == [1.0, 1.0]
    printed = capsys.readouterr().out
    assert re.search(r"device\W+Scanner B\W+15\W+5\W+0\.00 \(0\.00 to", printed), printed
    assert "Kim" not in printed + out.read_text()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("file,patient_id\nbenign/0.png,7\n", "warning: the metadata table is not used: metadata.csv has no column named `key`"),
        ("key,patient_id\nelsewhere/0.png,7\n", "rows without an image"),
        ("key,patient_id\nelsewhere/0.png,7\n", "24    │ images without a row"),
        ("key,patient_id\nbenign/0.png,7\nbenign/0.png,8\n", "patient_id: rows of one image contradict each other"),
    ],
)
def test_evaluate_says_what_is_wrong_with_the_table_in_the_folder(
    folder: Path, model: Path, table: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its intervals are over near-duplicates where the table would have told patients."""
    beside(model)
    monkeypatch.setenv("COLUMNS", "160")
    (folder / "metadata.csv").write_text(table)
    assert run("evaluate", model, folder, "--set", f"content_findings={NO_FINDINGS}") == 0
    assert said in capsys.readouterr().out


def test_a_name_that_no_bucket_could_have_is_one_line(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside(model)
    (folder / "benign" / "0.png").rename(folder / "benign" / os.fsdecode(b"\xff.png"))
    assert run("evaluate", model, folder) == 1
    assert r"benign/\xff.png' is not UTF-8, as names in a bucket are: rename it" in error_of(capsys)


def test_no_terminal_obeys_the_name_of_an_image(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside(model)
    (folder / "benign" / "\x1b[31m.png").write_bytes(b"damaged")
    assert run("check", folder, "--set", f"content_findings={NO_FINDINGS}", "--set", "max_refused_fraction=0.5") == 0
    assert run("evaluate", model, folder, "--set", "max_refused_fraction=0") == 1
    said = capsys.readouterr()
    assert "benign/?[31m.png" in said.out and "benign/?[31m.png" in said.err
    assert "\x1b" not in said.out + said.err


def test_evaluate_says_that_nothing_makes_subgroups(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside(model)
    assert run("evaluate", model, folder) == 0
    assert "subgroups: not available: nothing tells one part of the images from another" in capsys.readouterr().out


def test_evaluate_without_a_model_json_has_no_operating_point_and_says_why(folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation.json"
    assert run("evaluate", model, folder, "--json", out, "--classes", ",".join(CLASSES), "--no-keep-aspect") == 0
    point = parse_document(EvaluationDocument, out.read_bytes(), "out").challenger.operating_point
    assert point.threshold is None
    assert point.sensitivity.reason == "no model.json beside the model names a threshold"


def test_evaluate_on_one_class_alone_gives_its_sensitivity_and_no_synthetic_rest(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    for label in ("benign", "normal"):
        for image in (folder / label).iterdir():
            image.unlink()
    out = tmp_path / "evaluation.json"
    assert run("evaluate", model, folder, "--json", out, "--keep-aspect") == 0
    challenger = parse_document(EvaluationDocument, out.read_bytes(), "out").challenger
    assert challenger.per_class["malignant"].sensitivity.value == 1.0
    assert challenger.balanced_accuracy.reason == "none of the images is benign, normal"


# predict --------------------------------------------------------------------------------------------------------------


def test_predict_answers_a_json_object_a_line(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside(model)
    images = [folder / "malignant" / "0.png", folder / "normal" / "1.png"]
    assert run("predict", model, *images, "--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["class"] for answer in answers] == ["malignant", "normal"]
    assert answers[0]["probabilities"] == {"benign": 0.1, "malignant": 0.8, "normal": 0.1}
    assert [answer["called_malignant"] for answer in answers] == [True, False]
    assert answers[0]["threshold"] == 0.31 and answers[0]["version"].startswith("20261122T020000Z-")


@pytest.mark.parametrize("keep_aspect", [True, False])
@pytest.mark.parametrize("told_by", ["model.json", "an option", "both"])
def test_a_model_sees_images_as_its_document_or_the_option_says(model: Path, keep_aspect: bool, told_by: str) -> None:
    if told_by != "an option":
        beside(model, keep_aspect=keep_aspect)
    option = None if told_by == "model.json" else keep_aspect
    known = cli.known_model(model, None, option)
    assert known.keep_aspect == keep_aspect
    assert cli._load(known).keep_aspect == keep_aspect


def test_predict_says_which_file_is_no_image_and_answers_the_others(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    assert run("predict", model, tmp_path / "notes.txt", folder / "benign" / "0.png", "--keep-aspect") == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {tmp_path / 'notes.txt'}: ") and said.err.count("\n") == 1
    assert said.out == f"{folder / 'benign' / '0.png'}: benign (benign 0.800, malignant 0.100, normal 0.100)\n"


def test_no_terminal_obeys_the_name_of_an_image_that_a_model_is_asked_about(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside(model)
    damaged, whole = folder / "benign" / "\x1b[31m.png", folder / "benign" / "\x1b[32m.png"
    damaged.write_bytes(b"damaged")
    whole.write_bytes(picture(1))
    assert run("predict", model, damaged, folder / "benign" / "\x1b[33m.png", whole) == 1
    said = capsys.readouterr()
    assert "?[31m.png" in said.err and "?[33m.png" in said.err and "?[32m.png: benign" in said.out
    assert "\x1b" not in said.out + said.err


def test_predict_of_a_file_that_is_not_there_is_one_line_and_loads_no_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bcc_ops.models.classifier.load_classifier", lambda path, keep_aspect: pytest.fail("was loaded"))
    assert run("predict", model, tmp_path / "gone.png", "--keep-aspect") == 1
    assert "gone.png" in error_of(capsys)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no file", "there is no such file"),
        ("another file", "sha256 differs"),
        ("damaged json", "is not a ModelDocument"),
        ("other classes", "--classes says a, b, but"),
        ("too few classes", "answers for 3 classes, not for benign, malignant"),
        ("another aspect", "model.json says --no-keep-aspect, not --keep-aspect: leave it out"),
        ("unknown aspect", "give --keep-aspect if it was trained on images that were padded"),
    ],
)
def test_a_model_that_is_not_what_it_should_be_is_one_line(
    folder: Path, model: Path, case: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options: list[str] = []
    if case == "no file":
        model = model.with_name("gone.h5")
    elif case == "another file":
        beside(model, b"other weights")
    elif case == "damaged json":
        model.with_name("model.json").write_text("{")
    elif case == "other classes":
        beside(model)
        options = ["--classes", "a,b"]
    elif case == "another aspect":
        beside(model)
        options = ["--keep-aspect"]
    elif case == "too few classes":
        options = ["--classes", "benign,malignant", "--keep-aspect"]
    assert run("predict", model, folder / "benign" / "0.png", *options) == 1
    assert said in error_of(capsys)


@pytest.mark.slow
def test_predict_is_a_command_of_its_own_and_refuses_a_damaged_model_in_one_line(folder: Path, tmp_path: Path) -> None:
    """The whole process, Keras included: nothing that TensorFlow says when it is loaded gets between the lines."""
    damaged = tmp_path / "model.h5"
    damaged.write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 500)
    done = subprocess.run(
        [sys.executable, "-m", "bcc_ops", "predict", damaged, folder / "benign" / "0.png", "--no-keep-aspect"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "plugins")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: model.h5 is not a Keras .h5 model") and done.stderr.count("\n") == 1
    assert done.stdout == ""


# models ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(store: ObjectStore, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    """The configured bucket, as boto3 finds it in the environment."""
    environment = {
        "BCC_BUCKET": store.bucket,
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return ModelRegistry(store, "models")


def put_version(registry: ModelRegistry, content: bytes, days: int = 0) -> str:
    one = upload(registry, content, days)
    version = one.document.version
    evaluation = registry.write_once(version, "evaluation.json", one.evaluation.to_json())
    document = one.document.model_copy(update={"evaluation": evaluation})
    registry.write_once(version, "model.json", document.to_json())
    registry.move(document, registry.read_pointer(), by="the gate", reason="better", at=NOW)
    return version


def test_models_lists_versions_and_the_champion(bucket: ModelRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = put_version(bucket, b"one"), put_version(bucket, b"two", days=1)
    bucket.store.put("models/cut-short/model.h5", b"half")
    assert run("models", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["champion"]["version"] == second
    assert [version["version"] for version in listed["versions"]] == [first, second, "cut-short"]
    assert listed["versions"][0]["as_of"] == AS_OF.isoformat()
    assert "is not whole" in listed["versions"][2]["problem"]
    assert run("models") == 0
    table = capsys.readouterr().out
    assert "champion" in table and "20261123T020000Z" in table


def test_no_terminal_obeys_a_name_under_the_models(bucket: ModelRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    bucket.store.put("models/[red]\x1b]0;title\x07/model.h5", b"half")
    assert run("models") == 0
    table = capsys.readouterr().out
    assert "[red]?]0;title?" in table and not {"\x1b", "\x07"} & set(table)
    assert run("trace", "images/\x1b]0;title\x07.png") == 1
    assert capsys.readouterr().err.endswith("has a trace of images/?]0;title?.png\n")


def test_models_of_an_empty_bucket_says_so(bucket: ModelRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    assert capsys.readouterr().out == "There are no versions yet.\n"


def test_models_with_a_damaged_pointer_is_a_finding(bucket: ModelRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    bucket.store.put("models/champion.json", b"{")
    assert run("models") == 1
    assert "is not a ChampionDocument" in error_of(capsys)


def test_models_of_a_bucket_that_does_not_exist_is_one_line(
    bucket: ModelRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BCC_BUCKET", "no-such-bucket")
    assert run("models") == 1
    assert "no-such-bucket" in error_of(capsys)


def test_models_of_one_of_several_instances(
    bucket: ModelRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prefixes = "".join(f"    {folder}_prefix: textures/{folder}\n" for folder in ("images", "artifacts", "models"))
    (tmp_path / "deployment.yaml").write_text(f"instances:\n  breast:\n  textures:\n{prefixes}")
    monkeypatch.setenv("BCC_PARAMETERS", str(tmp_path / "deployment.yaml"))
    version = put_version(bucket, b"one")
    assert run("models", "--instance", "breast", "--json") == 0
    assert json.loads(capsys.readouterr().out)["champion"]["version"] == version
    assert run("models", "--instance", "textures") == 0
    assert capsys.readouterr().out == "There are no versions yet.\n"
    assert run("models") == 1
    assert "choose one of breast, textures" in error_of(capsys)


# doctor ---------------------------------------------------------------------------------------------------------------


def test_doctor_prints_the_way_out_and_exits_with_1_only_if_there_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = []

    def gather(instance: str) -> Facts:
        asked.append(instance)
        sys.stdout.write("a line of Airflow's log\n")
        return facts

    monkeypatch.setattr("bcc_ops.deployment_facts.gather", gather)
    facts = replace(HEALTHY, pool_slots=None)
    assert run("doctor", "--instance", "textures", "--json", tmp_path / "doctor.json") == 1
    told = capsys.readouterr().out
    assert "problem      pool" in told and '> airflow pools set gpu 1 "one slot per GPU"' in told
    assert "log" not in told
    document = json.loads((tmp_path / "doctor.json").read_bytes())
    assert (document["instance"], document["problem"], asked) == ("textures", True, ["textures"])
    assert [check["name"] for check in document["checks"] if check["state"] != "good"] == ["pool"]
    facts = HEALTHY
    assert run("doctor") == 0
    assert "problem " not in capsys.readouterr().out
