"""Who may see a page: people who are logged in and may read the pipeline's DAG and what its tasks left.

Airflow's plugin apps have no authentication of their own. The guard asks for the DAG of the instance that a path names, and
where a path names none, for any instance's, so that no route is open by accident; a path that names another DAG is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, HTTPException, Request

from bcc_ops.instances import Instance


def guard(dag_ids: Callable[[Request], Sequence[str]]) -> Any:
    """Return the dependency that every route has: 401 without a login, 403 without the permission.

    Args:
        dag_ids: the DAGs that a request is about; a person must be allowed to read one of them.
    """

    def check(request: Request, user: GetUserDep) -> None:
        if not any(may_read(dag_id, request, user) for dag_id in dag_ids(request)):
            raise HTTPException(403, "Forbidden")

    return Depends(check)


def may_read(dag_id: str, request: Request, user: Any) -> bool:
    """Tell whether a person may read a DAG and what its tasks left."""
    try:
        requires_access_dag("GET", DagAccessEntity.XCOM, param_dag_id=dag_id)(request, user)
    except HTTPException as error:
        if error.status_code != 403:
            raise
        return False
    return True


def sees_pictures(find_instance: Callable[[Request], Instance | None]) -> Any:
    """Return the dependency that tells whether a person may see pictures of patients and download files.

    The setting `BCC_PICTURES` decides: everybody who may read reports, or only those who may also trigger runs.

    Args:
        find_instance: the one that a request is about.
    """

    def decide(request: Request, user: GetUserDep) -> bool:
        instance = find_instance(request)
        if instance is None or instance.given_settings is None:
            return False
        if instance.given_settings.pictures == "readers":
            return True
        details = DagDetails(id=instance.retraining_dag_id)
        return bool(
            get_auth_manager().is_authorized_dag(method="POST", access_entity=DagAccessEntity.RUN, details=details, user=user)
        )

    return Depends(decide)
