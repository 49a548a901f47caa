"""Where an image is, and what was made from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bcc_ops import cli
from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.content_findings import list_findings
from bcc_ops.dataset.feature_search import FeatureSearch
from bcc_ops.dataset.inspection_cache import MEMORY_FILE, InspectionCache
from bcc_ops.dataset.inspection_shards import VERSION, Shard, write_shard
from bcc_ops.dataset.similarity import Similarity
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.report.trace import OutOfFoldAnswer, trace_image
from bcc_ops.runs.documents import FOLDS, OLDER_TRAINING
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.rows import ContentRow, ImageRow, SplitRow
from bcc_ops.runs.tables import write_answers, write_rows
from tests.unit.promotion.samples import NOW, upload
from tests.unit.report import samples

KEY, SHA = "images/malignant/a.png", "a" * 64


def put_run(store: ObjectStore, run_id: str, fold: int | None, key: str = KEY) -> RunPaths:
    """A run with one image, in a fold if one is given."""
    paths = RunPaths.of("artifacts", samples.AS_OF, run_id)
    content = ContentRow(key, "malignant", SHA, 9, 9, "L", 90.0, 9.0, False, SHA, "")
    tables = {
        "images.parquet": write_rows(ImageRow, [ImageRow(key, "malignant", 9, "e", "", samples.AS_OF)]),
        "contents.parquet": write_rows(ContentRow, [content]),
        "split.parquet": write_rows(SplitRow, [SplitRow(key, SHA, "malignant", SHA, fold)] if fold is not None else []),
    }
    for name, table in tables.items():
        store.put(paths.document(name), table)
    store.save(paths.document("snapshot.json"), samples.snapshot_document(run_id=run_id))
    return paths


def put_version(store: ObjectStore, paths: RunPaths, days: int, **changes: object) -> str:
    registry = ModelRegistry(store, "models")
    made = upload(registry, f"model {days}".encode(), days)
    made = replace(made, document=made.document.model_copy(update={"run": paths.folder_name, **changes}))
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
    trained, judged = put_run(store, "one", 3), put_run(store, "two", 1, "images/malignant/renamed.png")
    store.put(f"artifacts/checkpoints/{samples.snapshot_document().digest[:16]}-b-c/checkpoint.npz", b"c")
    first = put_version(store, trained, 0)
    second = put_version(store, judged, 1)
    third = put_version(store, judged, 2, warm_started_from=first)
    fourth = put_version(store, judged, 3, folds=FOLDS)
    cached = tmp_path / "files" / "a" / SHA
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"pixels")

    trace = trace_image(store, settings, store.uri(KEY))

    assert [(one.size, one.delete_marker) for one in trace.objects if one.key == KEY] == [(6, False), (5, False), (0, True)]
    assert {run.folder: (run.keys, run.folds) for run in trace.runs} == {
        trained.folder_name: ((KEY,), (3,)),
        judged.folder_name: (("images/malignant/renamed.png",), (1,)),
    }
    assert all(len(run.checkpoints) == 1 for run in trace.runs)
    assert {(one.version, one.how, one.champion) for one in trace.models} == {
        (first, "trained on", False),
        (second, "evaluated on", False),
        (third, f"started from {first}", False),
        (fourth, "trained on", True),
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


def test_the_gallery_of_content_findings_is_named_if_it_shows_the_image(store: ObjectStore, settings: Settings) -> None:
    paths = put_run(store, "found", None)
    for findings, pictures in (("1t calipers", ("content_findings",)), ("1t calipers unknown_text", ())):
        rows = [ContentRow(KEY, "malignant", SHA, 9, 9, "L", 90.0, 9.0, False, SHA, "", findings=findings)]
        store.put(paths.document("contents.parquet"), write_rows(ContentRow, rows))
        checks = samples.checks_document(findings=list_findings(rows, RetrainingConfig.resolve({})))
        store.save(paths.document("checks.json"), checks)
        (run,) = trace_image(store, settings, KEY).runs
        assert run.pictures == pictures


def test_the_answer_of_the_model_that_held_it_out_is_told(store: ObjectStore, settings: Settings) -> None:
    """From the run's own table, and from the fold's while the folds are not combined."""
    combined, going_on = put_run(store, "combined", 4), put_run(store, "going on", 2)
    for paths, name, fold in ((combined, "out_of_fold.parquet", 4), (going_on, "fold-2.parquet", 2)):
        rows = [SplitRow(key, SHA, "malignant", SHA, fold) for key in (KEY, "images/malignant/b.png")]
        answers = np.array([[0.25, 0.625, 0.125], [0.0, 1.0, 0.0]])
        store.put(paths.document(name), write_answers(rows, samples.CLASSES, answers))
    told = {run.folder: run.answers for run in trace_image(store, settings, KEY).runs}
    probabilities = {"benign": 0.25, "malignant": 0.625, "normal": 0.125}
    assert told == {
        combined.folder_name: (OutOfFoldAnswer(KEY, 4, probabilities),),
        going_on.folder_name: (OutOfFoldAnswer(KEY, 2, probabilities),),
    }


def test_an_image_that_an_older_release_trained_on_is_told_so(store: ObjectStore, settings: Settings) -> None:
    version = put_version(store, put_run(store, "older", OLDER_TRAINING), 0)
    trace = trace_image(store, settings, KEY)
    assert [(one.version, one.how) for one in trace.models] == [(version, "trained on")]


def test_a_run_that_cannot_be_read_is_named_and_hides_no_other(store: ObjectStore, settings: Settings) -> None:
    put_run(store, "good", 5)
    store.put(RunPaths.of("artifacts", samples.AS_OF, "bad").document("contents.parquet"), b"no table")
    runs = trace_image(store, settings, KEY).runs
    assert sorted((run.folds, bool(run.problem)) for run in runs) == [((), True), ((5,), False)]


def test_what_workers_share_of_the_image_checks_and_what_this_one_remembers_is_named(
    store: ObjectStore, settings: Settings
) -> None:
    """Even if no run knows the image any more, as long as its digest is known."""
    other = "b" * 64
    shards = {
        "findings": Shard(findings=[(SHA, "2t"), (other, "2")]),
        "similarity": Shard(similarity=[((SHA, other), Similarity(0.5, 0.5))]),
        "search": Shard(search=FeatureSearch((other,))),
    }
    keys = {kind: f"artifacts/inspections/{VERSION}/{kind}/{'c' * 64}.parquet" for kind in shards}
    for kind, shard in shards.items():
        store.put(keys[kind], write_shard(shard))
    assert not trace_image(store, settings, "d" * 64).found

    trace = trace_image(store, settings, SHA)
    assert trace.found and trace.shards == [(keys["findings"], ""), (keys["similarity"], "")] and trace.cached == []
    assert trace.to_json()["shards"] == trace.shards

    memory = settings.cache_dir / MEMORY_FILE
    with InspectionCache(memory) as remembered:
        remembered.remember_search(FeatureSearch((other,)))
        assert trace_image(store, settings, SHA).cached == []
        remembered.remember_findings([(SHA, "2t")])
    assert trace_image(store, settings, SHA).cached == [str(memory)]


def test_the_command_prints_json_and_fails_for_an_image_that_nothing_knows(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("BCC_BUCKET", store.bucket)
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cli, "_store", lambda settings: store)
    put_run(store, "one", 3)
    assert cli.main(["trace", KEY, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["folds"] == [3]
    assert cli.main(["trace", KEY]) == 0
    printed = capsys.readouterr().out
    assert "fold 3" in printed and "docs/security.md" in printed
    assert cli.main(["trace", "images/normal/unknown.png"]) == 1
    assert "has a trace of images/normal/unknown.png" in capsys.readouterr().err
