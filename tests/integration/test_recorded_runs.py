"""Two whole runs, watched from outside: what they ask of S3, and what they tell of their lineage.

deploy/iam-policy.json must allow all that they ask, and nothing that they do not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from bcc_ops.dataset.inspection_shards import FACTS, VERSION
from bcc_ops.models.registry import HISTORY_FOLDER, MODEL_FILES
from local.s3_server import S3Server
from tests.e2e.compose_runs import TINY, upload_synthetic_images
from tests.services.faulty_proxy import FaultyProxy
from tests.services.serving import serving

REPOSITORY = Path(__file__).resolve().parents[2]
POLICY = json.loads((REPOSITORY / "deploy" / "iam-policy.json").read_text())
BUCKET = "breast-images"

RUNS = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.utils.db import initdb
initdb()
bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
for line in sys.stdin:
    run = bag.dags["bcc_retraining"].test(run_conf=json.loads(line))
    print(f"state: {run.state.value}", flush=True)
"""
"""Reads the parameters of a run from each line that comes in, and says how it ended: the imports are paid for once."""


@dataclass(frozen=True)
class Call:
    """What one request asks for, in the words of a policy; `conditions`: those of S3's condition keys that it brings."""

    action: str
    resource: str
    prefix: str | None = None
    conditions: frozenset[str] = frozenset()


def calls_of(method: str, target: str, headers: dict[str, str]) -> list[Call]:
    """The permissions that S3 asks for a request (Amazon S3 API reference, "Permissions" of each operation)."""
    url = urlsplit(target)
    bucket, _, key = unquote(url.path).lstrip("/").partition("/")
    query = parse_qs(url.query, keep_blank_values=True)
    arn = f"arn:aws:s3:::{bucket}"
    prefix = query.get("prefix", [None])[0]
    if not key:
        if method == "GET" and "versioning" in query:
            return [Call("s3:GetBucketVersioning", arn)]
        if method == "GET" and "versions" in query:
            return [Call("s3:ListBucketVersions", arn, prefix)]
        if (method == "GET" and "list-type" in query) or method == "HEAD":
            return [Call("s3:ListBucket", arn, prefix)]
        raise AssertionError(f"no permission is known for {method} {target}")
    resource = f"{arn}/{key}"
    if method in ("GET", "HEAD"):
        return [Call("s3:GetObjectVersion" if "versionId" in query else "s3:GetObject", resource)]
    if method == "PUT":
        tagged = "x-amz-tagging" in headers
        conditions = frozenset(f"s3:{name}" for name in ("if-none-match", "if-match") if name in headers)
        return [
            Call("s3:PutObject", resource, conditions=conditions),
            *([Call("s3:PutObjectTagging", resource)] if tagged else []),
        ]
    if method == "DELETE":
        return [Call("s3:DeleteObjectVersion" if "versionId" in query else "s3:DeleteObject", resource)]
    raise AssertionError(f"no permission is known for {method} {target}")


def allows(statement: dict[str, Any], call: Call) -> bool:
    """Whether a statement of the policy allows a call; of conditions, it knows `StringLikeIfExists` on the prefix."""
    if statement["Effect"] != "Allow":
        return False
    actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
    resources = [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
    if call.action not in actions or not any(fnmatchcase(call.resource, resource) for resource in resources):
        return False
    condition = statement.get("Condition")
    if condition is None:
        return True
    assert list(condition) == ["StringLikeIfExists"] and list(condition["StringLikeIfExists"]) == ["s3:prefix"]
    patterns = condition["StringLikeIfExists"]["s3:prefix"]
    return call.prefix is None or any(fnmatchcase(call.prefix, pattern) for pattern in patterns)


def denies(statement: dict[str, Any], call: Call) -> bool:
    """Whether a statement refuses a call that comes over TLS; of conditions, it knows `Null`: all the keys are missing."""
    if statement["Effect"] != "Deny" or statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}:
        return False
    missing = statement["Condition"]["Null"]
    assert list(statement["Condition"]) == ["Null"] and set(missing.values()) == {"true"}
    assert statement["Action"] == "s3:PutObject"
    named = any(fnmatchcase(call.resource, pattern) for pattern in statement["Resource"])
    return call.action == "s3:PutObject" and named and not call.conditions & set(missing)


