"""The sensor against a real S3 server, poking and deferred: both go by the same core, and must say the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from bcc_ops.exceptions import StorageUnavailable
from bcc_ops.operators.base import Run
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.sensors.new_images import NewImagesSensor
from local.s3_server import S3Server
from tests.factories.nights import PARAMS, assess, context_of, now, past_second, sighted, snapshot_as_of, upload
from tests.factories.runs import give_verdict
from tests.services.faulty_proxy import FaultyProxy, faulty
from tests.services.waiting import Clock, run_to_end

Play = Callable[..., dict[str, Any]]
POKE_INTERVAL = 100
LONG = 1000
"""Seconds of settling: longer than any machine stands still between an upload and the first look."""


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs of the DAG that wait to start; Airflow is asked for them where a real task runs."""
    queued: list[str] = []
    for module in ("sensors", "triggers"):
        monkeypatch.setattr(f"bcc_ops.{module}.new_images.queued_runs", lambda dag_id: len(queued))
    return queued


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time for the sensor and its trigger; the store's moments are those of the real clock."""
    clock = Clock()
    clock.rule(monkeypatch)
    return clock


@pytest.fixture(params=["poke", "deferrable"])
def play(request: pytest.FixtureRequest, clock: Clock, queue: list[str]) -> Play:
    """Run the sensor to its end in one of its modes; while it waits, one after the other of `meanwhile` happens."""

    def run(context: Any, *meanwhile: Callable[[], Any]) -> dict[str, Any]:
        sensor = NewImagesSensor(task_id="wait", deferrable=request.param == "deferrable", poke_interval=POKE_INTERVAL)
        clock.start(*meanwhile)
        return dict(run_to_end(sensor, context))

    return run


