"""The Airflow DAG that retrains the classifier when new labelled images arrive. Its tasks are in `bcc_ops.dags`."""

from bcc_ops.dags import retraining_dags

globals().update(retraining_dags())
