"""A PostgreSQL server of the system's package, with a new cluster: Airflow's metadata database as in production."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from local.processes import StackError


class PostgresCluster:
    """A cluster on loopback that one user with a password may use; whoever makes it starts its command.

    Args:
        folder: holds it; must be there. Not below a folder that only root may enter: the server runs as `postgres` then.
        port: of loopback.
        user, password: the only login.

    Raises:
        StackError: PostgreSQL is not installed.
    """

    def __init__(self, folder: Path, port: int, *, user: str, password: str) -> None:
        self._bin = newest_bin()
        self._data = folder / "data"
        self._port, self._user, self._password = port, user, password
        self._as_postgres: list[str] = []
        secret = folder / "password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            for path in (folder, secret):
                shutil.chown(path, "postgres", "postgres")
            self._as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        subprocess.run(
            [
                *(*self._as_postgres, str(self._bin / "initdb"), "--pgdata", str(self._data), "--encoding", "UTF8"),
                *("--username", user, "--auth", "scram-sha-256", "--pwfile", str(secret), "--no-sync"),
            ],
            env=self.environment,
            cwd="/",
            check=True,
            stdout=subprocess.DEVNULL,
        )

    @property
    def environment(self) -> dict[str, str]:
        """What the server's command needs of the environment."""
        return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}

    @property
    def command(self) -> list[str]:
        """The command that runs the server until it is ended."""
        listen = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        return [*self._as_postgres, str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self._port), *listen]

    def make_database(self, name: str) -> bool:
        """Make a database; False as long as the server is still starting up."""
        return self.run("createdb", name).returncode == 0

    def run(self, tool: str, *arguments: str, database: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's client programs, logged in."""
        login = {"PGHOST": "127.0.0.1", "PGPORT": str(self._port), "PGUSER": self._user, "PGPASSWORD": self._password}
        environment = {**self.environment, **login, **({"PGDATABASE": database} if database else {})}
        return subprocess.run([str(self._bin / tool), *arguments], env=environment, capture_output=True, text=True, check=False)


def newest_bin() -> Path:
    """Return the folder of the newest PostgreSQL's programs.

    Raises:
        StackError: none is installed.
    """
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not installed:
        raise StackError("PostgreSQL is not installed: apt-get install postgresql")
    return installed[-1].parent
