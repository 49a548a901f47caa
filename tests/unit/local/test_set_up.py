"""The set-up tells in one line what it cannot work with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from local import set_up


@pytest.mark.parametrize(
    ("version", "suits"), [((3, 9), False), ((3, 10), True), ((3, 11), True), ((3, 12), True), ((3, 13), False), ((2, 7), False)]
)
def test_suitable_versions_are_those_of_the_locked_wheels(version: tuple[int, int], suits: bool) -> None:
    assert set_up.suitable_version(version) is suits


@pytest.mark.parametrize(
    ("system", "machine", "libc", "problem"),
    [
        ("Linux", "x86_64", "glibc", None),
        ("Linux", "aarch64", "glibc", None),
        ("Darwin", "arm64", "", None),
        ("Darwin", "x86_64", "", "Intel"),
        ("Windows", "AMD64", "", "WSL"),
        ("Linux", "ppc64le", "glibc", "ppc64le"),
        ("Linux", "x86_64", "", "Alpine"),
        ("FreeBSD", "amd64", "", "FreeBSD"),
    ],
)
def test_platforms_without_a_wheel_are_named(system: str, machine: str, libc: str, problem: str | None) -> None:
    told = set_up.platform_problem(system, machine, libc)
    assert told is None if problem is None else problem in str(told) and "\n" not in str(told)


def test_another_python_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.set_up.sys.version_info", (3, 13, 0))
    monkeypatch.setattr("local.set_up.shutil.which", lambda name: None)
    with pytest.raises(set_up.SetUpError, match=r"^Python 3.10, 3.11 or 3.12 is needed, and this is 3.13: .*PYTHON="):
        set_up.find_interpreter()


def test_a_suitable_python_on_the_path_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.set_up.sys.version_info", (3, 13, 0))
    monkeypatch.setattr("local.set_up.shutil.which", lambda name: "/bin/true" if name == "python3.11" else None)
    assert set_up.find_interpreter() == "/bin/true"


def test_an_environment_that_is_up_to_date_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = tmp_path / "requirements-dev.txt"
    requirements.write_text("numpy==1")
    monkeypatch.setattr(set_up, "REQUIREMENTS", requirements)
    made: list[str | None] = []

    def make(venv: Path, interpreter: str, uv: str | None) -> None:
        venv.mkdir(exist_ok=True)
        made.append(uv)

    monkeypatch.setattr(set_up, "make_environment", make)
    monkeypatch.setattr("local.set_up.shutil.which", lambda name: None)
    for _ in range(2):
        set_up.set_up(tmp_path / ".venv", say=lambda line: None)
    assert made == [None]
    requirements.write_text("numpy==2")
    set_up.set_up(tmp_path / ".venv", say=lambda line: None)
    assert made == [None, None]


def test_a_command_that_fails_ends_in_its_line() -> None:
    with pytest.raises(set_up.SetUpError, match="is the package index reachable"):
        set_up.run(["false"], "is the package index reachable")


def test_the_set_up_is_written_for_old_pythons_too() -> None:
    """It must come as far as saying that this Python is too old; ruff knows the syntax of each version."""
    ruff = Path(sys.executable).with_name("ruff")
    checked = subprocess.run(
        [ruff, "check", "--isolated", "--target-version", "py37", "--select", "E9,F", set_up.__file__],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
