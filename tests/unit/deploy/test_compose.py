"""docker-compose.yaml and Dockerfile, as far as they can be judged without a container engine."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery.bin.celery import celery

from bcc_ops.config import Settings
from local.make_env import make_env

REPOSITORY = Path(__file__).resolve().parents[3]
PROFILES = ("s3", "gpu", "two-gpus", "cpu")
WORKERS = ("worker", "worker-gpu", "worker-gpu-1", "worker-cpu")
ONE_SHOT = {"init"}
_SECRET = r"\w+(?:PASSWORD|KEY|SECRET|DEFAULT|READER)|LOGIN_\w+"
OVERRIDES = sorted((REPOSITORY / "deploy").glob("compose.*.yaml"))

needs_compose = pytest.mark.skipif(shutil.which("docker-compose") is None, reason="apt-get install docker-compose")


def compose(*arguments: str, env_file: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    profiles = [argument for profile in PROFILES for argument in ("--profile", profile)]
    return subprocess.run(
        ["docker-compose", "--env-file", str(env_file), *profiles, *arguments],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / ".env"
    path.write_text(make_env(gpu=True))
    return path


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The services as docker-compose reads them. Not to be changed."""
    env_file = tmp_path_factory.mktemp("compose") / ".env"
    env_file.write_text(make_env(gpu=True))
    answer = compose("config", env_file=env_file)
    assert answer.returncode == 0, answer.stderr
    services: dict[str, Any] = yaml.safe_load(answer.stdout)["services"]
    return services


@needs_compose
def test_every_secret_is_required(env_file: Path) -> None:
    complete = env_file.read_text()
    secrets = re.findall(rf"^({_SECRET})=", complete, re.M)
    assert len(secrets) == 12
    for secret in secrets:
        env_file.write_text(re.sub(rf"^{secret}=.*\n", "", complete, flags=re.M))
        answer = compose("config", "--quiet", env_file=env_file)
        assert answer.returncode != 0, f"{secret} may be missing"
        assert "make env" in answer.stderr


