"""Read documents and tables that an older release wrote.

Version 2 renamed fields and two files; version 3 names keys instead of `s3://` addresses; version 4 has folds instead of the
parts train, tuning and validation. A bucket of any of them is still read: its champion is compared, its split is carried forward
into folds, and its reports are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcc_ops.config import RetrainingConfig

OLDER_VERSIONS = (1, 2, 3)
"""Values of `schema_version` that are read and upgraded."""

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
    "validation_digest": "held_out_digest",
    "tuning_loss": "held_out_loss",
    "tuning_accuracy": "held_out_accuracy",
    "tuning_balanced_accuracy": "held_out_balanced_accuracy",
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
    "max_looks": "max_holdout_reuse",
    "external_prefix": "external_prefixes",
}
"""Old name -> name, of a run's parameters in config.json."""

REMOVED_IN: Mapping[str, frozenset[str]] = {
    "EvaluationDocument": frozenset({"bootstrap_resamples", "bootstrap_seed"}),
    "SplitDocument": frozenset({"validation_fraction", "tuning_fraction"}),
    "TrainingDocument": frozenset(
        {
            "epochs_planned",
            "best_epoch",
            "stopped_early",
            "resumed_after_epochs",
            "seconds_per_epoch",
            "images_per_second",
            "history",
        }
    ),
}
"""Document -> fields that it no longer has."""

FOLD_OF_PARTITION: Mapping[str, int] = {"train": 0, "tuning": 0, "validation": 1}
"""Part of an older split -> what stands for it: fold 1 was held out, and 0 is a place in folds 2 to 5 yet to be drawn."""

_THE_ONE_SET = "external"
"""Name of the external test set of a release that knew only one."""

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
    if kind == "TrainingDocument":
        fields = _training(fields)
    if kind == "EvaluationDocument" and isinstance(fields.get("external"), dict):
        fields["external"] = {"challenger": fields["external"]}
    if kind == "SplitDocument" and isinstance(fields.get("counts"), dict):
        fields["counts"] = _counts(fields["counts"])
    if kind == "ConfigDocument":
        fields = _with_parameters(fields)
        if isinstance(fields["origins"], dict):  # Before version 3, every run said of its preset that it was given.
            fields["origins"]["preset"] = "default"
        if isinstance(fields["config"], dict):
            fields["config"].setdefault("folds", 1)  # of the one model that there was
            fields["config"].setdefault("keep_aspect", False)
            fields["config"].setdefault("standardize", False)
    renamed: dict[str, Any] = _renamed(respelled(kind, fields))
    return {**renamed, "schema_version": 4}


def respelled(kind: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a document of any version, its one external test set as one of several.

    Args:
        kind: name of its class.
        document: as JSON values.
    """
    if kind == "ConfigDocument" and isinstance(document.get("config"), dict):
        config = {"standardize": False, **document["config"]}  # of before there was the parameter
        document = {**document, "config": config}
        return _with_parameters(document) if "external_prefix" in config else document
    if kind == "EvaluationDocument" and not isinstance(document.get("external"), list):
        one, note = document.get("external") or {}, document.get("external_note")
        if isinstance(one, dict):
            sets = [{"name": _THE_ONE_SET, "note": note, "challenger": None, **one}] if one or note else []
            return {**{name: value for name, value in document.items() if name != "external_note"}, "external": sets}
    return document


def _training(fields: dict[str, Any]) -> dict[str, Any]:
    """Say of a document that has one model what the present one says of several."""
    images = fields.get("images")
    if isinstance(images, dict):
        fields["images"] = sum(images.get(part, 0) for part in ("train", "tuning"))
    fields["epochs"] = fields.pop("epochs_run", fields.get("epochs"))
    return fields


def _counts(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return images per fold and class from those per partition and class."""
    if not set(counts) <= set(FOLD_OF_PARTITION):
        return dict(counts)
    folds: dict[str, dict[str, int]] = {}
    for partition, by_class in counts.items():
        of_fold = folds.setdefault(str(FOLD_OF_PARTITION[partition]), {})
        for name, count in by_class.items():
            of_fold[name] = of_fold.get(name, 0) + count
    return folds


def _with_parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with its parameters as they are called now."""
    upgraded_fields = {**fields, **{name: _parameters(fields.get(name)) for name in ("config", "origins")}}
    config = fields.get("config")
    prefix = str(config.get("external_prefix", "")).strip("/") if isinstance(config, dict) else ""
    if prefix:
        upgraded_fields["config"]["external_prefixes"] = f"{_THE_ONE_SET}={prefix}"
    return upgraded_fields


def _parameters(values: Any) -> Any:
    """Rename a run's parameters, and leave out those that no longer exist: they decide nothing now."""
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
