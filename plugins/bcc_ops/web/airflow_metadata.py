"""What the pages take from Airflow: how far a run is, and a client for the configured connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from sqlalchemy import select

from bcc_ops.config import Settings
from bcc_ops.report.progress import RunProgress, TaskProgress
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.web.airflow_internals import DagRun, TaskInstance, create_session

CONNECT_SECONDS, READ_SECONDS = 2, 3
"""Short, and no second attempt: a page must say within five seconds that the store is away."""

_CLIENT_SECONDS = 300.0
"""How long a client is used: a changed connection is taken up after that."""


def find_progress(dag_id: str, run_id: str) -> RunProgress | None:
    """Return the run and its tasks as the metadata database has them; None if there is no such run."""
    with create_session() as session:
        state = session.scalar(select(DagRun.state).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
        if state is None:
            return None
        columns = (
            *(TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state),
            *(TaskInstance.start_date, TaskInstance.end_date),
        )
        rows = session.execute(select(*columns).where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)).all()
    tasks = [
        TaskProgress(task_id, str(task_state) if task_state else None, start, end, map_index if map_index >= 0 else None)
        for task_id, map_index, task_state, start, end in rows
    ]
    return RunProgress.of(dag_id, run_id, str(state), tasks)


class ConnectedStore:
    """The configured bucket through the configured connection; one client for five minutes, shared between threads."""

    def __init__(self, read_settings: Callable[[], Settings]) -> None:
        self._read_settings = read_settings
        self._lock = threading.Lock()
        self._store: ObjectStore | None = None
        self._made = 0.0

    def __call__(self) -> ObjectStore:
        """Return the store, with a client that gives up early."""
        with self._lock:
            if self._store is None or time.monotonic() - self._made > _CLIENT_SECONDS:
                from botocore.config import Config

                patience = Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    retries={"total_max_attempts": 1},
                    max_pool_connections=32,
                )
                settings = self._read_settings()
                client = S3Hook(aws_conn_id=settings.aws_conn_id, config=patience).get_conn()
                self._store, self._made = ObjectStore(client, settings.bucket), time.monotonic()
            return self._store
