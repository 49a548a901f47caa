"""Running the whole pipeline on one machine: its S3 server, its Airflow, its images. Nothing in `plugins/` imports this."""
