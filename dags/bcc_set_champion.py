"""The Airflow DAG that rolls back, promotes a version, or releases the hold. Its task is in `bcc_ops.dags`."""

from bcc_ops.dags import set_champion_dags

globals().update(set_champion_dags())
