from __future__ import annotations

from pathlib import Path

import pytest

from bcc_ops import __version__
from bcc_ops.exceptions import ConfigError
from bcc_ops.installation import airflow_too_new, airflow_too_old, different_copies, require_suitable


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
