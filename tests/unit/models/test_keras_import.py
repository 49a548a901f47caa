"""Keras without what it takes along for nothing. `benchmarks.speed` measures what that saves."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

from bcc_ops.models.keras_import import OPTIONAL, import_keras


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What Keras finds of its optional packages each time that it is imported; none was, so far."""
    found: list[dict[str, object]] = []

    def importing(name: str) -> ModuleType:
        found.append({package: sys.modules.get(package, "importable") for package in OPTIONAL})
        return ModuleType(name)

    for name in ("keras", *OPTIONAL):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib, "import_module", importing)
    return found


def test_keras_is_imported_as_if_the_optional_packages_were_not_there(imported: list[dict[str, object]]) -> None:
    assert import_keras().__name__ == "keras"
    assert imported == [dict.fromkeys(OPTIONAL)], "None in sys.modules makes an import fail"
    assert not set(OPTIONAL) & set(sys.modules), "and afterwards they can be imported"


def test_a_package_that_is_in_use_already_stays(imported: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    own = ModuleType("matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib", own)
    import_keras()
    assert imported == [{"matplotlib": own, "sklearn": None}]
    assert sys.modules["matplotlib"] is own


def test_a_failed_import_leaves_nothing_behind(imported: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match="keras"):
        import_keras()
    assert not set(OPTIONAL) & set(sys.modules)


def test_keras_is_not_imported_twice(imported: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    own = ModuleType("keras")
    monkeypatch.setitem(sys.modules, "keras", own)
    assert import_keras() is own and imported == []
