"""What Amazon SageMaker answers about the jobs that train: why one has no model, why a call is refused, what it costs.

Needs neither NumPy nor PyArrow: the triggerer asks without them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bcc_ops.config import Settings
from bcc_ops.exceptions import (
    BccError,
    ConfigError,
    TrainingFailed,
    TrainingInterrupted,
    TrainingStopped,
    TrainingUnavailable,
)
from bcc_ops.runs.documents import SageMakerJobs

POLICY = "deploy/iam-policy-sagemaker.json has the permissions: apply it to the connection's user"
ROLE_POLICY = "deploy/iam-policy-sagemaker-role.json has the permissions that the job's role needs"

RUNNING = ("InProgress", "Stopping")
"""The states of a job that has not ended."""

_SAID = re.compile(r"AlgorithmError: ?(?P<said>.*?),? ?(exit code: (?P<status>-?\d+))?$", re.DOTALL)
_THROTTLED = ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "ServiceUnavailable")
_NO_ACCESS = (
    *("AccessDeniedException", "AccessDenied", "UnrecognizedClientException", "InvalidSignatureException"),
    *("ExpiredTokenException", "ExpiredToken", "InvalidClientTokenId", "NoCredentialsError", "PartialCredentialsError"),
)
_LONGEST_MESSAGE = 400
"""Characters of a message of AWS that are passed on: some list every type of instance that there is."""


def failure_of(job: Mapping[str, Any], settings: Settings) -> BccError:
    """Return why a job that has ended, as DescribeTrainingJob tells it, has no model."""
    if job["TrainingJobStatus"] != "Failed":
        return _stopped(job, settings)
    name, kind = job["TrainingJobName"], settings.sagemaker_instance_type
    reason = " ".join(str(job.get("FailureReason", "no reason given")).split())
    if reason.startswith("AlgorithmError"):
        return _failure_of_process(name, reason, kind)
    if "CapacityError" in reason:
        return TrainingUnavailable(
            f"AWS has no {kind} for {name} now. Wait for a retry, or name another type in BCC_SAGEMAKER_INSTANCE_TYPE"
        )
    if "more memory" in reason or "Out of Memory" in reason:
        return _killed(name, reason[:_LONGEST_MESSAGE], kind)
    if reason.startswith("ClientError"):
        return ConfigError(
            f"SageMaker could not do {name}: {reason[:_LONGEST_MESSAGE]}. If it names an image, that was deleted since the "
            f"snapshot: start a new run. Else {ROLE_POLICY}"
        )
    return TrainingFailed(f"{name} failed: {reason[:_LONGEST_MESSAGE]}")


def _stopped(job: Mapping[str, Any], settings: Settings) -> BccError:
    name, ended, kind = job["TrainingJobName"], job.get("SecondaryStatus"), settings.sagemaker_instance_type
    if ended == "MaxRuntimeExceeded":
        return TrainingInterrupted(
            f"{name} reached BCC_SAGEMAKER_MAX_RUNTIME_MINUTES ({settings.sagemaker_max_runtime_minutes}) and was stopped. "
            "A retry goes on from its checkpoint; raise the setting if retries do not suffice"
        )
    if ended == "MaxWaitTimeExceeded":
        return TrainingUnavailable(
            f"{name} got no spot instance {kind} for long enough. A retry goes on from its checkpoint; raise "
            "BCC_SAGEMAKER_SPOT_WAIT_MINUTES, or set it to 0 for an instance that is not taken away"
        )
    return TrainingStopped(f"somebody stopped {name} in SageMaker. Its checkpoint is kept: clear the task to go on from it")


def _failure_of_process(name: str, reason: str, kind: str) -> BccError:
    from bcc_ops.training.job_folder import parse_failure  # not in the triggerer, where PyArrow may be missing

    match = _SAID.match(reason)
    assert match is not None  # every reason that begins so
    if match["said"]:
        return parse_failure(match["said"])
    return _killed(name, f"exit code {match['status'] or 'unknown'}", kind)


def _killed(name: str, said: str, kind: str) -> BccError:
    return TrainingFailed(
        f"the process of {name} was killed ({said}), most often because the memory of {kind} "
        "did not suffice. A retry goes on from its checkpoint; name a larger type in BCC_SAGEMAKER_INSTANCE_TYPE"
    )


def refusal(error: Exception, action: str) -> BccError:
    """Return the project's error for one of botocore's.

    Args:
        error: a ClientError or another BotoCoreError.
        action: what SageMaker was asked to do, by the name of its API: `DescribeTrainingJob`.
    """
    code, said = _told(error)
    response = getattr(error, "response", None) or {}
    if code in _NO_ACCESS:
        return ConfigError(f"AWS refuses sagemaker:{action}: {said} ({POLICY})")
    if code == "NoRegionError":
        return ConfigError(
            "the connection to AWS names no region: add region_name to its extra, that of the bucket and the image"
        )
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if code in _THROTTLED or status >= 500 or not response:
        return TrainingUnavailable(f"SageMaker gave no answer to {action} now: {said}")
    return ConfigError(f"SageMaker refuses {action}: {said} Compare the BCC_SAGEMAKER_… settings with docs/cloud.md")


def refusal_to_create(error: Exception, settings: Settings) -> BccError:
    """Return the project's error for one of botocore's that came instead of a new job."""
    code, said = _told(error)
    kind = settings.sagemaker_instance_type
    if code == "ResourceLimitExceeded":
        return TrainingUnavailable(
            f"the account may not have one more {kind} for training jobs now: {said} Wait for a retry, ask AWS for a higher "
            f"quota, or let the pool hold jobs back: airflow pools set {settings.gpu_pool} 1 jobs --include-deferred"
        )
    if code == "ValidationException" and ("instanceType" in said or kind in said):
        return ConfigError(
            f"SageMaker has no training on {kind} in this region: correct BCC_SAGEMAKER_INSTANCE_TYPE, or the region_name of the "
            f"connection ({said})"
        )
    return refusal(error, "CreateTrainingJob")


def _told(error: Exception) -> tuple[str, str]:
    """Return the code of one of botocore's errors, and its message as a line."""
    told = (getattr(error, "response", None) or {}).get("Error", {})
    said = " ".join(str(told.get("Message") or error).split())
    return str(told.get("Code") or type(error).__name__), said[:_LONGEST_MESSAGE]


