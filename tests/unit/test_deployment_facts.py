"""What the store, Airflow and the machine answer, against a real S3 server and an empty metadata database."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bcc_ops import deployment_facts
from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.arrivals import utc_now
from bcc_ops.deployment_facts import ask_sagemaker, ask_store, describe_store, gather, visible_gpus
from bcc_ops.doctor import Facts, StoreFacts, Unknown, examine
from bcc_ops.exceptions import AccessDenied, BucketNotFound, ConfigError, UnsafeStore
from bcc_ops.installation import TrainingPython
from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import S3Server
from tests.services.sagemaker import Refusal, sagemaker


@pytest.fixture
def settings(store: ObjectStore, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """The bucket, set up as the place that the pipeline runs in, with an image of two of three classes."""
    for label in ("benign", "malignant"):
        store.put(f"images/{label}/scan.png", b"pixels")
    monkeypatch.setenv("BCC_BUCKET", store.bucket)
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.airflow_connection)
    return Settings.from_environment()


def states(facts: Facts) -> dict[str, str]:
    return {check.name: check.state for check in examine(facts)}


def keys(store: ObjectStore) -> list[str]:
    return [entry["Key"] for entry in store.list_objects("")]


def test_a_deployment_is_asked_as_a_run_would_ask_and_left_as_it_was(
    airflow_database: None, settings: Settings, store: ObjectStore
) -> None:
    before = keys(store)
    facts = gather()
    assert keys(store) == before
    found = states(facts)
    expected = {
        "pool": "problem",  # an empty database has the default pool alone
        "versions": "warning",
        "images": "warning",
        **dict.fromkeys(
            ("connection", "bucket", "artifacts", "conditional writes", "models", "salt", "schedule", "clock"), "good"
        ),
    }
    assert {name: found[name] for name in expected} == expected
    assert isinstance(facts.store, StoreFacts) and facts.store.images == {"benign": 1, "malignant": 1}


def test_a_pool_and_a_connection_of_the_metadata_database_are_found(
    airflow_database: None, settings: Settings, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.models import Connection, Pool
    from airflow.utils.session import create_session

    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
    monkeypatch.setenv("AIRFLOW_CONN_STORED", "")  # so that what is put there is removed again
    monkeypatch.delenv("AIRFLOW_CONN_STORED")
    Pool.create_or_update_pool("gpus-of-ours", 3, "of a test", include_deferred=False)
    given = json.loads(s3_server.airflow_connection)
    with create_session() as session:
        session.add(Connection(conn_id="stored", **{**given, "extra": json.dumps(given["extra"])}))
    place = settings.model_copy(update={"aws_conn_id": "stored", "gpu_pool": "gpus-of-ours"})
    answers = deployment_facts.ask_airflow(place)
    assert (answers["pool_slots"], answers["connection"]) == (3, True)
    assert isinstance(ask_store(place, RetrainingConfig())["store"], StoreFacts)


def test_without_a_metadata_database_a_missing_connection_is_not_a_finding(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment_facts, "_pool_slots", lambda name: Unknown(deployment_facts.NO_DATABASE))
    monkeypatch.setattr(deployment_facts, "_find_connection", lambda name: False)
    assert deployment_facts.ask_airflow(settings)["connection"] == Unknown(deployment_facts.NO_DATABASE)


def test_a_schedule_that_cannot_be_is_told(settings: Settings) -> None:
    wrong = settings.model_copy(update={"schedule": "99 * * * *"})
    assert "'99 * * * *'" in deployment_facts.ask_airflow(wrong)["schedule"]


def test_a_missing_bucket_and_a_wrong_key_are_told_apart(
    settings: Settings, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ask_store(settings.model_copy(update={"bucket": "no-such-bucket"}), RetrainingConfig())
    assert isinstance(missing["store"], BucketNotFound)
    assert abs(missing["clock_ahead"]) <= timedelta(seconds=5)
    wrong = replace(s3_server, secret_key="wrong").airflow_connection
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", wrong)
    assert isinstance(ask_store(settings, RetrainingConfig())["store"], AccessDenied)


def test_the_clock_of_the_store_is_compared_with_this_machines(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment_facts, "utc_now", lambda: utc_now() - timedelta(hours=1))
    ahead = ask_store(settings, RetrainingConfig())["clock_ahead"]
    assert timedelta(minutes=59) < ahead < timedelta(minutes=61)


def test_what_the_policy_refuses_is_told_for_each_attempt(settings: Settings, store: ObjectStore) -> None:
    refused = AccessDenied("refused")

    class Refusing(ObjectStore):
        def get_with_etag(self, *args: object, **kwargs: object) -> tuple[bytes, str]:
            raise refused

        def put(self, *args: object, **kwargs: object) -> str:
            raise refused

    found = describe_store(Refusing(store.client, store.bucket), settings, RetrainingConfig())
    assert (found.read, found.write, found.models, found.delete) == (refused, refused, refused, None)


def test_a_store_that_ignores_conditions_is_found_out(settings: Settings, store: ObjectStore) -> None:
    class Ignoring(ObjectStore):
        def put(self, key: str, content: bytes, **conditions: object) -> str:
            return super().put(key, content)

    found = describe_store(Ignoring(store.client, store.bucket), settings, RetrainingConfig())
    assert isinstance(found.write, UnsafeStore)
    assert not [key for key in keys(store) if "doctor" in key]


def test_without_the_workers_packages_the_images_are_not_checked_and_the_rest_is(
    settings: Settings, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*arguments: object) -> None:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(deployment_facts, "list_images", lacking)
    found = describe_store(store, settings, RetrainingConfig())
    assert found.images == Unknown("the package numpy is missing here: ask on a worker")
    assert (found.read, found.write, found.delete, found.models) == (None, None, None, None)


def test_settings_that_cannot_be_are_told_and_no_service_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_POSITIVE_CLASS", "unknown")
    facts = gather()
    assert isinstance(facts.instance, ConfigError)
    assert states(facts)["settings"] == "problem"
    assert states(facts)["bucket"] == "not checked"


def test_the_python_that_the_deployment_names_for_training_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    not_asked = dict.fromkeys(("executor", "pool_slots", "schedule", "connection", "store", "clock_ahead"), Unknown("not asked"))
    monkeypatch.setattr(deployment_facts, "ask_airflow", lambda settings: not_asked)
    monkeypatch.setattr(deployment_facts, "ask_store", lambda settings, config: {})
    assert gather().training_python is None
    monkeypatch.setenv("BCC_TRAINING_PYTHON", "/nowhere/python")
    facts = gather()
    assert facts.training_python == TrainingPython("/nowhere/python", problem="No such file or directory")
    assert states(facts)["training Python"] == "problem"


@pytest.mark.parametrize(
    ("script", "seen"),
    [("echo NVIDIA L4; echo NVIDIA L4", ("NVIDIA L4", "NVIDIA L4")), ("echo no driver >&2; exit 9", ())],
)
def test_gpus_are_those_that_the_driver_names(
    script: str, seen: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert visible_gpus() == seen


def test_without_nvidias_tool_nothing_is_known_of_gpus() -> None:
    assert visible_gpus("no-such-tool") is None


def test_a_connection_that_cannot_be_read_is_told_by_its_name(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", '{"conn_type": "aws", "extra": {"service_config": 3}}')
    error = ask_store(settings, RetrainingConfig())["store"]
    assert isinstance(error, ConfigError) and "'aws_default' cannot be used" in str(error)


def test_sagemaker_is_asked_about_a_job_that_does_not_exist(
    store: ObjectStore, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        train_on="sagemaker",
        sagemaker_role_arn="arn:aws:iam::123456789012:role/bcc",
        sagemaker_image_uri="123456789012.dkr.ecr.us-east-1.amazonaws.com/bcc:1",
        sagemaker_instance_type="ml.g5.xlarge",
    )
    with sagemaker(store, tmp_path, trains=False) as service:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", service.connection(s3_server.airflow_connection))
        assert ask_sagemaker(settings) is None
        assert service.calls == [("DescribeTrainingJob", {"TrainingJobName": "bcc-doctor"})]
        service.refusals = {"DescribeTrainingJob": [Refusal("AccessDeniedException", "not authorized")]}
        refused = ask_sagemaker(settings)
        assert isinstance(refused, ConfigError) and "deploy/iam-policy-sagemaker.json" in str(refused)
        image = settings.sagemaker_image_uri.replace("us-east-1", "eu-central-1")
        elsewhere = ask_sagemaker(Settings(**{**dict(settings), "sagemaker_image_uri": image}))
        assert isinstance(elsewhere, ConfigError) and "an image in eu-central-1, and the connection trains in us-east-1" in str(
            elsewhere
        )
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", '{"conn_type": "aws", "login": "a", "password": "b"}')
    assert "names no region" in str(ask_sagemaker(settings))
