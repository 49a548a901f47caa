"""Who may see a page: people who are logged in and may read the pipeline's DAG and what its tasks left.

Airflow's plugin apps have no authentication of their own. The guard asks for the one DAG by name, whatever the path says,
so that a route without a DAG in its path is not open by accident; a path that names another DAG is not found.
"""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends

DAG_ID = "bcc_retraining"
"""The one DAG that has reports."""


def guard() -> Any:
    """The dependency that every route has: 401 without a login, 403 without the permission."""
    return Depends(requires_access_dag("GET", DagAccessEntity.XCOM, param_dag_id=DAG_ID))
