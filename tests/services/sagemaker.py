"""A SageMaker that works: moto's, and what moto lacks. Its jobs take their time, run, are interrupted and can be stopped.

moto keeps what a job was created with and tells it again, but its jobs end at once and nothing can stop them. Here a job gets its
/opt/ml from the bucket, runs the container's command in a process, and its checkpoints and its model go back to the bucket.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from moto.sagemaker.models import SageMakerModelBackend

from bcc_ops.runs.epochs import parse_history
from bcc_ops.runs.object_store import ObjectStore
from tests.services.serving import AwsJsonHandler, serving

REGION, ACCOUNT = "us-east-1", "123456789012"
PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


class Refusal(Exception):
    """An answer that is an error of the API."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


class Dropped(Exception):
    """Instead of an answer: the connection is closed."""


class Job:
    """A training job.

    Args:
        service: what it is a job of.
        asked: what CreateTrainingJob was given.
    """

    def __init__(self, service: SageMaker, asked: dict[str, Any]) -> None:
        self.service = service
        self.asked = asked
        self.name = asked["TrainingJobName"]
        self.root = service.root / self.name / "ml"
        self.interruptions = 0
        self._told: dict[str, Any] = {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Starting"}
        self._stopping = threading.Event()
        self.ended = threading.Event()
        self._synced: dict[Path, tuple[int, int]] = {}
        self.thread = threading.Thread(target=self._run)

    @property
    def told(self) -> dict[str, Any]:
        """What is to be told of it beside what it was created with."""
        return dict(self._told)

    def stop(self) -> None:
        """As StopTrainingJob: SIGTERM, and its checkpoints are kept."""
        if self.ended.is_set():
            raise Refusal("ValidationException", f"The request was rejected because the training job is in status {self._told}.")
        self._told["TrainingJobStatus"] = "Stopping"
        self._stopping.set()
        if not self.service.trains:
            self.finish("Stopped")

    def finish(self, status: str, secondary: str = "", reason: str = "") -> None:
        """End it, with this status."""
        self._told |= {"TrainingJobStatus": status, "SecondaryStatus": secondary or status}
        self._told |= {"TrainingTimeInSeconds": 900, "BillableTimeInSeconds": 600}
        if reason:
            self._told["FailureReason"] = reason
        self.ended.set()

    def put_out(self, files: dict[str, bytes]) -> None:
        """Write model.tar.gz."""
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        self._put(f"{self.asked['OutputDataConfig']['S3OutputPath']}/{self.name}/output/model.tar.gz", content.getvalue())

    def _run(self) -> None:
        try:
            self._lay_out()
            while True:
                self._told["SecondaryStatus"] = "Training"
                status = self._train()
                self._sync_checkpoints()
                if status is None:
                    self.interruptions += 1
                    self._told["SecondaryStatus"] = "Interrupted"
                    shutil.rmtree(self.root)
                    self._lay_out()
                    continue
                break
            failure = self.root / "output" / "failure"
            if self._stopping.is_set():
                self.finish("Stopped")
            elif status == 0:
                self.put_out({path.name: path.read_bytes() for path in sorted((self.root / "model").iterdir())})
                self.finish("Completed")
            else:
                said = failure.read_text() if failure.exists() else ""
                self.finish("Failed", reason=f"AlgorithmError: {said}, exit code: {status}")
        except ClientError as error:
            self.finish("Failed", reason=f"ClientError: Data download failed:{error}")
        except Exception as error:  # the test sees it as the job's failure
            self.finish("Failed", reason=f"InternalServerError: {error!r}")

    def _train(self) -> int | None:
        """The container's exit status; None if its spot instance was taken away."""
        _, *command = self.asked["AlgorithmSpecification"]["ContainerEntrypoint"]
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", str(self.root)), "PYTHONPATH": str(PLUGINS)}
        interrupted = False
        log = (self.root / "log").open("w")
        with (
            log,
            subprocess.Popen(
                [sys.executable, *command, "--root", str(self.root)], env=environment, stdout=log, stderr=subprocess.STDOUT
            ) as process,
        ):
            while process.poll() is None:
                self._sync_checkpoints()
                due = not self.interruptions and self._epochs() >= self.service.interrupt_after.get(self._fold, 10**6)
                if (due and not interrupted) or self._stopping.is_set():
                    process.send_signal(signal.SIGTERM)
                    interrupted = due
                self._stopping.wait(0.02)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
        return None if interrupted and not self._stopping.is_set() and process.returncode else process.returncode

    @property
    def _fold(self) -> int:
        return int(self.asked["HyperParameters"]["fold"])

    def _epochs(self) -> int:
        found = list((self.root / "checkpoints").glob("**/history.csv"))
        return len(parse_history(found[0].read_bytes())) if found else 0

    def _lay_out(self) -> None:
        config = self.root / "input" / "config"
        config.mkdir(parents=True)
        (self.root / "model").mkdir()
        (config / "hyperparameters.json").write_text(json.dumps(self.asked["HyperParameters"]))
        for channel in self.asked["InputDataConfig"]:
            source, folder = channel["DataSource"]["S3DataSource"], self.root / "input" / "data" / channel["ChannelName"]
            if source["S3DataType"] == "S3Prefix":
                self._fetch_all(source["S3Uri"], folder)
                continue
            head, *names = json.loads(self._get(source["S3Uri"]))
            for name in names:
                self._fetch(f"{head['prefix']}{name}", folder, name)
        self._fetch_all(f"{self.asked['CheckpointConfig']['S3Uri']}/", self.root / "checkpoints")
        self._synced = {path: _stamp(path) for path in (self.root / "checkpoints").glob("**/*") if path.is_file()}

    def _fetch_all(self, uri: str, folder: Path) -> None:
        prefix = _key(uri)
        self.service.role_calls.append(("s3:ListBucket", prefix))
        for entry in self.service.store.list_objects(prefix):
            self._fetch(f"s3://{self.service.store.bucket}/{entry['Key']}", folder, entry["Key"][len(prefix) :])

    def _fetch(self, uri: str, folder: Path, name: str) -> None:
        path = (folder / name).resolve()
        assert folder.resolve() in path.parents, f"{name!r} is not a path below its channel"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._get(uri))

    def _get(self, uri: str) -> bytes:
        self.service.role_calls.append(("s3:GetObject", _key(uri)))
        content: bytes = self.service.store.client.get_object(Bucket=urlsplit(uri).netloc, Key=_key(uri))["Body"].read()
        return content

    def _put(self, uri: str, content: bytes) -> None:
        self.service.role_calls.append(("s3:PutObject", _key(uri)))
        self.service.store.client.put_object(Bucket=urlsplit(uri).netloc, Key=_key(uri), Body=content)

    def _sync_checkpoints(self) -> None:
        folder = self.root / "checkpoints"
        for path in folder.glob("**/*"):
            with suppress(FileNotFoundError):  # what is being written has another name until it is whole
                if path.is_file() and path.suffix != ".part" and self._synced.get(path) != (stamp := _stamp(path)):
                    name = path.relative_to(folder).as_posix()
                    self._put(f"{self.asked['CheckpointConfig']['S3Uri']}/{name}", path.read_bytes())
                    self._synced[path] = stamp


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _key(uri: str) -> str:
    return uri.split("/", 3)[3]


