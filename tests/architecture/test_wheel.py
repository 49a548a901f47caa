"""The wheel that is built from this checkout: what is in it, and what Airflow sees of it."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from bcc_ops import __version__
from tests.services.wheel import build_wheel

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGINS = REPOSITORY / "plugins"
HEAVY = {
    "tensorflow",
    "keras",
    "cv2",
    "faiss",
    "imagehash",
    "obstore",
    "pyarrow",
    "matplotlib",
    "scipy",
    "sklearn",
    "numpy",
    "PIL",
}

TWO_LINES = "from bcc_ops.dags import all_dags  # Airflow's DAGs\n\nglobals().update(all_dags())\n"

LOOK = """
import json, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

HEAVY = set(json.loads(sys.argv[2]))
sys.meta_path.insert(0, NotInstalled())

from airflow import plugins_manager
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
plugins, errors = plugins_manager._get_plugins()
ours = [plugin for plugin in plugins if plugin.name == "bcc"]
import bcc_ops
from bcc_ops.triggers import new_images
from bcc_ops import cli
print(json.dumps({
    "dags": sorted(bag.dags),
    "dag_errors": list(bag.import_errors.values()),
    "plugin_errors": [message for name, message in errors.items() if "bcc" in name],
    "sources": [str(plugin.source) for plugin in ours],
    "routes": [route.path for plugin in ours for app in plugin.fastapi_apps for route in app["app"].routes],
    "links": [link.name for plugin in ours for link in plugin.operator_extra_links],
    "package": bcc_ops.__file__,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"breast_ultrasound_retraining-{__version__}.dist-info/METADATA"))


def install(wheel: Path, folder: Path) -> Path:
    """Unpack the wheel: what pip does with one that holds nothing but Python."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def look(packages: Path, plugins_folder: Path, dags_folder: Path, home: Path) -> dict[str, Any]:
    """What an Airflow sees that has the wheel in `packages`, and not one of the worker's packages."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(packages),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(plugins_folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    arguments = [sys.executable, "-c", LOOK, str(dags_folder), json.dumps(sorted(HEAVY))]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return seen


def test_every_file_of_the_package_is_in_the_wheel_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path for path in (PLUGINS / "bcc_ops").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert packed == {path.relative_to(PLUGINS).as_posix() for path in files}


def test_the_wheel_has_the_packages_version(metadata: Message) -> None:
    assert metadata["Version"] == __version__


def test_only_the_extra_worker_brings_what_only_tasks_need(metadata: Message) -> None:
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    extras = {found.name for found in requirements if found.marker is not None}
    base = {found.name for found in requirements} - extras
    assert {"apache-airflow", "apache-airflow-providers-amazon", "boto3"} <= base
    assert {"tensorflow", "opencv-python-headless", "faiss-cpu", "pyarrow", "obstore", "numpy"} <= extras


def test_the_wheel_goes_with_a_range_of_airflows(metadata: Message) -> None:
    (airflow,) = [
        found for line in metadata.get_all("Requires-Dist") or [] if (found := Requirement(line)).name == "apache-airflow"
    ]
    assert [version in airflow.specifier for version in ("3.0.6", "3.1.0", "3.2.2", "3.3.2", "3.4.0")] == [
        *(False, True, True, True, False)
    ]


@pytest.mark.slow
def test_a_wheel_and_two_lines_make_dags_pages_and_links_without_the_workers_packages(wheel: Path, tmp_path: Path) -> None:
    packages, dags, plugins = install(wheel, tmp_path / "packages"), tmp_path / "dags", tmp_path / "plugins"
    dags.mkdir()
    plugins.mkdir()
    (dags / "bcc.py").write_text(TWO_LINES)
    seen = look(packages, plugins, dags, tmp_path / "home")
    assert seen["package"].startswith(str(packages))
    assert (seen["dag_errors"], seen["plugin_errors"]) == ([], [])
    assert seen["dags"] == ["bcc_retraining", "bcc_set_champion"]
    (source,) = seen["sources"]
    assert "breast-ultrasound-retraining" in source
    assert "/runs/{dag_id}/{run_id}/report" in seen["routes"]
    assert seen["links"] == ["Model report"]


@pytest.mark.slow
def test_a_wheel_beside_the_repositorys_folders_registers_once(wheel: Path, tmp_path: Path) -> None:
    seen = look(install(wheel, tmp_path / "packages"), PLUGINS, REPOSITORY / "dags", tmp_path / "home")
    assert (seen["dag_errors"], seen["plugin_errors"]) == ([], [])
    assert seen["dags"] == ["bcc_retraining", "bcc_set_champion"]
    assert len(seen["sources"]) == 1


@pytest.mark.slow
def test_a_wheel_of_another_version_than_the_plugins_folder_stops_both_with_one_message(wheel: Path, tmp_path: Path) -> None:
    packages = install(wheel, tmp_path / "packages")
    package = packages / "bcc_ops" / "__init__.py"
    package.write_text(package.read_text().replace(f'__version__ = "{__version__}"', '__version__ = "0.0.9"'))
    seen = look(packages, PLUGINS, REPOSITORY / "dags", tmp_path / "home")
    assert (seen["dags"], seen["sources"]) == ([], [])
    messages = [*seen["plugin_errors"], *seen["dag_errors"]]
    assert len(seen["plugin_errors"]) == 1 and len(seen["dag_errors"]) == 2
    assert all(
        f"0.0.9 in {packages}/bcc_ops" in message and f"{__version__} in {PLUGINS}/bcc_ops" in message for message in messages
    )
