"""One Airflow in an environment: its database, its DAG file of two lines, its components."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from local.s3_server import S3Server, free_ports
from tests.matrix.environments import Environment, MatrixError, run

DAG_FILE = "from bcc_ops.dags import all_dags  # Airflow's DAGs\n\nglobals().update(all_dags())\n"
PASSWORD = "only-for-the-matrix"
READY_WITHIN = 600.0
RUN_WITHIN = 2400.0
HERE = Path(__file__).parent


class Airflow:
    """A home with the two-line DAG file, and the commands of an environment on it.

    Args:
        environment: with the wheel.
        home: a folder of its own.
        s3: holds the bucket.
        bucket: the images'.
        settings: more of Airflow's settings.
    """

    def __init__(self, environment: Environment, home: Path, s3: S3Server, bucket: str, settings: Mapping[str, str]) -> None:
        self.environment, self.home = environment, home
        (home / "dags").mkdir(parents=True)
        (home / "dags" / "bcc.py").write_text(DAG_FILE)
        passwords = home / "passwords.json"
        passwords.write_text(json.dumps(dict.fromkeys(("admin", "viewer"), PASSWORD)))
        self.port, log_port, trigger_port = free_ports(3)
        self.address = f"http://127.0.0.1:{self.port}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "BCC_", "PYTHON"))}
        self.variables = {
            **inherited,
            "PATH": f"{environment.folder}/bin{os.pathsep}{os.environ['PATH']}",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.address,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
            "AIRFLOW__API_AUTH__JWT_SECRET": PASSWORD * 4,
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_port),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger_port),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW_CONN_AWS_DEFAULT": s3.airflow_connection,
            "BCC_BUCKET": bucket,
            "BCC_CACHE_DIR": str(home / "cache"),
            **settings,
        }

    def command(self, *words: str) -> str:
        """Run `airflow …` and return what it printed.

        Raises:
            MatrixError: it failed.
        """
        return run([str(self.environment.folder / "bin" / "airflow"), *words], self.variables)

    def look(self) -> dict[str, list[str]]:
        """Return what `inside.py` sees."""
        seen: dict[str, list[str]] = json.loads(self.script("inside.py", str(self.home / "dags")).strip().splitlines()[-1])
        return seen

    def script(self, name: str, *arguments: str) -> str:
        """Run a script of this folder with the environment's interpreter, and return what it printed.

        Raises:
            MatrixError: it failed.
        """
        return run([str(self.environment.python), str(HERE / name), *arguments], self.variables)

    @contextmanager
    def serving(self, *words: str) -> Iterator[httpx.Client]:
        """Run `airflow …` for as long as the block lasts; gives a client of its API server that is not logged in.

        Args:
            words: `standalone`, or `api-server` alone.

        Raises:
            MatrixError: the API server did not answer within ten minutes.
        """
        log = self.home / "serving.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [self.environment.folder / "bin" / "airflow", *words],
                env=self.variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            with httpx.Client(base_url=self.address, timeout=60, trust_env=False, follow_redirects=False) as client:
                self._await(client, process, log)
                yield client
        finally:
            os.killpg(process.pid, 15)
            process.wait(60)

    def run_dag(self, client: httpx.Client, parameters: Mapping[str, object], run_id: str) -> None:
        """Trigger `bcc_retraining` as its users do, and wait for the end of the run.

        Raises:
            MatrixError: the DAG did not appear, or the run did not succeed.
        """
        headers = login(client, "admin")
        dag = "/api/v2/dags/bcc_retraining"
        self._await_answer("the DAG", lambda: client.get(dag, headers=headers).status_code == httpx.codes.OK)
        client.patch(dag, headers=headers, json={"is_paused": False}).raise_for_status()
        asked = {"dag_run_id": run_id, "logical_date": None, "conf": dict(parameters)}
        client.post(f"{dag}/dagRuns", headers=headers, json=asked).raise_for_status()

        def state() -> str:
            answer: str = client.get(f"{dag}/dagRuns/{run_id}", headers=headers).raise_for_status().json()["state"]
            return answer

        self._await_answer("the end of the run", lambda: state() in ("success", "failed"))
        if state() != "success":
            tasks = client.get(f"{dag}/dagRuns/{run_id}/taskInstances", headers=headers).json()["task_instances"]
            raise MatrixError(f"the run failed: { {task['task_id']: task['state'] for task in tasks} }; {self._errors()}")

    def _errors(self) -> str:
        """Return what the tasks of all runs failed with."""
        lines = [line for log in sorted(self.home.rglob("attempt=*.log")) for line in log.read_text().splitlines()]
        events = [json.loads(line) for line in lines if '"error_detail"' in line]
        return "; ".join(sorted({f"{one['exc_type']}: {one['exc_value']}" for event in events for one in event["error_detail"]}))

    def _await_answer(self, what: str, is_there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + RUN_WITHIN
        while not is_there():
            if time.monotonic() > deadline:
                raise MatrixError(
                    f"{what} did not come within {RUN_WITHIN:.0f} s: {(self.home / 'serving.log').read_text()[-3000:]}"
                )
            time.sleep(2)

    def _await(self, client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + READY_WITHIN
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get("/api/v2/version").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                time.sleep(1)
        raise MatrixError(f"the API server does not answer: {log.read_text()[-3000:]}")


def login(client: httpx.Client, user: str) -> dict[str, str]:
    """Return the headers of a logged-in user.

    Raises:
        MatrixError: the login was refused.
    """
    answer = client.post("/auth/token", json={"username": user, "password": PASSWORD})
    if answer.status_code != httpx.codes.CREATED:
        raise MatrixError(f"{user} cannot log in: {answer.status_code} {answer.text[:300]}")
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}
