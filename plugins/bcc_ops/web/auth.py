"""Who may see a page: people who are logged in and may read the pipeline's DAG and what its tasks left.

Airflow's plugin apps have no authentication of their own. The guard asks for the one DAG by name, whatever the path says,
so that a route without a DAG in its path is not open by accident; a path that names another DAG is not found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends

from bcc_ops.config import Settings
from bcc_ops.web.airflow_internals import DagAccessEntity, DagDetails, GetUserDep, get_auth_manager, requires_access_dag

DAG_ID = "bcc_retraining"
"""The one DAG that has reports."""


def guard() -> Any:
    """Return the dependency that every route has: 401 without a login, 403 without the permission."""
    return Depends(requires_access_dag("GET", DagAccessEntity.XCOM, param_dag_id=DAG_ID))


def sees_pictures(read_settings: Callable[[], Settings]) -> Any:
    """Return the dependency that tells whether a person may see pictures of patients and download files.

    The setting `BCC_PICTURES` decides: everybody who may read reports, or only those who may also trigger runs.
    """

    def decide(user: GetUserDep) -> bool:
        if read_settings().pictures == "readers":
            return True
        details = DagDetails(id=DAG_ID)
        return bool(
            get_auth_manager().is_authorized_dag(method="POST", access_entity=DagAccessEntity.RUN, details=details, user=user)
        )

    return Depends(decide)
