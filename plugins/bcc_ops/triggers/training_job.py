"""Waits in the triggerer until a job of SageMaker has ended, shows how far it is, and stops it with its task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TriggerEvent

from bcc_ops.dataset.arrivals import utc_now
from bcc_ops.exceptions import BccError
from bcc_ops.training.job_answers import RUNNING, is_missing, refusal

_STOPPING: set[asyncio.Task[None]] = set()
"""What still has to be done for triggers that Airflow has given up: an event loop alone may forget a task."""


class TrainingJobTrigger(BaseTrigger):
    """Look at a job now and then; fire when it has ended, when it is late, or when SageMaker refuses to tell.

    The job is stopped if a person clears or marks the task. If the triggerer ends or hands the trigger on, the job goes on.

    Args:
        aws_conn_id: the connection.
        job: the job's name.
        bucket: the bucket.
        history: key of the history that the job keeps; it is copied to `progress` as it grows.
        progress: key of the fold's history in the run's folder.
        deadline: when the job is late, in ISO format.
        poll_interval: seconds between two looks.
    """

    def __init__(
        self, *, aws_conn_id: str, job: str, bucket: str, history: str, progress: str, deadline: str, poll_interval: float
    ) -> None:
        super().__init__()
        self.aws_conn_id = aws_conn_id
        self.job = job
        self.bucket = bucket
        self.history = history
        self.progress = progress
        self.deadline = deadline
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and what makes another."""
        return (
            "bcc_ops.triggers.training_job.TrainingJobTrigger",
            {
                "aws_conn_id": self.aws_conn_id,
                "job": self.job,
                "bucket": self.bucket,
                "history": self.history,
                "progress": self.progress,
                "deadline": self.deadline,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: `{"job": name}` for the worker to look for itself.

        With `"late"` once the deadline is over, with `"error"` and `"message"` if SageMaker refuses to tell.
        """
        seen, copied = "", ""
        async with AsyncExitStack() as clients:
            sagemaker = await clients.enter_async_context(await SageMakerHook(aws_conn_id=self.aws_conn_id).get_async_conn())
            s3 = await clients.enter_async_context(await S3Hook(aws_conn_id=self.aws_conn_id).get_async_conn())
            while True:
                try:
                    found = await self._describe(sagemaker)
                except Exception as error:  # botocore's, which this module must not import at its beginning
                    refused = _refusal(error, "DescribeTrainingJob")
                    if is_missing(error):
                        break  # it ended and was deleted
                    if not refused.retryable:
                        yield TriggerEvent({"job": self.job, "error": type(refused).__name__, "message": str(refused)})
                        return
                    self.log.warning("%s", refused)
                else:
                    if found["TrainingJobStatus"] not in RUNNING:
                        break
                    if found.get("SecondaryStatus") != seen:
                        seen = str(found.get("SecondaryStatus"))
                        self.log.info("%s: %s", self.job, seen)
                    copied = await self._copy_history(s3, copied)
                if utc_now() >= datetime.fromisoformat(self.deadline):
                    yield TriggerEvent({"job": self.job, "late": True})
                    return
                await asyncio.sleep(self.poll_interval)
        yield TriggerEvent({"job": self.job})

    async def on_kill(self) -> None:
        """Stop the job: a person cleared or marked the task.

        Airflow also calls this if another triggerer has taken the trigger over. Then the task is still deferred, as it is
        once a new attempt has joined the job.
        """
        # Airflow 3.3 cancels the trigger again while this is going on, a second or so later, and that must not end it.
        stopping = asyncio.create_task(self._stop())
        _STOPPING.add(stopping)
        stopping.add_done_callback(_STOPPING.discard)
        await asyncio.shield(stopping)

    async def _stop(self) -> None:
        if await self._is_waited_for():
            self.log.info("%s goes on: its task waits for it elsewhere", self.job)
            return
        try:
            async with await SageMakerHook(aws_conn_id=self.aws_conn_id).get_async_conn() as sagemaker:
                await sagemaker.stop_training_job(TrainingJobName=self.job)
        except Exception as error:
            # One that has ended cannot be stopped, and asking is how one finds out.
            self.log.warning("%s was not stopped: %s", self.job, _refusal(error, "StopTrainingJob"))
        else:
            self.log.info("%s is stopped with its task", self.job)

    async def _is_waited_for(self) -> bool:
        task = self.task_instance
        if task is None:
            return False
        try:
            states = await asyncio.to_thread(
                RuntimeTaskInstance.get_task_states,
                dag_id=task.dag_id,
                task_ids=[task.task_id],
                run_ids=[task.run_id],
                map_index=task.map_index,
            )
        except Exception as error:  # whatever an API server that is away makes of the question
            self.log.warning("the state of the task of %s is not known: %s", self.job, error)
            return False
        return "deferred" in states.get(task.run_id, {}).values()

    async def _describe(self, sagemaker: Any) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await sagemaker.describe_training_job(TrainingJobName=self.job)
        return found

    async def _copy_history(self, s3: Any, copied: str) -> str:
        """Copy the history if it has changed, and return its ETag. What is wrong with it is only worth a line."""
        try:
            page = await s3.list_objects_v2(Bucket=self.bucket, Prefix=self.history)
            etag = next((str(entry["ETag"]) for entry in page.get("Contents", ()) if entry["Key"] == self.history), "")
            if etag and etag != copied:
                await s3.copy_object(
                    Bucket=self.bucket,
                    Key=self.progress,
                    CopySource={"Bucket": self.bucket, "Key": self.history},
                    MetadataDirective="REPLACE",
                    TaggingDirective="REPLACE",
                    ContentType="text/csv",
                )
        except Exception as error:
            self.log.warning("the history of %s is behind by now, training goes on: %s", self.job, error)
            return copied
        return etag


def _refusal(error: Exception, action: str) -> BccError:
    from botocore.exceptions import BotoCoreError, ClientError

    if not isinstance(error, (BotoCoreError, ClientError)):
        raise error
    return refusal(error, action)
