"""Several models in one deployment: what the file may say, what it may not, and that one mistake stops one instance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bcc_ops.config import Settings
from bcc_ops.exceptions import ConfigError
from bcc_ops.instances import Instance, find_instance, read_instances

BREAST = {"title": "Breast ultrasound", "bucket": "breast-images"}
TEXTURES = {
    "bucket": "textures",
    "classes": ["finding", "no_finding"],
    "positive_class": "finding",
    "parameters": {"folds": 1},
}


class File:
    """A deployment's file, and what is read of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, content: Any, **variables: str) -> dict[str, Instance]:
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        self.path.write_text(text)
        return {one.name: one for one in read_instances({"BCC_PARAMETERS": str(self.path), **variables})}

    def problem(self, content: Any, name: str) -> str:
        """Why an instance cannot run; that `textures` beside it can is asserted."""
        found = self.read({"instances": {"textures": TEXTURES, **content}})
        assert found["textures"].settings.bucket == "textures"
        with pytest.raises(ConfigError) as told:
            _ = found[name].settings
        return str(told.value)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "deployment.yaml")


def test_without_the_section_there_is_one_model_with_the_environments_settings(file: File) -> None:
    (only,) = file.read({"folds": 1}, BCC_BUCKET="ours").values()
    assert (only.name, only.retraining_dag_id, only.set_champion_dag_id) == ("", "bcc_retraining", "bcc_set_champion")
    assert only.settings == Settings(bucket="ours", parameters=str(file.path))
    assert only.deployment.values == {"folds": 1}


def test_each_instance_has_its_own_settings_parameters_dags_and_cache(file: File) -> None:
    found = file.read({"instances": {"breast": BREAST, "textures": TEXTURES}}, BCC_CACHE_DIR="/cache", BCC_GPU_POOL="shared")
    breast, textures = found["breast"], found["textures"]
    assert (breast.retraining_dag_id, textures.set_champion_dag_id) == ("bcc_retraining__breast", "bcc_set_champion__textures")
    assert (breast.settings.title, textures.settings.title) == ("Breast ultrasound", "textures")
    assert (breast.settings.instance, textures.settings.instance) == ("breast", "textures")
    assert breast.settings.classes == ("benign", "malignant", "normal")
    assert (textures.settings.classes, textures.settings.positive_class) == (("finding", "no_finding"), "finding")
    assert (breast.deployment.values, textures.deployment.values) == ({}, {"folds": 1})
    assert (breast.settings.cache_dir, textures.settings.cache_dir) == (
        Path("/cache/instances/breast"),
        Path("/cache/instances/textures"),
    )
    assert breast.settings.gpu_pool == textures.settings.gpu_pool == "shared"


def test_a_queue_of_the_environment_is_no_instances(file: File) -> None:
    found = file.read({"instances": {"textures": TEXTURES}}, BCC_SQS_QUEUE_URL="https://sqs/queue")
    assert found["textures"].settings.sqs_queue_url == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"buckets": "b"}, "buckets: there is no such setting; did you mean bucket?"),
        ({"epochs": 3}, "epochs: is a parameter of runs; put it under `parameters`"),
        ({"cache_dir": "/tmp"}, "cache_dir: belongs to the worker"),
        ({"bucket": "b", "classes": ["one"]}, "classes: at least two different names are needed, not one"),
        ({"bucket": "b", "classes": "one,two"}, "positive_class: must be one of one, two, got 'malignant'"),
        ({"bucket": "b", "artifacts_prefix": "images/x"}, "the prefixes 'images' and 'images/x' overlap"),
        ({"bucket": "b", "cache_budget_gb": -1}, "cache_budget_gb: Input should be greater than 0"),
        ({"bucket": ["b"]}, "bucket: Input should be a valid string"),
        ("breast-images", "must be lines of `setting: value`"),
    ],
)
def test_a_mistake_in_one_instance_is_one_clear_message_and_stops_that_one_alone(file: File, given: Any, said: str) -> None:
    told = file.problem({"breast": given}, "breast")
    assert said in told
    assert told.startswith(f"BCC_PARAMETERS={file.path}: instances: breast: ")