class RecordingProxy(FaultyProxy):
    """Passes everything on and writes down what was asked."""

    def __init__(self, behind: S3Server) -> None:
        super().__init__(behind, plan=lambda path, number: None)
        self.calls: set[Call] = set()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.calls.update(calls_of(handler.command, handler.path, headers))
        super().answer(handler)


@contextmanager
def recording(behind: S3Server) -> Iterator[RecordingProxy]:
    proxy = RecordingProxy(behind)
    with serving(proxy.server):
        yield proxy


@dataclass(frozen=True)
class Recorded:
    """What two runs asked of S3, and the events that they sent to OpenLineage."""

    calls: set[Call]
    lineage: list[dict[str, Any]]


@contextmanager
def airflow(environment: dict[str, str], log: TextIO) -> Iterator[Callable[[dict[str, Any]], str]]:
    """A process with the DAG in it: called with parameters, it runs the DAG with them and gives the run's state."""
    command = [sys.executable, "-c", RUNS, str(REPOSITORY / "dags")]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        asked, said = process.stdin, process.stdout

        def run_dag(parameters: dict[str, Any]) -> str:
            asked.write(f"{json.dumps(parameters)}\n")
            asked.flush()
            for line in said:
                if line.startswith("state: "):
                    return line.removeprefix("state: ").strip()
                log.write(line)
            log.flush()
            return "it ended without one"

        yield run_dag


