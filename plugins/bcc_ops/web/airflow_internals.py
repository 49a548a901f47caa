"""What the pages need of Airflow that no release promises to keep: imported here and nowhere else.

If a version of Airflow has moved or removed one of these, `web.entry` closes the pages. The DAGs need none of them.
"""

from __future__ import annotations

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models import Log
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session

__all__ = [
    "DagAccessEntity",
    "DagDetails",
    "DagRun",
    "GetUserDep",
    "Log",
    "SessionDep",
    "TaskInstance",
    "create_session",
    "get_auth_manager",
    "requires_access_dag",
]
