"""Environments with the wheel, made by uv: one per version of Airflow, with the packages of the day of its release.

Airflow's own constraints files are on GitHub. Where that is not reachable, the packages that were the newest on the day after
the release come close to them: the files are made like that. `--constraints` takes the real ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

NEWER = ("obstore", "rapidocr")
"""What the wheel needs newer than the oldest Airflow is. Airflow's constraints do not name these packages."""

RELEASED = {
    "3.1.0": date(2025, 9, 25),
    "3.1.1": date(2025, 10, 27),
    "3.1.2": date(2025, 11, 5),
    "3.1.3": date(2025, 11, 14),
    "3.1.5": date(2025, 12, 12),
    "3.1.6": date(2026, 1, 13),
    "3.1.7": date(2026, 2, 4),
    "3.1.8": date(2026, 3, 11),
    "3.2.0": date(2026, 4, 7),
    "3.2.1": date(2026, 4, 22),
    "3.2.2": date(2026, 5, 29),
    "3.3.0": date(2026, 7, 6),
    "3.3.1": date(2026, 8, 12),
    "3.3.2": date(2026, 9, 17),
}
"""The supported versions, and when the package index got them. 3.1.4 was withdrawn."""


class MatrixError(RuntimeError):
    """A step failed; the message ends with what the command said."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def megabytes(self) -> int:
        """What it takes on the disk."""
        return sum(path.lstat().st_size for path in self.folder.rglob("*") if path.is_file()) // 1_000_000


def make_environment(
    folder: Path, wheel: Path, version: str, *, python: str, extras: str, also: tuple[str, ...], constraints: str | None
) -> Environment:
    """Make an environment from nothing.

    Args:
        folder: where; what is there is removed.
        wheel: what is installed.
        version: of Airflow.
        python: an interpreter, or a version of one.
        extras: of the wheel: "" or "[worker]".
        also: more packages.
        constraints: a file or URL with `{version}` and `{python}`; None for the packages of the day after the release.

    Raises:
        MatrixError: uv found no packages that go together, or could not fetch them.
    """
    uv = str(Path(sys.executable).with_name("uv"))
    shutil.rmtree(folder, ignore_errors=True)
    run([uv, "venv", "--quiet", "--python", python, str(folder)])
    environment = Environment(folder)
    tag = run([str(environment.python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    if constraints:
        pins = ["--constraints", constraints.format(version=version, python=tag)]
    elif version in RELEASED:
        pins = ["--exclude-newer", (RELEASED[version] + timedelta(days=2)).isoformat()]
        for package in NEWER:
            pins += ["--exclude-newer-package", f"{package}={date.today().isoformat()}"]
    else:
        pins = ["--prerelease", "allow"]
    words = [f"{wheel}{extras}", f"apache-airflow=={version}", *also]
    if version not in RELEASED:  # the wheel refuses it, and that is what is to be seen without
        run(
            [
                uv,
                "pip",
                "install",
                "--quiet",
                "--python",
                str(environment.python),
                *pins,
                "apache-airflow-providers-amazon",
                *words[1:],
            ]
        )
        run([uv, "pip", "install", "--quiet", "--python", str(environment.python), "--no-deps", str(wheel)])
    else:
        run([uv, "pip", "install", "--quiet", "--python", str(environment.python), *pins, *words])
    return environment


def run(arguments: list[str], environment: dict[str, str] | None = None, timeout: float = 1800) -> str:
    """Run a command and return what it printed.

    Raises:
        MatrixError: it failed.
    """
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    if done.returncode != 0:
        raise MatrixError(f"{' '.join(arguments[:4])} …: {(done.stderr or done.stdout)[-3000:]}")
    return done.stdout
