"""What `doctor` asks of Airflow, of the store and of this machine. Nothing here judges.

Needs no service to be up: what cannot be found out here is `Unknown` and says where to ask. TensorFlow is not loaded.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import Any, TypeVar

from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.arrivals import utc_now
from bcc_ops.dataset.external import require_external_images
from bcc_ops.dataset.pseudonyms import SALT_FILE
from bcc_ops.dataset.resources import memory_limit
from bcc_ops.dataset.snapshot import ImageRules, Listing, list_images
from bcc_ops.doctor import Facts, StoreFacts, Unknown
from bcc_ops.exceptions import BccError, ConfigError
from bcc_ops.installation import (
    AMAZON_PROVIDER,
    airflow_too_old,
    ask_training_python,
    different_copies,
    has_cuda_packages,
    installed_version,
    missing_worker_packages,
)
from bcc_ops.instances import Instance, find_instance
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.runs.object_store import ObjectStore

CONNECT_SECONDS, READ_SECONDS = 5, 20
SMI_SECONDS = 20
NO_DATABASE = "Airflow's metadata database cannot be reached from here: ask where the scheduler runs"
NO_STORE = "the store gave no answer"

T = TypeVar("T")


def gather(instance_name: str = "") -> Facts:
    """Collect what is known about the deployment from where this runs.

    A temporary object is written under the artifacts and deleted again; nothing else changes.

    Args:
        instance_name: the model, if the deployment has several.
    """
    airflow, amazon = installed_version("apache-airflow"), installed_version(AMAZON_PROVIDER)
    copies = different_copies([*sys.path, os.environ.get("AIRFLOW__CORE__PLUGINS_FOLDER", "")])
    instance: Instance | ConfigError
    try:
        instance = find_instance(instance_name)
    except ConfigError as error:
        instance = error
    settings = None if isinstance(instance, ConfigError) else instance.given_settings
    unusable = _unusable_airflow(airflow, amazon, copies)
    names = ("executor", "pool_slots", "schedule", "connection", "store", "clock_ahead", "sagemaker")
    asked: dict[str, Any] = dict.fromkeys(names, unusable)
    if unusable is None and settings is not None:
        asked = ask_airflow(settings)
        asked |= ask_store(settings, _config_of(instance))
        asked["sagemaker"] = ask_sagemaker(settings) if settings.train_on == "sagemaker" else None
    elif unusable is None:
        asked = dict.fromkeys(asked, Unknown("the settings cannot be used"))
    cache = settings.cache_dir if settings else Settings().cache_dir
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    return Facts(
        python=platform.python_version(),
        airflow=airflow,
        amazon=amazon,
        copies=copies,
        instance=instance,
        **asked,
        missing_packages=missing_worker_packages(),
        gpus=visible_gpus(),
        training_python=ask_training_python(settings.training_python) if settings and settings.training_python else None,
        cuda_packages=has_cuda_packages(),
        disk_free=shutil.disk_usage(there).free,
        cache_used=sum(path.lstat().st_size for path in cache.rglob("*") if path.is_file()),
        memory=memory_limit(),
        cache_writable=os.access(there, os.W_OK),
    )


def _unusable_airflow(airflow: str | None, amazon: str | None, copies: str | None) -> Unknown | None:
    if airflow is None or airflow_too_old(airflow):
        return Unknown("there is no suitable Airflow here")
    if amazon is None or find_spec("airflow.providers.amazon") is None:
        return Unknown("the amazon provider is missing")
    return Unknown("the package is installed in two versions") if copies else None


def _config_of(instance: Instance | ConfigError) -> RetrainingConfig:
    """Return the parameters of nightly runs; the defaults if they cannot be used, which is reported elsewhere."""
    try:
        if isinstance(instance, Instance):
            return instance.deployment.resolve({})
    except ConfigError:
        pass
    return RetrainingConfig()


# Airflow --------------------------------------------------------------------------------------------------------------


def ask_airflow(settings: Settings) -> dict[str, Any]:
    """Return Airflow's executor, the slots of the GPU pool, the schedule's problem, and whether the connection is there.

    A connection of the metadata database is put into this process' environment, where Airflow's hooks find it: outside a task
    they do not ask the database.
    """
    from bcc_ops.airflow_names import conf
    from bcc_ops.dags import timetable_of

    try:
        timetable_of(settings)
        schedule = None
    except ConfigError as error:
        schedule = str(error)
    slots = _pool_slots(settings.gpu_pool)
    connection = _find_connection(settings.aws_conn_id)
    known = connection or not isinstance(slots, Unknown)
    return {
        "executor": str(conf.get("core", "executor")),
        "pool_slots": slots,
        "schedule": schedule,
        "connection": connection if known else Unknown(NO_DATABASE),
    }


def _pool_slots(name: str) -> int | Unknown | None:
    try:
        from airflow.models import Pool

        pool = Pool.get_pool(name)
    except Exception:  # each database driver, and Airflow's ban on databases in tasks, has errors of its own
        return Unknown(NO_DATABASE)
    return None if pool is None else int(pool.slots)


def _find_connection(name: str) -> bool:
    from airflow.exceptions import AirflowNotFoundException
    from airflow.models import Connection

    try:
        connection = Connection.get_connection_from_secrets(name)
    except AirflowNotFoundException:
        return False
    os.environ.setdefault(f"AIRFLOW_CONN_{name.upper()}", connection.as_json())
    return True


# The store ------------------------------------------------------------------------------------------------------------


def ask_store(settings: Settings, config: RetrainingConfig) -> dict[str, Any]:
    """Return what the bucket answers, and how far the store's clock is ahead."""
    from botocore.config import Config

    from bcc_ops.operators.base import open_store

    patience = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": 2})
    try:
        store = open_store(settings, config=patience)
    except Exception as error:  # the hook's, of a connection with an invalid extra
        return {
            "store": ConfigError(f"the connection {settings.aws_conn_id!r} cannot be used: {error}"),
            "clock_ahead": Unknown(NO_STORE),
        }
    try:
        store.check()
    except BccError as error:
        answer = getattr(error.__cause__ or error.__context__, "response", {})
        return {"store": error, "clock_ahead": _clock_ahead(answer)}
    clock_ahead = _clock_ahead(dict(store.client.head_bucket(Bucket=store.bucket)))  # before anything that takes time
    return {"store": describe_store(store, settings, config), "clock_ahead": clock_ahead}


