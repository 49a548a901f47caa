"""Make `.venv` from the locked requirements, or leave it alone if it is up to date: `make setup`.

Standard library only, and no newer syntax than Python 3.7's: it is run by whatever `python3` is, to say in one line what
is wrong with it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
REQUIREMENTS = REPOSITORY / "requirements-dev.txt"
OLDEST, NEWEST = (3, 10), (3, 12)
"""The Python versions that Airflow and the wheels of TensorFlow have in common."""


class SetUpError(Exception):
    """One line: what is missing, and the way out."""


def suitable_version(version: Sequence[int]) -> bool:
    """Return whether the locked requirements are made for this (major, minor)."""
    return OLDEST <= tuple(version) <= NEWEST


def platform_problem(system: str, machine: str, libc: str) -> str | None:
    """Return why TensorFlow or Airflow has no wheel for a platform, in one line; None if both have.

    Arguments are what `platform.system()`, `platform.machine()` and `platform.libc_ver()[0]` answer.
    """
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
    if system == "Windows":
        return "Airflow does not run on Windows itself: use WSL 2 (Ubuntu), or docker compose"
    if system == "Darwin" and machine != "aarch64":
        return "TensorFlow no longer has a wheel for Macs with Intel processors: use docker compose, or another machine"
    if system not in ("Linux", "Darwin"):
        return f"TensorFlow has no wheel for {system}: use Linux or macOS"
    if machine not in ("x86_64", "aarch64"):
        return f"TensorFlow has no wheel for {machine} processors: use x86-64 or ARM64"
    if system == "Linux" and libc != "glibc":
        return "TensorFlow has no wheel for a Linux without glibc (Alpine, say): use Debian, Ubuntu or Fedora, or docker compose"
    return None


def find_interpreter() -> str:
    """Choose this Python if it suits, else a suitable one on the path."""
    if suitable_version(sys.version_info[:2]):
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        # pyenv's shims are on the path for versions that are not switched on
        if found and subprocess.call([found, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
            return found
    major, minor = sys.version_info[:2]
    raise SetUpError(
        f"Python 3.10, 3.11 or 3.12 is needed, and this is {major}.{minor}: install one, "
        "or name one: make setup PYTHON=/path/to/it"
    )


def fingerprint(requirements: Path, interpreter: str) -> str:
    """Return what an environment is up to date with: the lock file's content and the interpreter."""
    return hashlib.sha256(requirements.read_bytes() + interpreter.encode()).hexdigest()


def run(arguments: Sequence[str], failure: str) -> None:
    """Run a command; if it fails, say so in one line below its own output."""
    if subprocess.call(arguments) != 0:
        raise SetUpError(failure)


def make_environment(venv: Path, interpreter: str, uv: str | None) -> None:
    """Make the environment with `uv` if it is not None, else with venv and pip."""
    if venv.exists():
        shutil.rmtree(str(venv))
    unreachable = "the packages could not be installed: is the package index reachable? See the output above"
    python = str(venv / "bin" / "python")
    if uv:
        run([uv, "venv", "--quiet", "--python", interpreter, str(venv)], f"uv could not make {venv}")
        run([uv, "pip", "install", "--quiet", "--require-hashes", "--python", python, "-r", str(REQUIREMENTS)], unreachable)
    else:
        run(
            [interpreter, "-m", "venv", str(venv)],
            f"{interpreter} lacks venv: on Debian and Ubuntu, `apt install python3-venv` installs it",
        )
        # the lock is complete, so nothing is left to resolve, which is most of pip's time
        quick = ["--quiet", "--no-deps", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
        run([python, "-m", "pip", "install", "--require-hashes", *quick, "-r", str(REQUIREMENTS)], unreachable)
    packages = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    # bcc_ops importable in this environment, wherever one stands: what an editable install would do
    (Path(packages.decode().strip()) / "bcc_ops.pth").write_text(f"{REPOSITORY / 'plugins'}\n")


def set_up(venv: Path, say: Callable[[str], None] = print) -> None:
    """Make the environment unless it is up to date."""
    problem = platform_problem(platform.system(), platform.machine(), platform.libc_ver()[0])
    if problem:
        raise SetUpError(problem)
    interpreter = find_interpreter()
    stamp, wanted = venv / "set-up", fingerprint(REQUIREMENTS, interpreter)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    uv = shutil.which("uv")
    say(f"Setting up {venv.name} with {'uv' if uv else 'venv and pip'} ({interpreter}); the first time takes some minutes.")
    make_environment(venv, interpreter, uv)
    stamp.write_text(wanted)


if __name__ == "__main__":
    try:
        set_up(REPOSITORY / os.environ.get("VENV", ".venv"))
    except SetUpError as error:
        sys.exit(f"make setup: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
