"""What is wrong with a deployment, and the command that fixes it. Pure: facts in, checks out.

`deployment_facts` collects the facts. A fact that could not be found out is `Unknown` and says why; its check is then "not
checked", which is not a complaint. One mistake is reported once: what follows from it is not checked either.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Literal

from bcc_ops import __version__
from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.pseudonyms import SHORTEST_SALT
from bcc_ops.exceptions import BccError, BucketNotFound, ConfigError, StorageUnavailable, UnsafeStore
from bcc_ops.installation import (
    AMAZON_PROVIDER,
    INSTALL_AIRFLOW,
    INSTALL_AMAZON,
    INSTALL_WORKER,
    TRAINING_PACKAGES,
    WORKER_PACKAGES,
    TrainingPython,
    airflow_too_new,
    airflow_too_old,
    amazon_unsuitable,
    known_airflows,
    python_unsuitable,
)
from bcc_ops.instances import Instance

State = Literal["good", "warning", "problem", "not checked"]
Judgement = tuple[State, str, str]
"""State, sentence, and the command that fixes it; "" if no command does or nothing is wrong."""

SMALLEST_DISK, SMALLEST_MEMORY = 2_000_000_000, 2_000_000_000
"""Bytes. A training takes 1 to 1.5 GB of memory, and a task that decodes the largest image as much."""

CLOCKS_DIFFER, REQUESTS_LAST = timedelta(seconds=10), timedelta(minutes=15)
"""What is worth a warning, and from where on S3 refuses requests: they are signed with the time."""

POLICY = "deploy/iam-policy.json has the permissions that a run needs: apply it to the connection's user"


@dataclass(frozen=True)
class Unknown:
    """A fact that could not be found out, and why."""

    reason: str


@dataclass(frozen=True)
class StoreFacts:
    """What the store answered once the bucket was open. An error is the answer of the attempt; None if it went well.

    Attributes:
        versioned: whether the bucket keeps versions.
        images: images by class.
        read: the attempt to read the beginning of an image.
        write, delete: the attempts with temporary objects where checkpoints are stored. `UnsafeStore` if conditions are ignored.
        models: the attempt to read the champion's pointer.
        external: a sentence per external test set that can only be used in part.
        own_salt: whether the bucket has a salt that a run has made.
    """

    versioned: bool | BccError = True
    images: Mapping[str, int] | BccError | Unknown = field(default_factory=dict)
    read: BccError | None = None
    write: BccError | None = None
    delete: BccError | None = None
    models: BccError | None = None
    external: Sequence[str] | BccError | Unknown = ()
    own_salt: bool | BccError = False


@dataclass(frozen=True)
class Facts:
    """What is there.

    Attributes:
        python, airflow, amazon: versions; None if it is not installed.
        copies: the problem with copies of the package in different versions; None if there is none.
        instance: the model that is asked about, or why there is none.
        executor: Airflow's.
        pool_slots: slots of the GPU pool; None if there is no such pool.
        schedule: the problem with schedule and time zone.
        connection: whether Airflow has the connection.
        store: what the bucket answered, or why it could not be opened.
        clock_ahead: the store's clock less this machine's.
        missing_packages: what tasks need and this environment lacks.
        gpus: names of NVIDIA GPUs that the driver sees; None if there is no driver.
        cuda_packages: whether CUDA is installed as Python packages.
        disk_free, cache_used, memory: bytes.
        cache_writable: whether this user may write in the cache folder.
        training_python: the Python that trains here; None if it is the one of Airflow's tasks.
        sagemaker: why SageMaker may not be asked about jobs; None if it may, or need not.
    """

    python: str
    airflow: str | None
    amazon: str | None
    copies: str | None
    instance: Instance | ConfigError
    executor: str | Unknown
    pool_slots: int | Unknown | None
    schedule: str | Unknown | None
    connection: bool | Unknown
    store: StoreFacts | BccError | Unknown
    clock_ahead: timedelta | Unknown
    missing_packages: tuple[str, ...]
    gpus: tuple[str, ...] | None
    cuda_packages: bool
    disk_free: int
    cache_used: int
    memory: int
    cache_writable: bool = True
    training_python: TrainingPython | None = None
    sagemaker: BccError | Unknown | None = None

    @property
    def settings(self) -> Settings | None:
        """The place that the pipeline runs in; None if its settings cannot be used."""
        return None if isinstance(self.instance, ConfigError) else self.instance.given_settings

    @property
    def config(self) -> RetrainingConfig | ConfigError:
        """The parameters of the deployment's own runs, or why they cannot be used."""
        if isinstance(self.instance, ConfigError):
            return self.instance
        try:
            config = self.instance.deployment.resolve({})
            self.instance.settings.require_apart(config)
        except ConfigError as error:
            return error
        return config


