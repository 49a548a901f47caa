"""Airflow triggers: what waits in the triggerer, without a worker."""
