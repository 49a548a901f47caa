"""The wheel of this checkout, built of a copy: setuptools leaves folders of its own beside what it builds."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "requirements-base.in", "requirements-worker.in")

_BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def build_wheel(folder: Path) -> Path:
    """Build the wheel into `folder` with this environment's setuptools, and return its path.

    Raises:
        RuntimeError: it could not be built; the message has what setuptools said.
    """
    with tempfile.TemporaryDirectory() as source:
        for name in SOURCES:
            shutil.copy(REPOSITORY / name, source)
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / "plugins", Path(source, "plugins"), ignore=ignored)
        arguments = [sys.executable, "-c", _BUILD, str(folder.absolute())]
        done = subprocess.run(arguments, cwd=source, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    (wheel,) = folder.glob("*.whl")
    return wheel
