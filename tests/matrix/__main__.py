"""Try the wheel in one environment per version of Airflow, and print a table. Exit status 1 if one does not do."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import httpx

from bcc_ops.dataset.synthetic import write_images
from local.s3_server import S3Server, serve
from tests.matrix.deployment import PASSWORD, Airflow, login
from tests.matrix.environments import RELEASED, MatrixError, make_environment
from tests.services.wheel import build_wheel

RUN_ID = "manual__matrix"
QUICK = {
    **{"folds": 1, "architecture": "cnn", "weights": "none", "epochs": 1, "image_size": 96, "batch_size": 16},
    **{"test_time_flip": False, "ema": False},
}
"""Parameters of a run that ends within minutes. The gate rejects its model, and that is a result."""

IMAGES_PER_CLASS = 12
OPEN, CLOSED = {200, 404}, {401, 403}
FAB = "apache-airflow-providers-fab"
FAB_MANAGER = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
FAB_ROLES = {"Admin": OPEN, "Op": OPEN, "User": OPEN, "Viewer": OPEN, "NoDags": CLOSED}
"""FAB's own roles, and one that may see the UI and no DAG -> what the pages answer to it."""


@dataclass(frozen=True)
class Case:
    """One environment to make and try."""

    version: str
    python: str
    full: bool = False
    fab: bool = False

    @property
    def name(self) -> str:
        """As it is called in the table and in the file system."""
        kind = "fab" if self.fab else "worker" if self.full else "base"
        return f"{self.version}-py{self.python.rpartition('/python')[2]}-{kind}"