def test_the_first_images_start_a_run(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a", "malignant/b")
    seen = play(context_of("scheduled"))
    assert seen["images"] == 2
    assert seen["change"] is None
    assert "no run was assessed before" in seen["sentence"]


def test_a_night_waits_until_something_new_arrives(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a", "malignant/b")
    assess(place, "first", past_second())
    before = now().replace(microsecond=0)
    seen = play(context_of("scheduled"), lambda: None, lambda: upload(place, "normal/c"))
    assert (seen["change"]["added"], seen["change"]["changed"], seen["change"]["removed"]) == (1, 0, 0)
    assert datetime.fromisoformat(seen["as_of"]) >= before


def test_a_night_without_news_is_skipped_with_a_sentence(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a")
    first = assess(place, "first", past_second())
    with pytest.raises(
        AirflowSkipException, match=r"Nothing to train on until .*: the 1 images are those of .*__first-[0-9a-f]+\."
    ):
        play(context_of("scheduled", wait_for_images_minutes=0))
    assert first.total == 1


def test_an_upload_that_goes_on_is_taken_as_a_whole(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a")
    assess(place, "first", past_second())
    upload(place, "benign/b")
    more = [lambda n=n: upload(place, f"normal/{n}") for n in range(3)]
    seen = play(context_of("scheduled", settle_seconds=LONG), *more)
    assert seen["change"]["added"] == 4


def test_a_steady_feed_is_trained_on_as_far_as_it_has_settled(place: ObjectStore, play: Play) -> None:
    """One image every 45 s, with 60 s to settle, was skipped every night."""
    upload(place, "benign/0")
    assess(place, "first", past_second())
    arriving = [partial(upload, place, f"benign/{number}") for number in range(1, 40)]
    seen = play(context_of("scheduled", settle_seconds=LONG, wait_for_images_minutes=20), *arriving)
    assert 1 <= seen["change"]["added"] < 40


def test_images_that_are_replaced_between_the_sensor_and_the_snapshot_must_settle_again(
    make_store: Callable[..., ObjectStore], s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """On a bucket without versions, the old objects are gone: a snapshot of half of the images was trained on."""
    bucket = make_store(versioned=False)
    monkeypatch.setenv("BCC_BUCKET", bucket.bucket)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.airflow_connection)
    upload(bucket, "benign/a", "benign/b")
    context = context_of("scheduled", settle_seconds=60)
    arrivals = sighted(past_second(), context)
    upload(bucket, "benign/a")
    clock.start(partial(upload, bucket, "benign/b"))
    monkeypatch.setattr("bcc_ops.operators.snapshot_dataset.time", clock)
    run = Run.load(bucket, "artifacts", SnapshotDatasetOperator(task_id="snapshot", arrivals=arrivals).execute(context))
    assert run.snapshot.total == 2
    assert run.snapshot.as_of > datetime.fromisoformat(arrivals["as_of"]) + timedelta(seconds=60)

    past = context_of("manual", as_of=arrivals["as_of"])
    with pytest.raises(AirflowFailException, match=r"SnapshotChanged: .*no longer those that the sensor saw.*keeps no versions"):
        SnapshotDatasetOperator(task_id="snapshot", arrivals=arrivals).execute(past)


def test_a_skipped_night_names_the_folder_that_was_misspelt(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a")
    assess(place, "first", past_second())
    upload(place, "Malignant/b", "Malignant/c")
    with pytest.raises(AirflowSkipException, match=r"Ignored: 2 folder of no configured class \(images/Malignant/b.png\)"):
        play(context_of("scheduled"))


def test_too_few_images_are_waited_on(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a")
    assess(place, "first", past_second())
    upload(place, "benign/b")
    seen = play(context_of("scheduled", min_new_images=3), lambda: upload(place, "benign/c"), lambda: upload(place, "benign/a"))
    assert seen["change"] == {
        **{"added": 2, "changed": 1, "removed": 0},
        "examples": {"added": ["images/benign/b.png", "images/benign/c.png"], "changed": ["images/benign/a.png"], "removed": []},
    }
    with pytest.raises(AirflowSkipException, match="3 images are new, changed or gone, and 4 are needed"):
        play(context_of("scheduled", min_new_images=4, wait_for_images_minutes=0))


def test_a_removed_image_is_news_too(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a", "benign/b")
    assess(place, "first", past_second())
    place.client.delete_object(Bucket=place.bucket, Key="images/benign/b.png")
    assert play(context_of("scheduled"))["change"]["removed"] == 1


def test_images_of_a_run_that_died_are_taken_up_by_the_next(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a")
    snapshot_as_of(past_second(), context_of("scheduled", "died"))
    assert play(context_of("scheduled"))["images"] == 1


def test_a_burst_of_events_is_one_run_that_saw_every_image(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a")
    assess(place, "first", past_second())
    more = [lambda n=n: upload(place, *(f"normal/{n}-{m}" for m in range(10))) for n in range(5)]
    context = context_of("asset_triggered")
    upload(place, "benign/b")
    seen = play({**context, "params": {**context["params"], "settle_seconds": LONG}}, *more)
    assert seen["change"]["added"] == 51
    run = SnapshotDatasetOperator(task_id="s", arrivals=seen).execute(context)
    assert give_verdict(place, run).total == 52
    past_second()
    with pytest.raises(AirflowSkipException, match="Nothing to train on: the 52 images are those of"):
        play(context_of("asset_triggered"))


def test_a_person_is_not_asked_to_wait(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a")
    assess(place, "first", past_second())
    seen = play(context_of("manual"))
    assert (seen["images"], seen["change"]["added"]) == (1, 0)


@pytest.mark.parametrize("run_type", ["manual", "operator_triggered"])
def test_a_person_or_a_persons_dag_may_ask_for_a_past_moment(place: ObjectStore, play: Play, run_type: str) -> None:
    upload(place, "benign/a")
    moment = past_second()
    upload(place, "benign/b")
    seen = play(context_of(run_type, as_of=moment.isoformat()))
    assert (seen["images"], seen["as_of"]) == (1, moment.isoformat())


def test_a_moment_in_the_future_is_refused(place: ObjectStore, play: Play) -> None:
    with pytest.raises(AirflowFailException, match="as_of: 2999-01-01 00:00:00 UTC is in the future"):
        play(context_of("manual", as_of="2999-01-01T00:00:00+00:00"))


def test_each_day_of_a_backfill_has_the_images_of_its_date(place: ObjectStore, play: Play) -> None:
    days = [past_second()]
    for name in ("benign/a", "benign/b"):
        upload(place, name)
        days.append(past_second())
    days.append(past_second())
    with pytest.raises(AirflowSkipException, match="there was no image as of"):
        play(context_of("backfill", "day0", days[0]))
    for n in (1, 2):
        seen = play(context_of("backfill", f"day{n}", days[n]))
        assert (seen["as_of"], seen["images"]) == (days[n].isoformat(), n)
        give_verdict(
            place, SnapshotDatasetOperator(task_id="s", arrivals=seen).execute(context_of("backfill", f"day{n}", days[n]))
        )
    with pytest.raises(AirflowSkipException, match=r"Nothing to train on: the 2 images are those of .*__day2"):
        play(context_of("backfill", "day3", days[3]))


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_day_of_a_backfill_waits_for_the_earlier_days_that_are_running(
    place: ObjectStore, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    """And no longer: a run that is deleted while it is waited for never ends."""
    upload(place, "benign/a")
    context = context_of("backfill", "day2", past_second())
    running = [SimpleNamespace(dag_id="bcc_retraining", run_id="day1", run_type="backfill")]
    context["ti"].get_previous_dagrun = lambda state: running[0] if running and state == "running" else None
    sensor = NewImagesSensor(task_id="wait", deferrable=deferrable, poke_interval=30)
    if deferrable:
        with pytest.raises(TaskDeferred) as deferred:
            sensor.execute(context)
        assert deferred.value.trigger.serialize()[0] == "airflow.providers.standard.triggers.temporal.DateTimeTrigger"
        assert deferred.value.timeout == timedelta(minutes=15, seconds=30)
        with pytest.raises(TaskDeferred):
            getattr(sensor, deferred.value.method_name)(context, {})
        running.clear()
        seen = getattr(sensor, deferred.value.method_name)(context, {})
    else:
        monkeypatch.setattr("bcc_ops.sensors.new_images.time", SimpleNamespace(sleep=lambda seconds: running.clear()))
        seen = sensor.execute(context)
    assert seen["images"] == 1


def test_a_nightly_run_that_waits_does_not_hold_up_a_backfill(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a")
    context = context_of("backfill", "day2", past_second())
    nightly = SimpleNamespace(dag_id="bcc_retraining", run_id="night", run_type="scheduled")
    context["ti"].get_previous_dagrun = lambda state: nightly
    assert play(context)["images"] == 1


def test_the_same_backfill_again_changes_nothing(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a")
    context = context_of("backfill", "scheduled__day1", past_second())
    run = SnapshotDatasetOperator(task_id="s", arrivals=play(context)).execute(context)
    give_verdict(place, run)
    upload(place, "benign/b")
    objects = list(place.list_objects("artifacts/"))
    assert SnapshotDatasetOperator(task_id="s", arrivals=play(context)).execute(context) == run
    again = list(place.list_objects("artifacts/"))
    assert [(one["Key"], one["ETag"]) for one in again] == [(one["Key"], one["ETag"]) for one in objects]


def test_a_cleared_run_keeps_to_its_snapshot(place: ObjectStore, play: Play) -> None:
    upload(place, "benign/a")
    context = context_of("scheduled", "night")
    first = play(context)
    run = SnapshotDatasetOperator(task_id="s", arrivals=first).execute(context)
    upload(place, "benign/b")
    again = play(context)
    assert {**again, "sentence": ""} == {**first, "sentence": ""}
    assert "own snapshot" in again["sentence"]
    assert SnapshotDatasetOperator(task_id="s", arrivals=again).execute(context) == run


def _through(proxy: FaultyProxy, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = S3Server(proxy.endpoint, server.access_key, server.secret_key, 0).airflow_connection
    quick = '"config_kwargs": {"retries": {"max_attempts": 1, "mode": "standard"}}, "region_name"'
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection.replace('"region_name"', quick))


def test_a_store_that_fails_for_a_while_is_waited_for(
    place: ObjectStore, play: Play, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(place, "benign/a")
    assess(place, "first", past_second())
    trouble = {"left": 0}

    def plan(path: str, number: int) -> str | None:
        trouble["left"] -= 1
        return "503" if trouble["left"] >= 0 else None

    with faulty(s3_server, plan, listings=True) as proxy:
        _through(proxy, s3_server, monkeypatch)
        seen = play(context_of("scheduled"), lambda: trouble.update(left=3), lambda: upload(place, "benign/b"))
        assert seen["change"]["added"] == 1
        assert trouble["left"] < 0


def test_a_store_that_fails_for_good_is_told(
    place: ObjectStore, play: Play, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(place, "benign/a")
    assess(place, "first", past_second())
    down = {"now": False}
    monkeypatch.setattr("bcc_ops.dataset.arrivals.FAILURES", 3)
    with faulty(s3_server, lambda path, number: "503" if down["now"] else None, listings=True) as proxy:
        _through(proxy, s3_server, monkeypatch)
        with pytest.raises(StorageUnavailable, match=r"listing .*s3://.*/images/: reduce your request rate"):
            play(context_of("scheduled"), lambda: down.update(now=True))


def test_a_night_without_news_gives_way_to_a_run_that_is_queued(place: ObjectStore, play: Play, queue: list[str]) -> None:
    upload(place, "benign/a")
    assess(place, "before", past_second())
    with pytest.raises(AirflowSkipException, match="gave way"):
        play(context_of("scheduled"), lambda: None, lambda: queue.append("manual"))


def test_a_night_that_has_news_goes_on_though_another_run_is_queued(place: ObjectStore, play: Play, queue: list[str]) -> None:
    upload(place, "benign/a")
    assess(place, "before", past_second())
    queue.append("manual")
    upload(place, "benign/b")
    assert play(context_of("scheduled"))["images"] == 2


def test_the_sensor_defers_with_all_that_it_knows(place: ObjectStore, clock: Clock) -> None:
    upload(place, "benign/a")
    first = assess(place, "first", past_second())
    clock.start()
    with pytest.raises(TaskDeferred) as deferred:
        sensor = NewImagesSensor(task_id="wait", poke_interval=30)
        sensor.execute(context_of("scheduled", settle_seconds=60))
    path, arguments = deferred.value.trigger.serialize()
    watch = arguments.pop("watch")
    assert path == "bcc_ops.triggers.new_images.NewImagesTrigger"
    assert arguments == {
        "aws_conn_id": "aws_default",
        "bucket": place.bucket,
        "rules": ["images", ["benign", "malignant", "normal"], ["*_mask*"], 64_000_000],
        "versioned": place.is_versioned(),
        "gives_way_in": sensor.dag_id,
    }
    assert watch["idle"]
    assert list(watch["known"]) == [first.digest]
    assert watch["digest"] == first.digest
    assert datetime.fromisoformat(watch["deadline"]) == clock.now() + timedelta(minutes=PARAMS["wait_for_images_minutes"])
    assert deferred.value.method_name == "resume"


def test_a_waiting_sensor_and_the_triggers_load_no_tensorflow() -> None:
    code = (
        "import sys, bcc_ops.sensors.new_images, bcc_ops.sensors.events;"
        "import bcc_ops.triggers.new_images, bcc_ops.triggers.training_job;"
        "print([name for name in ('tensorflow', 'keras', 'pyarrow', 'obstore', 'matplotlib', 'PIL') if name in sys.modules])"
    )
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": "", "HOME": str(Path.home())}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip().splitlines()[-1] == "[]"
