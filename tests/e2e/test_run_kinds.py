"""Images arrive at several moments, and every kind of run sees those that it should: read off its snapshot.json.

The schedule, the sensor in the triggerer, snapshot and download are the pipeline's own on a running Airflow; a verdict
without a training stands for the rest, which test_first_run.py covers, so that ten runs take minutes. Airflow's database is
PostgreSQL: a burst of events can lock SQLite, to which the API server writes from its event loop, for a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from bcc_ops.runs.documents import ConfigDocument, SnapshotDocument
from bcc_ops.runs.index import find_run
from local.airflow_api import AirflowUnavailable
from local.stack import LocalStack
from tests.conftest import REPOSITORY
from tests.e2e.conftest import wait_until
from tests.services.mock_sqs import Queue, notification, queue
from tests.services.postgres import postgres_database

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

DAG_ID = "run_kinds"
DEPLOYMENT = {
    "settle_seconds": 8,  # shorter waits end while a busy scheduler still hears of the deferral, and Airflow fails the task
    "wait_for_images_minutes": 1,
    "patient_pattern": r"\((\d+)\)",
    "require_approval": True,
    "external_prefixes": "elsewhere",
}
"""The parameters in the deployment's file."""
DAGS = Path(__file__).with_name("dags")
TOO_BUSY = "this machine is too busy for the times of this story; nothing is wrong with the pipeline"


class Ticks(NamedTuple):
    """When the schedule wants a run: minutes of the clock, since a schedule knows no others."""

    batches: tuple[datetime, datetime, datetime]
    """One after each of the batches of images, for the backfill."""
    nightly: datetime
    quiet: datetime
    yielding: datetime

    @classmethod
    def after(cls, now: datetime) -> Ticks:
        """Far enough apart for what happens in between; the stack starts while the first three go by."""
        minute = now.replace(second=0, microsecond=0)
        first, second, third, *others = (minute + timedelta(minutes=n) for n in (3, 4, 5, 9, 14, 20))
        return cls((first, second, third), *others)

    @property
    def cron(self) -> str:
        """The schedule. If the hour changes in between, each minute is named in both hours: half an hour away, no harm."""
        ticks = (*self.batches, self.nightly, self.quiet, self.yielding)
        hours = sorted({tick.hour for tick in ticks})
        return f"{','.join(str(tick.minute) for tick in ticks)} {','.join(map(str, hours))} * * *"


def wait_for_tick(tick: datetime) -> None:
    """Wait until the schedule wants a run; what should have happened before must have."""
    assert datetime.now(timezone.utc) < tick, TOO_BUSY
    wait_until(tick)


def eventually(holds: Callable[[], Any], within: float, why_not: Callable[[], object]) -> Any:
    """Ask again and again, and return the first answer that is true.

    Args:
        holds: asks. An API server on a busy machine that does not answer counts as no.
        within: seconds.
        why_not: what the failure says.
    """
    deadline = time.monotonic() + within
    while True:
        with suppress(AirflowUnavailable):
            if answer := holds():
                return answer
        assert time.monotonic() < deadline, why_not()
        time.sleep(1)