@dataclass(frozen=True)
class Check:
    """One check's outcome: what is wrong, and the command that fixes it ("" if there is none)."""

    name: str
    state: State
    sentence: str
    command: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def examine(facts: Facts) -> list[Check]:
    """Return every check's outcome, in the order in which to fix mistakes."""
    return [Check(name, *judge(facts)) for name, judge in _CHECKS.items()]


def has_problem(checks: Sequence[Check]) -> bool:
    """Return whether a check found what stops a run."""
    return any(check.state == "problem" for check in checks)


def _good(sentence: str) -> Judgement:
    return "good", sentence, ""


def _problem(sentence: str, command: str = "") -> Judgement:
    return "problem", sentence, command


def _warning(sentence: str, command: str = "") -> Judgement:
    return "warning", sentence, command


def _not_checked(reason: str) -> Judgement:
    return "not checked", reason, ""


def _with_settings(judge: Callable[[Facts, Settings], Judgement]) -> Callable[[Facts], Judgement]:
    """Return a check that is only made if the settings can be used."""

    def check(facts: Facts) -> Judgement:
        return judge(facts, facts.settings) if facts.settings else _not_checked("the settings cannot be used")

    return check


def _of_store(judge: Callable[[StoreFacts, Settings], Judgement]) -> Callable[[Facts], Judgement]:
    """Return a check that is only made if the bucket is open."""

    def check(facts: Facts) -> Judgement:
        if facts.settings is None or not isinstance(facts.store, StoreFacts):
            return _not_checked("the bucket is not open")
        return judge(facts.store, facts.settings)

    return check


# What is installed ----------------------------------------------------------------------------------------------------


def _python(facts: Facts) -> Judgement:
    problem = python_unsuitable(facts.python)
    return _problem(problem, "python3.12 -m venv .venv") if problem else _good(f"Python {facts.python}")


def _airflow(facts: Facts) -> Judgement:
    if facts.airflow is None:
        return _problem(f"Airflow is not installed here, and bcc_ops needs {known_airflows()}", INSTALL_AIRFLOW)
    too_old = airflow_too_old(facts.airflow)
    if too_old:
        return _problem(too_old, INSTALL_AIRFLOW)
    too_new = airflow_too_new(facts.airflow)
    if too_new:
        return _warning(f"{too_new}. Its pages are closed until then", "pip install --upgrade breast-ultrasound-retraining")
    return _good(f"Airflow {facts.airflow}")


def _amazon(facts: Facts) -> Judgement:
    if facts.amazon is None:
        return _problem(f"{AMAZON_PROVIDER} is not installed: no task can reach the bucket", INSTALL_AMAZON)
    problem = amazon_unsuitable(facts.amazon)
    return _problem(problem, INSTALL_AMAZON) if problem else _good(f"{AMAZON_PROVIDER} {facts.amazon}")


def _copies(facts: Facts) -> Judgement:
    if facts.copies:
        return _problem(facts.copies, "pip uninstall breast-ultrasound-retraining")
    return _good("all copies of bcc_ops are of one version")


def _worker_packages(facts: Facts) -> Judgement:
    missing = facts.missing_packages
    if not missing:
        return _good("everything that tasks need is installed")
    lacks = f"this environment lacks {', '.join(missing)}"
    if len(missing) < len(WORKER_PACKAGES):
        return _problem(f"{lacks}: tasks on this machine fail", INSTALL_WORKER)
    if isinstance(facts.executor, str) and "LocalExecutor" in facts.executor:
        return _problem("the extra [worker] is not installed, and with the LocalExecutor tasks run here", INSTALL_WORKER)
    return _warning("the extra [worker] is not installed: right for a scheduler, but no task can run here", INSTALL_WORKER)


# Settings -------------------------------------------------------------------------------------------------------------


