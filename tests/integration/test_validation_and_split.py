"""The tasks that check and split, over several nights on a real S3 server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from airflow.sdk.exceptions import AirflowFailException

from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.snapshot import ImageRules, list_images
from bcc_ops.operators.check_images import CheckImagesOperator
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.operators.split_dataset import SplitDatasetOperator
from bcc_ops.runs.documents import ChecksDocument, Reference, SnapshotDocument, SplitDocument
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
    weights: SplitDocument
    sides: dict[str, str]
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
        context = {
            "run_id": f"manual__{minutes}",
            "params": parameters,
            "dag_run": SimpleNamespace(run_type="manual", run_after=start),
        }
        as_of = start + timedelta(minutes=minutes)
        listing = list_images(store, ImageRules.of(Settings.from_environment(), RetrainingConfig.resolve({})), as_of)
        arrivals = {"as_of": as_of.isoformat(), "images": len(listing.images), "digest": listing.digest, "change": None}
        run = SnapshotDatasetOperator(task_id="snapshot", arrivals=arrivals).execute(context)
        checks = CheckImagesOperator(task_id="validate", run=run).execute(context)
        weights = SplitDatasetOperator(task_id="weights", run=run, checks=checks).execute(context)
        paths = RunPaths("artifacts", run["folder"])
        if assessed:
            store.save(paths.document("gate.json"), gate_document(split=Reference.model_validate(weights)))
        rows = read_rows(SplitRow, store.get(paths.document("split.parquet")))
        return Night(
            paths,
            store.load_key(SnapshotDocument, paths.document("snapshot.json")),
            store.load(ChecksDocument, checks),
            store.load(SplitDocument, weights),
            {row.key: row.partition for row in rows},
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
    assert sum(sum(counts.values()) for counts in one.weights.counts.values()) == 27
    assert one.checks.drift_unavailable == "there is no assessed earlier run to compare with"
    assert (one.weights.carried_forward, one.weights.previous_run) == (0, None)

    upload(place, place.files)
    two = place.play(2)
    assert two.weights.previous_run == one.paths.folder_name
    assert two.weights.carried_forward == 27
    assert {key: side for key, side in two.sides.items() if key in one.sides} == one.sides
    assert len(two.sides) == 36
    assert two.checks.drift_unavailable is None
    assert two.checks.synthetic == 36
    assert [row.key for row in two.contents] == sorted(f"images/{path.parent.name}/{path.name}" for path in place.files)


def test_a_second_upload_under_other_names_goes_to_the_same_sides(place: Place) -> None:
    upload(place, first(place, 9))
    one = place.play(1)
    upload(place, first(place, 9), name=lambda path: f"again {path.name}")
    two = place.play(2)
    assert two.sides == {**one.sides, **{key.replace("synthetic", "again synthetic", 1): side for key, side in one.sides.items()}}
    assert two.weights.validation_digest != one.weights.validation_digest  # it holds every image twice now
    assert len(two.checks.groups) == 27


def test_a_night_that_was_not_assessed_counts_for_nothing(place: Place) -> None:
    upload(place, first(place, 9))
    place.play(1, assessed=False)
    two = place.play(2)
    assert (two.weights.carried_forward, two.weights.previous_run) == (0, None)


def test_a_lost_split_fails_rather_than_mixing_up_the_sides(place: Place) -> None:
    upload(place, first(place, 9))
    one = place.play(1)
    place.store.client.delete_object(Bucket=place.store.bucket, Key=one.paths.document("assignments.parquet"))
    with pytest.raises(
        AirflowFailException,
        match=r"assignments.parquet: .*without it images would change sides: restore it, or remove that run's gate.json",
    ):
        place.play(2)


def test_lost_contents_only_cost_the_comparison(place: Place) -> None:
    upload(place, first(place, 9))
    one = place.play(1)
    place.store.client.delete_object(Bucket=place.store.bucket, Key=one.paths.document("contents.parquet"))
    two = place.play(2)
    assert two.checks.drift == ()
    assert two.weights.carried_forward == 27


def test_too_few_images_of_a_class_fail_and_say_how_many_are_needed(place: Place) -> None:
    upload(place, [path for path in first(place, 9) if path.parent.name != "normal"])
    upload(place, [path for path in place.files if path.parent.name == "normal"][:2])
    with pytest.raises(AirflowFailException, match=r"class normal .* at least 3 groups are needed"):
        place.play(1)


def test_the_same_task_again_leaves_the_same_documents(place: Place) -> None:
    upload(place, first(place, 9))
    one = place.play(1, assessed=False)
    before = {name: place.store.get(one.paths.document(name)) for name in ("checks.json", "split.json", "split.parquet")}
    place.play(1, assessed=False)
    assert {name: place.store.get(one.paths.document(name)) for name in before} == before
