"""The pipeline's beginning, and a verdict without a training in place of the rest: a run takes seconds."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param, task

from bcc_ops.config import DeploymentParameters, Settings, form_fields
from bcc_ops.operators.download_images import DownloadImagesOperator
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.sensors.events import images_asset
from bcc_ops.sensors.new_images import NewImagesSensor

settings = Settings.from_environment()
deployment = DeploymentParameters.read(settings.parameters)

with DAG(
    "run_kinds",
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable(settings.schedule, timezone=settings.timezone), assets=[images_asset(settings)]
    ),
    start_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    # A task that comes back from the triggerer before the scheduler has read that it went there counts as failed.
    default_args={"retries": 2, "retry_delay": timedelta(seconds=2)},
    params={name: Param(default, **schema) for name, (default, schema) in form_fields(deployment.values).items()},
):
    wait = NewImagesSensor(task_id="wait_for_new_images", deferrable=True, poke_interval=2)
    run = SnapshotDatasetOperator(task_id="snapshot_dataset", arrivals=wait.output)
    download = DownloadImagesOperator(task_id="download_images", run=run.output)

    @task
    def give_verdict(handle: dict[str, str]) -> None:
        """Let the runs after this one take it for assessed."""
        from bcc_ops.operators.base import open_store
        from tests.factories import runs

        runs.give_verdict(open_store(settings), handle)

    download >> give_verdict(run.output)
