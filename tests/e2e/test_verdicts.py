"""What becomes of challengers on the running stack: approved, rejected, unanswered, backfilled; and a roll-back.

One story on one stack, in this order. Each of its stations says what was under `models/` before it and after it.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from markupsafe import escape
from PIL import Image

from bcc_ops.runs.documents import (
    ApprovalDocument,
    ChampionDocument,
    EvaluationDocument,
    GateDocument,
    PromotionDocument,
    SnapshotDocument,
)
from bcc_ops.runs.paths import champion_pointer
from local.airflow_api import AirflowError, parse_moment
from local.stack import DAG_ID, USER, LocalStack
from tests.e2e.conftest import CLASSES, TINY, FinishedRun, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

# eighteen held-out images (one fold): the gate compares on them, and its margins decide nothing about the luck of two epochs
# of training. At these rates, all models rank the images alike, and none is the same file as another.
FIRST = {**TINY, "learning_rate": 1e-6}
COMPARED = {
    **TINY,
    "learning_rate": 2e-6,
    "min_malignant_groups": 1,
    "balanced_accuracy_margin": 1,
    "sensitivity_margin": 1,
}
HARDLY_TRAINED = {
    **TINY,
    "epochs": 1,
    "learning_rate": 1e-6,
    "min_malignant_groups": 1,
    "min_balanced_accuracy": 0.7,
    "min_macro_auc": 0.85,
}
FLOORS = {"min_balanced_accuracy", "min_macro_auc"}
ROLL_BACK, REASON = "bcc_set_champion", "misses <small> lesions"


@dataclass
class Station:
    """A run of the story that has ended, and all object versions under `models/` before and after it."""

    stack: LocalStack
    finished: FinishedRun
    before: list[tuple[str, str]]
    after: list[tuple[str, str]]

    def document(self, kind: Any, name: str) -> Any:
        """A document that the run left, None where it left none."""
        return self.stack.store.find(kind, self.finished.paths.document(name))

    @property
    def gate(self) -> GateDocument:
        found: GateDocument = self.document(GateDocument, "gate.json")
        return found

    @property
    def states(self) -> dict[str, str]:
        return {name: task["state"] for name, task in self.finished.tasks.items()}

    @property
    def report(self) -> str:
        """The run's page, as the API server has it."""
        return self.stack.api.page(f"/bcc/runs/{DAG_ID}/{quote(self.finished.run_id, safe='')}/report")


def under_models(stack: LocalStack) -> list[tuple[str, str]]:
    """Key and version of everything under `models/`: a write that changes no byte is seen too."""
    prefix = f"{stack.settings.models_prefix}/"
    return sorted((entry["Key"], entry["VersionId"]) for entry in stack.store.list_versions(prefix))


def champion(stack: LocalStack) -> ChampionDocument:
    return stack.store.load_key(ChampionDocument, champion_pointer(stack.settings.models_prefix))


@pytest.fixture(scope="module")
def tick() -> datetime:
    """A moment of the schedule after the upload of the images, to be backfilled."""
    later = datetime.now(timezone.utc) + timedelta(seconds=150)
    return later.replace(second=0, microsecond=0)


