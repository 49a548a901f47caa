"""The wheel in one environment per version of Airflow: `make matrix`. See `python -m tests.matrix --help`."""
