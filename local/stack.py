"""The whole stack on one machine: an S3 server and Airflow's four components, on loopback only, in one folder.

`LocalStack` is what `make run` and the end-to-end tests start:

    with LocalStack(home) as stack:
        run_id = stack.api.trigger("bcc_retraining", {"epochs": 2})
        stack.api.wait_for_run("bcc_retraining", run_id, within=600)

What it keeps under `home`:

    secrets.json, passwords.json     made once, readable by their owner only
    processes.json, lock, logs/      who runs, and what each component said
    s3/                              the S3 server's data
    cache/                           images on this worker (BCC_CACHE_DIR)
    airflow/<bucket>/                Airflow's home for this bucket: metadata database (SQLite), task logs
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from bcc_ops.config import Settings
from bcc_ops.exceptions import BucketNotFound
from bcc_ops.runs.object_store import ObjectStore
from local import s3_server
from local.airflow_api import AirflowApi, parse_moment
from local.processes import ProcessError, StackError, Supervisor

REPOSITORY = Path(__file__).resolve().parents[1]
DAG_ID = "bcc_retraining"
USER, VIEWER = "admin", "viewer"

_READY_WITHIN = 240.0
_LEAST_FREE_BYTES = 2 * 1024**3
_COMPONENTS: dict[str, tuple[str, ...]] = {
    "api-server": ("api-server",),
    # The log servers of scheduler and triggerer listen on all interfaces, and cannot be told otherwise. On one machine
    # the API server reads the logs from the disk.
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}


NO_AWS_OF_THE_USERS = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What keeps a profile or an endpoint in the user's own files from reaching into botocore."""


