"""docker-compose.yaml's services as processes of this machine: what is tested if there is no container engine.

Commands, environment, health checks, restart policy and named volumes are read from the compose file. What a container
engine would provide is replaced as follows, and nothing else differs:

image               a copy of what the Dockerfile copies, one folder per service; Python is this virtual environment
network             host names become loopback, ports become free ones; servers listen on loopback alone
volumes             a named volume is one folder, shared by the services that mount it; a tmpfs is a folder of its service
read_only           a mount namespace in which only volumes and tmpfs are writable, if root starts the stack
umask               that of Airflow's image, 002, until a service sets its own
host name           `<service>.compose`, by Airflow's `hostname_callable`
postgres, redis, s3 Debian's PostgreSQL and Redis, and SeaweedFS from PyPI, instead of the same engines' images

Nothing in `plugins/` imports this.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import yaml  # type: ignore[import-untyped]

from bcc_ops.runs.object_store import ObjectStore
from local.airflow_api import AirflowApi
from local.make_env import make_env
from local.postgres import PostgresCluster, newest_bin
from local.processes import StackError, Supervisor
from local.s3_server import S3Server, free_ports

REPOSITORY = Path(__file__).resolve().parents[1]
PROFILES = ("s3", "gpu")
TWO_GPUS = "two-gpus"
"""The profile of a second GPU worker beside the first, with one slot each."""
SERVERS = {"postgres": 5432, "redis": 6379, "s3": 8333, "api-server": 8080}
"""Service -> the port that it listens on in the compose file's network."""
AIRFLOW_SERVICES = ("api-server", "scheduler", "dag-processor", "triggerer", "worker", "worker-gpu")

_SECOND_WORKER = "worker-gpu-1"
_IMAGE_HOME = "/opt/airflow"
_READY_WITHIN = 300.0
_IMAGE_UMASK = 0o002
# Arguments: how many folders stay writable, the folders, the command.
_READ_ONLY = """
count=$1; shift
while [ "$count" -gt 0 ]; do mount --bind "$1" "$1"; shift; count=$((count - 1)); done
mount -o remount,ro,bind / && exec "$@"
"""
# Held back while its file is there, a service stays down however often the supervisor starts it.
_GATE = 'while [ -e "$0" ]; do sleep 0.2; done; exec "$@"'


def container_hostname() -> str:
    """Return the host name of the service that this process belongs to; Airflow's `hostname_callable` in this stack."""
    return os.environ["COMPOSE_SERVICE"] + ".compose"


