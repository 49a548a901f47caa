"""What SageMaker says of jobs, as the project's errors: one sentence each that says what to do."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, NoRegionError

from bcc_ops import exceptions
from bcc_ops.config import Settings
from bcc_ops.runs.documents import SageMakerJobs
from bcc_ops.training.job_answers import (
    console_link,
    count_jobs,
    describe_cost,
    failure_of,
    is_missing,
    refusal,
    refusal_to_create,
)
from tests.unit.report.samples import loaded_by

SETTINGS = Settings(sagemaker_instance_type="ml.g5.xlarge", gpu_pool="jobs")


def _ended(status: str, secondary: str = "", reason: str = "") -> dict[str, Any]:
    told = {"TrainingJobName": "bcc-1", "TrainingJobStatus": status, "SecondaryStatus": secondary or status}
    return told | ({"FailureReason": reason} if reason else {})


def _error(code: str, message: str, status: int = 400) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "CreateTrainingJob")


@pytest.mark.parametrize(
    ("ended", "kind", "said"),
    [
        (_ended("Stopped", "MaxRuntimeExceeded"), "TrainingInterrupted", r"BCC_SAGEMAKER_MAX_RUNTIME_MINUTES \(240\)"),
        (_ended("Stopped", "MaxWaitTimeExceeded"), "TrainingUnavailable", "no spot instance ml.g5.xlarge .* set it to 0"),
        (_ended("Stopped"), "TrainingStopped", "somebody stopped bcc-1 in SageMaker.* clear the task to go on"),
        (
            _ended("Failed", reason="CapacityError: Unable to provision requested ML compute capacity."),
            "TrainingUnavailable",
            "AWS has no ml.g5.xlarge for bcc-1 now.* another type in BCC_SAGEMAKER_INSTANCE_TYPE",
        ),
        (
            _ended("Failed", reason="ClientError: Data download failed:NoSuchKey (404): s3://b/images/a.png"),
            "ConfigError",
            "a.png.* deleted since the snapshot: start a new run. Else deploy/iam-policy-sagemaker-role.json",
        ),
        (
            _ended("Failed", reason="InternalServerError: We encountered an internal error."),
            "TrainingFailed",
            "an internal error",
        ),
        (_ended("Failed"), "TrainingFailed", "bcc-1 failed: no reason given"),
        (
            _ended("Failed", reason="AlgorithmError: DivergedError: the loss is NaN, after 3 epochs, exit code: 1"),
            "DivergedError",
            "^the loss is NaN, after 3 epochs$",
        ),
        (
            _ended("Failed", reason="AlgorithmError: ImageRefused: damaged: image\nfile is truncated, exit code: 1"),
            "ImageRefused",
            "^damaged: image file is truncated$",
        ),
        (_ended("Failed", reason="AlgorithmError: ArtifactError: " + "x" * 990), "ArtifactError", "^x{990}$"),
        (
            _ended("Failed", reason="AlgorithmError: ZeroDivisionError: by zero, exit code: 1"),
            "TrainingFailed",
            "the training process failed: ZeroDivisionError: by zero",
        ),
        (
            _ended("Failed", reason="AlgorithmError: , exit code: 137"),
            "TrainingFailed",
            r"killed \(exit code 137\), most often because the memory of ml.g5.xlarge did not suffice.* a larger type",
        ),
        (
            _ended(
                "Failed",
                reason="ClientError: Please use an instance type with more memory, or reduce the size of job data processed "
                "on an instance.",
            ),
            "TrainingFailed",
            r"killed \(ClientError: Please.* instance\.\), most often because the memory of ml.g5.xlarge .* a larger type",
        ),
    ],
)
def test_a_job_without_a_model_is_one_of_the_projects_errors(ended: dict[str, Any], kind: str, said: str) -> None:
    error = failure_of(ended, SETTINGS)
    assert type(error) is getattr(exceptions, kind)
    with pytest.raises(type(error), match=said):
        raise error


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            _error("AccessDeniedException", "User: arn:… is not authorized to perform: sagemaker:CreateTrainingJob"),
            "ConfigError",
            "^AWS refuses sagemaker:CreateTrainingJob: User.*deploy/iam-policy-sagemaker.json",
        ),
        (NoCredentialsError(), "ConfigError", "AWS refuses sagemaker:CreateTrainingJob: Unable to locate credentials"),
        (NoRegionError(), "ConfigError", "names no region: add region_name to its extra"),
        (
            _error("ResourceLimitExceeded", "The account-level service limit is 0 Instances."),
            "TrainingUnavailable",
            "not have one more ml.g5.xlarge .*limit is 0 Instances.* quota, .*airflow pools set jobs 1 jobs --include-deferred",
        ),
        (
            _error("ValidationException", "Value 'ml.g5.xlarge' at 'resourceConfig.instanceType' failed: " + "[ml.x], " * 200),
            "ConfigError",
            r"no training on ml.g5.xlarge in this region: correct BCC_SAGEMAKER_INSTANCE_TYPE.{,530}$",
        ),
        (
            _error("ValidationException", "Could not assume role arn:aws:iam::1:role/x."),
            "ConfigError",
            "SageMaker refuses CreateTrainingJob: Could not assume role.*docs/cloud.md",
        ),
        (
            _error("ThrottlingException", "Rate exceeded"),
            "TrainingUnavailable",
            "no answer to CreateTrainingJob now: Rate exceeded",
        ),
        (_error("InternalFailure", "oops", 500), "TrainingUnavailable", "now: oops"),
        (EndpointConnectionError(endpoint_url="https://x"), "TrainingUnavailable", "Could not connect"),
    ],
)
def test_a_job_that_is_refused_says_what_to_do(error: Exception, kind: str, said: str) -> None:
    found = refusal_to_create(error, SETTINGS)
    assert type(found) is getattr(exceptions, kind)
    with pytest.raises(type(found), match=said):
        raise found


def test_what_may_pass_is_tried_again_and_what_a_person_stopped_is_not() -> None:
    assert refusal(_error("ThrottlingException", "Rate exceeded"), "DescribeTrainingJob").retryable
    assert not refusal(_error("AccessDeniedException", "no"), "DescribeTrainingJob").retryable
    assert not failure_of(_ended("Stopped"), SETTINGS).retryable


def test_a_job_that_does_not_exist_is_told_from_a_request_that_is_wrong() -> None:
    assert is_missing(_error("ValidationException", "Requested resource not found."))
    assert is_missing(_error("ResourceNotFound", "Training job bcc-1 does not exist."))
    assert not is_missing(_error("ValidationException", "1 validation error detected"))
    assert not is_missing(_error("AccessDeniedException", "not found, says the policy"))
    assert not is_missing(NoCredentialsError())


def test_costs_are_those_of_the_billable_seconds() -> None:
    assert describe_cost({"BillableTimeInSeconds": 1800, "TrainingTimeInSeconds": 5400}, 1.408) == (
        "AWS bills 1800 s, 0.70 at 1.408 an hour"
    )
    assert describe_cost({"BillableTimeInSeconds": 90}, 0) == "AWS bills 90 s"
    assert describe_cost({}, 1.0) == "AWS has not said yet how many seconds it bills"


def test_all_jobs_of_a_fold_are_counted_those_without_an_instance_too() -> None:
    small, large = ({"ResourceConfig": {"InstanceType": kind}} for kind in ("ml.g5.xlarge", "ml.g5.2xlarge"))
    jobs = [
        {**small, "BillableTimeInSeconds": 600, "TrainingTimeInSeconds": 900},
        {**small, **_ended("Failed", reason="CapacityError: none")},
        {**large, "BillableTimeInSeconds": 240, "TrainingTimeInSeconds": 240},
    ]
    assert count_jobs(jobs) == SageMakerJobs(
        jobs=3, instance_types=("ml.g5.xlarge", "ml.g5.2xlarge"), billed_seconds=840, saved_seconds=300, without_bill=1
    )


def test_the_link_leads_to_the_job_in_its_region() -> None:
    assert console_link("eu-central-1", "bcc-1") == (
        "https://eu-central-1.console.aws.amazon.com/sagemaker/home?region=eu-central-1#/jobs/bcc-1"
    )


def test_the_triggerer_needs_none_of_the_workers_packages_to_understand_answers() -> None:
    assert not loaded_by("bcc_ops.training.job_answers") & {"numpy", "pyarrow", "pydicom", "PIL", "obstore"}