def _settings(facts: Facts) -> Judgement:
    if isinstance(facts.instance, ConfigError):
        return _problem(str(facts.instance))
    if facts.settings is None:
        return _problem(str(facts.instance.problem))
    return _good("every setting has a valid value")


def _parameters(facts: Facts, settings: Settings) -> Judgement:
    config = facts.config
    return _problem(str(config)) if isinstance(config, ConfigError) else _good("the parameters of nightly runs can be used")


def _schedule(facts: Facts, settings: Settings) -> Judgement:
    if isinstance(facts.schedule, Unknown):
        return _not_checked(facts.schedule.reason)
    if facts.schedule:
        return _problem(
            f"{facts.schedule}. Correct BCC_SCHEDULE or BCC_TIMEZONE", 'export BCC_SCHEDULE="0 2 * * *" BCC_TIMEZONE=UTC'
        )
    return _good(f"{settings.schedule} in {settings.timezone}")


def _pool(facts: Facts, settings: Settings) -> Judgement:
    if isinstance(facts.pool_slots, Unknown):
        return _not_checked(facts.pool_slots.reason)
    command = f'airflow pools set {shlex.quote(settings.gpu_pool)} 1 "one slot per GPU"'
    if facts.pool_slots is None:
        return _problem(f"there is no pool {settings.gpu_pool!r}: train_model stays scheduled for ever", command)
    if facts.pool_slots == 0:
        return _problem(f"the pool {settings.gpu_pool!r} has no slot: train_model stays scheduled for ever", command)
    return _good(f"the pool {settings.gpu_pool!r} has {facts.pool_slots} slot(s)")


# The bucket -----------------------------------------------------------------------------------------------------------


def _connection(facts: Facts, settings: Settings) -> Judgement:
    if isinstance(facts.connection, Unknown):
        return _not_checked(facts.connection.reason)
    name = settings.aws_conn_id
    if facts.connection:
        return _good(f"Airflow has the connection {name!r}")
    command = (
        f"airflow connections add {shlex.quote(name)} --conn-type aws --conn-login KEY --conn-password SECRET "
        """--conn-extra '{"region_name": "eu-central-1"}'"""
    )
    if isinstance(facts.store, StoreFacts):
        return _warning(f"there is no connection {name!r}: the bucket is reached with credentials of this machine alone", command)
    return _problem(f"there is no connection {name!r}, and this machine has no credentials of its own for the bucket", command)


def _bucket(facts: Facts, settings: Settings) -> Judgement:
    if isinstance(facts.store, Unknown):
        return _not_checked(facts.store.reason)
    if isinstance(facts.store, StoreFacts):
        return _good(f"s3://{settings.bucket} answers")
    if facts.connection is False:
        return _not_checked("the connection is missing")
    if isinstance(facts.clock_ahead, timedelta) and abs(facts.clock_ahead) > REQUESTS_LAST:
        return _not_checked("the clocks differ by too much")
    return _problem(str(facts.store), _opens_bucket(facts.store, settings))


def _opens_bucket(error: BccError, settings: Settings) -> str:
    if isinstance(error, BucketNotFound):
        return f"aws s3 mb s3://{settings.bucket}"
    if isinstance(error, StorageUnavailable):
        return f"airflow connections get {shlex.quote(settings.aws_conn_id)}  # endpoint_url and region_name are in its extra"
    return (
        f"airflow connections get {shlex.quote(settings.aws_conn_id)}  # are its login and password those of {settings.bucket}?"
    )


def _versions(store: StoreFacts, settings: Settings) -> Judgement:
    if isinstance(store.versioned, BccError):
        return _problem(str(store.versioned), POLICY)
    if store.versioned:
        return _good("the bucket keeps versions: a past moment can be listed exactly")
    return _warning(
        "the bucket keeps no versions: a past moment is only known by LastModified",
        f"aws s3api put-bucket-versioning --bucket {settings.bucket} --versioning-configuration Status=Enabled",
    )


def _images(store: StoreFacts, settings: Settings) -> Judgement:
    if isinstance(store.images, Unknown):
        return _not_checked(store.images.reason)
    if isinstance(store.images, BccError):
        return _problem(str(store.images), POLICY)
    if store.read is not None:
        return _problem(str(store.read), POLICY)
    missing = [name for name in settings.classes if not store.images.get(name)]
    if missing:
        prefix = f"s3://{settings.bucket}/{settings.images_prefix}"
        copy = f"aws s3 cp --recursive {shlex.quote(missing[0])}/ {shlex.quote(f'{prefix}/{missing[0]}/')}"
        return _warning(f"{prefix} has no image of {', '.join(missing)}", copy)
    counted = ", ".join(f"{store.images[name]} {name}" for name in settings.classes)
    return _good(f"{counted}; one of them was read")