def main(arguments: list[str] | None = None) -> int:
    """Make and try the environments that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("versions", nargs="*", default=list(RELEASED), help=f"versions of Airflow; all of {' '.join(RELEASED)}")
    parser.add_argument("--python", nargs="*", default=["3.11"], help="interpreters, by version or path")
    parser.add_argument(
        "--full", action="store_true", help="with the extra worker, as `airflow standalone`, and one run on synthetic images"
    )
    parser.add_argument("--fab", action="store_true", help="with the FAB auth manager and its roles")
    parser.add_argument("--constraints", help="file or URL of Airflow's constraints, with {version} and {python}")
    parser.add_argument("--folder", type=Path, default=Path(".local/matrix"), help="for the environments, removed afterwards")
    given = parser.parse_args(arguments)
    cases = [Case(version, python, given.full, given.fab) for version in given.versions for python in given.python]
    given.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch, serve(Path(scratch, "s3")) as s3:
        wheel = build_wheel(Path(scratch))
        for case in cases:
            began = time.monotonic()
            try:
                told = try_case(case, given.folder.absolute(), wheel, s3, given.constraints)
            except Exception as error:
                failed += 1
                told = f"FAILED {error if isinstance(error, MatrixError) else traceback.format_exc()}"
            finally:
                shutil.rmtree(given.folder / case.name, ignore_errors=True)
            print(f"{case.name:22} {time.monotonic() - began:5.0f} s  {told}", flush=True)
    return 1 if failed else 0


def try_case(case: Case, folder: Path, wheel: Path, s3: S3Server, constraints: str | None) -> str:
    """Make the environment of a case, try it, and return one line about it.

    Raises:
        MatrixError: something is not as it should be.
    """
    environment = make_environment(
        folder / case.name / "venv",
        wheel,
        case.version,
        python=case.python,
        extras="[worker]" if case.full else "",
        also=(FAB,) if case.fab else (),
        constraints=constraints,
    )
    parameters = folder / "parameters.yaml"
    parameters.write_text(
        json.dumps(QUICK)
    )  # JSON is YAML; for last night's run, which Airflow makes once the DAG is switched on
    settings = {"BCC_PARAMETERS": str(parameters), **({"AIRFLOW__CORE__AUTH_MANAGER": FAB_MANAGER} if case.fab else {})}
    bucket = f"matrix-{case.name.replace('.', '-')}"
    fill_bucket(s3, bucket, folder)
    airflow = Airflow(environment, folder / case.name / "home", s3, bucket, settings)
    airflow.command("db", "migrate")
    seen = airflow.look()
    expect("the DAGs", (seen["dags"], seen["problems"]), (["bcc_retraining", "bcc_set_champion"], []))
    if not case.full:
        expect("what is installed of the worker's packages", [*seen["heavy_installed"], *seen["heavy_imported"]], [])
    airflow.command("dag-processor", "--num-runs", "1")
    if case.version in RELEASED:
        airflow.command("scheduler", "--num-runs", "1")
    airflow.command("pools", "set", "gpu", "1", "one slot per GPU")
    users = make_fab_users(airflow) if case.fab else {"admin": OPEN, "viewer": OPEN}
    with airflow.serving(*(["standalone"] if case.full else ["api-server", "--workers", "1"])) as client:
        if case.full:
            airflow.run_dag(client, QUICK, RUN_ID)
        walked = walk(client, seen["routes"], users, open_pages=case.version in RELEASED)
    verdict = told_of_run(s3, bucket) if case.full else "no run"
    return f"{environment.megabytes} MB, Python {seen['python']}, amazon {seen['amazon']}, {walked} answers, {verdict}"


def fill_bucket(s3: S3Server, bucket: str, folder: Path) -> None:
    """Make a bucket with a few synthetic images of each class."""
    client, images = s3.client(), folder / "images"
    client.create_bucket(Bucket=bucket)
    for path in write_images(images, per_class=IMAGES_PER_CLASS):
        client.upload_file(str(path), bucket, f"images/{path.relative_to(images).as_posix()}")


def told_of_run(s3: S3Server, bucket: str) -> str:
    """Return the verdict of the run that was asked for.

    Raises:
        MatrixError: there is none.
    """
    listed = s3.client().list_objects_v2(Bucket=bucket, Prefix="artifacts/runs/").get("Contents", [])
    gates = [found["Key"] for found in listed if f"__{RUN_ID}-" in found["Key"] and found["Key"].endswith("/gate.json")]
    expect("verdicts", len(gates), 1)
    gate = json.loads(s3.client().get_object(Bucket=bucket, Key=gates[0])["Body"].read())
    return f"verdict {gate['verdict']}"


def walk(client: httpx.Client, routes: list[str], users: dict[str, set[int]], open_pages: bool) -> int:
    """Ask for every page without a login, with a wrong token and as each user; return how many answers there were.

    Raises:
        MatrixError: an answer has another status than it should.
    """
    if not open_pages:
        answer = client.get("/bcc/models")
        expect("the status of a closed page", answer.status_code, 503)
        expect("its sentence", "These pages are closed" in answer.text, True)
        return 1
    addresses = [
        "/bcc" + route.format(dag_id="bcc_retraining", run_id=RUN_ID, name="roc.png", instance="other") for route in routes
    ]
    count = 0
    for who, headers, expected in [
        ("a stranger", {}, CLOSED),
        ("a wrong token", {"Authorization": "Bearer made.up.token"}, CLOSED),
        *((user, login(client, user), allowed) for user, allowed in users.items()),
    ]:
        for address in addresses:
            status = client.get(address, headers=headers).status_code
            wanted = {200} if expected == OPEN and address == "/bcc/models" else expected
            expect(f"the status of {address} for {who}", status in wanted and status, status)
            count += 1
    return count


def make_fab_users(airflow: Airflow) -> dict[str, set[int]]:
    """Make a user per role; return user -> what the pages answer."""
    airflow.script("fab_users.py", PASSWORD, *FAB_ROLES)
    return {role.lower(): allowed for role, allowed in FAB_ROLES.items()}


def expect(what: str, found: object, expected: object) -> None:
    """Compare.

    Raises:
        MatrixError: they differ.
    """
    if found != expected:
        raise MatrixError(f"{what}: {found!r}, expected {expected!r}")


if __name__ == "__main__":
    sys.exit(main())