class LocalStack:
    """The stack, running while the `with` block does.

    Args:
        home: the folder that holds everything; one stack per folder at a time.
        bucket: made, with versions, if the S3 server is the stack's own.
        own_s3: False uses the S3 that the environment's `AIRFLOW_CONN_*` names; its bucket must be there.
        variables: `BCC_*` settings and others that the components get, over what this process has.
        ui_ports: where the UI may listen, the first free one is taken; None for any.
        dags, plugins: Airflow's folders.
        gpu_slots: of the gpu pool.
        database: address of an empty metadata database; None for a SQLite file in the folder.
        wait: False comes back as soon as the store is up and Airflow is starting; `wait_until_ready` does the rest.
        say: takes a line for people.
    """

    def __init__(
        self,
        home: Path,
        *,
        bucket: str = "breast-images",
        own_s3: bool = True,
        variables: Mapping[str, str] | None = None,
        ui_ports: Sequence[int] | None = None,
        dags: Path = REPOSITORY / "dags",
        plugins: Path = REPOSITORY / "plugins",
        gpu_slots: int = 1,
        database: str | None = None,
        wait: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        self.home = home.resolve()
        self.bucket = bucket
        self.own_s3 = own_s3
        self.dags = dags
        self.plugins = plugins
        self.gpu_slots = gpu_slots
        self.database = database
        self.wait = wait
        self.say = say
        self._variables = dict(variables or {})
        self._ui_ports = ui_ports
        self.port = 0
        """The UI's port, once it is started."""
        self._s3_port = 0
        self._started = 0.0
        self.supervisor: Supervisor

    # What it is made of ----------------------------------------------------------------------------------------------

    @cached_property
    def secrets(self) -> dict[str, str]:
        """Keys and the S3 server's credentials: random, made at the first start."""
        return _kept_json(
            self.home / "secrets.json",
            lambda: {
                "jwt_secret": secrets.token_urlsafe(64),
                "api_secret_key": secrets.token_urlsafe(32),
                "fernet_key": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "s3_access_key": f"local{secrets.token_hex(6)}",
                "s3_secret_key": secrets.token_urlsafe(24),
            },
        )

    @cached_property
    def passwords(self) -> dict[str, str]:
        """User -> password of the UI; the file is the one that Airflow reads."""
        return _kept_json(
            self.home / "passwords.json", lambda: {USER: secrets.token_urlsafe(12), VIEWER: secrets.token_urlsafe(12)}
        )

    @property
    def address(self) -> str:
        """The UI's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def airflow_home(self) -> Path:
        """Airflow's home: the metadata database and the tasks' logs."""
        return self.home / "airflow" / self.bucket

    @cached_property
    def api(self) -> AirflowApi:
        """Airflow's REST API, as the admin."""
        return AirflowApi(self.address, USER, self.passwords[USER])

    @cached_property
    def settings(self) -> Settings:
        """The pipeline's settings as its components see them."""
        return Settings.from_environment(self.environment)

    @cached_property
    def s3(self) -> s3_server.S3Server:
        """The own S3 server."""
        keys = self.secrets
        return s3_server.S3Server(f"http://127.0.0.1:{self._s3_port}", keys["s3_access_key"], keys["s3_secret_key"], 0)

    @cached_property
    def store(self) -> ObjectStore:
        """The bucket that the pipeline works on."""
        if self.own_s3:
            return ObjectStore(self.s3.client(), self.bucket)
        os.environ["AIRFLOW_HOME"] = str(self.airflow_home)  # importing Airflow makes one
        from bcc_ops.operators.base import open_store  # the connection's meaning is Airflow's to say

        return open_store(self.settings)

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of every component.

        An Airflow or AWS configuration of the user's own must not reach in: only connections and variables do.
        """
        home = self.airflow_home
        own = {name: value for name, value in os.environ.items() if not _is_foreign(name, own_s3=self.own_s3)}
        sqlite = f"sqlite:///{home / 'airflow.db'}?timeout=60"  # seconds; four components write to one file
        return {
            **own,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            **no_proxy_for_loopback(os.environ),
            "PYTHONUNBUFFERED": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.plugins),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "3",  # each is a process that is forked at the start
            "AIRFLOW__CORE__FERNET_KEY": self.secrets["fernet_key"],
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin,{VIEWER}:viewer",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.address,
            "AIRFLOW__API__SECRET_KEY": self.secrets["api_secret_key"],
            "AIRFLOW__API_AUTH__JWT_SECRET": self.secrets["jwt_secret"],
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.database or sqlite,
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
            "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
            "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FOLDER_PERMISSIONS": "0o700",
            "AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FILE_PERMISSIONS": "0o600",
            # no log server to ask for a running task's log (see _COMPONENTS): a traceback in the log at each look
            "AIRFLOW__LOGGING__NAMESPACE_LEVELS": "airflow.utils.log.file_task_handler=CRITICAL",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "120",  # two cores: parsing costs seconds of one
            # a task whose machine was switched off is taken up again after a minute, not five
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "BCC_CACHE_DIR": str(self.home / "cache"),
            **self._variables,
            "BCC_BUCKET": self.bucket,
            **(self._own_connection() if self.own_s3 else {}),
        }

    def _own_connection(self) -> dict[str, str]:
        connection_id = self._variables.get("BCC_AWS_CONN_ID") or "aws_default"
        return {
            f"AIRFLOW_CONN_{connection_id.upper()}": self.s3.airflow_connection,
            **NO_AWS_OF_THE_USERS,
        }

    # Start and end ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> LocalStack:
        """Start everything and wait until it is healthy.

        Raises:
            StackError: it cannot start, or not within four minutes.
            AlreadyRunning: another stack holds the folder.
        """
        require_free_space(self.home)
        self.supervisor = Supervisor(self.home, self.say)
        try:
            # only now: what a killed start left may have held the port until a moment ago
            self.port = s3_server.free_ports(1)[0] if self._ui_ports is None else first_free_port(self._ui_ports)
            self.start_store()
            self._start_airflow()
            if self.wait:
                self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process, the S3 server last: a task may be writing to it. What is on the disk stays."""
        self.supervisor.stop(last=("s3",))
        if "api" in self.__dict__:
            self.api.close()

    def start_store(self) -> None:
        """Start the own S3 server and make the bucket, or make sure that the configured one answers."""
        if self.own_s3:
            self._s3_port = s3_server.free_ports(1)[0]
            keys = self.secrets
            log = self.supervisor.log_path("s3")

            def launch() -> subprocess.Popen[bytes]:
                with log.open("wb") as output:
                    return s3_server.start(
                        self.home / "s3", keys["s3_access_key"], keys["s3_secret_key"], self._s3_port, log=output
                    )

            self.supervisor.adopt("s3", launch)
            self._ensure_bucket()
        self.store.check()

    def _ensure_bucket(self) -> None:
        try:
            self.store.check()
        except BucketNotFound:
            self.s3.client().create_bucket(Bucket=self.bucket)
            # with versions a past moment can be listed exactly, which backfills need
            self.s3.client().put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def _start_airflow(self) -> None:
        _ = self.passwords  # written before the API server would make its own
        self.airflow_home.mkdir(parents=True, exist_ok=True)
        self._migrate()
        for name in _COMPONENTS:
            if name != "scheduler":
                self._start_component(name)
        self._started = time.time()

    def _start_component(self, name: str) -> None:
        self.supervisor.start(name, [sys.executable, "-m", "airflow", *_COMPONENTS[name]], self.environment)

    def wait_until_ready(self) -> None:
        """Wait until Airflow is healthy and has read the DAGs again, and make the gpu pool.

        Raises:
            StackError: it takes more than four minutes, or a DAG cannot be imported.
            ProcessError: a component does not stay up.
        """
        # A scheduler starts tasks that an earlier start left at once; with no API server to talk to they would fail.
        self._await("Airflow's API server", lambda: "" if self.api.health() else "no answer")
        self._start_component("scheduler")
        self._await("Airflow", self._unhealthy)
        self.api.ensure_pool(self.settings.gpu_pool, self.gpu_slots)
        self._await("the DAGs", lambda: self._unparsed(self._started))

    def _migrate(self) -> None:
        """Make the metadata database, or bring it to this version of Airflow; do nothing if that was done."""
        version = importlib.metadata.version("apache-airflow")
        stamp, database = self.airflow_home / "migrated", self.airflow_home / "airflow.db"
        if (self.database or database.exists()) and stamp.exists() and stamp.read_text() == version:
            return
        log = self.supervisor.log_path("db-migrate")
        with log.open("wb") as output:
            done = subprocess.run(
                [sys.executable, "-m", "airflow", "db", "migrate"],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != 0:
            raise StackError(f"the metadata database cannot be created ({_last_line(log)}): see {log}")
        if not self.database:
            with closing(sqlite3.connect(database)) as connection:
                # readers no longer block the writer: without it, `database is locked` under four components
                connection.execute("PRAGMA journal_mode=WAL")
        stamp.write_text(version)

    def _await(self, what: str, missing: Callable[[], str]) -> None:
        deadline = time.monotonic() + _READY_WITHIN
        while still := missing():
            self.supervisor.check()
            if time.monotonic() > deadline:
                raise StackError(f"{what} did not get ready within {_READY_WITHIN:.0f} s: {still}; see {self.home / 'logs'}")
            time.sleep(0.5)

    def _unhealthy(self) -> str:
        health = self.api.health() or {"api-server": "no answer"}
        return ", ".join(f"{name}: {state}" for name, state in health.items() if state != "healthy")

    def _unparsed(self, since: float) -> str:
        if errors := self.api.import_errors():
            raise StackError(f"a DAG cannot be imported: {'; '.join(errors)}")
        dags = self.api.call("GET", "/dags", params={"limit": 100})["dags"]
        fresh = [
            dag["dag_id"]
            for dag in dags
            if dag["last_parsed_time"] and parse_moment(dag["last_parsed_time"]).timestamp() >= since
        ]
        return "" if fresh else "none was parsed yet"


def keep_to_ones_own(environment: MutableMapping[str, str], *, own_s3: bool) -> None:
    """Rid an environment of what would lead to another Airflow, to another S3 than one's own, or past loopback."""
    environment.update(no_proxy_for_loopback(environment))
    for name in [name for name in environment if _is_foreign(name, own_s3=own_s3) and not name.startswith("BCC_")]:
        del environment[name]
    if own_s3:
        environment.update(NO_AWS_OF_THE_USERS)


def no_proxy_for_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """`NO_PROXY`, both ways of writing it, with loopback in it."""
    given = environment.get("no_proxy") or environment.get("NO_PROXY", "")
    hosts = ",".join(filter(None, ("127.0.0.1", "localhost", given)))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def require_free_space(folder: Path, least: int = _LEAST_FREE_BYTES) -> None:
    """Refuse to start on a disk that is about to be full: half-written databases are the alternative.

    Raises:
        StackError: fewer than `least` bytes are free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < least:
        raise StackError(
            f"only {free / 1e9:.1f} GB are free on the disk of {folder}, {least / 1e9:.1f} GB are needed: make room, "
            "or remove what earlier runs left with `make clean`"
        )


def first_free_port(candidates: Sequence[int]) -> int:
    """Return the first of these ports of loopback that nothing listens on.

    Raises:
        StackError: something listens on each.
    """
    for port in candidates:
        with socket.socket() as probe:
            # as the server itself does: what a closed connection leaves behind is not a listener
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    if len(candidates) == 1:
        raise StackError(f"port {candidates[0]} is taken: choose another, PORT={candidates[0] + 1} make run")
    raise StackError(f"no port from {candidates[0]} to {candidates[-1]} is free: choose another, PORT=… make run")


def _is_foreign(name: str, *, own_s3: bool) -> bool:
    if name.startswith(("AIRFLOW_CONN_", "AIRFLOW_VAR_")):
        return False
    return name.startswith(("AIRFLOW_", "BCC_", "_AIRFLOW_")) or (own_s3 and name.startswith("AWS_"))


def _kept_json(path: Path, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return a JSON file that is made once; nobody but its owner may read it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(make(), file)
        partial.replace(path)
    kept: dict[str, str] = json.loads(path.read_text())
    return kept


def _last_line(log: Path) -> str:
    lines: list[Any] = log.read_text(errors="replace").strip().splitlines()
    return str(lines[-1]) if lines else "no output"


__all__ = ["DAG_ID", "REPOSITORY", "LocalStack", "ProcessError", "StackError"]
