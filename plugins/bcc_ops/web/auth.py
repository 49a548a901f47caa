"""Who may see a page: people who are logged in and may read the pipeline's DAG and what its tasks left.

Airflow's plugin apps have no authentication of their own. The guard asks for the DAG of the instance that a path names, and
if a path names none, for any instance's, so that no route is open by accident; a path that names another DAG is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Depends, HTTPException, Request

from bcc_ops.instances import Instance
from bcc_ops.web.airflow_internals import GetUserDep, may_read, may_trigger


def guard(dag_ids: Callable[[Request], Sequence[str]]) -> Any:
    """Return the dependency that every route has: 401 without a login, 403 without the permission.

    Args:
        dag_ids: the DAGs that a request is about; a person must be allowed to read one of them.
    """

    def check(request: Request, user: GetUserDep) -> None:
        if not any(may_read(user, dag_id) for dag_id in dag_ids(request)):
            raise HTTPException(403, "Forbidden")

    return Depends(check)


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
        return instance.given_settings.pictures == "readers" or may_trigger(user, instance.retraining_dag_id)

    return Depends(decide)
