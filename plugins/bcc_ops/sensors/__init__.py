"""Airflow sensors, and the events that start a run."""
