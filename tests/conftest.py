"""What the tests share: a real S3 server, fresh buckets in it, and the real images if they are there."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from botocore.loaders import JSONFileLoader
from hypothesis import HealthCheck, settings

from bcc_ops.dataset.synthetic import write_images
from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import S3Server, serve

REPOSITORY = Path(__file__).resolve().parents[1]

# Airflow reads these when it is first imported: a home of the test session's own, and the repository's DAGs and plugins.
AIRFLOW_HOME = tempfile.mkdtemp(prefix="airflow-home-")
os.environ["AIRFLOW_HOME"] = AIRFLOW_HOME
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(REPOSITORY / "dags")
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(REPOSITORY / "plugins")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"

# Examples take as long as the machine takes.
settings.register_profile("any-pace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-pace")

REAL_IMAGES = REPOSITORY.parent / "shared" / "data" / "Dataset_BUSI_with_GT"


SERVICES = {"s3_server", "airflow_database", "sqs"}
"""Fixtures that start or set up a service."""

SERVICE_FILES = ("unit/local/test_s3_server.py", "unit/local/test_s3_command.py")
"""Files whose tests start an S3 server of their own."""

TENSORFLOW = (
    "unit/training/test_architectures.py",
    "unit/training/test_devices.py",
    "unit/training/test_fit.py",
    "unit/training/test_run_training.py",
    "unit/dataset/test_input_pipeline.py",
    "unit/evaluation/test_grad_cam.py",
    "unit/models/test_classifier.py",
    "unit/models/test_combination.py",
    "unit/models/test_model_file.py",
)
"""Files that import TensorFlow at their beginning; `make test-fast` does not even collect them."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare a run without TensorFlow its import."""
    left_out = "not tensorflow" in config.getoption("markexpr") and collection_path.as_posix().endswith(TENSORFLOW)
    return True if left_out else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a service or TensorFlow."""
    for item in items:
        if SERVICES & set(getattr(item, "fixturenames", ())) or item.path.as_posix().endswith(SERVICE_FILES):
            item.add_marker("services")
        if item.path.as_posix().endswith(TENSORFLOW):
            item.add_marker("tensorflow")


def pytest_unconfigure() -> None:
    """Leave nothing behind, and not by `atexit`: a task that Airflow forks would run that too."""
    shutil.rmtree(AIRFLOW_HOME, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def botocore_models() -> Iterator[None]:
    """Parse botocore's models once: each new client would read 15 MB of JSON again, and tests make a thousand of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", staticmethod(cache(JSONFileLoader().load_file)))
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS of the test session's own."""
    with serve(tmp_path_factory.mktemp("s3")) as server:
        yield server
        # Nobody needs what is in it any more, and in peace it takes up to 15 seconds to end.
        os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def make_store(s3_server: S3Server) -> Callable[..., ObjectStore]:
    """Make a store over a fresh bucket: `make_store(versioned=True)`."""

    def make(versioned: bool = False) -> ObjectStore:
        client = s3_server.client()
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        client.create_bucket(Bucket=bucket)
        if versioned:
            client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        return ObjectStore(client, bucket)

    return make


@pytest.fixture
def store(make_store: Callable[..., ObjectStore]) -> ObjectStore:
    """A store over a fresh bucket without versions."""
    return make_store()


@pytest.fixture(scope="session")
def synthetic_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve synthetic images of each class, in a folder per class. Not to be changed."""
    return write_images(tmp_path_factory.mktemp("synthetic"), per_class=12)


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real images; the test is skipped if it is not there."""
    if not REAL_IMAGES.is_dir():
        pytest.skip(f"the real images are not at {REAL_IMAGES.parent.name}/{REAL_IMAGES.name} beside the checkout")
    return REAL_IMAGES


@pytest.fixture(scope="session")
def airflow_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty metadata database, and what the API server's app needs to sign in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "a secret of the tests, long enough for the algorithm " * 2)
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(tmp_path_factory.mktemp("auth") / "passwords.json"))
        from airflow.utils.db import initdb

        initdb()
        yield


@pytest.fixture(autouse=True)
def no_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests the reading of text, of which each image takes some tenths of a second: `test_text_reader.py` reads."""
    monkeypatch.setattr("bcc_ops.dataset.text_reader.can_read", lambda: False)


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests the search for shortcuts, for which each check of some images grows some 1,250 trees.

    What tests the search itself has a fixture of this name that grows more.
    """
    monkeypatch.setattr("bcc_ops.dataset.shortcuts._TREES", 2)