class SageMaker:
    """The service.

    Args:
        store: the bucket that jobs read and write, as their role would.
        root: where each job has its /opt/ml.
        trains: whether jobs run; otherwise they go on until the test ends them.

    Attributes:
        jobs: by name, in the order in which they were created.
        calls: (operation, parameters) of every request, refused ones too.
        role_calls: (action, key or prefix) of what jobs asked of S3.
        refusals: operation -> what its next requests are answered with.
        interrupt_after: fold -> epochs after which its spot instance is taken away, once.
    """

    def __init__(self, store: ObjectStore, root: Path, *, trains: bool) -> None:
        self.store = store
        self.root = root
        self.trains = trains
        self.jobs: dict[str, Job] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.role_calls: list[tuple[str, str]] = []
        self.refusals: dict[str, list[Refusal]] = {}
        self.interrupt_after: dict[int, int] = {}
        self.endpoint = ""
        self._moto = SageMakerModelBackend(REGION, ACCOUNT)

    def connection(self, s3_connection: str) -> str:
        """Return an Airflow connection to the same S3 and to this service, as JSON."""
        connection: dict[str, Any] = json.loads(s3_connection)
        connection["extra"]["service_config"]["sagemaker"] = {"endpoint_url": self.endpoint}
        return json.dumps(connection)

    def answer(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Answer a request."""
        self.calls.append((operation, parameters))
        if self.refusals.get(operation):
            raise self.refusals[operation].pop(0)
        answer: dict[str, Any] = {
            "CreateTrainingJob": self._create,
            "DescribeTrainingJob": self._describe,
            "StopTrainingJob": self._stop,
        }[operation](parameters)
        return answer

    def close(self) -> None:
        """End what still runs."""
        for job in self.jobs.values():
            job._stopping.set()
        for job in self.jobs.values():
            if job.thread.ident is not None:
                job.thread.join()

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        _check(asked)
        name = asked["TrainingJobName"]
        if name in self.jobs:
            raise Refusal("ResourceInUse", "Training job names must be unique within an AWS account and region.")
        snake = {re.sub(r"(?<!^)(?=[A-Z])", "_", key).lower(): value for key, value in json.loads(json.dumps(asked)).items()}
        wanted = inspect.signature(self._moto.create_training_job).parameters
        given: dict[str, Any] = {parameter: snake.get(parameter) for parameter in wanted}
        self._moto.create_training_job(**given)
        self.jobs[name] = Job(self, asked)
        if self.trains:
            self.jobs[name].thread.start()
        return {"TrainingJobArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{name}"}

    def _describe(self, parameters: dict[str, Any]) -> dict[str, Any]:
        job = self._find(parameters)
        described = {**self._moto.describe_training_job(job.name), **job.told}
        if not job.ended.is_set():
            described.pop("ModelArtifacts")
        return described

    def _stop(self, parameters: dict[str, Any]) -> dict[str, Any]:
        self._find(parameters).stop()
        return {}

    def _find(self, parameters: dict[str, Any]) -> Job:
        job = self.jobs.get(parameters["TrainingJobName"])
        if job is None:
            raise Refusal("ValidationException", "Requested resource not found.")
        return job


def _check(asked: dict[str, Any]) -> None:
    """Refuse what SageMaker refuses, by the patterns and limits of its API reference."""
    spot, stopping = asked.get("EnableManagedSpotTraining", False), asked["StoppingCondition"]
    wait, kind = stopping.get("MaxWaitTimeInSeconds"), asked["ResourceConfig"]["InstanceType"]
    good = {
        "trainingJobName": re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", asked["TrainingJobName"]),
        "roleArn": re.fullmatch(r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+", asked["RoleArn"]),
        "resourceConfig.instanceType": kind != "ml.none.large",
        "hyperParameters": all(
            isinstance(value, str) and len(value) <= 2500 and len(name) <= 256 for name, value in asked["HyperParameters"].items()
        ),
        "inputDataConfig": all(re.fullmatch(r"[A-Za-z0-9.\-_]{1,64}", one["ChannelName"]) for one in asked["InputDataConfig"]),
        "maxWaitTimeInSeconds": wait >= stopping["MaxRuntimeInSeconds"] if spot and wait else not wait and not spot,
        "tags": all(re.fullmatch(r"[\w .:/=+\-@]{1,128}", tag[part]) for tag in asked["Tags"] for part in ("Key", "Value")),
    }
    for name, held in good.items():
        if not held:
            raise Refusal("ValidationException", f"1 validation error detected: Value at '{name}' failed to satisfy constraint")


class _Handler(AwsJsonHandler):
    service: SageMaker

    def do_POST(self) -> None:
        try:
            super().do_POST()
        except Dropped:
            self.close_connection = True

    def answer(self, operation: str, parameters: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        try:
            return 200, self.service.answer(operation, parameters)
        except Refusal as refusal:
            return refusal.status, {"__type": refusal.code, "message": refusal.message}


@contextmanager
def sagemaker(store: ObjectStore, root: Path, *, trains: bool) -> Iterator[SageMaker]:
    """The service on a port of its own, in threads of this process."""
    service = SageMaker(store, root, trains=trains)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": service}))
    server.daemon_threads = True
    service.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    with serving(server):
        try:
            yield service
        finally:
            service.close()
