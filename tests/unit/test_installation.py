from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bcc_ops import __version__
from bcc_ops.exceptions import ConfigError
from bcc_ops.installation import (
    INSTALL_AIRFLOW,
    INSTALL_AMAZON,
    TRAINING_PACKAGES,
    WORKER_PACKAGES,
    TrainingPython,
    airflow_too_new,
    airflow_too_old,
    amazon_unsuitable,
    ask_training_python,
    different_copies,
    missing_worker_packages,
    python_unsuitable,
    require_suitable,
    training_environment,
)
from tests.conftest import REPOSITORY


def requirements_of(name: str) -> list[str]:
    lines = (REPOSITORY / name).read_text().splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.partition("#")[0].strip()]


def put_copy(folder: Path, version: str) -> str:
    (folder / "bcc_ops").mkdir(parents=True)
    (folder / "bcc_ops" / "__init__.py").write_text(f'"""The map."""\n\n__version__ = "{version}"\n')
    return str(folder)


@pytest.mark.parametrize("version", ["3.1.0", "3.1.8", "3.2.2", "3.3.2", "3.3.0rc1"])
def test_airflow_3_1_to_3_3_suits(version: str) -> None:
    assert airflow_too_old(version) is None
    assert airflow_too_new(version) is None


@pytest.mark.parametrize("version", ["2.11.2", "3.0.6", "1.10.15"])
def test_an_older_airflow_is_told_which_one_is_needed(version: str) -> None:
    assert airflow_too_old(version) == f"this is Airflow {version}, and bcc_ops needs 3.1 to 3.3: upgrade Airflow"
    with pytest.raises(ConfigError, match=r"needs 3\.1 to 3\.3"):
        require_suitable(version)


@pytest.mark.parametrize("version", ["3.4.0b2", "3.10.1", "4.0.0"])
def test_a_newer_airflow_is_named_and_not_refused(version: str) -> None:
    problem = airflow_too_new(version)
    assert problem is not None and f"this is Airflow {version}" in problem
    require_suitable(version)


def test_a_wheel_and_a_plugins_folder_of_one_version_go_together(tmp_path: Path) -> None:
    folders = [put_copy(tmp_path / name, "0.1.0") for name in ("site-packages", "plugins")]
    assert different_copies(folders) is None


def test_a_wheel_and_a_plugins_folder_of_two_versions_are_both_named_with_the_way_out(tmp_path: Path) -> None:
    folders = [put_copy(tmp_path / "site-packages", "0.1.0"), put_copy(tmp_path / "plugins", "0.2.0")]
    problem = different_copies([*folders, folders[0], str(tmp_path / "nothing"), ""])
    assert problem is not None
    assert f"(0.1.0 in {tmp_path}/site-packages/bcc_ops, 0.2.0 in {tmp_path}/plugins/bcc_ops)" in problem
    assert "pip uninstall breast-ultrasound-retraining" in problem


def test_the_version_is_found_in_the_package_itself(tmp_path: Path) -> None:
    other = put_copy(tmp_path, "9.9.9")
    problem = different_copies([str(Path(__file__).resolve().parents[2] / "plugins"), other])
    assert problem is not None and f"({__version__} in " in problem


@pytest.mark.parametrize("command", [INSTALL_AIRFLOW, INSTALL_AMAZON])
def test_the_commands_name_the_ranges_of_the_wheel(command: str) -> None:
    assert command.removeprefix("pip install '").removesuffix("'") in requirements_of("requirements-base.in")


@pytest.mark.parametrize(("version", "suits"), [("9.13.9", False), ("9.14.0", True), ("9.39.0", True), ("10.0.0", False)])
def test_the_amazon_provider_suits_from_9_14_to_below_10(version: str, suits: bool) -> None:
    assert (amazon_unsuitable(version) is None) == suits


@pytest.mark.parametrize(("version", "suits"), [("3.9.20", False), ("3.10.0", True), ("3.12.9", True), ("3.13.0", False)])
def test_python_suits_from_3_10_to_3_12(version: str, suits: bool) -> None:
    assert (python_unsuitable(version) is None) == suits


def test_every_package_of_the_worker_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(WORKER_PACKAGES) == len(requirements_of("requirements-worker.in"))
    assert missing_worker_packages() == ()
    monkeypatch.setattr("bcc_ops.installation.WORKER_PACKAGES", ("numpy", "no_such_package"))
    assert missing_worker_packages() == ("no_such_package",)


def interpreter(path: Path, script: str) -> str:
    """A command in the place of a Python."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


def test_a_python_is_asked_what_its_environment_has_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "plugins"))
    plugins = REPOSITORY / "plugins"
    python = interpreter(tmp_path / "python", f'exec env PYTHONPATH="$PYTHONPATH:{plugins}" {sys.executable} -S "$@"')
    found = ask_training_python(python)  # without site-packages it has the standard library and the package
    assert found == TrainingPython(python, __version__, TRAINING_PACKAGES)
    assert set(TRAINING_PACKAGES) <= set(WORKER_PACKAGES)


def test_a_python_that_cannot_answer_is_told_with_what_it_said(tmp_path: Path) -> None:
    bare = ask_training_python(interpreter(tmp_path / "bare", f'exec {sys.executable} -S "$@"'))
    assert bare.problem == "ModuleNotFoundError: No module named 'bcc_ops'"
    assert ask_training_python(interpreter(tmp_path / "silent", "exit 7")).problem == "it ended with status 7"
    assert ask_training_python(interpreter(tmp_path / "odd", "echo hello")).problem
    assert ask_training_python(str(tmp_path / "none")).problem == "No such file or directory"


def test_credentials_and_search_paths_are_not_for_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFLOW_CONN_AWS_DEFAULT", "AWS_SECRET_ACCESS_KEY", "BCC_METADATA_SALT", "PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = training_environment()
    assert not [name for name in found if name.startswith(("AIRFLOW", "AWS", "BCC", "PYTHON", "VIRTUAL"))]
    assert found["CUDA_VISIBLE_DEVICES"] == "1"
