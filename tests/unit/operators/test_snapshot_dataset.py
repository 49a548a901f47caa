"""The task that fixes which images a run is about."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowFailException

from bcc_ops.operators.base import Run
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.runs.index import find_run
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import run_slug
from bcc_ops.sensors.new_images import NewImagesSensor
from tests.factories.nights import assess, context_of, past_second, snapshot_as_of, upload
from tests.unit.report.samples import promotion_document


def test_a_run_that_lost_many_images_stops_unless_it_was_meant(place: ObjectStore) -> None:
    upload(place, *(f"benign/{number}" for number in range(10)))
    assess(place, "first", past_second())
    for number in range(6):
        place.client.delete_object(Bucket=place.bucket, Key=f"images/benign/{number}.png")
    with pytest.raises(AirflowFailException, match=r"TooManyRemoved: 6 of the 10 images of the previous run are gone"):
        snapshot_as_of(past_second(), context_of("scheduled"))
    meant = context_of("manual", max_removed_fraction=0.7)
    assert Run.load(place, "artifacts", snapshot_as_of(past_second(), meant)).snapshot.total == 4


def test_a_run_whose_model_came_into_use_keeps_its_parameters_when_it_is_done_again(place: ObjectStore) -> None:
    upload(place, "benign/a")
    as_of = past_second()
    first = Run.load(place, "artifacts", snapshot_as_of(as_of, context_of("manual", "once", epochs=3)))
    again = snapshot_as_of(as_of, context_of("manual", "once", epochs=5))
    assert Run.load(place, "artifacts", again).config.epochs == 5
    place.save(first.paths.document("promotion.json"), promotion_document(promoted=True))
    kept = snapshot_as_of(as_of, context_of("manual", "once", epochs=9))
    assert Run.load(place, "artifacts", kept).config.epochs == 5


def test_renaming_every_image_removes_none(place: ObjectStore) -> None:
    for number in range(4):
        place.put(f"images/benign/{number}.png", f"image {number}".encode())
    assess(place, "first", past_second())
    for number in range(4):
        place.put(f"images/benign/renamed {number}.png", f"image {number}".encode())
        place.client.delete_object(Bucket=place.bucket, Key=f"images/benign/{number}.png")
    run = Run.load(place, "artifacts", snapshot_as_of(past_second(), context_of("scheduled")))
    assert run.snapshot.change is not None and run.snapshot.change.removed == 4


def test_external_test_sets_are_looked_at_before_anything_is_trained(place: ObjectStore) -> None:
    upload(place, "benign/a")
    inside, elsewhere = (context_of("manual", external_prefixes=prefix) for prefix in ("images/benign", "elsewhere"))
    with pytest.raises(
        AirflowFailException, match=r"ConfigError: external_prefixes: the set 'benign' .* overlaps with the images"
    ):
        NewImagesSensor(task_id="wait").execute(inside)
    with pytest.raises(AirflowFailException, match=r"ConfigError: external_prefixes: the set 'elsewhere' is empty"):
        snapshot_as_of(past_second(), elsewhere)
    place.put("elsewhere/benign/b.png", b"content")
    assert Run.load(place, "artifacts", snapshot_as_of(past_second(), elsewhere)).config.external_prefixes == "elsewhere"


def test_an_empty_prefix_is_a_failure_for_a_person_and_tells_what_is_there(place: ObjectStore) -> None:
    place.put("images/Benign/a.png", b"x")
    context = context_of("manual", "asked")
    arrivals = NewImagesSensor(task_id="wait").execute(context)
    with pytest.raises(
        AirflowFailException, match=r"NoImages: no image as of .*/images/benign/, .*1 folder of no configured class"
    ):
        SnapshotDatasetOperator(task_id="s", arrivals=arrivals).execute(context)


def test_the_snapshot_names_its_predecessor_and_the_parameters(place: ObjectStore) -> None:
    upload(place, "benign/a", "benign/a_mask", "malignant/b")
    assess(place, "first", past_second())
    upload(place, "normal/c")
    context = context_of("manual", "second", epochs=3)
    arrivals = NewImagesSensor(task_id="wait").execute(context)
    handle = SnapshotDatasetOperator(task_id="s", arrivals=arrivals).execute(context)
    document = Run.load(place, "artifacts", handle).snapshot
    assert document.counts == {"benign": 1, "malignant": 1, "normal": 1}
    assert document.previous_run is not None
    assert document.previous_run.endswith(f"__{run_slug('first')}")
    assert document.change is not None
    assert document.change.added == 1
    assert document.digest == arrivals["digest"]
    assert document.as_of_source == ("versions" if place.is_versioned() else "last_modified")
    assert [(ignored.reason, ignored.count) for ignored in document.ignored] == [("name to ignore (masks)", 1)]
    paths = find_run(place, "artifacts", "second")
    assert paths is not None
    assert b'"epochs": "given"' in place.get(paths.document("config.json"))
