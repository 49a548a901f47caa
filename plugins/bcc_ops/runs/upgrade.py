"""Read documents and tables that an older release wrote.

Version 2 renamed fields and two files; version 3 names keys instead of `s3://` addresses. A bucket of either is still read: its
champion is compared, its split is carried forward, and its reports are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcc_ops.config import RetrainingConfig

OLDER_VERSIONS = (1, 2)
"""Of `schema_version`: those that are read and upgraded."""

RENAMED_FIELDS: Mapping[str, str] = {
    "made_up": "synthetic",
    "champion_made_up": "champion_synthetic",
    "looks": "holdout_reuse",
    "figure": "value",
    "split_unit": "grouping",
    "bootstrap_unit": "grouping",
    "bootstrap_grouping": "grouping",
    "ece": "error",
    "ece_scaled": "error_scaled",
}
"""Old name -> name, in every document, table and part of one."""

RENAMED_IN: Mapping[str, Mapping[str, str]] = {
    "SplitDocument": {"split": "table"},
    "GateDocument": {"class_weights": "split"},
    "TrainingDocument": {"class_weights": "split"},
}
"""Document -> old name -> name, of its own fields."""

RENAMED_PARAMETERS: Mapping[str, str] = {
    "copy_similarity": "min_similarity",
    "hash_copy_similarity": "min_similarity_by_hash",
    "malignant_emphasis": "malignant_odds_factor",
    "max_looks": "max_holdout_reuse",
}
"""Old name -> name, of a run's parameters in config.json."""

REMOVED_IN: Mapping[str, frozenset[str]] = {"EvaluationDocument": frozenset({"bootstrap_resamples", "bootstrap_seed"})}
"""Document -> fields that it has no longer."""

OLDER_FILES: Mapping[str, str] = {"checks.json": "validation.json", "split.json": "class_weights.json"}
"""File of a run -> what it was called before."""


def upgraded(kind: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document of an older version as the present one spells it.

    Args:
        kind: name of its class.
        document: as JSON values.
    """
    own = RENAMED_IN.get(kind, {})
    removed = REMOVED_IN.get(kind, frozenset())
    fields = {own.get(name, name): value for name, value in document.items() if name not in removed}
    if kind == "ConfigDocument":
        fields |= {name: _parameters(fields.get(name)) for name in ("config", "origins")}
        if isinstance(fields["origins"], dict):  # Before version 3, every run said of its preset that it was given.
            fields["origins"]["preset"] = "default"
    renamed: dict[str, Any] = _renamed(fields)
    return {**renamed, "schema_version": 3}


def _parameters(values: Any) -> Any:
    """Rename a run's parameters, and leave out those that there are no longer: they decide about nothing now."""
    if not isinstance(values, dict):
        return values
    renamed = {RENAMED_PARAMETERS.get(name, name): value for name, value in values.items()}
    return {name: value for name, value in renamed.items() if name in RetrainingConfig.model_fields}


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"uri", "sha256"} and isinstance(value["uri"], str):
            return {"key": value["uri"].removeprefix("s3://").partition("/")[2], "sha256": value["sha256"]}
        return {RENAMED_FIELDS.get(name, name): _renamed(inner) for name, inner in value.items()}
    if value == "near-copy group":
        return "near-duplicate group"
    if isinstance(value, list):
        return [_renamed(inner) for inner in value]
    return value