def ask_sagemaker(settings: Settings) -> BccError | None:
    """Return why SageMaker may not be asked about jobs; None if it may. It is asked about one that does not exist."""
    from botocore.config import Config

    from bcc_ops.operators.training_job import describe_job, open_sagemaker, require_triggers_that_are_told

    patience = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": 2})

    def ask() -> None:
        require_triggers_that_are_told()
        client = open_sagemaker(settings, config=patience)
        region, of_image = client.meta.region_name, settings.sagemaker_image_uri.split(".")[3]
        if region != of_image:
            raise ConfigError(
                f"BCC_SAGEMAKER_IMAGE_URI names an image in {of_image}, and the connection trains in {region}: a job takes its "
                "image from its own region. Correct the setting, or region_name in the connection's extra"
            )
        describe_job(client, "bcc-doctor")

    try:
        return _error(ask)
    except Exception as error:  # the hook's, of a connection with an invalid extra
        return ConfigError(f"the connection {settings.aws_conn_id!r} cannot be used: {error}")


def _clock_ahead(answer: dict[str, Any]) -> timedelta | Unknown:
    """Return the store's clock less this machine's, in whole seconds, by the answer's `Date` header."""
    told = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if not told:
        return Unknown(NO_STORE)
    moment: datetime = parsedate_to_datetime(told)
    return timedelta(seconds=round((moment - utc_now()).total_seconds() + 0.5))


def describe_store(store: ObjectStore, settings: Settings, config: RetrainingConfig) -> StoreFacts:
    """Try what a run does in the bucket: list and read images, write and delete a checkpoint, read the pointer."""
    registry = ModelRegistry(store, settings.models_prefix)
    listing = _attempt_on_worker(lambda: list_images(store, ImageRules.of(settings, config)))
    write, delete = _write_and_delete(store, settings)
    external = _attempt_on_worker(lambda: require_external_images(store, settings.classes, config, utc_now()))
    salt = _attempt(lambda: store.head(f"{settings.artifacts_prefix}/{SALT_FILE}"))
    return StoreFacts(
        versioned=_attempt(store.is_versioned),
        images=Counter(image.label for image in listing.images) if isinstance(listing, Listing) else listing,
        read=_error(lambda: _read_one(store, listing)),
        write=write,
        delete=delete,
        models=_error(registry.read_pointer),
        external=external,
        own_salt=salt if isinstance(salt, BccError) else salt is not None,
    )


def _read_one(store: ObjectStore, listing: Listing | BccError | Unknown) -> None:
    if isinstance(listing, Listing) and listing.images:
        image = listing.images[0]
        store.get_with_etag(image.key, image.version_id, at_most=1)


def _write_and_delete(store: ObjectStore, settings: Settings) -> tuple[BccError | None, BccError | None]:
    """Write where checkpoints are stored, under a name of its own: deploy/iam-policy.json allows deleting there."""
    folder = f"{settings.artifacts_prefix}/checkpoints/doctor-{uuid.uuid4().hex}"
    write = _error(ModelRegistry(store, folder).require_conditional_writes)
    return write, _error(lambda: store.delete_folder(folder))


def _attempt(action: Callable[[], T]) -> T | BccError:
    try:
        return action()
    except BccError as error:
        return error


def _attempt_on_worker(action: Callable[[], T]) -> T | BccError | Unknown:
    """Attempt what needs the extra [worker]: a listing is a list of rows for a Parquet table."""
    try:
        return _attempt(action)
    except ModuleNotFoundError as error:
        return Unknown(f"the package {error.name} is missing here: ask on a worker")


def _error(action: Callable[[], object]) -> BccError | None:
    found = _attempt(action)
    return found if isinstance(found, BccError) else None


# This machine ---------------------------------------------------------------------------------------------------------


def visible_gpus(command: str = "nvidia-smi") -> tuple[str, ...] | None:
    """Return the names of the GPUs that NVIDIA's driver sees; None if its tool is not installed."""
    program = shutil.which(command)
    if program is None:
        return None
    try:
        asked = [program, "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=SMI_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())
