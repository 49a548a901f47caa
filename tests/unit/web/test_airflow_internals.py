"""What each of Airflow's roles may do, as Airflow itself answers."""

from __future__ import annotations

import pytest
from airflow.api_fastapi.app import create_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

from bcc_ops.web.airflow_internals import may_read, may_trigger


@pytest.mark.parametrize(
    ("role", "reads", "triggers"), [(None, False, False), ("viewer", True, False), ("user", True, True), ("admin", True, True)]
)
def test_whoever_may_read_the_dag_reads_and_whoever_may_trigger_it_triggers(role, reads, triggers, known_runs) -> None:
    create_auth_manager()
    person = SimpleAuthManagerUser(username="ada", role=role)
    assert may_read(person, "bcc_retraining") is reads
    assert may_trigger(person, "bcc_retraining") is triggers
