"""A bucket that the release before wrote: its documents, as they were, are in tests/data/schema_1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bcc_ops.config import RetrainingConfig
from bcc_ops.exceptions import ArtifactError
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.runs.documents import (
    ChampionDocument,
    ChecksDocument,
    ConfigDocument,
    GateDocument,
    ModelDocument,
    TrainingDocument,
    parse_document,
)
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.previous import assigned_before
from bcc_ops.runs.record import RUN_DOCUMENTS, read_record
from bcc_ops.runs.tables import ContentRow, SplitRow, read_rows

OLDER = Path(__file__).resolve().parents[2] / "data" / "schema_1"


def content(name: str) -> bytes | None:
    path = OLDER / name
    return path.read_bytes() if path.exists() else None


def test_every_document_of_an_older_run_is_read() -> None:
    assert {"validation.json", "class_weights.json"} <= set(RUN_DOCUMENTS), "the pages must ask for the old names"
    record = read_record(content)
    assert record.unreadable == {}
    assert record.checks is not None and record.split is not None and record.split.table is not None
    assert record.gate is not None and record.gate.holdout_reuse == json.loads(OLDER.joinpath("gate.json").read_text())["looks"]
    assert record.gate.rules[0].value is not None
    assert record.evaluation is not None and record.evaluation.grouping


def test_the_parameters_of_a_run_of_before_are_read_by_their_present_names() -> None:
    content = json.loads(OLDER.joinpath("config.json").read_text())
    content["config"]["parameter_of_long_ago"] = 1
    document = parse_document(ConfigDocument, json.dumps(content).encode(), "config.json")
    assert document.config.min_similarity == content["config"]["copy_similarity"]
    assert document.config.malignant_odds_factor == content["config"]["malignant_emphasis"]
    assert set(document.origins) <= set(RetrainingConfig.model_fields)


def test_a_night_of_before_counts_as_one_with_the_deployments_parameters() -> None:
    content = json.loads(OLDER.joinpath("config.json").read_text())
    content["origins"] = {**dict.fromkeys(content["origins"], "default"), "preset": "given"}
    night = parse_document(ConfigDocument, json.dumps(content).encode(), "config.json")
    assert night.uses_deployment_parameters
    content["origins"]["epochs"] = "given"
    assert not parse_document(ConfigDocument, json.dumps(content).encode(), "config.json").uses_deployment_parameters


def test_references_of_before_name_keys_whatever_the_bucket_was_called() -> None:
    content = OLDER.joinpath("training.json").read_bytes()
    document = parse_document(TrainingDocument, content, "training.json")
    assert document.model.key.startswith("artifacts/runs/")
    assert json.loads(content)["model"]["uri"] == f"s3://bucket/{document.model.key}"


def test_a_champion_of_before_stays_the_champion(store: ObjectStore) -> None:
    pointer = parse_document(ChampionDocument, OLDER.joinpath("champion.json").read_bytes(), "champion.json")
    store.put("models/champion.json", OLDER.joinpath("champion.json").read_bytes())
    found = ModelRegistry(store, "models").champion()
    assert found is not None and found.champion == pointer
    assert parse_document(ModelDocument, OLDER.joinpath("model.json").read_bytes(), "model.json").synthetic is False


def test_tables_of_before_are_read() -> None:
    (row,) = read_rows(ContentRow, OLDER.joinpath("contents.parquet").read_bytes())
    assert row.synthetic is True
    assert len(read_rows(SplitRow, OLDER.joinpath("split.parquet").read_bytes())) == 1


def test_the_split_of_a_run_of_before_is_carried_forward(store: ObjectStore) -> None:
    older = RunPaths("artifacts", "20261101T020000Z__nightly")
    table = store.put_referenced(older.document("split.parquet"), OLDER.joinpath("split.parquet").read_bytes())
    document = json.loads(OLDER.joinpath("class_weights.json").read_text())
    document["split"] = table.to_xcom()
    store.put(older.document("class_weights.json"), json.dumps(document).encode())
    store.put(older.document("gate.json"), OLDER.joinpath("gate.json").read_bytes())
    assigned = assigned_before(store, RunPaths("artifacts", "20261102T020000Z__next"))
    assert [row.partition for row in assigned.rows] == ["train"]
    assert (assigned.previous_run, assigned.ancestors) == (older.folder_name, (older.folder_name,))


@pytest.mark.parametrize("version", [0, 4, "1", None])
def test_a_document_of_another_version_is_one_clear_line(version: object) -> None:
    gate = {**json.loads(OLDER.joinpath("gate.json").read_text()), "schema_version": version}
    with pytest.raises(ArtifactError, match=r"^gate.json is not a GateDocument: .*") as caught:
        parse_document(GateDocument, json.dumps(gate).encode(), "gate.json")
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_refused_in_an_older_document_too() -> None:
    checks = {**json.loads(OLDER.joinpath("validation.json").read_text()), "surprise": 1}
    with pytest.raises(ArtifactError, match="surprise"):
        parse_document(ChecksDocument, json.dumps(checks).encode(), "validation.json")
