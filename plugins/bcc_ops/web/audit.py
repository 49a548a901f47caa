"""Record who looked: each view of a report, a plot or a download is an event in Airflow's audit log.

The page of a run that is going on refreshes itself, so the same view of the same person counts once in ten minutes. A view
that cannot be recorded is not shown: with images of patients, nobody looks unseen. An event says what the path says: Airflow's
own `action_logging` also takes a query and a GET's body, by which a reader could name another run than the one that was shown.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from cachetools import TTLCache
from fastapi import Depends, Request

from bcc_ops.web.airflow_internals import GetUserDep, Log, SessionDep

log = logging.getLogger(__name__)

SAME_VIEW_SECONDS = 600.0
_MOST_REMEMBERED = 10_000


class NotRecorded(Exception):
    """The audit log did not take an event."""


def recorded(event: str, after: Callable[..., Any]) -> Any:
    """Return the dependency that records a view.

    Args:
        event: its name in the audit log; run and user are added to it.
        after: a dependency that must hold first, so that only views of what exists are recorded.

    The dependency raises `NotRecorded` if the audit log does not take the event.
    """
    seen: TTLCache[tuple[str, str], bool] = TTLCache(_MOST_REMEMBERED, SAME_VIEW_SECONDS)
    lock = threading.Lock()
    first = Depends(after)

    # Not async: on the event loop, a write that waits for SQLite's lock keeps the request that has it from ending, and the whole
    # API server stands still until one of them gives up after a minute.
    def record(request: Request, session: SessionDep, user: GetUserDep, _: Any = first) -> None:
        view = (user.get_name(), request.url.path)
        with lock:
            if view in seen:
                return
        try:
            session.add(_row(event, user.get_name(), request))
            session.commit()
        except Exception as error:
            log.exception("a view could not be recorded")
            raise NotRecorded(event) from error
        with lock:
            seen[view] = True

    return Depends(record)


def _row(event: str, user: str, request: Request) -> Log:
    path = dict(request.path_params)
    named = {"dag_id": path.pop("dag_id", None), "run_id": path.pop("run_id", None)}
    extra = json.dumps({**path, "method": request.method})
    return Log(event=event, task_instance=None, owner=user, owner_display_name=user, extra=extra, **named)
