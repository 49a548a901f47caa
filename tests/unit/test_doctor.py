"""Ten broken set-ups and more: each is named, with the way out, and nothing else is complained about."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from bcc_ops import __version__
from bcc_ops.config import DeploymentParameters, Settings
from bcc_ops.doctor import Check, Facts, StoreFacts, Unknown, examine, has_problem
from bcc_ops.exceptions import AccessDenied, BucketNotFound, ConfigError, StorageUnavailable, UnsafeStore
from bcc_ops.installation import WORKER_PACKAGES, TrainingPython
from bcc_ops.instances import Instance

STORE = StoreFacts(images={"benign": 3, "malignant": 2, "normal": 1})
NO_KEY = AccessDenied("opening the bucket breast-images: Unable to locate credentials")
REFUSED = AccessDenied("writing s3://breast-images/artifacts/checkpoints/doctor/x: Access Denied")


def instance_of(parameters: dict[str, Any] | None = None, **settings: Any) -> Instance:
    return Instance("", DeploymentParameters.of(parameters, "BCC_PARAMETERS=parameters.yaml"), Settings(**settings))


HEALTHY = Facts(
    python="3.11.9",
    airflow="3.3.2",
    amazon="9.30.0",
    copies=None,
    instance=instance_of(),
    executor="CeleryExecutor",
    pool_slots=1,
    schedule=None,
    connection=True,
    store=STORE,
    clock_ahead=timedelta(seconds=1),
    missing_packages=(),
    gpus=("NVIDIA L4",),
    cuda_packages=True,
    disk_free=200_000_000_000,
    cache_used=0,
    memory=16_000_000_000,
)


def complaints(facts: Facts) -> list[Check]:
    return [check for check in examine(facts) if check.state in ("problem", "warning")]


def test_a_healthy_deployment_has_nothing_to_complain_about() -> None:
    assert {check.state for check in examine(HEALTHY)} == {"good"}
    assert not has_problem(examine(HEALTHY))


PROBLEMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "Airflow too old": ({"airflow": "2.11.2"}, "Airflow", "pip install 'apache-airflow>=3.1,<3.4'"),
    "Python too new": ({"python": "3.13.1"}, "Python", "python3.12"),
    "amazon provider too old": ({"amazon": "9.2.0"}, "amazon provider", "pip install 'apache-airflow-providers-amazon"),
    "two versions": (
        {"copies": "bcc_ops is installed twice"},
        "copies of the package",
        "pip uninstall breast-ultrasound-retraining",
    ),
    "worker without the extra": (
        {"missing_packages": WORKER_PACKAGES, "executor": "LocalExecutor"},
        "worker packages",
        "pip install 'breast-ultrasound-retraining[worker]'",
    ),
    "half a worker": ({"missing_packages": ("faiss",)}, "worker packages", "pip install 'breast-ultrasound-retraining[worker]'"),
    "a setting that cannot be": ({"instance": ConfigError("BCC_GPU_LIMIT: must be a number")}, "settings", ""),
    "a refused instance": ({"instance": Instance("a", DeploymentParameters(), None, "a and b overlap")}, "settings", ""),
    "a parameter that cannot be": ({"instance": instance_of({"epochs": -1})}, "parameters", ""),
    "an external set among the images": ({"instance": instance_of({"external_prefixes": "images/a"})}, "parameters", ""),
    "a schedule that cannot be": ({"schedule": "schedule: '99 * * * *' cannot be"}, "schedule", "BCC_SCHEDULE"),
    "no pool": ({"pool_slots": None}, "pool", 'airflow pools set gpu 1 "one slot per GPU"'),
    "another pool": (
        {"pool_slots": None, "instance": instance_of(gpu_pool="big gpus")},
        "pool",
        "airflow pools set 'big gpus' 1 \"one slot per GPU\"",
    ),
    "a pool without a slot": ({"pool_slots": 0}, "pool", "airflow pools set gpu 1"),
    "no connection": (
        {"connection": False, "store": NO_KEY},
        "connection",
        "airflow connections add aws_default --conn-type aws",
    ),
    "wrong credentials": ({"store": NO_KEY}, "bucket", "airflow connections get aws_default"),
    "no bucket": ({"store": BucketNotFound("there is no such bucket")}, "bucket", "aws s3 mb s3://breast-images"),
    "a store that is away": ({"store": StorageUnavailable("no answer")}, "bucket", "endpoint_url"),
    "clocks that differ": ({"clock_ahead": timedelta(minutes=-20), "store": NO_KEY}, "clock", "timedatectl"),
    "images that cannot be listed": ({"store": replace(STORE, images=NO_KEY)}, "images", "deploy/iam-policy.json"),
    "images that cannot be read": ({"store": replace(STORE, read=NO_KEY)}, "images", "deploy/iam-policy.json"),
    "artifacts that cannot be written": ({"store": replace(STORE, write=REFUSED)}, "artifacts", "deploy/iam-policy.json"),
    "checkpoints that cannot be deleted": ({"store": replace(STORE, delete=REFUSED)}, "artifacts", "deploy/iam-policy.json"),
    "a store that ignores conditions": ({"store": replace(STORE, write=UnsafeStore("ignores"))}, "conditional writes", ""),
    "models that cannot be read": ({"store": replace(STORE, models=NO_KEY)}, "models", "deploy/iam-policy.json"),
    "an empty external set": ({"store": replace(STORE, external=ConfigError("is empty"))}, "external test sets", ""),
    "a short salt": ({"instance": instance_of(metadata_salt=SecretStr("short"))}, "salt", "openssl rand -hex 32"),
    "a full disk": ({"disk_free": 10**9}, "cache", "BCC_CACHE_DIR"),
    "a cache of somebody else": ({"cache_writable": False}, "cache", "chown"),
    "no Python to train with": (
        {"training_python": TrainingPython("/opt/tf/bin/python", problem="No such file or directory")},
        "training Python",
        "ls -l /opt/tf/bin/python",
    ),
    "a training Python without the package": (
        {"training_python": TrainingPython("/opt/tf/bin/python", problem="ModuleNotFoundError: No module named 'bcc_ops'")},
        "training Python",
        "/opt/tf/bin/python -m pip install 'breast-ultrasound-retraining[worker]==",
    ),
    "a training Python of another release": (
        {"training_python": TrainingPython("/opt/tf/bin/python", "0.0.9", cuda=True)},
        "training Python",
        "/opt/tf/bin/python -m pip install 'breast-ultrasound-retraining[worker]==",
    ),
    "a training Python without TensorFlow": (
        {"training_python": TrainingPython("/opt/tf/bin/python", __version__, ("tensorflow",), cuda=True)},
        "training Python",
        "/opt/tf/bin/python -m pip install 'breast-ultrasound-retraining[worker]==",
    ),
    "no GPU where one is required": ({"gpus": None, "instance": instance_of({"require_gpu": True})}, "GPU", "nvidia-smi"),
}


@pytest.mark.parametrize("broken", PROBLEMS)
def test_a_broken_set_up_is_one_problem_with_its_way_out(broken: str) -> None:
    changes, name, command = PROBLEMS[broken]
    found = complaints(replace(HEALTHY, **changes))
    assert [(check.name, check.state) for check in found] == [(name, "problem")]
    assert command in found[0].command
    assert found[0].sentence
    assert has_problem(found)


WARNINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "Airflow too new": ({"airflow": "3.4.0"}, "Airflow", "pip install --upgrade breast-ultrasound-retraining"),
    "a scheduler": ({"missing_packages": WORKER_PACKAGES}, "worker packages", "[worker]"),
    "credentials of the machine": ({"connection": False}, "connection", "airflow connections add"),
    "no versions": (
        {"store": replace(STORE, versioned=False)},
        "versions",
        "aws s3api put-bucket-versioning --bucket breast-images",
    ),
    "a class without images": ({"store": replace(STORE, images={"benign": 1, "normal": 2})}, "images", "images/malignant/"),
    "a late clock": ({"clock_ahead": timedelta(seconds=70)}, "clock", "timedatectl"),
    "half an external set": ({"store": replace(STORE, external=["The set a has no normal image."])}, "external test sets", ""),
    "two salts": (
        {"instance": instance_of(metadata_salt=SecretStr("s" * 32)), "store": replace(STORE, own_salt=True)},
        "salt",
        "",
    ),
    "a budget that the disk has not": ({"disk_free": 10 * 10**9}, "cache", "BCC_CACHE_BUDGET_GB=8"),
    "little memory": ({"memory": 10**9}, "memory", ""),
    "a GPU without CUDA": ({"cuda_packages": False}, "GPU", "tensorflow[and-cuda]"),
}


@pytest.mark.parametrize("odd", WARNINGS)
def test_what_stops_no_run_is_a_warning(odd: str) -> None:
    changes, name, command = WARNINGS[odd]
    found = complaints(replace(HEALTHY, **changes))
    assert [(check.name, check.state) for check in found] == [(name, "warning")]
    assert command in found[0].command
    assert not has_problem(found)


def test_what_cannot_be_found_out_here_is_not_checked_and_says_where_to_ask() -> None:
    unknown = Unknown("ask where the scheduler runs")
    facts = replace(HEALTHY, pool_slots=unknown, connection=unknown, schedule=unknown, store=unknown, clock_ahead=unknown)
    checks = {check.name: check for check in examine(facts)}
    assert not complaints(facts)
    for name in ("pool", "connection", "schedule", "bucket", "clock"):
        assert (checks[name].state, checks[name].sentence) == ("not checked", "ask where the scheduler runs")
    assert checks["images"].state == checks["models"].state == "not checked"


def test_a_scheduler_leaves_the_images_to_a_worker() -> None:
    elsewhere = Unknown("ask on a worker")
    checks = {
        check.name: check for check in examine(replace(HEALTHY, store=replace(STORE, images=elsewhere, external=elsewhere)))
    }
    assert (checks["images"].state, checks["external test sets"].state) == ("not checked", "not checked")
    assert checks["artifacts"].state == "good"


def test_the_python_that_trains_is_asked_for_cuda_and_where_no_training_runs_it_is_not_asked() -> None:
    python = TrainingPython("/opt/tf/bin/python", __version__, cuda=True)
    assert not complaints(replace(HEALTHY, training_python=python, cuda_packages=False))
    found = complaints(replace(HEALTHY, training_python=replace(python, cuda=False)))
    assert [(check.name, check.state) for check in found] == [("GPU", "warning")]
    gone = TrainingPython("/opt/tf/bin/python", problem="No such file or directory")
    scheduler = examine(replace(HEALTHY, training_python=gone, missing_packages=WORKER_PACKAGES))
    assert [check.state for check in scheduler if check.name == "training Python"] == ["not checked"]


def test_sagemaker_is_asked_about_where_it_trains() -> None:
    of_sagemaker = {
        "train_on": "sagemaker",
        "sagemaker_role_arn": "arn:aws:iam::123456789012:role/bcc",
        "sagemaker_image_uri": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/bcc:1",
        "sagemaker_instance_type": "ml.g5.xlarge",
    }
    facts = replace(HEALTHY, instance=instance_of({"require_gpu": True}, **of_sagemaker), gpus=None)
    assert not complaints(facts)  # the GPU is SageMaker's
    (check,) = [check for check in examine(facts) if check.name == "SageMaker"]
    assert "bcc:1 trains on ml.g5.xlarge" in check.sentence
    (check,) = complaints(replace(facts, sagemaker=ConfigError("AWS refuses sagemaker:DescribeTrainingJob")))
    assert (check.name, check.state, check.sentence) == ("SageMaker", "problem", "AWS refuses sagemaker:DescribeTrainingJob")
    unknown = examine(replace(facts, sagemaker=Unknown("the amazon provider is missing")))
    assert [check.state for check in unknown if check.name == "SageMaker"] == ["not checked"]


def test_a_cache_that_fills_its_budget_is_no_lack_of_room() -> None:
    assert not complaints(replace(HEALTHY, disk_free=5 * 10**9, cache_used=18 * 10**9))


def test_a_check_is_plain_json() -> None:
    assert Check("pool", "problem", "there is none", "airflow pools set").to_json() == {
        "name": "pool",
        "state": "problem",
        "sentence": "there is none",
        "command": "airflow pools set",
    }
