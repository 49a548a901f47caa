"""What Airflow leaves behind if it cannot make a backfill's runs, on SQLite (apache/airflow#66726).

docs/operations.md tells what a person does about it; `local.airflow_api` does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.sdk import DAG
from sqlalchemy import delete, select
from sqlalchemy.exc import OperationalError

DAG_ID = "a_dag_to_backfill"
DAY = datetime(2026, 11, 22, tzinfo=timezone.utc)
MAKES_RUNS = "airflow.models.backfill._create_runs_non_partitioned"

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # of Airflow, where it loads plugins


@pytest.fixture(scope="module")
def daily(airflow_database: None) -> None:
    """A DAG that runs every day, as the DAG processor leaves it in the database."""
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.serialization.definitions.dag import SerializedDAG
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from airflow.utils.session import create_session

    with DAG(DAG_ID, schedule="@daily", start_date=DAY - timedelta(days=9)) as dag:
        EmptyOperator(task_id="nothing")
    with create_session() as session:
        session.merge(DagBundleModel(name="tests"))
        session.flush()
        SerializedDAG.bulk_write_to_db("tests", None, [dag], session=session)
        session.flush()
        SerializedDagModel.write_dag(LazyDeserializedDAG.from_dag(dag), bundle_name="tests", session=session)


@pytest.fixture
def create(daily: None) -> Iterator[Callable[[], Any]]:
    """Create a backfill of three days, as the API server's route does."""
    from airflow.models.backfill import Backfill, BackfillDagRun, _create_backfill
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    def ask() -> Any:
        return _create_backfill(
            dag_id=DAG_ID,
            from_date=DAY - timedelta(days=2),
            to_date=DAY,
            max_active_runs=1,
            reverse=False,
            dag_run_conf=None,
            triggering_user_name="ana",
        )

    yield ask
    with create_session() as session:
        session.execute(delete(BackfillDagRun))
        session.execute(delete(DagRun).where(DagRun.dag_id == DAG_ID))
        session.execute(delete(Backfill))


def left_behind() -> list[Any]:
    from airflow.models.backfill import Backfill
    from airflow.utils.session import create_session

    with create_session() as session:
        return list(session.scalars(select(Backfill).where(Backfill.completed_at.is_(None))))


def failing(error: Exception) -> Callable[..., None]:
    def fail(**given: Any) -> None:
        raise error

    return fail


LOCKED = OperationalError("INSERT INTO dag_run", {}, Exception("database is locked"))


def test_a_locked_database_takes_the_backfill_back_and_a_retry_works(
    create: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(MAKES_RUNS, failing(LOCKED))
        with pytest.raises(OperationalError):
            create()
    assert left_behind() == []
    assert create().id


@pytest.mark.parametrize("cause", ["its runs could not be made", "taking it back failed too"])
def test_any_other_failure_leaves_an_orphan_that_blocks_every_retry_until_it_is_cancelled(
    create: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    from airflow.api_fastapi.core_api.routes.public.backfills import cancel_backfill
    from airflow.models.backfill import AlreadyRunningBackfill
    from airflow.utils.session import create_session

    error: Exception = (
        LOCKED if cause == "taking it back failed too" else OperationalError("INSERT", {}, Exception("disk I/O error"))
    )
    with monkeypatch.context() as broken:
        broken.setattr(MAKES_RUNS, failing(error))
        broken.setattr("airflow.models.backfill._cleanup_partial_backfill", lambda *given: None)
        with pytest.raises(OperationalError):
            create()
    (orphan,) = left_behind()
    with pytest.raises(AlreadyRunningBackfill):  # the API server answers 409
        create()
    with create_session() as session:
        cancel_backfill(backfill_id=orphan.id, session=session)
    assert create().id != orphan.id