@needs_compose
def test_only_the_ui_is_published_and_on_loopback(services: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert ports == {"api-server": ["127.0.0.1:8080:8080/tcp"]}


@needs_compose
def test_only_services_that_need_s3_share_a_network_with_its_server(services: dict[str, Any]) -> None:
    networks = {name: set(service.get("networks") or ["default"]) for name, service in services.items()}
    (of_s3,) = networks["s3"]
    sharing = {name for name, joined in networks.items() if of_s3 in joined} - {"s3"}
    assert sharing == {"init", "api-server", "triggerer", *WORKERS}
    assert all("default" in joined for name, joined in networks.items() if name != "s3")


@needs_compose
def test_s3_server_is_started_closed_and_alone_has_the_key_to_its_inner_servers(services: dict[str, Any]) -> None:
    server = services["s3"]
    assert server["entrypoint"] == ["sh", "/seaweedfs/start.sh"]
    assert [volume for volume in server["volumes"] if volume.endswith("/deploy/seaweedfs:/seaweedfs:ro")]
    assert (server["user"], server["read_only"], server["cap_drop"]) == ("1000:1000", True, ["ALL"])
    scratch = dict(mount.split(":", 1) for mount in server["tmpfs"] if ":" in mount)[server["working_dir"]]
    assert {"uid=1000", "mode=0700"} <= set(scratch.split(","))
    assert [name for name, service in services.items() if "S3_IDENTITY_KEY" in (service.get("environment") or {})] == ["s3"]


@needs_compose
def test_every_lasting_service_restarts_rotates_logs_has_limits_and_a_health_check(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, name
        if name not in ONE_SHOT:
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"], name


SECRETS = {
    "database": "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    "Fernet key": "AIRFLOW__CORE__FERNET_KEY",
    "broker": "AIRFLOW__CELERY__BROKER_URL",
    "results": "AIRFLOW__CELERY__RESULT_BACKEND",
    "tokens": "AIRFLOW__API_AUTH__JWT_SECRET",
    "API": "AIRFLOW__API__SECRET_KEY",
    "S3": "AIRFLOW_CONN_AWS_DEFAULT",
    "logins": "LOGIN_ADMIN",
}
WORKER_HAS = {"broker", "results", "S3"}
HAS = {
    "init": {"database", "Fernet key", "S3"},
    "api-server": {"database", "Fernet key", "tokens", "API", "S3", "logins"},
    "scheduler": {"database", "Fernet key", "tokens", "broker", "results"},
    "dag-processor": {"database", "Fernet key"},
    "triggerer": {"database", "Fernet key", "S3"},
    **dict.fromkeys(WORKERS, WORKER_HAS),
}
"""Service -> the secrets that it needs, and the only ones that it gets."""


@needs_compose
def test_each_service_gets_the_secrets_that_it_needs_and_no_other(services: dict[str, Any]) -> None:
    airflow = {name: service for name, service in services.items() if service["image"].startswith("bcc-retraining")}
    given = {
        name: {what for what, variable in SECRETS.items() if service["environment"].get(variable)}
        for name, service in airflow.items()
    }
    assert given == HAS
    for name in set(airflow) - ONE_SHOT:
        assert airflow[name]["depends_on"] == {"init": {"condition": "service_completed_successfully"}}


@needs_compose
def test_no_worker_can_read_a_secret_of_the_others_in_any_variable(env_file: Path, services: dict[str, Any]) -> None:
    written = dict(line.split("=", 1) for line in env_file.read_text().splitlines() if "=" in line and line[0] != "#")
    for worker in WORKERS:
        environment = " ".join(map(str, services[worker]["environment"].values()))
        for secret in ("POSTGRES_PASSWORD", "FERNET_KEY", "JWT_SECRET", "API_SECRET_KEY", "LOGIN_ADMIN", "LOGIN_VIEWER"):
            assert written[secret] not in environment, f"{worker} has {secret}"


@needs_compose
def test_no_service_serves_logs_that_the_api_server_could_not_ask_for(services: dict[str, Any]) -> None:
    """A log server that does not know the API server's key refuses it, and the UI shows that at every look."""
    for name in ("triggerer", *WORKERS):
        assert "--skip-serve-logs" in services[name]["command"], name
        assert [volume for volume in services[name]["volumes"] if ":/opt/airflow/logs" in str(volume)], name


@needs_compose
def test_every_service_drops_the_rights_of_root_and_writes_to_its_volumes_alone(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name


@needs_compose
def test_every_component_of_airflow_writes_for_its_own_user_alone(services: dict[str, Any], tmp_path: Path) -> None:
    start = "/opt/airflow/deploy/start.sh"
    for name in ("api-server", "scheduler", "dag-processor", "triggerer", *WORKERS):
        assert start in " ".join(services[name]["command"]), name
    airflow = tmp_path / "airflow"
    airflow.write_text("#!/bin/sh\nmkdir folder && touch file\n")
    airflow.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    script = REPOSITORY / "deploy" / "start.sh"
    subprocess.run(["bash", script, "scheduler"], cwd=tmp_path, env={"PATH": path}, umask=0o002, check=True)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("folder", "file")] == [0o700, 0o600]


@needs_compose
def test_images_can_be_pinned_by_digest(env_file: Path) -> None:
    digest = f"sha256:{'0' * 64}"
    pins = {"POSTGRES_IMAGE": f"postgres@{digest}", "REDIS_IMAGE": f"redis@{digest}", "AIRFLOW_DIGEST": f"@{digest}"}
    answer = compose("config", env_file=env_file, environment=pins)
    services = yaml.safe_load(answer.stdout)["services"]
    assert [services[name]["image"] for name in ("postgres", "redis")] == [f"postgres@{digest}", f"redis@{digest}"]
    built = [service["build"]["args"] for service in services.values() if "build" in service]
    assert len(built) == 9 and all(args == {"AIRFLOW_DIGEST": f"@{digest}"} for args in built)
    assert re.search(r"^FROM apache/airflow:\S+\$\{AIRFLOW_DIGEST\} AS base$", (REPOSITORY / "Dockerfile").read_text(), re.M)


@needs_compose
def test_docs_leave_a_gpu_host_only_the_secrets_of_its_worker(env_file: Path, tmp_path: Path) -> None:
    (command,) = re.findall(r"^ +(sed .+ \.env > gpu-host\.env)$", (REPOSITORY / "docs" / "operations.md").read_text(), re.M)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    overrides = ("-f", "docker-compose.yaml", "-f", "deploy/compose.gpu-host.yaml")
    addresses = {"PIPELINE_HOST": "192.0.2.1", "GPU_HOST": "192.0.2.2"}
    answer = compose(*overrides, "config", env_file=tmp_path / "gpu-host.env", environment=addresses)
    assert answer.returncode == 0, answer.stderr
    worker = yaml.safe_load(answer.stdout)["services"]["worker-gpu"]
    assert "--skip-serve-logs" not in worker["command"]
    written, kept = (_variables(path) for path in (env_file, tmp_path / "gpu-host.env"))
    secrets = {name for name in written if re.fullmatch(_SECRET, name)}
    needed = {"REDIS_PASSWORD", "API_SECRET_KEY", "AIRFLOW_CONN_AWS_DEFAULT"}
    assert {name for name in secrets if kept[name] == written[name]} == needed
    assert all(kept[name] == written[name] for name in set(written) - secrets)
    copied = (tmp_path / "gpu-host.env").read_text()
    assert not [name for name in secrets - needed if not re.search("S3_(ACCESS|SECRET)|AWS", name) and written[name] in copied]


def _variables(env_file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in env_file.read_text().splitlines() if "=" in line and line[0] != "#")


@needs_compose
def test_server_beside_a_gpu_host_publishes_no_database(env_file: Path) -> None:
    overrides = ("-f", "docker-compose.yaml", "-f", "deploy/compose.published.yaml")
    addresses = {"PRIVATE_ADDRESS": "192.0.2.1", "GPU_HOST": "192.0.2.2"}
    answer = compose(*overrides, "config", env_file=env_file, environment=addresses)
    services = yaml.safe_load(answer.stdout)["services"]
    assert {name for name, service in services.items() if service.get("ports")} == {"api-server", "redis", "s3"}


@needs_compose
def test_gpu_worker_takes_one_training_on_one_gpu_and_has_time_for_a_checkpoint(services: dict[str, Any]) -> None:
    gpu, cpu = services["worker-gpu"], services["worker-cpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["device_ids"], device["capabilities"]) == ("nvidia", ["0"], ["gpu"])
    assert "reservations" not in cpu["deploy"]["resources"]
    for worker in (gpu, cpu):
        assert {"--queues=gpu", "--concurrency=1"} < set(worker["command"])
        assert (worker["shm_size"], worker["stop_grace_period"]) in ((2 * 2**30, "3m0s"), ("2gb", "3m"), ("2gb", "3m0s"))


@needs_compose
def test_each_image_is_built_from_the_target_that_its_tag_names(services: dict[str, Any]) -> None:
    ours = {name: service for name, service in services.items() if service["image"].startswith("bcc-retraining:")}
    gpu = {name for name, service in ours.items() if service["image"].endswith(":gpu")}
    assert gpu == {"worker-gpu", "worker-gpu-1"}
    targets = {name: service["build"]["target"] for name, service in ours.items()}
    assert targets == {name: "gpu" if name in gpu else "cpu" for name in ours}


@needs_compose
def test_workers_have_caches_of_their_own(services: dict[str, Any]) -> None:
    caches = {
        name: [v for v in services[name]["volumes"] if ":/opt/airflow/cache" in str(v)] for name in ("worker", "worker-gpu")
    }
    assert caches["worker"] != caches["worker-gpu"]


@needs_compose
def test_every_setting_of_the_pipeline_can_be_given(services: dict[str, Any]) -> None:
    given = {name for name in services["worker"]["environment"] if name.startswith("BCC_")}
    assert given == {f"BCC_{name.upper()}" for name in Settings.model_fields}


@needs_compose
def test_settings_that_env_leaves_out_are_those_of_the_code(services: dict[str, Any]) -> None:
    settings = Settings.from_environment(services["worker"]["environment"])
    of_the_deployment = {"cache_dir", "gpu_queue", "parameters"}
    assert settings.model_dump(exclude=of_the_deployment) == Settings().model_dump(exclude=of_the_deployment)


@needs_compose
@pytest.mark.parametrize("override", OVERRIDES, ids=lambda path: path.name)
def test_overrides_fit_the_compose_file(override: Path, env_file: Path) -> None:
    addresses = {"PIPELINE_HOST": "192.0.2.1", "PRIVATE_ADDRESS": "192.0.2.1", "GPU_HOST": "192.0.2.2"}
    answer = compose(
        "-f", "docker-compose.yaml", "-f", str(override), "config", "--quiet", env_file=env_file, environment=addresses
    )
    assert answer.returncode == 0, answer.stderr


@needs_compose
@pytest.mark.parametrize("told", ["deploy/compose.published.yaml", "docs/operations.md"])
def test_server_beside_a_gpu_host_runs_no_worker_that_takes_its_trainings(told: str, services: dict[str, Any]) -> None:
    (given,) = re.findall(r"PRIVATE_ADDRESS=\S+ GPU_HOST=\S+ COMPOSE_PROFILES=(\S+) ", (REPOSITORY / told).read_text())
    profiles = set(given.split(","))
    started = {name for name, service in services.items() if "profiles" not in service or profiles & set(service["profiles"])}
    assert "s3" in started
    assert started & set(WORKERS) == {"worker"}


def test_health_check_of_a_worker_hands_the_brokers_password_to_celery_by_no_argument(tmp_path: Path) -> None:
    asked = tmp_path / "celery"
    asked.write_text('#!/bin/bash\necho "$@"\necho "$BROKER_URL"\n')
    asked.chmod(0o755)
    broker = "redis://:password@redis:6379/0"
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "HOSTNAME": "host",
        "CELERY_NODE": "gpu",
        "AIRFLOW__CELERY__BROKER_URL": broker,
    }
    script = REPOSITORY / "deploy" / "healthcheck.sh"
    answer = subprocess.run([script, "worker"], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["inspect ping --timeout 10 --destination gpu@host", broker]
    (option,) = (option for option in celery.params if option.name == "broker")
    assert option.envvar == "BROKER_URL"


def test_image_is_of_the_locked_airflow() -> None:
    locked = re.search(r"^apache-airflow(?:\[[\w,]+\])?==([\d.]+)", (REPOSITORY / "requirements.txt").read_text(), re.M)
    image = re.search(r"^ARG AIRFLOW_VERSION=(.+)$", (REPOSITORY / "Dockerfile").read_text(), re.M)
    assert locked and image and locked[1] == image[1]


def test_gpu_lock_agrees_with_the_lock() -> None:
    def versions(name: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for package, version in re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", (REPOSITORY / name).read_text(), re.M):
            found.setdefault(package, set()).add(version)
        return found

    locked, gpu = versions("requirements.txt"), versions("deploy/requirements-gpu.txt")
    added = {package for package in gpu if package not in locked}
    assert {
        package: gpu[package] - locked[package] for package in gpu if package in locked and gpu[package] - locked[package]
    } == {}
    assert added and all(package.startswith("nvidia-") for package in added)


@pytest.mark.slow
@pytest.mark.parametrize("locked", ["requirements.txt", "deploy/requirements-gpu.txt"])
def test_locks_resolve_to_wheels_for_the_images_python(locked: str, tmp_path: Path) -> None:
    python = re.search(r"^ARG PYTHON_VERSION=(.+)$", (REPOSITORY / "Dockerfile").read_text(), re.M)
    assert python
    platform = ("--python-version", python[1], "--python-platform", "x86_64-manylinux_2_28", "--target", str(tmp_path))
    wheels = ("--dry-run", "--require-hashes", "--only-binary", ":all:", "--quiet")
    uv = Path(sys.executable).parent / "uv"
    answer = subprocess.run(
        [uv, "pip", "install", *wheels, *platform, "-r", locked], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if "error sending request" in answer.stderr or "Could not connect" in answer.stderr:
        pytest.skip("the package index does not answer")
    assert answer.returncode == 0, answer.stderr


def test_dockerfile_has_no_findings() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    answer = subprocess.run([hadolint, REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_image_runs_as_airflow_and_holds_no_secret() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    stages = {stage.split()[-1]: body for stage, body in re.findall(r"^FROM (.+)\n((?:(?!FROM ).*\n)*)", dockerfile, re.M)}
    users = {stage: re.findall(r"^USER (\S+)", body, re.M)[-1:] for stage, body in stages.items()}
    assert users == {"base": ["50000"], "gpu": [], "sagemaker": ["0"], "cpu": []}
    copied = re.findall(r"^COPY (\S+)", dockerfile, re.M)
    assert copied == ["requirements.txt", "deploy/", "plugins/", "dags/"]
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and "!.env" not in ignored