@dataclass
class Story:
    """What happened, in this order: three batches with a tick of the schedule after each, and then the runs."""

    stack: LocalStack
    ticks: Ticks
    uploaded: int = 0
    deferred: set[str] = field(default_factory=set)

    def upload(self, count: int) -> None:
        """Some images with contents of their own."""
        for _ in range(count):
            label = ("benign", "malignant", "normal")[self.uploaded % 3]
            self.stack.store.put(f"images/{label}/{label} ({self.uploaded}).png", f"image {self.uploaded}".encode())
            self.uploaded += 1

    def runs(self, run_type: str) -> list[dict[str, Any]]:
        """The runs of one type, oldest first."""
        return [run for run in self.stack.api.runs(DAG_ID)[::-1] if run["run_type"] == run_type]

    def ended(self, find: Callable[[], list[dict[str, Any]]], count: int, within: float = 300) -> list[dict[str, Any]]:
        """Wait until so many runs are found and have ended."""
        found: list[dict[str, Any]] = []

        def all_ended() -> bool:
            found[:] = find()
            if len(found) >= count and all(run["state"] in ("success", "failed") for run in found):
                return True
            self.deferred.update(run["dag_run_id"] for run in found if self.state_of_wait(run) == "deferred")
            return False

        eventually(all_ended, within, lambda: [(run["dag_run_id"], run["state"]) for run in found])
        return found

    def state_of_wait(self, run: dict[str, Any]) -> str | None:
        """The state of the run's sensor."""
        state: str | None = self.stack.api.tasks(DAG_ID, run["dag_run_id"])["wait_for_new_images"]["state"]
        return state

    def snapshot(self, run_id: str) -> SnapshotDocument:
        """The run's snapshot.json."""
        paths = find_run(self.stack.store, "artifacts", run_id)
        assert paths is not None, run_id
        return self.stack.store.load_key(SnapshotDocument, paths.document("snapshot.json"))

    def trained(self, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that found something new; an event may come when a run before it has already seen its image."""
        return [run for run in runs if "skipped" not in self.states(run["dag_run_id"])]

    def config(self, run_id: str) -> ConfigDocument:
        """The run's config.json."""
        paths = find_run(self.stack.store, "artifacts", run_id)
        assert paths is not None, run_id
        return self.stack.store.load_key(ConfigDocument, paths.document("config.json"))

    def states(self, run_id: str) -> set[str]:
        """The states of a run's tasks."""
        return {task["state"] for task in self.stack.api.tasks(DAG_ID, run_id).values()}

    def said(self, run_id: str) -> str:
        """The sensor's log."""
        task = self.stack.api.tasks(DAG_ID, run_id)["wait_for_new_images"]
        events = self.stack.api.task_log(DAG_ID, run_id, "wait_for_new_images", task["try_number"])
        return "\n".join(f"{event}" for event in events)

    def backfill(self, reprocess: str) -> None:
        """A backfill over the three ticks."""
        self.stack.api.backfill(DAG_ID, self.ticks.batches[0], self.ticks.batches[-1], reprocess)

    def announce(self, times: int) -> None:
        """Events of the images' asset, as the UI and other programs make them."""
        [asset] = [asset for asset in self.stack.api.call("GET", "/assets")["assets"] if asset["name"] == "breast_images"]
        for _ in range(times):
            with suppress(AirflowUnavailable):  # one of many, and made all the same most likely
                self.stack.api.call("POST", "/assets/events", json={"asset_id": asset["id"], "extra": {}})


def documents_of(stack: LocalStack) -> dict[str, str]:
    """Key -> ETag of everything that the runs left."""
    return {entry["Key"]: entry["ETag"] for entry in stack.store.list_objects("artifacts/runs/")}


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty database."""
    with postgres_database("airflow") as address:
        yield address


@pytest.fixture(scope="module")
def sqs() -> Iterator[Queue]:
    """The queue of S3's notifications."""
    with queue() as opened:
        yield opened


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, sqs: Queue, database: str) -> Iterator[Story]:
    """The stack, with a schedule whose ticks are in the next minutes, up to the moment when the third batch is there."""
    ticks = Ticks.after(datetime.now(timezone.utc))
    parameters = tmp_path_factory.mktemp("deployment") / "parameters.yaml"
    parameters.write_text(yaml.safe_dump(DEPLOYMENT))
    variables = {
        "BCC_PARAMETERS": str(parameters),
        "PYTHONPATH": str(REPOSITORY),  # for the DAG's verdict, which the tests' factories give
        "BCC_SCHEDULE": ticks.cron,
        "BCC_SQS_QUEUE_URL": sqs.url,
        "AWS_ENDPOINT_URL_SQS": sqs.endpoint,
    }
    home = tmp_path_factory.mktemp("stack")
    with LocalStack(home, bucket="run-kinds", dags=DAGS, variables=variables, database=database, wait=False) as stack:
        story = Story(stack, ticks)
        stack.store.put("elsewhere/benign/1.png", b"an image of another hospital")  # a set without any fails its run
        for count, tick in zip((4, 3, 2), ticks.batches):
            wait_until(tick - timedelta(seconds=50))
            story.upload(count)
            wait_for_tick(tick)
            wait_until(tick + timedelta(seconds=1))  # S3 knows whole seconds only
        stack.wait_until_ready()
        yield story