def _artifacts(store: StoreFacts, settings: Settings) -> Judgement:
    if isinstance(store.write, UnsafeStore):
        return _good(f"s3://{settings.bucket}/{settings.artifacts_prefix} accepts objects")
    if store.write is not None:
        return _problem(str(store.write), POLICY)
    if store.delete is not None:
        return _problem(f"{store.delete}. Checkpoints cannot be removed", POLICY)
    return _good(f"a temporary object was written under {settings.artifacts_prefix}/checkpoints, and deleted again")


def _conditional_writes(store: StoreFacts, settings: Settings) -> Judgement:
    if isinstance(store.write, UnsafeStore):
        return _problem(str(store.write))
    if store.write is not None:
        return _not_checked("nothing can be written under the artifacts")
    return _good("If-None-Match and If-Match are honoured")


def _models(store: StoreFacts, settings: Settings) -> Judgement:
    if store.models is not None:
        return _problem(str(store.models), POLICY)
    return _good(
        f"s3://{settings.bucket}/{settings.models_prefix} can be read. Writing there was not tried: upload_model "
        "does, with a small object, before it promotes"
    )


def _external(store: StoreFacts, settings: Settings) -> Judgement:
    if isinstance(store.external, Unknown):
        return _not_checked(store.external.reason)
    if isinstance(store.external, BccError):
        return _problem(str(store.external))
    return (
        _warning(" ".join(store.external)) if store.external else _good("every external test set can be used, or there is none")
    )


def _clock(facts: Facts) -> Judgement:
    if isinstance(facts.clock_ahead, Unknown):
        return _not_checked(facts.clock_ahead.reason)
    ahead, difference = facts.clock_ahead > timedelta(), abs(facts.clock_ahead)
    told = f"this machine's clock is {difference.total_seconds():.0f} s {'behind' if ahead else 'ahead of'} the store's"
    command = "timedatectl set-ntp true"
    if difference > REQUESTS_LAST:
        return _problem(f"{told}: S3 refuses requests from {REQUESTS_LAST.total_seconds():.0f} s on", command)
    if difference > CLOCKS_DIFFER:
        return _warning(told, command)
    return _good(f"this machine's clock and the store's differ by {difference.total_seconds():.0f} s")


def _salt(facts: Facts, settings: Settings) -> Judgement:
    chosen = settings.metadata_salt.get_secret_value()
    if chosen and len(chosen) < SHORTEST_SALT:
        return _problem(f"BCC_METADATA_SALT: needs {SHORTEST_SALT} characters or more", "openssl rand -hex 32")
    own = facts.store.own_salt if isinstance(facts.store, StoreFacts) else False
    if isinstance(own, BccError):
        return _problem(str(own), POLICY)
    if chosen and own:
        return _warning(
            "BCC_METADATA_SALT is set, and a run without it has made a salt in the bucket: patients have different "
            "pseudonyms in that run. Leave the setting out, if it is new"
        )
    if chosen:
        return _good("patients' pseudonyms are made with BCC_METADATA_SALT")
    return _good(f"the salt of patients' pseudonyms is in the bucket{'' if own else ', from the first run with patients on'}")


# This machine ---------------------------------------------------------------------------------------------------------


def _disk(facts: Facts, settings: Settings) -> Judgement:
    where = shlex.quote(str(settings.cache_dir))
    if not facts.cache_writable:
        return _problem(
            f"the cache folder {settings.cache_dir} cannot be written to", f"mkdir -p {where} && chown $(id -u) {where}"
        )
    free, room = facts.disk_free / 1e9, (facts.disk_free + facts.cache_used) / 1e9
    if facts.disk_free < SMALLEST_DISK:
        return _problem(f"{settings.cache_dir} has {free:.1f} GB free: no room to work in", "export BCC_CACHE_DIR=/a/larger/disk")
    if room < settings.cache_budget_gb:
        return _warning(
            f"{settings.cache_dir} has room for {room:.0f} GB, and its budget is {settings.cache_budget_gb:g} GB",
            f"export BCC_CACHE_BUDGET_GB={max(1, int(room * 0.8))}",
        )
    return _good(f"{settings.cache_dir} has {free:.0f} GB free")


