"""A PostgreSQL server for as long as a test needs it."""

from __future__ import annotations

import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.postgres import PostgresCluster
from local.s3_server import free_ports


@contextmanager
def postgres_database(name: str) -> Iterator[str]:
    """Run a server with one empty database, and give the database's address for SQLAlchemy."""
    password, [port] = secrets.token_hex(16), free_ports(1)
    # not in pytest's folder, which only its owner may enter: the server runs as another user if root runs the tests
    with tempfile.TemporaryDirectory(prefix="bcc-postgres-") as folder:
        cluster = PostgresCluster(Path(folder), port, user="airflow", password=password)
        with subprocess.Popen(cluster.command, env=cluster.environment, cwd="/", stderr=subprocess.DEVNULL) as server:
            try:
                while not cluster.make_database(name):
                    assert server.poll() is None, "PostgreSQL does not start"
                    time.sleep(0.25)
                yield f"postgresql+psycopg2://airflow:{password}@127.0.0.1:{port}/{name}"
            finally:
                server.terminate()
