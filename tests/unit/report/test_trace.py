"""Where an image is, and what was made from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bcc_ops import cli
from bcc_ops.config import Settings
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.report.trace import trace_image
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.tables import ContentRow, ImageRow, SplitRow, write_rows
from tests.unit.promotion.samples import NOW, upload
from tests.unit.report import samples

KEY, SHA = "images/malignant/a.png", "a" * 64


def put_run(store: ObjectStore, run_id: str, partition: str, key: str = KEY) -> RunPaths:
    """A run with one image in one partition."""
    paths = RunPaths.of("artifacts", samples.AS_OF, run_id)
    content = ContentRow(key, "malignant", SHA, 9, 9, "L", 90.0, 9.0, False, SHA, "")
    tables = {
        "images.parquet": write_rows(ImageRow, [ImageRow(key, "malignant", 9, "e", "", samples.AS_OF)]),
        "contents.parquet": write_rows(ContentRow, [content]),
        "split.parquet": write_rows(SplitRow, [SplitRow(key, SHA, "malignant", SHA, partition)] if partition else []),
    }
    for name, table in tables.items():
        store.put(paths.document(name), table)
    store.save(paths.document("snapshot.json"), samples.snapshot_document(run_id=run_id))
    return paths


def put_version(store: ObjectStore, paths: RunPaths, days: int, started_from: str | None = None) -> str:
    registry = ModelRegistry(store, "models")
    made = upload(registry, f"model {days}".encode(), days)
    made = replace(made, document=made.document.model_copy(update={"run": paths.folder_name, "warm_started_from": started_from}))
    registry.write_once(made.document.version, "model.json", made.document.to_json())
    registry.move(made.document, registry.read_pointer(), by="the gate", reason="better", at=NOW)
    return made.document.version


@pytest.fixture
def settings(store: ObjectStore, tmp_path: Path) -> Settings:
    return Settings(bucket=store.bucket, cache_dir=tmp_path)


def test_every_place_is_named(make_store: object, tmp_path: Path) -> None:
    store: ObjectStore = make_store(versioned=True)  # type: ignore[operator]
    settings = Settings(bucket=store.bucket, cache_dir=tmp_path)
    store.put(KEY, b"first")
    store.put(KEY, b"second")
    store.client.delete_object(Bucket=store.bucket, Key=KEY)
    store.put(f"{KEY}.other.png", b"another image")
    trained, judged = put_run(store, "one", "train"), put_run(store, "two", "validation", "images/malignant/renamed.png")
    store.put(f"artifacts/checkpoints/{samples.snapshot_document().digest[:16]}-b-c/checkpoint.npz", b"c")
    first = put_version(store, trained, 0)
    second = put_version(store, judged, 1)
    third = put_version(store, judged, 2, started_from=first)
    cached = tmp_path / "files" / "a" / SHA
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"pixels")

    trace = trace_image(store, settings, store.uri(KEY))

    assert [(one.size, one.delete_marker) for one in trace.objects if one.key == KEY] == [(6, False), (5, False), (0, True)]
    assert {run.folder: (run.keys, run.partitions) for run in trace.runs} == {
        trained.folder_name: ((KEY,), ("train",)),
        judged.folder_name: (("images/malignant/renamed.png",), ("validation",)),
    }
    assert all(len(run.checkpoints) == 1 for run in trace.runs)
    assert {(one.version, one.how, one.champion) for one in trace.models} == {
        (first, "trained on", False),
        (second, "evaluated on", False),
        (third, f"started from {first}", True),
    }
    assert trace.cached == [str(cached)]
    assert {run.folder for run in trace_image(store, settings, SHA).runs} == {trained.folder_name, judged.folder_name}


def test_galleries_that_show_it_are_named(store: ObjectStore, settings: Settings) -> None:
    for name, content in samples.whole_run().items():
        store.put(samples.PATHS.document(name), content)
    from bcc_ops.report.misclassified import find_misclassified
    from bcc_ops.runs.documents import EvaluationDocument
    from bcc_ops.runs.tables import read_predictions

    evaluation = store.load_key(EvaluationDocument, samples.PATHS.document("evaluation.json"))
    predictions = read_predictions(store.get(samples.PATHS.document("predictions.parquet")))
    point = evaluation.challenger.operating_point.threshold
    missed = find_misclassified(predictions, evaluation.classes, evaluation.positive_class, point).missed
    key = missed[0].key
    store.put(
        samples.PATHS.document("contents.parquet"),
        write_rows(ContentRow, [ContentRow(key, "malignant", SHA, 9, 9, "L", 90.0, 9.0, False, SHA, "")]),
    )
    store.put(samples.PATHS.document("images.parquet"), write_rows(ImageRow, []))
    store.put(samples.PATHS.document("split.parquet"), write_rows(SplitRow, []))
    (run,) = trace_image(store, settings, key).runs
    assert run.predicted and run.pictures == ("missed_cancers",)


def test_a_run_that_cannot_be_read_is_named_and_hides_no_other(store: ObjectStore, settings: Settings) -> None:
    put_run(store, "good", "tuning")
    store.put(RunPaths.of("artifacts", samples.AS_OF, "bad").document("contents.parquet"), b"no table")
    runs = trace_image(store, settings, KEY).runs
    assert sorted((run.partitions, bool(run.problem)) for run in runs) == [((), True), (("tuning",), False)]


def test_the_command_prints_json_and_fails_for_an_image_that_nothing_knows(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("BCC_BUCKET", store.bucket)
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cli, "_store", lambda settings: store)
    put_run(store, "one", "train")
    assert cli.main(["trace", KEY, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["partitions"] == ["train"]
    assert cli.main(["trace", KEY]) == 0
    assert "docs/security.md" in capsys.readouterr().out
    assert cli.main(["trace", "images/normal/unknown.png"]) == 1
    assert "knows images/normal/unknown.png" in capsys.readouterr().err
