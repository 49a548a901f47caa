"""Airflow's REST API, as far as running and watching the pipeline needs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

RUN_ENDED = ("success", "failed")

_PATIENCE = 180.0

T = TypeVar("T")


class AirflowError(RuntimeError):
    """Airflow does not answer, or refuses. One line."""


class AirflowUnavailable(AirflowError):
    """Airflow does not answer now, but may later."""


class AirflowApi:
    """A client for one Airflow.

    The client waits for an API server that is restarting or overloaded: what may be asked twice is asked again
    for three minutes.

    Args:
        address: `http://127.0.0.1:8080`.
        user, password: of SimpleAuthManager; the token is fetched at the first call, and again when it has expired.
    """

    def __init__(self, address: str, user: str, password: str) -> None:
        self.address = address
        self.patience = _PATIENCE
        """Seconds for which a server that does not answer is asked again."""
        self._login = {"username": user, "password": password}
        # trust_env: a proxy configured for this machine must not be asked for its own loopback
        self._client = httpx.Client(base_url=address, timeout=30, trust_env=False)
        self._token: str | None = None

    def call(self, method: str, path: str, **request: Any) -> Any:
        """Send a request below `/api/v2` and return the answer's JSON.

        Raises:
            AirflowUnavailable: no answer, or one of 500 and above; after three minutes for GET and PATCH.
            AirflowError: an answer of 400 and above; the message has Airflow's own detail.
        """
        answer = self._ask(method, f"/api/v2{path}", **request)
        return answer.json() if answer.content else None

    def page(self, path: str) -> str:
        """Return the text of a page that a plugin serves. Raises as `call` does."""
        return self._ask("GET", path).text

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        ask = partial(self._ask_once, method, path, **request)
        return self._patiently(ask) if method in ("GET", "PATCH") else ask()

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Return what `ask` returns, asking again while Airflow does not answer."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return ask()
            except AirflowUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def _ask_once(self, method: str, path: str, **request: Any) -> httpx.Response:
        answer = self._send(method, path, **request)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            self._token = None
            answer = self._send(method, path, **request)
        if answer.is_server_error:
            raise AirflowUnavailable(f"{method} {path}: {answer.status_code} {_detail(answer)}")
        if answer.is_error:
            raise AirflowError(f"{method} {path}: {answer.status_code} {_detail(answer)}")
        return answer

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            if self._token is None:
                answer = self._client.post("/auth/token", json=self._login)
                if answer.is_error:
                    raise AirflowError(f"the login as {self._login['username']} is refused: {_detail(answer)}")
                self._token = answer.json()["access_token"]
            return self._client.request(method, path, headers={"Authorization": f"Bearer {self._token}"}, **request)
        except httpx.HTTPError as error:
            raise AirflowUnavailable(f"{self.address} does not answer: {error or type(error).__name__}") from None

    def close(self) -> None:
        """Close the connections that are kept for the next call."""
        self._client.close()

    def health(self) -> dict[str, str]:
        """Component -> "healthy" or what else Airflow says of it: metadatabase, scheduler, triggerer, dag_processor."""
        try:
            answer = self._client.get("/api/v2/monitor/health")
            return {name: str((state or {}).get("status")) for name, state in answer.json().items()}
        except (httpx.HTTPError, ValueError):
            return {}

    def ensure_pool(self, name: str, slots: int) -> None:
        """Make a pool, or give it this many slots."""
        pool = {"slots": slots, "include_deferred": False, "description": "Tasks that need the accelerator."}
        if name in {known["name"] for known in self.call("GET", "/pools", params={"limit": 100})["pools"]}:
            self.call("PATCH", f"/pools/{quote(name)}", json={"pool": name, **pool})
        else:
            self.call("POST", "/pools", json={"name": name, **pool})

    def dag(self, dag_id: str) -> dict[str, Any] | None:
        """Return what Airflow knows of a DAG; None before it was parsed."""
        try:
            found: dict[str, Any] = self.call("GET", f"/dags/{quote(dag_id)}")
        except AirflowError as error:
            if ": 404 " in str(error):
                return None
            raise
        return found

    def import_errors(self) -> list[str]:
        """Return one line per DAG file that cannot be imported: its name and the exception."""
        errors = self.call("GET", "/importErrors")["import_errors"]
        return [f"{error['filename']}: {error['stack_trace'].strip().splitlines()[-1]}" for error in errors]

    def set_paused(self, dag_id: str, paused: bool) -> None:
        """Pause a DAG, or let it run."""
        self.call("PATCH", f"/dags/{quote(dag_id)}", json={"is_paused": paused})

    def trigger(self, dag_id: str, conf: Mapping[str, Any], run_id: str | None = None) -> str:
        """Start a manual run and return its id."""
        name = run_id or f"manual__{datetime.now(timezone.utc).isoformat()}"
        body = {"conf": dict(conf), "logical_date": None, "dag_run_id": name}
        self._create(f"/dags/{quote(dag_id)}/dagRuns", body, lambda: name in {run["dag_run_id"] for run in self.runs(dag_id)})
        return name

    def backfill(self, dag_id: str, first: datetime, last: datetime, reprocess: str, conf: dict[str, Any] | None = None) -> None:
        """Ask for the runs of a DAG whose logical dates are in a span.

        If another component writes to Airflow's SQLite at that moment, Airflow answers 503 and takes the backfill back, or fails
        and leaves one without runs, which blocks every other (apache/airflow#66726). Such a one is cancelled here.

        Args:
            reprocess: "none", or which earlier runs of these dates are repeated: "failed", "completed".
            conf: of each run.
        """
        body = {
            "dag_id": dag_id,
            "from_date": first.isoformat(),
            "to_date": last.isoformat(),
            "reprocess_behavior": reprocess,
            "dag_run_conf": conf,
        }
        known = self._backfills(dag_id)

        def made() -> bool:
            new = self._backfills(dag_id) - known
            span = {"run_type": "backfill", "logical_date_gte": body["from_date"], "logical_date_lte": body["to_date"]}
            if not new or self.runs(dag_id, **span):
                return bool(new)
            for orphan in new:
                self.call("PUT", f"/backfills/{orphan}/cancel")
                known.add(orphan)
            return False

        self._create("/backfills", body, made)

    def _backfills(self, dag_id: str) -> set[int]:
        return {backfill["id"] for backfill in self.call("GET", "/backfills", params={"dag_id": dag_id})["backfills"]}

    def _create(self, path: str, body: Mapping[str, Any], made: Callable[[], bool]) -> None:
        """POST, and again if no answer came.

        Args:
            made: whether it is there by now: perhaps only the answer was lost, not the request.
        """
        lost = False

        def post() -> None:
            nonlocal lost
            try:
                self.call("POST", path, json=body)
            except AirflowError as error:
                lost = lost or isinstance(error, AirflowUnavailable)
                if not (lost and made()):
                    raise

        self._patiently(post)

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return one run: state, start_date, end_date, conf, …"""
        found: dict[str, Any] = self.call("GET", _run_path(dag_id, run_id))
        return found

    def runs(self, dag_id: str, **filters: Any) -> list[dict[str, Any]]:
        """Return the runs of a DAG, newest first. `filters`: query parameters, `state=["running", "queued"]`."""
        parameters = {"order_by": "-run_after", "limit": 100, **filters}
        found: list[dict[str, Any]] = self.call("GET", f"/dags/{quote(dag_id)}/dagRuns", params=parameters)["dag_runs"]
        return found

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """Return the task instances of a run: state, start_date, end_date, duration, try_number, hostname, pid, map_index, …

        They are named by their task's id; those of a mapped task by `train_model[0]`, `train_model[1]` and so on.
        """
        found = self.call("GET", f"{_run_path(dag_id, run_id)}/taskInstances", params={"limit": 100})["task_instances"]
        return {_instance_name(task): task for task in found}

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Return what a task returned, or an instance of a mapped one; None if it returned nothing."""
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id)}/xcomEntries/{quote(key)}"
        try:
            return self.call("GET", path, params={"deserialize": True, "map_index": map_index})["value"]
        except AirflowError as error:
            if ": 404 " in str(error):
                return None
            raise

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int = -1) -> list[dict[str, Any]]:
        """Return the events in a task's log: `event`, `level`, `timestamp`, `error_detail`, …

        Args:
            map_index: of an instance of a mapped task.
        """
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id)}/logs/{try_number}"
        content = self.call("GET", path, params={"full_content": True, "map_index": map_index})["content"]
        return [entry if isinstance(entry, dict) else {"event": str(entry)} for entry in content]

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task instance as `success`, `failed` or `skipped`."""
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id)}"
        try:
            self.call("PATCH", path, json={"new_state": state})
        except AirflowError as error:
            # it is asked again if the answer was late, and is done by then
            if ": 409 " not in str(error) or f"already in {state} state" not in str(error):
                raise

    def wait_for_run(self, dag_id: str, run_id: str, within: float, watch: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Wait until a run has ended and return it.

        Args:
            within: seconds.
            watch: called between two looks; may raise to end the waiting.

        Raises:
            AirflowError: it did not end in that time; the message says which tasks were where.
        """
        deadline = time.monotonic() + within
        while True:
            run = self.run(dag_id, run_id)
            if run["state"] in RUN_ENDED:
                return run
            if time.monotonic() > deadline:
                states = {name: task["state"] for name, task in self.tasks(dag_id, run_id).items() if task["state"]}
                raise AirflowError(f"the run {run_id} has not ended within {within:.0f} s: {states}")
            watch()
            time.sleep(1)


def parse_moment(text: str) -> datetime:
    """Return a moment as Airflow writes it, aware. Python 3.10's own parser knows no `Z`."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _run_path(dag_id: str, run_id: str) -> str:
    return f"/dags/{quote(dag_id)}/dagRuns/{quote(run_id, safe='')}"


def _instance_name(task: dict[str, Any]) -> str:
    return str(task["task_id"]) if task["map_index"] < 0 else f"{task['task_id']}[{task['map_index']}]"


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("detail", answer.text))
    except ValueError:
        return answer.text[:200]
