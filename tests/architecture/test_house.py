"""The house that the documentation describes is the one that stands: floors, map, commands, settings, heavy imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bcc_ops
from bcc_ops.config import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "plugins" / "bcc_ops"
DOCUMENTED_IN = (REPOSITORY / "README.md", REPOSITORY / "docs" / "reference.md")
ADAPTERS = ("operators", "sensors", "triggers", "links", "web")


def _modules(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}


def _map() -> dict[str, set[str]]:
    """Folder ("" for the package's own) -> modules that the map in `bcc_ops.__doc__` names."""
    places: dict[str, set[str]] = {"": set()}
    folder = ""
    for line in (bcc_ops.__doc__ or "").splitlines()[1:]:
        words = line.split()
        if not words:
            folder = ""
        elif line[0] != " ":
            folder, names = ("", words[:1]) if not words[0].endswith("/") else (words[0].rstrip("/"), words[1:2])
            if not folder or folder not in ADAPTERS:
                places.setdefault(folder, set()).update(names)
        elif folder and folder not in ADAPTERS and re.match(r" {16}\S", line):
            places[folder].add(words[0])
    return places


@pytest.mark.parametrize("folder", ["", *sorted(_map().keys() - {""})])
def test_the_map_names_every_module_and_no_other(folder: str) -> None:
    assert _map()[folder] == _modules(PACKAGE / folder)


def test_every_folder_is_on_the_map() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == (_map().keys() - {""}) | {folder for folder in ADAPTERS if (PACKAGE / folder).is_dir()}


def test_every_module_has_unit_tests_of_its_own_name() -> None:
    """Whoever changes a module finds its tests in one place, and sees what they miss."""
    modules = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")]
    mirror = REPOSITORY / "tests" / "unit"
    assert [str(module) for module in modules if not (mirror / module.parent / f"test_{module.name}").exists()] == []


def test_imports_respect_the_floors() -> None:
    """The contracts are in pyproject.toml; import-linter names the import that breaks one."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-cache"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


_PARSE = """
import json, sys
import airflow.sdk, airflow.providers.amazon.aws.hooks.s3, airflow.providers.standard.operators.hitl
sys.path.insert(0, sys.argv[1])
import runpy
runpy.run_path(sys.argv[2])
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("dag_file", sorted((REPOSITORY / "dags").glob("*.py")), ids=lambda path: path.stem)
def test_dag_files_parse_without_heavy_imports(dag_file: Path, tmp_path: Path) -> None:
    """The scheduler's host parses them again and again; `benchmarks.speed` measures how long that takes."""
    done = subprocess.run(
        [sys.executable, "-c", _PARSE, str(PACKAGE.parent), str(dag_file)],
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    heavy = {"tensorflow", "keras", "matplotlib", "sklearn", "scipy", "cv2", "faiss", "imagehash", "obstore", "pyarrow"}
    assert not heavy & set(json.loads(done.stdout.splitlines()[-1]))


def test_readme_and_reference_document_every_command_and_setting() -> None:
    readme = "\n".join(path.read_text() for path in DOCUMENTED_IN)
    targets = re.findall(r"^([a-z0-9-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    undocumented = [f"make {target}" for target in targets if f"make {target}" not in readme]
    undocumented += [name for name in _settings() if f"`{name}`" not in readme]
    assert not undocumented


def test_the_reference_gives_every_settings_default() -> None:
    readme = "\n".join(path.read_text() for path in DOCUMENTED_IN)
    wrong = []
    for name, default in _settings().items():
        row = re.search(rf"^\| `{name}` \| (.*?) \|", readme, re.MULTILINE)
        if row is None or row.group(1).strip("` ") != default:
            wrong.append(f"{name}: {default!r}, the reference has {row and row.group(1)!r}")
    assert not wrong


def _settings() -> dict[str, str]:
    defaults = Settings().model_dump()
    defaults["cache_dir"] = "~/.cache/bcc_ops"
    defaults["classes"] = ",".join(defaults["classes"])
    return {f"BCC_{name.upper()}": _as_text(value) for name, value in defaults.items()}


def _as_text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def test_the_readme_documents_every_subcommand_of_the_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bcc_ops", "--help"],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    commands = re.search(r"\{([a-z,_-]+)\}", done.stdout)
    assert commands is not None
    readme = "\n".join(path.read_text() for path in DOCUMENTED_IN)
    assert not [name for name in commands.group(1).split(",") if f"bcc-ops {name}" not in readme]