@pytest.fixture(scope="module")
def backfill(story: Story) -> list[dict[str, Any]]:
    """The three-tick backfill, asked for while the DAG is off, and then the DAG is on."""
    story.backfill("none")
    story.stack.api.set_paused(DAG_ID, False)
    return story.ended(lambda: story.runs("backfill"), 3)


@pytest.fixture(scope="module")
def night(story: Story, backfill: list[dict[str, Any]]) -> dict[str, Any]:
    """A nightly run after another batch."""
    story.upload(5)
    wait_for_tick(story.ticks.nightly)
    [run] = story.ended(lambda: story.runs("scheduled"), 1)
    return run


@pytest.fixture(scope="module")
def by_hand(story: Story, night: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Two runs that a person asks for: now, and as of the first tick."""
    api = story.stack.api
    runs = {"now": api.trigger(DAG_ID, {}), "past": api.trigger(DAG_ID, {"as_of": story.ticks.batches[0].isoformat()})}
    return {name: api.wait_for_run(DAG_ID, run_id, 180) for name, run_id in runs.items()}


@pytest.fixture(scope="module")
def events(story: Story, by_hand: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of a burst of events, made while images are still arriving."""
    story.announce(1)
    for _ in range(10):
        story.upload(1)
        story.announce(2)
    return story.ended(lambda: story.runs("asset_triggered"), 1)


@pytest.fixture(scope="module")
def quiet_night(story: Story, events: list[dict[str, Any]]) -> dict[str, Any]:
    """A nightly run after which nothing arrives."""
    wait_for_tick(story.ticks.quiet)
    return story.ended(lambda: story.runs("scheduled")[1:], 1)[0]


@pytest.mark.parametrize(("tick", "images"), [(0, 4), (1, 7), (2, 9)])
def test_each_day_of_a_backfill_sees_the_images_of_its_date(
    story: Story, backfill: list[dict[str, Any]], tick: int, images: int
) -> None:
    [run] = [run for run in backfill if datetime.fromisoformat(run["logical_date"]) == story.ticks.batches[tick]]
    snapshot = story.snapshot(run["dag_run_id"])
    assert (snapshot.as_of, snapshot.total, snapshot.run_kind) == (story.ticks.batches[tick], images, "backfill")
    assert snapshot.as_of_source == "versions"


def test_each_day_of_a_backfill_is_compared_with_the_day_before(story: Story, backfill: list[dict[str, Any]]) -> None:
    snapshots = sorted((story.snapshot(run["dag_run_id"]) for run in backfill), key=lambda snapshot: snapshot.as_of)
    assert [snapshot.change and snapshot.change.added for snapshot in snapshots] == [None, 3, 2]


def test_a_nightly_run_sees_what_is_there_when_its_sensor_is_satisfied(story: Story, night: dict[str, Any]) -> None:
    snapshot = story.snapshot(night["dag_run_id"])
    assert (snapshot.total, snapshot.run_kind) == (14, "nightly")
    assert snapshot.as_of >= story.ticks.nightly
    assert snapshot.change is not None
    assert (snapshot.change.added, snapshot.change.removed) == (5, 0)


def test_every_kind_of_run_has_the_deployments_parameters_and_says_so(
    story: Story, backfill: list[dict[str, Any]], night: dict[str, Any], events: list[dict[str, Any]]
) -> None:
    for run in (backfill[0], night, story.trained(events)[-1]):
        document = story.config(run["dag_run_id"])
        used = document.config.model_dump(mode="json")
        assert {name: used[name] for name in DEPLOYMENT} == DEPLOYMENT
        assert {document.origins[name] for name in DEPLOYMENT} == {"deployment"}
        assert document.uses_deployment_parameters and document.origins["epochs"] == "default"


def test_a_person_cannot_group_images_in_another_way_than_the_deployment(story: Story, night: dict[str, Any]) -> None:
    api = story.stack.api
    run = api.wait_for_run(DAG_ID, api.trigger(DAG_ID, {"patient_pattern": "(.)"}), 180)
    assert run["state"] == "failed"
    assert "set it in the file that BCC_PARAMETERS names" in story.said(run["dag_run_id"])


def test_a_person_gets_the_images_of_now_whether_new_or_not(story: Story, by_hand: dict[str, dict[str, Any]]) -> None:
    snapshot = story.snapshot(by_hand["now"]["dag_run_id"])
    asked = datetime.fromisoformat(by_hand["now"]["queued_at"])
    assert (snapshot.total, snapshot.run_kind) == (14, "manual")
    assert snapshot.as_of >= asked.replace(microsecond=0)
    assert snapshot.change is not None
    assert snapshot.change.total == 0


def test_a_person_may_ask_for_a_past_moment(story: Story, by_hand: dict[str, dict[str, Any]]) -> None:
    snapshot = story.snapshot(by_hand["past"]["dag_run_id"])
    assert (snapshot.as_of, snapshot.total, snapshot.previous_run) == (story.ticks.batches[0], 4, None)


def test_a_burst_of_events_ends_in_one_or_two_runs_that_saw_every_image(story: Story, events: list[dict[str, Any]]) -> None:
    trained = story.trained(events)
    assert 1 <= len(trained) <= 2
    snapshot = story.snapshot(trained[-1]["dag_run_id"])
    assert (snapshot.total, snapshot.run_kind) == (24, "event")


def test_a_night_without_news_is_skipped_and_says_why(story: Story, quiet_night: dict[str, Any]) -> None:
    assert story.states(quiet_night["dag_run_id"]) == {"skipped"}
    assert "Nothing to train on until" in story.said(quiet_night["dag_run_id"])
    assert "the 24 images are those of the last assessed run" in story.said(quiet_night["dag_run_id"])


def test_a_night_without_news_held_no_worker(story: Story, quiet_night: dict[str, Any]) -> None:
    assert quiet_night["dag_run_id"] in story.deferred


def test_the_same_backfill_again_changes_nothing(
    story: Story, backfill: list[dict[str, Any]], quiet_night: dict[str, Any]
) -> None:
    before = documents_of(story.stack)
    queued = {run["dag_run_id"]: run["start_date"] for run in backfill}
    story.backfill("completed")
    again = story.ended(lambda: [run for run in story.runs("backfill") if run["start_date"] != queued[run["dag_run_id"]]], 3)
    assert {run["state"] for run in again} == {"success"}
    assert all(story.states(run["dag_run_id"]) == {"success"} for run in again)
    assert documents_of(story.stack) == before


def test_a_burst_of_500_uploads_told_by_s3_ends_in_one_or_two_runs_that_saw_every_image(
    story: Story, sqs: Queue, quiet_night: dict[str, Any]
) -> None:
    earlier = {run["dag_run_id"] for run in story.runs("asset_triggered")}
    for _ in range(10):
        first = story.uploaded
        story.upload(50)
        sqs.send([notification(f"images/benign/benign+%28{number}%29.png") for number in range(first, story.uploaded)])

    def trained() -> list[SnapshotDocument]:
        woken = story.ended(lambda: [run for run in story.runs("asset_triggered") if run["dag_run_id"] not in earlier], 1)
        names = [run["dag_run_id"] for run in woken]
        return [story.snapshot(name) for name in names if "skipped" not in story.states(name)]

    def saw_every_image() -> list[SnapshotDocument]:
        snapshots = [] if sqs.waiting() else trained()
        return snapshots if snapshots and snapshots[-1].total >= story.uploaded else []

    snapshots = eventually(saw_every_image, 600, lambda: f"{sqs.waiting()} notifications were not received")
    assert 1 <= len(snapshots) <= 2
    assert (snapshots[-1].total, snapshots[-1].run_kind) == (524, "event")


def test_a_night_that_only_waits_gives_way_to_a_person(story: Story, quiet_night: dict[str, Any]) -> None:
    def waiting_night() -> dict[str, Any] | None:
        night = next(iter(story.runs("scheduled")[2:]), None)
        return night if night and story.state_of_wait(night) == "deferred" else None

    wait_for_tick(story.ticks.yielding)
    run = eventually(waiting_night, 60, lambda: TOO_BUSY)
    asked = story.stack.api.trigger(DAG_ID, {})
    assert story.stack.api.wait_for_run(DAG_ID, asked, 180)["state"] == "success"
    assert story.states(run["dag_run_id"]) == {"skipped"}
    assert "this one gave way" in story.said(run["dag_run_id"])