@pytest.fixture(scope="module")
def variables(tick: datetime, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A schedule with `tick`, and the minute after it: the last missed night, which Airflow makes up for by itself.

    Nights and events have the parameters of a quick training; what a manual run is given is the same or says more.
    """
    parameters = tmp_path_factory.mktemp("deployment") / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({**COMPARED, "settle_seconds": 1, "wait_for_images_minutes": 5}))
    ticks = (tick, tick + timedelta(minutes=1))
    minutes, hours = (",".join(sorted({str(getattr(one, part)) for one in ticks})) for part in ("minute", "hour"))
    return {"BCC_SCHEDULE": f"{minutes} {hours} * * *", "BCC_PARAMETERS": str(parameters)}


@pytest.fixture(scope="module")
def station(stack: LocalStack) -> Callable[[Callable[[], FinishedRun]], Station]:
    """Let a run happen, and see what it did to the models."""

    def happen(run: Callable[[], FinishedRun]) -> Station:
        before = under_models(stack)
        finished = run()
        return Station(stack, finished, before, under_models(stack))

    return happen


@pytest.fixture(scope="module")
def first(stack: LocalStack, tick: datetime, station: Any, run_pipeline: Any) -> Station:
    uploaded = max(entry["LastModified"] for entry in stack.store.list_objects(stack.settings.images_prefix))
    assert uploaded < tick, "this machine is too busy: the images came after the moment that is to be backfilled"
    wait_until(tick + timedelta(minutes=1, seconds=1))
    return station(lambda: run_pipeline(FIRST))


@pytest.fixture(scope="module")
def worse(first: Station, station: Any, run_pipeline: Any) -> Station:
    return station(lambda: run_pipeline(HARDLY_TRAINED))


@pytest.fixture(scope="module")
def unanswered(worse: Station, station: Any, run_pipeline: Any) -> Station:
    return station(lambda: run_pipeline({**COMPARED, "require_approval": True, "approval_timeout_minutes": 1}))


@pytest.fixture(scope="module")
def backfill(unanswered: Station, stack: LocalStack, tick: datetime, station: Any, follow_run: Any) -> Station:
    def run() -> FinishedRun:
        # A quick machine has read the DAG before the tick, and then Airflow makes up for that night too, and skips it.
        stack.api.backfill(DAG_ID, tick, tick, "completed", COMPARED)
        deadline = time.monotonic() + 300
        while not (runs := stack.api.runs(DAG_ID, run_type=["backfill"])):
            assert time.monotonic() < deadline, "the backfill made no run"
            time.sleep(1)
        [found] = runs
        finished: FinishedRun = follow_run(found["dag_run_id"])
        return finished

    return station(run)


@pytest.fixture(scope="module")
def second(backfill: Station, station: Any, run_pipeline: Any) -> Station:
    return station(lambda: run_pipeline({**COMPARED, "learning_rate": 3e-6}))


@pytest.fixture(scope="module")
def rolled_back(first: Station, second: Station, stack: LocalStack) -> dict[str, Any]:
    """The run of the DAG that moves the champion, back to the first version."""
    version = first.document(PromotionDocument, "promotion.json").version
    run_id = stack.api.trigger(ROLL_BACK, {"version": version, "reason": REASON})
    stack.api.set_paused(ROLL_BACK, False)
    return stack.api.wait_for_run(ROLL_BACK, run_id, within=900)


@pytest.fixture(scope="module")
def night(stack: LocalStack, station: Any, follow_run: Any, images: Path) -> Callable[..., Station]:
    """New images come and start a run, which a person turns down if it asks: `night(1)`."""

    def come(number: int) -> FinishedRun:
        for label in CLASSES:
            with Image.open(sorted(path for path in (images / label).glob("*.png") if "_mask" not in path.name)[number]) as image:
                cropped = image.convert("RGB").crop((12, 9, image.width - 5, image.height - 7))
            content = io.BytesIO()
            cropped.save(content, "PNG")
            stack.store.put(f"{stack.settings.images_prefix}/{label}/night {number}.png", content.getvalue())
        known = {run["dag_run_id"] for run in stack.api.runs(DAG_ID)}
        [asset] = [asset for asset in stack.api.call("GET", "/assets")["assets"] if asset["name"] == "breast_images"]
        stack.api.call("POST", "/assets/events", json={"asset_id": asset["id"], "extra": {}})
        [run_id] = awaited(lambda: [run["dag_run_id"] for run in stack.api.runs(DAG_ID) if run["dag_run_id"] not in known])

        def turned_down() -> list[str]:
            """Answer whenever the task asks: an answer within a second of the question makes Airflow put it again."""
            states = {name: task["state"] for name, task in stack.api.tasks(DAG_ID, run_id).items()}
            if states["approve_model"] == "awaiting_input":
                time.sleep(5)
                path = f"/dags/{DAG_ID}/dagRuns/{quote(run_id, safe='')}/taskInstances/approve_model/-1/hitlDetails"
                with suppress(AirflowError):  # answered already
                    stack.api.call("PATCH", path, json={"chosen_options": ["Reject"], "params_input": {}})
            return [state for state in [states["upload_model"]] if state in ("success", "skipped", "failed")]

        awaited(turned_down)
        finished: FinishedRun = follow_run(run_id)
        return finished

    return lambda number: station(lambda: come(number))


def awaited(find: Callable[[], list[Any]], within: float = 600) -> list[Any]:
    """Ask until there is something."""
    deadline = time.monotonic() + within
    while not (found := find()):
        assert time.monotonic() < deadline, "what was waited for never came"
        time.sleep(1)
    return found


@pytest.fixture(scope="module")
def held(rolled_back: dict[str, Any], night: Callable[..., Station]) -> list[Station]:
    """Three nights with new images while a person holds the champion."""
    return [night(number) for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def released(held: list[Station], stack: LocalStack, night: Callable[..., Station]) -> Station:
    """The night after the hold was released."""
    run_id = stack.api.trigger(ROLL_BACK, {"release_hold": True, "reason": "the labels are corrected"})
    assert stack.api.wait_for_run(ROLL_BACK, run_id, within=900)["state"] == "success"
    return night(4)


def test_a_first_model_is_approved_without_a_champion(first: Station) -> None:
    assert first.finished.run["state"] == "success"
    assert first.gate.verdict == "approved_without_champion"
    assert first.before == []
    promotion = first.document(PromotionDocument, "promotion.json")
    assert (promotion.promoted, promotion.previous_champion, promotion.approved_by) == (True, None, "the gate")
    assert champion(first.stack).version == promotion.version
    assert "Approved, with no champion to compare with" in first.report
    assert f"In use as version {promotion.version}, approved by the gate." in first.report


def test_a_worse_model_is_rejected_and_the_run_is_a_success(first: Station, worse: Station) -> None:
    assert worse.finished.run["state"] == "success"
    assert worse.gate.verdict == "rejected"
    assert (worse.states["approve_model"], worse.states["upload_model"]) == ("skipped", "skipped")
    assert worse.states["publish_plots"] == "success"
    metrics = worse.document(EvaluationDocument, "evaluation.json").challenger
    assert metrics.balanced_accuracy.value < 0.7
    assert {rule.rule for rule in worse.gate.rules if not rule.passed} >= FLOORS
    assert worse.gate.champion_version == champion(worse.stack).version


def test_the_reasons_of_a_rejection_are_in_gate_json_and_on_the_page(worse: Station) -> None:
    failed = [rule.sentence for rule in worse.gate.rules if rule.applies and not rule.passed]
    assert failed == list(worse.gate.reasons)
    assert any("below the floor of 0.700" in reason for reason in failed)
    page = worse.report
    assert "<h2>Rejected</h2>" in page
    assert f"Champion {worse.gate.champion_version} stays in use." in page
    assert all(f"<li>{escape(reason)}</li>" in page for reason in failed)


def test_a_rejected_model_is_not_uploaded_and_the_champion_stays(worse: Station) -> None:
    assert worse.after == worse.before
    assert worse.document(PromotionDocument, "promotion.json") is None


def test_an_approval_that_nobody_gives_in_time_refuses_the_model(unanswered: Station) -> None:
    assert unanswered.finished.run["state"] == "success"
    assert unanswered.gate.verdict == "approved"
    assert unanswered.states["upload_model"] == "skipped"
    approval = unanswered.document(ApprovalDocument, "approval.json")
    assert (approval.approved, approval.timed_out, approval.by) == (False, True, "nobody, in time")
    assert unanswered.states["approve_model"] == "success"
    asked = parse_moment(unanswered.finished.tasks["gate_model"]["end_date"])
    assert approval.at - asked >= timedelta(minutes=1)
    assert unanswered.after == unanswered.before
    assert unanswered.document(PromotionDocument, "promotion.json") is None


def test_the_pages_say_that_nobody_answered(unanswered: Station) -> None:
    page = unanswered.report
    assert "<h2>Approved by the gate, but nobody answered in time</h2>" in page
    assert f"Champion {champion(unanswered.stack).version} stays in use." in page
    assert "nobody answered" in unanswered.stack.api.page("/bcc/models")


def test_a_backfill_is_judged_and_leaves_the_champion_alone(backfill: Station, tick: datetime) -> None:
    assert backfill.finished.run["state"] == "success"
    snapshot = backfill.document(SnapshotDocument, "snapshot.json")
    assert (snapshot.run_kind, snapshot.as_of) == ("backfill", tick)
    assert backfill.states["evaluate_model"] == backfill.states["publish_plots"] == "success"
    assert backfill.gate.verdict == "rejected"
    assert "A backfill leaves the champion alone: promote_backfill is off." in backfill.gate.reasons
    assert backfill.after == backfill.before
    assert "A backfill leaves the champion alone" in backfill.report


def test_a_second_model_replaces_the_champion(first: Station, second: Station) -> None:
    assert second.gate.verdict == "approved"
    promotion = second.document(PromotionDocument, "promotion.json")
    assert promotion.previous_champion == first.document(PromotionDocument, "promotion.json").version
    assert {key.rsplit("/", 1)[0] for key, _ in set(second.after) - set(second.before)} == {
        second.stack.settings.models_prefix,
        f"{second.stack.settings.models_prefix}/{promotion.version}",
    }


def test_a_roll_back_returns_to_the_first_version(first: Station, second: Station, rolled_back: dict[str, Any]) -> None:
    assert rolled_back["state"] == "success"
    one, two = (station.document(PromotionDocument, "promotion.json").version for station in (first, second))
    now = champion(first.stack)
    assert (now.version, now.by, now.reason) == (one, USER, REASON)
    assert [move.version for move in now.history] == [two, one]


def test_a_roll_back_is_told_in_the_ui_with_who_and_why(first: Station, rolled_back: dict[str, Any]) -> None:
    page = first.stack.api.page("/bcc/models")
    assert f'<dt>Version</dt><dd class="key">{first.document(PromotionDocument, "promotion.json").version}</dd>' in page
    assert f"by {USER}: {escape(REASON)}" in page


def test_a_roll_back_moves_the_pointer_and_writes_nothing_else(second: Station, rolled_back: dict[str, Any]) -> None:
    moved = set(under_models(second.stack)) - set(second.after)
    assert [key for key, _ in moved] == [champion_pointer(second.stack.settings.models_prefix)]


def test_after_a_rollback_no_night_replaces_the_champion_and_each_verdict_says_why(first: Station, held: list[Station]) -> None:
    chosen = first.document(PromotionDocument, "promotion.json").version
    for station in held:
        assert station.document(SnapshotDocument, "snapshot.json").run_kind == "event"
        assert station.gate.verdict == "needs_person"
        assert any(f"{USER} holds champion {chosen} since" in reason and REASON in reason for reason in station.gate.reasons)
        assert (station.states["approve_model"], station.states["upload_model"]) == ("success", "skipped")
        assert station.after == station.before
        assert station.gate.champion_version == chosen


def test_the_models_page_says_who_holds_the_champion_and_how_to_release_it(first: Station, rolled_back: dict[str, Any]) -> None:
    page = first.stack.api.page("/bcc/models")
    assert f"<dt>Held</dt><dd>by {USER} since" in page and "Release the hold" in page
    assert "1 model file that a person replaced" in page


def test_releasing_the_hold_lets_the_next_night_through(first: Station, released: Station) -> None:
    assert released.gate.verdict == "approved"
    promotion = released.document(PromotionDocument, "promotion.json")
    assert promotion.promoted and promotion.previous_champion == first.document(PromotionDocument, "promotion.json").version
    now = champion(released.stack)
    assert (now.version, now.hold, now.by) == (promotion.version, None, "the gate")
    assert now.history[0].reason == "The hold was released: the labels are corrected"