def _memory(facts: Facts) -> Judgement:
    told = f"{facts.memory / 1e9:.1f} GB of memory"
    if facts.memory < SMALLEST_MEMORY and not facts.missing_packages:
        return _warning(f"{told}: a training takes up to 1.5 GB beside Airflow, and is killed if there is less")
    return _good(told)


def _training_python(facts: Facts) -> Judgement:
    python = facts.training_python
    if python is None:
        return _good("training runs in the environment of Airflow's tasks")
    if set(facts.missing_packages) == set(WORKER_PACKAGES):
        return _not_checked("no training can run here: ask on a worker")
    install = f"{shlex.quote(python.path)} -m pip install 'breast-ultrasound-retraining[worker]=={__version__}'"
    if python.problem is not None:
        problem = f"BCC_TRAINING_PYTHON: {python.path} cannot train: {python.problem}"
        return _problem(problem, install if "bcc_ops" in python.problem else f"ls -l {shlex.quote(python.path)}")
    if python.version != __version__:
        return _problem(
            f"BCC_TRAINING_PYTHON: {python.path} has bcc_ops {python.version}, and this is {__version__}: training is refused",
            install,
        )
    if python.missing:
        return _problem(f"BCC_TRAINING_PYTHON: {python.path} lacks {', '.join(python.missing)}: training fails", install)
    return _good(f"training runs with {python.path}, which has bcc_ops {python.version} and {', '.join(TRAINING_PACKAGES)}")


def _sagemaker(facts: Facts, settings: Settings) -> Judgement:
    if settings.train_on != "sagemaker":
        return _good("trainings run on workers")
    if isinstance(facts.sagemaker, Unknown):
        return _not_checked(facts.sagemaker.reason)
    if facts.sagemaker is not None:
        return _problem(str(facts.sagemaker))
    return _good(
        f"SageMaker answers: {settings.sagemaker_image_uri} trains on {settings.sagemaker_instance_type}. Whether it may create "
        f"a job with {settings.sagemaker_role_arn} was not tried"
    )


def _gpu(facts: Facts) -> Judgement:
    if facts.missing_packages:
        return _not_checked("no training can run here: ask on a worker")
    if facts.gpus:
        told = f"{len(facts.gpus)} NVIDIA GPU(s): {', '.join(facts.gpus)}"
        python = facts.training_python
        if not (facts.cuda_packages if python is None else python.cuda or python.problem):
            return _warning(f"{told}; CUDA is not installed as Python packages", "pip install 'tensorflow[and-cuda]'")
        return _good(told)
    seen = "nvidia-smi is not installed here" if facts.gpus is None else "nvidia-smi sees no GPU"
    on_sagemaker = facts.settings is not None and facts.settings.train_on == "sagemaker"
    if isinstance(facts.config, RetrainingConfig) and facts.config.require_gpu and not on_sagemaker:
        return _problem(
            f"{seen}, and the deployment's parameters have require_gpu: train_model fails on this machine", "nvidia-smi"
        )
    return _good(f"{seen}: {'trainings run on SageMaker' if on_sagemaker else 'trainings use the processors'}")


_CHECKS: Mapping[str, Callable[[Facts], Judgement]] = {
    "Python": _python,
    "Airflow": _airflow,
    "amazon provider": _amazon,
    "copies of the package": _copies,
    "worker packages": _worker_packages,
    "settings": _settings,
    "parameters": _with_settings(_parameters),
    "schedule": _with_settings(_schedule),
    "pool": _with_settings(_pool),
    "connection": _with_settings(_connection),
    "bucket": _with_settings(_bucket),
    "clock": _clock,
    "versions": _of_store(_versions),
    "images": _of_store(_images),
    "artifacts": _of_store(_artifacts),
    "conditional writes": _of_store(_conditional_writes),
    "models": _of_store(_models),
    "external test sets": _of_store(_external),
    "salt": _with_settings(_salt),
    "cache": _with_settings(_disk),
    "memory": _memory,
    "training Python": _training_python,
    "SageMaker": _with_settings(_sagemaker),
    "GPU": _gpu,
}
