"""The tasks that check and split, over several nights on a real S3 server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from airflow.sdk.exceptions import AirflowFailException

from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.snapshot import ImageRules, list_images
from bcc_ops.operators.check_images import CheckImagesOperator
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.operators.split_dataset import SplitDatasetOperator
from bcc_ops.runs.documents import FOLDS, ChecksDocument, Reference, SnapshotDocument, SplitDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.tables import ContentRow, SplitRow, read_rows
from local.s3_server import S3Server
from tests.unit.report.samples import gate_document


class Night(NamedTuple):
    """What a night's checking and splitting left behind."""

    paths: RunPaths
    snapshot: SnapshotDocument
    checks: ChecksDocument
    split: SplitDocument
    mapped: list[int]
    folds: dict[str, int]
    contents: list[ContentRow]


class Place(NamedTuple):
    """The bucket, the files that may be uploaded, and a way to play a night as of some minutes from now."""

    store: ObjectStore
    files: list[Path]
    play: Callable[..., Night]


@pytest.fixture
def place(
    store: ObjectStore, s3_server: S3Server, synthetic_images: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Place:
    monkeypatch.setenv("BCC_BUCKET", store.bucket)
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.airflow_connection)
    start = datetime.now(timezone.utc)

    def play(minutes: int, assessed: bool = True, **parameters: object) -> Night:
        pushed: dict[str, Any] = {}
        context = {
            "run_id": f"manual__{minutes}",
            "params": parameters,
            "dag_run": SimpleNamespace(run_type="manual", run_after=start),
            "ti": SimpleNamespace(xcom_push=lambda **pair: pushed.update({pair["key"]: pair["value"]})),
        }
        as_of = start + timedelta(minutes=minutes)
        listing = list_images(store, ImageRules.of(Settings.from_environment(), RetrainingConfig.resolve({})), as_of)
        arrivals = {"as_of": as_of.isoformat(), "images": len(listing.images), "digest": listing.digest, "change": None}
        run = SnapshotDatasetOperator(task_id="snapshot", arrivals=arrivals).execute(context)
        checks = CheckImagesOperator(task_id="check_images", run=run).execute(context)
        mapped = SplitDatasetOperator(task_id="split_dataset", run=run, checks=checks).execute(context)
        split = Reference.model_validate(pushed["split"])
        paths = RunPaths("artifacts", run["folder"])
        if assessed:
            store.save(paths.document("gate.json"), gate_document(split=split))
        rows = read_rows(SplitRow, store.get(paths.document("split.parquet")))
        return Night(
            paths,
            store.load_key(SnapshotDocument, paths.document("snapshot.json")),
            store.load(ChecksDocument, checks),
            store.load(SplitDocument, split),
            mapped,
            {row.key: row.fold for row in rows},
            read_rows(ContentRow, store.get(paths.document("contents.parquet"))),
        )

    return Place(store, synthetic_images, play)


def upload(place: Place, files: list[Path], name: Callable[[Path], str] = lambda path: path.name) -> None:
    for path in files:
        place.store.put(f"images/{path.parent.name}/{name(path)}", path.read_bytes())


def first(place: Place, per_class: int) -> list[Path]:
    return [path for number, path in enumerate(place.files) if number % 12 < per_class]


def test_the_next_night_moves_nothing_and_compares_with_the_one_before(place: Place) -> None:
    upload(place, first(place, 9))
    one = place.play(1)
    assert sum(sum(counts.values()) for counts in one.split.counts.values()) == 27
    assert one.checks.drift_unavailable == "there is no assessed earlier run to compare with"
    assert (one.split.carried_forward, one.split.previous_run) == (0, None)

    upload(place, place.files)
    two = place.play(2)
    assert two.split.previous_run == one.paths.folder_name
    assert two.split.carried_forward == 27
    assert {key: fold for key, fold in two.folds.items() if key in one.folds} == one.folds
    assert len(two.folds) == 36
    assert set(two.folds.values()) == set(FOLDS)
    assert two.checks.drift_unavailable is None
    assert two.checks.synthetic == 36
    assert [row.key for row in two.contents] == sorted(f"images/{path.parent.name}/{path.name}" for path in place.files)


def test_a_second_upload_under_other_names_goes_to_the_same_folds(place: Place) -> None:
    upload(place, first(place, 9))
    one = place.play(1)
    upload(place, first(place, 9), name=lambda path: f"again {path.name}")
    two = place.play(2)
    assert two.folds == {**one.folds, **{key.replace("synthetic", "again synthetic", 1): fold for key, fold in one.folds.items()}}
    assert two.split.held_out_digest != one.split.held_out_digest  # it holds every image twice now
    assert len(two.checks.groups) == 27


def test_a_night_that_was_not_assessed_counts_for_nothing(place: Place) -> None:
    upload(place, first(place, 9))
    place.play(1, assessed=False)
    two = place.play(2)
    assert (two.split.carried_forward, two.split.previous_run) == (0, None)


def test_a_lost_split_fails_rather_than_mixing_up_the_folds(place: Place) -> None:
    upload(place, first(place, 9))
    one = place.play(1)
    place.store.client.delete_object(Bucket=place.store.bucket, Key=one.paths.document("assignments.parquet"))
    with pytest.raises(
        AirflowFailException,
        match=r"assignments.parquet: .*without it images would change folds: restore it, or remove that run's gate.json",
    ):
        place.play(2)


def test_lost_contents_only_cost_the_comparison(place: Place) -> None:
    upload(place, first(place, 9))
    one = place.play(1)
    place.store.client.delete_object(Bucket=place.store.bucket, Key=one.paths.document("contents.parquet"))
    two = place.play(2)
    assert two.checks.drift == ()
    assert two.split.carried_forward == 27


def test_too_few_images_of_a_class_fail_and_say_how_many_are_needed(place: Place) -> None:
    upload(place, [path for path in first(place, 9) if path.parent.name != "normal"])
    upload(place, [path for path in place.files if path.parent.name == "normal"][:1])
    with pytest.raises(AirflowFailException, match=r"class normal .* at least 2 groups are needed"):
        place.play(1)


def test_the_same_task_again_leaves_the_same_documents(place: Place) -> None:
    upload(place, first(place, 9))
    one = place.play(1, assessed=False)
    before = {name: place.store.get(one.paths.document(name)) for name in ("checks.json", "split.json", "split.parquet")}
    place.play(1, assessed=False)
    assert {name: place.store.get(one.paths.document(name)) for name in before} == before


def test_training_is_mapped_over_the_folds_that_are_held_out(place: Place) -> None:
    upload(place, first(place, 9))
    five, one = place.play(1), place.play(2, folds=1)
    assert (five.mapped, one.mapped) == ([1, 2, 3, 4, 5], [1])
    assert one.folds == five.folds  # a quick look divides as every run does
    assert one.split.held_out_digest != five.split.held_out_digest
