"""Read documents and tables that an older release wrote.

Version 2 of the documents renamed fields and two files. A bucket of version 1 is still read: its champion is compared, its split
is carried forward, and its reports are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED_FIELDS: Mapping[str, str] = {
    "made_up": "synthetic",
    "champion_made_up": "champion_synthetic",
    "looks": "holdout_reuse",
    "figure": "value",
    "split_unit": "grouping",
    "bootstrap_unit": "bootstrap_grouping",
}
"""Old name -> name, in every document, table and part of one."""

RENAMED_IN: Mapping[str, Mapping[str, str]] = {
    "SplitDocument": {"split": "table"},
    "GateDocument": {"class_weights": "split"},
    "TrainingDocument": {"class_weights": "split"},
}
"""Document -> old name -> name, of its own fields."""

OLDER_FILES: Mapping[str, str] = {"checks.json": "validation.json", "split.json": "class_weights.json"}
"""File of a run -> what it was called before."""


def upgraded(kind: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document of version 1 as version 2 spells it.

    Args:
        kind: name of its class.
        document: as JSON values.
    """
    own = RENAMED_IN.get(kind, {})
    fields = {own.get(name, name): value for name, value in document.items()}
    renamed: dict[str, Any] = _renamed(fields)
    return {**renamed, "schema_version": 2}


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {RENAMED_FIELDS.get(name, name): _renamed(inner) for name, inner in value.items()}
    if value == "near-copy group":
        return "near-duplicate group"
    if isinstance(value, list):
        return [_renamed(inner) for inner in value]
    return value
