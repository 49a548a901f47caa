"""A bucket that the release before wrote: its documents, as they were, are in tests/data/schema_1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bcc_ops.config import RetrainingConfig
from bcc_ops.exceptions import ArtifactError
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.runs.documents import (
    OLDER_TRAINING,
    ChampionDocument,
    ChecksDocument,
    ConfigDocument,
    EvaluationDocument,
    ExternalEvaluation,
    GateDocument,
    ModelDocument,
    SplitDocument,
    TrainingDocument,
    parse_document,
)
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.previous import assigned_before
from bcc_ops.runs.record import RUN_DOCUMENTS, read_record
from bcc_ops.runs.rows import ContentRow, SplitRow
from bcc_ops.runs.tables import read_rows
from tests.unit.report import samples

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
    assert record.evaluation is not None and record.evaluation.grouping and record.evaluation.held_out_digest
    assert [(row.fold, row.epoch) for row in record.epochs] == [(1, epoch) for epoch in range(1, len(record.epochs) + 1)]


def test_the_parameters_of_a_run_of_before_are_read_by_their_present_names() -> None:
    content = json.loads(OLDER.joinpath("config.json").read_text())
    content["config"]["parameter_of_long_ago"] = 1
    document = parse_document(ConfigDocument, json.dumps(content).encode(), "config.json")
    assert document.config.min_similarity == content["config"]["copy_similarity"]
    assert document.config.epochs == content["config"]["epochs"]
    assert set(document.origins) <= set(RetrainingConfig.model_fields)


def test_models_of_before_see_squeezed_images() -> None:
    config = parse_document(ConfigDocument, OLDER.joinpath("config.json").read_bytes(), "config.json")
    training = parse_document(TrainingDocument, OLDER.joinpath("training.json").read_bytes(), "training.json")
    model = parse_document(ModelDocument, OLDER.joinpath("model.json").read_bytes(), "model.json")
    assert (config.config.keep_aspect, training.keep_aspect, model.keep_aspect) == (False, False, False)
    assert not config.config.standardize


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


def test_a_training_of_before_had_one_model_that_learned_from_its_train_and_tuning_images() -> None:
    content = json.loads(OLDER.joinpath("training.json").read_text())
    document = parse_document(TrainingDocument, json.dumps(content).encode(), "training.json")
    assert (document.folds, document.answers, document.combined) == ((), None, "one model")
    assert document.images == content["images"]["train"] + content["images"]["tuning"]
    assert document.epochs == content["epochs_run"]


def test_a_split_of_before_is_one_of_fold_1_and_of_what_is_yet_to_be_drawn() -> None:
    content = json.loads(OLDER.joinpath("class_weights.json").read_text())
    document = parse_document(SplitDocument, json.dumps(content).encode(), "class_weights.json")
    train, tuning, validation = (content["counts"][part] for part in ("train", "tuning", "validation"))
    assert document.counts == {OLDER_TRAINING: {name: train[name] + tuning[name] for name in train}, 1: validation}
    assert document.held_out_digest == content["validation_digest"]


def test_an_external_evaluation_of_before_is_the_challengers() -> None:
    content = json.loads(OLDER.joinpath("evaluation.json").read_text())
    content["external"] = content["challenger"]
    document = parse_document(EvaluationDocument, json.dumps(content).encode(), "evaluation.json")
    (external,) = document.external
    assert (external.name, external.challenger, external.champion) == ("external", document.challenger, None)


@pytest.mark.parametrize("schema_version", [3, 4])
def test_what_is_said_of_one_external_set_is_said_of_one_of_several(schema_version: int) -> None:
    def read(**said: Any) -> tuple[ExternalEvaluation, ...]:
        content = {**json.loads(samples.evaluation_document().to_json()), "schema_version": schema_version, **said}
        return parse_document(EvaluationDocument, json.dumps(content).encode(), "evaluation.json").external

    assert read(external=None, external_note=None) == ()
    (unused,) = read(external=None, external_note="0 images.")
    assert (unused.name, unused.note, unused.challenger) == ("external", "0 images.", None)
    challenger = json.loads(samples.evaluation_document().to_json())["challenger"]
    (used,) = read(external=challenger if schema_version == 3 else {"challenger": challenger}, external_note="9 images.")
    assert used.challenger is not None and (used.note, used.prefix) == ("9 images.", "")


@pytest.mark.parametrize(
    ("before", "now"),
    [("", ()), ("elsewhere/", (("external", "elsewhere"),)), ("site a/scans", (("external", "site a/scans"),))],
)
@pytest.mark.parametrize("schema_version", [3, 4])
def test_the_external_prefix_of_before_is_one_of_several(before: str, now: tuple[Any, ...], schema_version: int) -> None:
    content = json.loads(samples.config_document().to_json())
    content["schema_version"] = schema_version
    for name, value in (("config", before), ("origins", "given")):
        del content[name]["external_prefixes"]
        content[name]["external_prefix"] = value
    document = parse_document(ConfigDocument, json.dumps(content).encode(), "config.json")
    assert document.config.external_sets == now
    assert document.origins["external_prefixes"] == "given"


def test_a_champion_of_before_stays_the_champion(store: ObjectStore) -> None:
    pointer = parse_document(ChampionDocument, OLDER.joinpath("champion.json").read_bytes(), "champion.json")
    store.put("models/champion.json", OLDER.joinpath("champion.json").read_bytes())
    found = ModelRegistry(store, "models").champion()
    assert found is not None and found.champion == pointer
    assert parse_document(ModelDocument, OLDER.joinpath("model.json").read_bytes(), "model.json").synthetic is False


def test_tables_of_before_are_read() -> None:
    (row,) = read_rows(ContentRow, OLDER.joinpath("contents.parquet").read_bytes())
    assert row.synthetic is True
    assert [row.fold for row in read_rows(SplitRow, OLDER.joinpath("split.parquet").read_bytes())] == [OLDER_TRAINING]


def test_the_split_of_a_run_of_before_is_carried_forward(store: ObjectStore) -> None:
    older = RunPaths("artifacts", "20261101T020000Z__nightly")
    table = store.put_referenced(older.document("split.parquet"), OLDER.joinpath("split.parquet").read_bytes())
    document = json.loads(OLDER.joinpath("class_weights.json").read_text())
    document["split"] = table.to_xcom()
    store.put(older.document("class_weights.json"), json.dumps(document).encode())
    store.put(older.document("gate.json"), OLDER.joinpath("gate.json").read_bytes())
    assigned = assigned_before(store, RunPaths("artifacts", "20261102T020000Z__next"))
    assert [row.fold for row in assigned.rows] == [OLDER_TRAINING]
    assert (assigned.previous_run, assigned.ancestors) == (older.folder_name, (older.folder_name,))


@pytest.mark.parametrize("version", [0, 5, "1", None])
def test_a_document_of_another_version_is_one_clear_line(version: object) -> None:
    gate = {**json.loads(OLDER.joinpath("gate.json").read_text()), "schema_version": version}
    with pytest.raises(ArtifactError, match=r"^gate.json is not a GateDocument: .*") as caught:
        parse_document(GateDocument, json.dumps(gate).encode(), "gate.json")
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_refused_in_an_older_document_too() -> None:
    checks = {**json.loads(OLDER.joinpath("validation.json").read_text()), "surprise": 1}
    with pytest.raises(ArtifactError, match="surprise"):
        parse_document(ChecksDocument, json.dumps(checks).encode(), "validation.json")
