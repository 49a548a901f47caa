"""What the pages take from Airflow: how far a run is, and the configured connection."""

from __future__ import annotations

from typing import Any

import pytest

from bcc_ops.config import Settings
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.web.airflow_metadata import ConnectedStore, find_progress
from local.s3_server import S3Server
from tests.unit.web.conftest import FOLD_FAILED
from tests.unit.web.routes import RUN, Client


def test_a_store_that_is_away_is_noticed_within_five_seconds_and_long_before_a_page_takes_too_long(
    shared_store: ObjectStore, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcc_ops.web.app import DEADLINE_SECONDS

    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.airflow_connection)
    patience: Any = ConnectedStore(lambda: Settings(bucket=shared_store.bucket))().client.meta.config
    assert patience.connect_timeout + patience.read_timeout <= 5 < DEADLINE_SECONDS / 10
    assert patience.retries["total_max_attempts"] == 1


def test_a_wrong_setting_is_told_in_a_page(make_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setenv("BCC_POSITIVE_CLASS", "nothing")
    answer = make_client(ConnectedStore(Settings.from_environment)).get(f"{RUN}/report")
    assert answer.status_code == 503
    assert "positive_class" in answer.text


def test_a_run_and_its_tasks_are_told_as_the_database_has_them(known_runs: None) -> None:
    """What is not a mapped task's instance has the index -1 there."""
    found = find_progress("bcc_retraining", FOLD_FAILED)
    assert found is not None and (found.run_id, found.state) == (FOLD_FAILED, "failed")
    train = next(task for task in found.tasks if task.task_id == "train_model")
    assert [(one.map_index, one.state) for one in train.instances] == [(0, "success"), (1, "failed")]
    assert found.tasks[0].map_index is None


def test_a_run_that_airflow_does_not_know_is_none(known_runs: None) -> None:
    assert find_progress("bcc_retraining", "manual__unknown") is None


def test_a_run_without_tasks_is_known(known_runs: None) -> None:
    found = find_progress("another_dag", FOLD_FAILED)
    assert found is not None and (found.dag_id, found.tasks) == ("another_dag", ())
