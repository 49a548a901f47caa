"""Who may see a page: people who are logged in and may read the pipeline's DAG and what its tasks left.

Airflow's plugin apps have no authentication of their own. The guard asks for the one DAG by name, whatever the path says,
so that a route without a DAG in its path is not open by accident; a path that names another DAG is not found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends, HTTPException

from bcc_ops.config import Settings
from bcc_ops.web.airflow_internals import GetUserDep, may_read, may_trigger

DAG_ID = "bcc_retraining"
"""The one DAG that has reports."""


def guard() -> Any:
    """Return the dependency that every route has: 401 without a login, 403 without the permission."""

    def check(user: GetUserDep) -> None:
        if not may_read(user, DAG_ID):
            raise HTTPException(403, "Forbidden")

    return Depends(check)


def sees_pictures(read_settings: Callable[[], Settings]) -> Any:
    """Return the dependency that tells whether a person may see pictures of patients and download files.

    The setting `BCC_PICTURES` decides: everybody who may read reports, or only those who may also trigger runs.
    """

    def decide(user: GetUserDep) -> bool:
        return read_settings().pictures == "readers" or may_trigger(user, DAG_ID)

    return Depends(decide)