class ComposeStack:
    """The compose file's services, running while the `with` block does.

    Args:
        folder: holds everything but PostgreSQL's data; must be empty or not there.
        variables: what `.env` gets beside what `make env` writes.
        extra_dags: DAG files that the image gets beside its own.
        gpus: 1, or 2 for a second GPU worker.
        say: takes a line for people.

    Raises:
        StackError: a system's package is missing, or a service does not get ready.
    """

    def __init__(
        self,
        folder: Path,
        *,
        variables: Mapping[str, str] | None = None,
        extra_dags: Sequence[Path] = (),
        gpus: int = 1,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder = folder.resolve()
        self.say = say
        self._variables = dict(variables or {})
        self._extra_dags = tuple(extra_dags)
        self._profiles = (*PROFILES, TWO_GPUS) if gpus > 1 else PROFILES
        if gpus > 1:
            self._variables["GPU_SLOTS"] = str(gpus)
        self.airflow_services = (*AIRFLOW_SERVICES, _SECOND_WORKER) if gpus > 1 else AIRFLOW_SERVICES
        newest_bin()  # report what is not installed before anything is made
        for program in ("docker-compose", "redis-server"):
            if shutil.which(program) is None:
                raise StackError(f"{program} is not installed: apt-get install docker-compose redis-server postgresql")
        self.supervisor: Supervisor

    # What the compose file says ----------------------------------------------------------------------------------------

    @cached_property
    def ports(self) -> dict[str, int]:
        """Port on loopback of each server, and of what only listens inside its container."""
        names = [*SERVERS, "scheduler-health", "s3-master", "s3-volume", "s3-filer", "s3-admin"]
        return dict(zip(names, free_ports(len(names))))

    @cached_property
    def env(self) -> dict[str, str]:
        """The variables of `.env`, as `make env` writes them, and the test's own."""
        lines = [line for line in make_env(gpu=True).splitlines() if line and not line.startswith("#")]
        written = {name: value.strip("'") for name, value in (line.split("=", 1) for line in lines)}
        ui = {"UI_PORT": str(self.ports["api-server"]), "UI_URL": f"http://localhost:{self.ports['api-server']}"}
        return {**written, **ui, **self._variables}

    @cached_property
    def services(self) -> dict[str, dict[str, Any]]:
        """The services as docker-compose resolves them, by name."""
        env_file = self.folder / ".env"
        env_file.touch(mode=0o600)
        env_file.write_text("".join(f"{name}='{value}'\n" for name, value in self.env.items()))
        profiles = [argument for profile in self._profiles for argument in ("--profile", profile)]
        answer = subprocess.run(
            ["docker-compose", "--env-file", str(env_file), *profiles, "config"],
            cwd=REPOSITORY,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode != 0:
            raise StackError(f"docker-compose.yaml: {answer.stderr.strip()}")
        services: dict[str, dict[str, Any]] = yaml.safe_load(answer.stdout)["services"]
        return services

    def home(self, service: str) -> Path:
        """Return what stands for the service's `/opt/airflow`."""
        return self.folder / "services" / service / "airflow"

    def volume(self, name: str) -> Path:
        """Return what stands for a named volume."""
        return self.folder / "volumes" / name

    def translate(self, service: str, text: str) -> str:
        """Return a command or a value of the compose file, with its paths, hosts and ports as they are here."""
        text = text.replace("$$", "$").replace(_IMAGE_HOME, str(self.home(service)))
        if service == _SECOND_WORKER:  # two containers differ in their host's name, by which Celery tells them apart
            text = text.replace("@%h", f"@{service}")
        for name, port in SERVERS.items():
            text = re.sub(rf"(?<=[@/]){re.escape(name)}:{port}\b", f"127.0.0.1:{self.ports[name]}", text)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """Return the environment of a service: the compose file's, and what its image or the engine would add."""
        given = self.services[service].get("environment") or {}
        return {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self.folder / "services" / service),
            "HOSTNAME": service if service == _SECOND_WORKER else socket.gethostname(),
            "COMPOSE_SERVICE": service,
            "TMPDIR": str(self._tmpfs(service, "/tmp")),
            "PYTHONPATH": f"{self.home(service) / 'plugins'}{os.pathsep}{REPOSITORY}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "AIRFLOW_HOME": str(self.home(service)),
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "local.compose_stack.container_hostname",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.ports["api-server"]),
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST": "127.0.0.1",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(self.ports["scheduler-health"]),
            **{name: self.translate(service, str(value if value is not None else "")) for name, value in given.items()},
        }

    def command(self, service: str) -> list[str]:
        """Return the command of an Airflow service, as its image's entry point would run it."""
        words = [self.translate(service, word) for word in self.services[service]["command"]]
        return self._read_only(service, words if words[0] in ("bash", "python") else ["airflow", *words])

    def _read_only(self, service: str, command: Sequence[str]) -> list[str]:
        """Return the command, unable to write outside its service's volumes and tmpfs if the compose file says so."""
        given = self.services[service]
        if not given.get("read_only") or os.geteuid() != 0:
            return list(command)
        volumes = [self.volume(name) for name, _ in map(_mount, given.get("volumes", ()))]
        writable = [*volumes, *(self._tmpfs(service, mount) for mount in given.get("tmpfs", ()))]
        return ["unshare", "--mount", "sh", "-ec", _READ_ONLY, "sh", str(len(writable)), *map(str, writable), *command]

    def _tmpfs(self, service: str, mount: str) -> Path:
        target = mount.split(":", maxsplit=1)[0]
        inside = target.removeprefix(f"{_IMAGE_HOME}/")
        return self.home(service) / inside if inside != target else self.home(service).parent / target.strip("/")

    # Start and end -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> ComposeStack:
        """Start everything in the order of the compose file's dependencies, and wait until it is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._postgres_data = Path(tempfile.mkdtemp(prefix="bcc-postgres-"))
        self.supervisor = Supervisor(self.folder, self.say, umask=_IMAGE_UMASK)
        try:
            self._build()
            self._start_postgres()
            self._start_redis()
            self.start_s3()
            self.await_("PostgreSQL, Redis and S3", self._servers_are_ready)
            self.init()
            for service in self.airflow_services:
                self._start(service, self.command(service))
            self.await_("Airflow", lambda: set(self.api.health().values()) == {"healthy"})
            self.await_("the DAGs", self._dags_are_parsed)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        with suppress(KeyError):
            self.__dict__.pop("api").close()
        with suppress(KeyError):
            self.__dict__.pop("store").client.close()
        self.supervisor.stop(last=("postgres", "redis", "s3"))
        shutil.rmtree(self._postgres_data, ignore_errors=True)

    def init(self) -> str:
        """Run the service `init` to its end and return what it said."""
        answer = subprocess.run(
            self.command("init"),
            env=self.environment("init"),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            umask=_IMAGE_UMASK,
        )
        if answer.returncode != 0:
            raise StackError(f"init failed: {(answer.stderr or answer.stdout).strip()[-2000:]}")
        return answer.stdout

    def _build(self) -> None:
        """Lay each Airflow service's `/opt/airflow` as the Dockerfile and the volumes do."""
        copies = re.findall(rf"^COPY (\S+) {_IMAGE_HOME}/(\S+)$", (REPOSITORY / "Dockerfile").read_text(), re.M)
        for service in ("init", *self.airflow_services):
            home = self.home(service)
            for source, target in copies:
                origin, copy = REPOSITORY / source, home / target
                if origin.is_dir():
                    shutil.copytree(origin, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(origin, copy)
            (home / "airflow.cfg").touch(mode=0o600)
            for dag in self._extra_dags:
                shutil.copy(dag, home / "dags")
            for mount in self.services[service].get("volumes", ()):
                name, target = _mount(mount)
                self.volume(name).mkdir(parents=True, exist_ok=True)
                (home / target.removeprefix(f"{_IMAGE_HOME}/")).symlink_to(self.volume(name))
            for mount in self.services[service].get("tmpfs", ()):
                self._tmpfs(service, mount).mkdir(mode=0o700)

    def _start(self, service: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        gate = ["sh", "-c", _GATE, str(self._hold(service)), *arguments]
        self.supervisor.start(service, gate, environment or self.environment(service))

    def _start_postgres(self) -> None:
        given = self.services["postgres"]["environment"]
        self._postgres = PostgresCluster(
            self._postgres_data, self.ports["postgres"], user=given["POSTGRES_USER"], password=given["POSTGRES_PASSWORD"]
        )
        self._start("postgres", self._postgres.command, self._postgres.environment)
        # The image makes the database POSTGRES_DB at its first start.
        self.await_("the database", lambda: self._postgres.make_database(given["POSTGRES_DB"]))

    def _start_redis(self) -> None:
        self.volume("redis").mkdir(parents=True)
        own = f"redis-server - --port {self.ports['redis']} --bind 127.0.0.1"
        words = [self.translate("redis", word) for word in self.services["redis"]["command"]]
        words = [word.replace("redis-server -", own).replace("/data", str(self.volume("redis"))) for word in words]
        self._start("redis", words)

    def start_s3(self) -> None:
        """Start the S3 server; it needs none of the other services."""
        service = self.services["s3"]
        data, settings, scratch = self.volume("s3"), REPOSITORY / "deploy" / "seaweedfs", self.folder / "services" / "s3"
        data.mkdir(parents=True)
        scratch.mkdir(mode=0o700, parents=True)
        here = {
            "/seaweedfs/start.sh": str(settings / "start.sh"),
            "-ip=s3": "-ip=127.0.0.1",
            "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1",
            "-dir=/data": f"-dir={data}",
            f"-s3.port={SERVERS['s3']}": f"-s3.port={self.ports['s3']}",
        }
        words = [here.get(word, word) for word in (*service["entrypoint"], *service["command"])]
        ports = [f"-{name}.port={self.ports[f's3-{name}']}" for name in ("master", "volume", "filer", "admin")]
        self._start("s3", ["env", "--chdir", str(scratch), *words, *ports])

    def _servers_are_ready(self) -> bool:
        return all(_answers(self.ports[name]) for name in ("postgres", "redis", "s3"))

    def _dags_are_parsed(self) -> bool:
        if errors := self.api.import_errors():
            raise StackError(f"a DAG cannot be imported: {'; '.join(errors)}")
        return len(self.api.call("GET", "/dags")["dags"]) >= 1

    # Use ---------------------------------------------------------------------------------------------------------------

    @cached_property
    def api(self) -> AirflowApi:
        """Airflow's REST API, as the admin."""
        return AirflowApi(f"http://127.0.0.1:{self.ports['api-server']}", "admin", self.env["LOGIN_ADMIN"])

    @cached_property
    def store(self) -> ObjectStore:
        """The bucket."""
        server = S3Server(f"http://127.0.0.1:{self.ports['s3']}", self.env["S3_ACCESS_KEY"], self.env["S3_SECRET_KEY"], 0)
        return ObjectStore(server.client(), self.env["BCC_BUCKET"])

    def check_health(self, service: str) -> subprocess.CompletedProcess[str]:
        """Run a service's own health check."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        words = [self.translate(service, word) for word in words]
        arguments = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        environment = {**self.environment(service), "AIRFLOW__API__PORT": str(self.ports["api-server"])}
        arguments = self._read_only(service, arguments)
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=120)

    def postgres(self, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's client programs, logged in, on Airflow's database."""
        return self._postgres.run(tool, *arguments, database=self.services["postgres"]["environment"]["POSTGRES_DB"])

    def kill(self, service: str) -> None:
        """Kill a service with everything that it started, as the death of its container would; the restart policy follows."""
        for process in self.supervisor.processes(service):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def signal(self, service: str, number: signal.Signals) -> None:
        """Signal every process of a service, as dumb-init does with DUMB_INIT_SETSID=1."""
        for process in self.supervisor.processes(service):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    @contextmanager
    def down(self, service: str) -> Iterator[None]:
        """Kill a service and keep it down for as long as the block lasts."""
        self._hold(service).touch()
        try:
            self.kill(service)
            yield
        finally:
            self._hold(service).unlink()

    def _hold(self, service: str) -> Path:
        return self.folder / f"{service}.down"

    def await_(self, what: str, holds: Callable[[], bool], within: float = _READY_WITHIN) -> float:
        """Wait until a condition holds, and return the seconds that it took.

        Raises:
            StackError: it does not hold in time, or a service does not stay up.
        """
        begin = time.monotonic()
        while not holds():
            self.supervisor.check()
            if time.monotonic() - begin > within:
                raise StackError(f"{what}: not ready within {within:.0f} s; see {self.folder / 'logs'}")
            time.sleep(0.25)
        return time.monotonic() - begin


def _mount(mount: Any) -> tuple[str, str]:
    if isinstance(mount, dict):
        return str(mount["source"]), str(mount["target"])
    name, target = str(mount).split(":")[:2]
    return name, target


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