def is_missing(error: Exception) -> bool:
    """Return whether a ClientError says that the job does not exist.

    AWS documents ResourceNotFound for that, and answers a ValidationException.
    """
    code, said = _told(error)
    return code == "ResourceNotFound" or (code == "ValidationException" and re.search(r"not found|not find", said) is not None)


def console_link(region: str, name: str) -> str:
    """Return the address of a job in AWS's console."""
    return f"https://{region}.console.aws.amazon.com/sagemaker/home?region={region}#/jobs/{name}"


def describe_cost(job: Mapping[str, Any], price_per_hour: float) -> str:
    """Say what AWS bills for a job that has ended.

    Args:
        job: as DescribeTrainingJob tells it. Its billable seconds of a spot instance are fewer than those that it ran.
        price_per_hour: of the instance on demand; 0 if it is not known.
    """
    seconds = job.get("BillableTimeInSeconds")
    if seconds is None:
        return "AWS has not said yet how many seconds it bills"
    cost = f", {seconds / 3600 * price_per_hour:.2f} at {price_per_hour:g} an hour" if price_per_hour else ""
    return f"AWS bills {seconds} s{cost}"


def count_jobs(jobs: Sequence[Mapping[str, Any]]) -> SageMakerJobs:
    """Return what AWS bills for jobs that have ended, as DescribeTrainingJob tells them. Each has one instance."""
    billed = [
        (job["BillableTimeInSeconds"], job.get("TrainingTimeInSeconds", 0)) for job in jobs if "BillableTimeInSeconds" in job
    ]
    return SageMakerJobs(
        jobs=len(jobs),
        instance_types=tuple(dict.fromkeys(job["ResourceConfig"]["InstanceType"] for job in jobs)),
        billed_seconds=sum(seconds for seconds, _ in billed),
        saved_seconds=sum(max(0, ran - seconds) for seconds, ran in billed),
        without_bill=len(jobs) - len(billed),
    )
