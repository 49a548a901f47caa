"""The REST client, against a server that answers as the test says."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import httpx
import pytest

from local.airflow_api import AirflowApi, AirflowError, AirflowUnavailable


def _client(*answers: httpx.Response | Exception) -> tuple[AirflowApi, list[httpx.Request]]:
    """A client whose requests, logins aside, get these answers one by one."""
    waiting, seen = list(answers), []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            return httpx.Response(201, json={"access_token": f"token-{len(seen)}"})
        seen.append(request)
        answer = waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    api = AirflowApi("http://127.0.0.1:1", "admin", "password")
    api._client = httpx.Client(base_url="http://127.0.0.1:1", transport=httpx.MockTransport(handle))
    return api, seen


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.airflow_api.time.sleep", lambda seconds: None)


def test_a_run_is_triggered_without_a_logical_date() -> None:
    api, seen = _client(httpx.Response(200, json={"dag_run_id": "mine"}))
    assert api.trigger("dag", {"epochs": 2}, run_id="mine") == "mine"
    assert json.loads(seen[0].content) == {"conf": {"epochs": 2}, "logical_date": None, "dag_run_id": "mine"}


def test_an_expired_token_is_renewed() -> None:
    api, seen = _client(httpx.Response(401), httpx.Response(200, json={"state": "success"}))
    assert api.run("dag", "mine")["state"] == "success"
    assert [request.headers["Authorization"] for request in seen] == ["Bearer token-0", "Bearer token-1"]


@pytest.mark.parametrize("trouble", [httpx.ConnectError("refused"), httpx.ReadTimeout("timed out"), httpx.Response(503)])
def test_a_server_that_is_starting_again_is_waited_for(trouble: httpx.Response | Exception) -> None:
    api, seen = _client(trouble, trouble, httpx.Response(200, json={"state": "running"}))
    assert api.run("dag", "mine")["state"] == "running"
    assert len(seen) == 3


def test_waiting_for_a_server_has_an_end() -> None:
    api, _ = _client(httpx.ConnectError("refused"))
    api.patience = -1
    with pytest.raises(AirflowUnavailable, match=r"http://127.0.0.1:1 does not answer: refused"):
        api.run("dag", "mine")


RUNS = httpx.Response(200, json={"dag_runs": [{"dag_run_id": "mine"}]})
NO_RUNS = httpx.Response(200, json={"dag_runs": []})
LATE = httpx.ReadTimeout("timed out")


def test_a_trigger_whose_answer_is_late_is_looked_for_before_it_is_sent_again() -> None:
    api, seen = _client(LATE, RUNS)
    assert api.trigger("dag", {}, run_id="mine") == "mine"
    assert [request.method for request in seen] == ["POST", "GET"]


def test_a_trigger_that_was_not_heard_is_sent_again_under_the_same_name() -> None:
    api, seen = _client(LATE, NO_RUNS, httpx.Response(200, json={}))
    name = api.trigger("dag", {})
    first, _, second = seen
    assert json.loads(first.content) == json.loads(second.content)
    assert json.loads(first.content)["dag_run_id"] == name


def test_a_trigger_that_was_heard_after_all_is_no_error() -> None:
    api, _ = _client(LATE, NO_RUNS, httpx.Response(409, json={"detail": "the run exists"}), RUNS)
    assert api.trigger("dag", {}, run_id="mine") == "mine"


def test_a_trigger_that_is_never_heard_ends() -> None:
    api, _ = _client(LATE, NO_RUNS)
    api.patience = 0
    with pytest.raises(AirflowUnavailable):
        api.trigger("dag", {}, run_id="mine")


def test_a_backfill_that_airflow_takes_back_is_asked_for_again() -> None:
    def backfills(*ids: int) -> httpx.Response:
        return httpx.Response(200, json={"backfills": [{"id": number} for number in ids]})

    api, seen = _client(backfills(1), httpx.Response(503), backfills(1), httpx.Response(200, json={"id": 3}))
    day = datetime(2026, 11, 22, 3, tzinfo=timezone.utc)
    api.backfill("dag", day, day, "none")
    assert [request.method for request in seen] == ["GET", "POST", "GET", "POST"]
    assert json.loads(seen[3].content) == {
        "dag_id": "dag",
        "from_date": "2026-11-22T03:00:00+00:00",
        "to_date": "2026-11-22T03:00:00+00:00",
        "reprocess_behavior": "none",
        "dag_run_conf": None,
    }


def test_a_backfill_without_runs_that_airflow_left_behind_is_cancelled_before_it_is_asked_for_again() -> None:
    """Otherwise the next attempt meets a 409, for a backfill that will never do anything."""

    def backfills(*ids: int) -> httpx.Response:
        return httpx.Response(200, json={"backfills": [{"id": number} for number in ids]})

    no_runs, done = httpx.Response(200, json={"dag_runs": []}), httpx.Response(200, json={"id": 3})
    api, seen = _client(backfills(1), httpx.Response(500), backfills(1, 2), no_runs, done, done)
    day = datetime(2026, 11, 22, 3, tzinfo=timezone.utc)
    api.backfill("dag", day, day, "none")
    assert [request.method for request in seen] == ["GET", "POST", "GET", "GET", "PUT", "POST"]
    assert seen[4].url.path == "/api/v2/backfills/2/cancel"


def test_a_backfill_that_was_made_though_the_answer_was_lost_is_left_alone() -> None:
    made = httpx.Response(200, json={"backfills": [{"id": 1}]})
    api, seen = _client(httpx.Response(200, json={"backfills": []}), LATE, made, RUNS)
    day = datetime(2026, 11, 22, 3, tzinfo=timezone.utc)
    api.backfill("dag", day, day, "none")
    assert [request.method for request in seen] == ["GET", "POST", "GET", "GET"]


def test_a_task_that_has_the_state_already_is_no_error() -> None:
    late = httpx.Response(409, json={"detail": "Task id wait is already in skipped state"})
    api, _ = _client(httpx.ReadTimeout("timed out"), late, httpx.Response(409, json={"detail": "something else"}))
    api.set_task_state("dag", "mine", "wait", "skipped")
    with pytest.raises(AirflowError, match="something else"):
        api.set_task_state("dag", "mine", "wait", "skipped")


def test_a_refusal_is_told_with_airflows_own_words() -> None:
    api, _ = _client(httpx.Response(409, json={"detail": "the run exists"}))
    with pytest.raises(AirflowError, match="409 the run exists"):
        api.trigger("dag", {})


def test_a_dag_that_is_not_parsed_yet_is_none() -> None:
    api, _ = _client(httpx.Response(404, json={"detail": "not found"}))
    assert api.dag("dag") is None


def test_a_run_that_does_not_end_is_told_with_its_tasks() -> None:
    running = httpx.Response(200, json={"state": "running"})
    tasks = [
        {"task_id": name, "map_index": -1, "state": state} for name, state in (("train_model", "running"), ("gate_model", None))
    ]
    api, _ = _client(running, httpx.Response(200, json={"task_instances": tasks}))
    with pytest.raises(AirflowError, match=r"mine has not ended within -1 s: \{'train_model': 'running'\}"):
        api.wait_for_run("dag", "mine", within=-1)


def test_instances_of_a_mapped_task_are_told_apart_and_their_logs_asked_for_by_index() -> None:
    found = [{"task_id": "train_model", "map_index": index} for index in (0, 1)] + [{"task_id": "gate_model", "map_index": -1}]
    api, seen = _client(httpx.Response(200, json={"task_instances": found}), httpx.Response(200, json={"content": []}))
    assert list(api.tasks("dag", "mine")) == ["train_model[0]", "train_model[1]", "gate_model"]
    api.task_log("dag", "mine", "train_model", 2, 1)
    assert seen[1].url.path.endswith("/taskInstances/train_model/logs/2")
    assert seen[1].url.params["map_index"] == "1"
