"""The tasks that check and split, over several nights on a real S3 server."""

from __future__ import annotations

import time
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
from bcc_ops.runs.rows import ContentRow, SplitRow
from bcc_ops.runs.tables import read_rows
from local.s3_server import S3Server
from tests.factories.planted import everything_stored, places_of
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


def upload_table(place: Place, text: str) -> None:
    place.store.put("images/metadata.csv", text.encode())


def table_of(files: list[Path], per_patient: int = 2) -> str:
    """A table in which neighbours are of one patient, with markers in every place that could tell who it is."""
    header = "key,patient_id,patient_name,age,acquired_at,site\n"
    rows = (
        f"{path.parent.name}/{path.name},MARKER-{number // per_patient},Name MARKER {number},45,2023-05-17,North"
        for number, path in enumerate(files)
    )
    return header + "\n".join(rows)


def test_patients_of_a_metadata_table_stay_in_one_fold_and_no_document_tells_who_they_are(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    upload(place, place.files)
    upload_table(place, table_of(place.files) + "\nbenign/Maria MARKER.png,MARKER,MARKER,MARKER,MARKER,MARKER\n,MARKER")
    one = place.play(1)
    folds = [{one.folds[f"images/{path.parent.name}/{path.name}"] for path in pair} for pair in zip(*[iter(place.files)] * 2)]
    assert all(len(found) == 1 for found in folds) and set.union(*folds) == set(FOLDS)
    assert (one.split.grouping, one.split.patients_unknown, one.checks.patients) == ("patient", 0, 18)
    table = one.snapshot.metadata
    assert table is not None and table == one.checks.metadata
    assert table.sha256 == Reference.of("", place.store.get("images/metadata.csv")).sha256
    assert {finding.reason: finding.examples for finding in table.findings} == {
        "rows without an image": ("row 38",),
        "rows with more or fewer cells than there are columns, not used: put cells that hold the separator in quotes": (
            "row 39",
        ),
        "values of fewer than 5 known patients, not used": ("patient_name",),
    }
    assert [(column.name, column.images) for column in table.columns] == [
        (name, 36) for name in ("acquired_at", "age", "patient_id", "site")
    ]
    assert not one.snapshot.ignored

    # The table changes: that is no news, and the run that took its snapshot before keeps to what it said then.
    upload_table(place, table_of(place.files, per_patient=3))
    again = place.play(1)
    assert (again.snapshot, again.folds, again.contents) == (one.snapshot, one.folds, one.contents)
    place.store.client.delete_object(Bucket=place.store.bucket, Key="images/metadata.csv")
    lost = place.play(2)
    assert lost.snapshot.metadata is None and lost.snapshot.digest == one.snapshot.digest
    assert (lost.folds, lost.split.grouping) == (one.folds, "patient")

    told = list(everything_stored(place.store, "artifacts/"))
    assert places_of("2023-Q2", told) and places_of("40 to 49", told)
    assert places_of("pseudonym", told) == [] and places_of("MARKER", [*told, ("the log", caplog.text.encode())]) == []


def test_a_table_that_cannot_be_used_is_told_and_fails_only_who_requires_it(place: Place) -> None:
    upload(place, place.files)
    with pytest.raises(AirflowFailException, match=r"MetadataProblem: there is no metadata.parquet or metadata.csv"):
        place.play(1, require_metadata=True)
    place.store.put("images/metadata.parquet", b"PAR1 MARKER")
    upload_table(place, table_of(place.files))
    night = place.play(2)
    assert night.checks.warnings[-1] == (
        "the metadata table is not used: metadata.parquet is not a Parquet file that can be read"
    )
    assert (night.split.grouping, night.checks.patients) == ("near-duplicate group", None)
    with pytest.raises(AirflowFailException, match="not a Parquet file"):
        place.play(3, require_metadata=True)
    place.store.client.delete_object(Bucket=place.store.bucket, Key="images/metadata.parquet")
    upload_table(place, table_of(place.files[:-1]))
    with pytest.raises(AirflowFailException, match="does not name the patient of 1 of 36 images"):
        place.play(4, require_metadata=True)


def test_a_past_moment_has_the_table_of_that_moment(make_store: Callable[..., ObjectStore], tmp_path: Path) -> None:
    store = make_store(versioned=True)
    rules = ImageRules.of(Settings(), RetrainingConfig.resolve({}))
    store.put("images/benign/a.png", b"an image")
    store.put("images/metadata.csv", b"key,patient_id\nbenign/a.png,A\n")
    then = datetime.now(timezone.utc) + timedelta(seconds=1)
    time.sleep(2.1)  # the store tells whole seconds
    store.put("images/metadata.csv", b"key,patient_id\nbenign/a.png,B\n")
    was, now = list_images(store, rules, then), list_images(store, rules)
    assert was.digest == now.digest
    contents = [store.get(listing.tables[0].key, listing.tables[0].version_id) for listing in (was, now)]
    assert [content[-2:-1] for content in contents] == [b"A", b"B"]