def test_a_mistake_in_the_parameters_leaves_the_settings_usable(file: File) -> None:
    found = file.read({"instances": {"textures": {**TEXTURES, "parameters": {"epoch": 3}}, "breast": BREAST}})
    assert found["textures"].deployment.problem == (
        f"BCC_PARAMETERS={file.path}: instances: textures: parameters: epoch: there is no such parameter; did you mean epochs?"
    )
    assert found["textures"].settings.bucket == "textures"
    assert found["breast"].deployment.problem is None


@pytest.mark.parametrize("name", ["Übung", "my model", "a__b", "-a", "x" * 41, 7.5])
def test_a_name_that_no_dag_can_have_is_refused(file: File, name: Any) -> None:
    (wrong,) = {one for one in file.read({"instances": {"textures": TEXTURES, name: BREAST}}) if one != "textures"}
    assert "cannot be a name" in file.problem({name: BREAST}, wrong)


@pytest.mark.parametrize(
    "text", ["  breast: {bucket: a}\n  breast: {bucket: b}\n", "  breast: {bucket: a}\n  Breast: {bucket: b}\n"]
)
def test_two_of_one_name_are_both_refused_and_the_others_work(file: File, text: str) -> None:
    found = file.read(f"instances:\n{text}  textures: {{bucket: c}}\n")
    assert set(found) == {"breast", "textures"}
    assert "two of them are named 'breast'" in str(found["breast"].problem)
    assert found["textures"].settings.bucket == "c"


PREFIXES = ("images_prefix", "artifacts_prefix", "models_prefix")


@pytest.mark.parametrize("mine", PREFIXES)
@pytest.mark.parametrize("theirs", PREFIXES)
def test_no_prefix_of_one_may_be_inside_any_of_another_in_the_same_bucket(file: File, mine: str, theirs: str) -> None:
    one = {"bucket": "shared", **{prefix: f"one/{prefix}" for prefix in PREFIXES}}
    other = {"bucket": "shared", **{prefix: f"other/{prefix}" for prefix in PREFIXES}}
    fine = file.read({"instances": {"one": one, "other": other}})
    assert not any(instance.problem for instance in fine.values())
    other[theirs] = f"{one[mine]}/inside"
    both = file.read({"instances": {"one": one, "other": other, "textures": TEXTURES}})
    for name in ("one", "other"):
        assert f"one and other overlap in the bucket shared: {mine}" in str(both[name].problem)
    assert both["textures"].problem is None


def test_a_prefix_that_only_begins_alike_is_no_overlap(file: File) -> None:
    one = {"bucket": "shared", **{prefix: f"a/{prefix}" for prefix in PREFIXES}}
    other = {"bucket": "shared", **{prefix: f"a/{prefix}2" for prefix in PREFIXES}}
    assert not any(instance.problem for instance in file.read({"instances": {"one": one, "other": other}}).values())


def test_two_instances_cannot_read_one_queue(file: File) -> None:
    found = file.read(
        {"instances": {"one": {"bucket": "a", "sqs_queue_url": "q"}, "other": {"bucket": "b", "sqs_queue_url": "q"}}}
    )
    assert "one and other read the same sqs_queue_url" in str(found["one"].problem)


def test_nothing_may_be_beside_the_section(file: File) -> None:
    found = file.read({"epochs": 3, "instances": {"textures": TEXTURES}})
    assert "epochs: only `instances` may be here" in str(found["textures"].problem)


@pytest.mark.parametrize("section", [None, [], "breast", {}])
def test_a_section_without_instances_is_told_by_the_only_model(file: File, section: Any) -> None:
    (only,) = file.read({"instances": section}).values()
    assert "instances: must be `name:`" in str(only.deployment.problem)


def test_a_misspelled_section_is_a_parameter_that_does_not_exist(file: File) -> None:
    (only,) = file.read({"instance": {"textures": TEXTURES}}).values()
    assert "did you mean instances?" in str(only.deployment.problem)


def test_who_names_none_or_an_unknown_one_is_told_which_there_are(file: File) -> None:
    file.read({"instances": {"breast": BREAST, "textures": TEXTURES}})
    environment = {"BCC_PARAMETERS": str(file.path)}
    assert find_instance("textures", environment).settings.bucket == "textures"
    for name in ("", "texture"):
        with pytest.raises(ConfigError, match="breast, textures"):
            find_instance(name, environment)
    with pytest.raises(ConfigError, match="lists no instances"):
        find_instance("textures", {})