@pytest.fixture(scope="module")
def recorded_runs(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Two runs: the first without a champion, the second with one, with new images, in a bucket that now keeps versions."""
    from bcc_ops.runs.object_store import ObjectStore

    folder = tmp_path_factory.mktemp("policy")
    store = ObjectStore(s3_server.client(), BUCKET)
    store.client.create_bucket(Bucket=BUCKET)
    with recording(s3_server) as proxy:
        recorded = S3Server(proxy.endpoint, s3_server.access_key, s3_server.secret_key, 0)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "BCC_", "AWS_"))},
            "PYTHONPATH": str(REPOSITORY / "plugins"),
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
            "AIRFLOW_CONN_AWS_DEFAULT": recorded.airflow_connection,
            "BCC_BUCKET": BUCKET,
            "BCC_CACHE_DIR": str(folder / "cache"),
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
                {"type": "file", "log_file_path": str(folder / "lineage.json"), "append": True}
            ),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        log = folder / "airflow.log"
        with log.open("w") as messages, airflow(environment, messages) as run_dag:
            for seed in (1, 2):
                upload_synthetic_images(store, per_class=12, seed=seed)
                if seed == 2:
                    store.client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
                assert run_dag(TINY) == "success", log.read_text()[-8000:]
    assert store.head("models/champion.json"), "the runs did not even promote"
    lineage = [json.loads(line) for line in (folder / "lineage.json").read_text().splitlines()]
    return Recorded(proxy.calls, lineage)


@pytest.mark.e2e
@pytest.mark.timeout(1500)
def test_policy_allows_every_call_of_a_run(recorded_runs: Recorded) -> None:
    statements = POLICY["Statement"]
    refused = {call for call in recorded_runs.calls if not any(allows(statement, call) for statement in statements)}
    assert refused == set()
    assert {call for call in recorded_runs.calls if any(denies(statement, call) for statement in statements)} == set()


@pytest.mark.e2e
@pytest.mark.timeout(1500)
def test_policy_allows_no_action_that_no_run_needs(recorded_runs: Recorded) -> None:
    for statement in (statement for statement in POLICY["Statement"] if statement["Effect"] == "Allow"):
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        for action in actions:
            alone = {**statement, "Action": [action]}
            assert any(allows(alone, call) for call in recorded_runs.calls), f"{statement['Sid']}: nothing asks for {action}"


@pytest.mark.e2e
@pytest.mark.timeout(1500)
def test_lineage_leads_from_the_images_to_the_champion(recorded_runs: Recorded) -> None:
    def datasets(side: str) -> dict[str, set[tuple[str, str]]]:
        found: dict[str, set[tuple[str, str]]] = {}
        for event in recorded_runs.lineage:
            if event["eventType"] == "COMPLETE" and event.get(side):
                found[event["job"]["name"]] = {(dataset["namespace"], dataset["name"]) for dataset in event[side]}
        return found

    assert datasets("inputs") == {"bcc_retraining.snapshot_dataset": {(f"s3://{BUCKET}", "images")}}
    assert datasets("outputs") == {"bcc_retraining.upload_model": {(f"s3://{BUCKET}", "models/champion.json")}}


def test_policy_holds_no_wildcard_action() -> None:
    allowed = [statement["Action"] for statement in POLICY["Statement"] if statement["Effect"] == "Allow"]
    assert "*" not in json.dumps(allowed)


def test_policy_lets_nobody_write_over_a_version() -> None:
    models = f"arn:aws:s3:::{BUCKET}/models"
    assert not _may_put(f"{models}/{HISTORY_FOLDER}/abc.json")
    assert _may_put(f"{models}/{HISTORY_FOLDER}/abc.json", "s3:if-none-match")
    for name in MODEL_FILES:
        assert not _may_put(f"{models}/20261122T020000Z-abc/{name}")
        assert not _may_put(f"{models}/20261122T020000Z-abc/{name}", "s3:if-match")
        assert _may_put(f"{models}/20261122T020000Z-abc/{name}", "s3:if-none-match")


def test_policy_lets_the_champion_move_only_if_nobody_else_moved_it() -> None:
    pointer = f"arn:aws:s3:::{BUCKET}/models/champion.json"
    assert not _may_put(pointer)
    assert _may_put(pointer, "s3:if-match") and _may_put(pointer, "s3:if-none-match")


def _may_put(resource: str, *conditions: str) -> bool:
    call = Call("s3:PutObject", resource, conditions=frozenset(conditions))
    statements = POLICY["Statement"]
    return any(allows(statement, call) for statement in statements) and not any(
        denies(statement, call) for statement in statements
    )


def test_policy_lets_a_worker_remove_shards_that_it_merged() -> None:
    key = f"artifacts/inspections/{VERSION}/{FACTS}/a.parquet"
    call = Call("s3:DeleteObject", f"arn:aws:s3:::{BUCKET}/{key}")
    assert any(allows(statement, call) for statement in POLICY["Statement"])


def test_policy_of_the_pages_allows_no_write_and_no_image() -> None:
    reader = json.loads((REPOSITORY / "deploy" / "iam-policy-reader.json").read_text())["Statement"]
    forbidden = (
        ("s3:PutObject", "models/champion.json"),
        ("s3:GetObject", "images/benign/a.png"),
        ("s3:GetObject", "artifacts/inspections/1-7-2/facts/a.parquet"),
    )
    for action, key in forbidden:
        call = Call(action, f"arn:aws:s3:::{BUCKET}/{key}")
        assert not any(allows(statement, call) for statement in reader)


@pytest.mark.parametrize(
    "call",
    [
        Call("s3:PutObject", f"arn:aws:s3:::{BUCKET}/images/benign/a.png"),
        Call("s3:DeleteObject", f"arn:aws:s3:::{BUCKET}/models/champion.json"),
        Call("s3:DeleteObject", f"arn:aws:s3:::{BUCKET}/artifacts/runs/20261122T020000Z__a/gate.json"),
        Call("s3:DeleteObjectVersion", f"arn:aws:s3:::{BUCKET}/artifacts/checkpoints/a/checkpoint.npz"),
        Call("s3:GetObject", "arn:aws:s3:::another-bucket/images/benign/a.png"),
        Call("s3:ListBucket", f"arn:aws:s3:::{BUCKET}", "payroll/"),
    ],
)
def test_policy_refuses_what_a_run_must_never_do(call: Call) -> None:
    assert not any(allows(statement, call) for statement in POLICY["Statement"])
