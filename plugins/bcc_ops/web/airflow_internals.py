"""What the pages need of Airflow that no release promises to keep: imported here and nowhere else.

If a version of Airflow has moved or removed one of these, `web.entry` closes the pages. The DAGs need none of them.
"""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models import Log
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session

__all__ = ["DagRun", "GetUserDep", "Log", "SessionDep", "TaskInstance", "create_session", "may_read", "may_trigger"]

_XCOM, _RUN = DagAccessEntity.XCOM, DagAccessEntity.RUN


def may_read(user: Any, dag_id: str) -> bool:
    """Return whether a person may read a DAG and what its tasks left.

    Airflow's `requires_access_dag` asks for whichever DAG the path names, in 3.1.0 without an exception.
    """
    return _is_authorized("GET", _XCOM, user, dag_id)


def may_trigger(user: Any, dag_id: str) -> bool:
    """Return whether a person may start runs of a DAG."""
    return _is_authorized("POST", _RUN, user, dag_id)


def _is_authorized(method: str, entity: Any, user: Any, dag_id: str) -> bool:
    details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
    return bool(get_auth_manager().is_authorized_dag(method=method, access_entity=entity, details=details, user=user))
