"""What `make run` is asked for, and what it says where it cannot do that."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bcc_ops.exceptions import ConfigError
from local.run import RunRequest, WrongUse, login, main, read_parameters, run
from local.s3_server import S3Server, free_ports
from local.stack import LocalStack, StackError, first_free_port, keep_to_ones_own, require_free_space

REPOSITORY = Path(__file__).resolve().parents[3]


def _make_run(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`make run`'s own command, which must fail before it starts anything."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "BCC_"))}
    done = subprocess.run(
        [sys.executable, "-m", "local", "run"],
        cwd=REPOSITORY,
        env={**clean, "PYTHONPATH": str(REPOSITORY / "plugins"), "LOCAL": str(tmp_path / "local"), "ONCE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not (tmp_path / "local" / "processes.json").exists()
    return done


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"IMAGES": "/no/such/folder"}, "IMAGES=/no/such/folder: there is no such folder"),
        ({"PARAMS": "epochs=0"}, "epochs: Input should be greater than or equal to 1 (given: '0')"),
        ({"PARAMS": "epoch=3"}, "epoch: there is no such parameter; did you mean epochs?"),
        ({"PARAMS": "epochs"}, "'epochs' is not name=value"),
        ({"PRESET": "best"}, "preset: must be transfer or notebook, got 'best'"),
        ({"ONCE": "perhaps"}, "ONCE=perhaps: must be 1 or 0"),
        ({"PORT": "http"}, "PORT=http is not a port"),
        ({"BCC_CLASSES": "benign"}, "classes: at least two different names"),
        (
            {"BCC_CLASSES": "cat,dog", "BCC_POSITIVE_CLASS": "dog"},
            "synthetic images exist for benign, malignant, normal, finding, no_finding only",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], variables: dict[str, str], line: str
) -> None:
    environment = {"LOCAL": str(tmp_path / "local"), **variables}
    assert main(lambda: run(RunRequest.from_environment(environment)), "make run") == 2
    told = capsys.readouterr().err
    assert line in told and told.startswith("make run: ") and told.count("\n") == 1
    assert not (tmp_path / "local").exists()


def test_a_port_that_is_taken_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _make_run(tmp_path, PORT=str(port))
    assert done.returncode == 1
    assert done.stderr == f"make run: port {port} is taken: choose another, PORT={port + 1} make run\n"


def test_the_next_free_port_stands_in_where_none_was_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert first_free_port([port, *range(port + 1, port + 20)]) in range(port + 1, port + 20)
        with pytest.raises(StackError, match=f"port {port} is taken"):
            first_free_port([port])


def test_a_port_that_was_just_in_use_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server.accept()[0].close()  # closed by the server's side first: the port lingers in TIME_WAIT
        client.close()
    assert first_free_port([port]) == port


@pytest.mark.slow
@pytest.mark.parametrize(
    ("connection", "bucket", "line"),
    [
        ("wrong endpoint", "any", "Could not connect to the endpoint URL"),
        ("wrong keys", "any", "check the connection's credentials"),
        ("right", "not-there", "the bucket not-there does not exist"),
    ],
)
def test_a_bucket_of_ones_own_that_does_not_answer_is_told_in_one_line(
    tmp_path: Path, s3_server: S3Server, connection: str, bucket: str, line: str
) -> None:
    server = {
        "wrong endpoint": S3Server(f"http://127.0.0.1:{free_ports(1)[0]}", "a", "b", 0),
        "wrong keys": S3Server(s3_server.endpoint, "somebody", "else", 0),
        "right": s3_server,
    }[connection]
    done = _make_run(
        tmp_path, AIRFLOW_CONN_AWS_DEFAULT=server.airflow_connection, BCC_BUCKET=bucket, AWS_MAX_ATTEMPTS="1", PORT=""
    )
    assert done.returncode == 1, done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("make run: ") and line in last


def test_a_disk_that_is_about_to_be_full_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"only .* GB are free on the disk of .*, .* GB are needed: make room, .*`make clean`"):
        require_free_space(tmp_path, least=2**62)
    require_free_space(tmp_path, least=1)


def test_a_disk_that_gets_full_on_the_way_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fill() -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/.local/cache/x")

    assert main(fill, "make run") == 1
    assert capsys.readouterr().err == "make run: /data/.local/cache/x: the disk is full; make room, or `make clean`\n"


def test_parameters_get_their_own_types_and_no_others_are_given() -> None:
    assert read_parameters("notebook", "epochs=3 learning_rate=1e-2 mixed_precision=false patient_pattern='(p \\d+)'") == {
        "preset": "notebook",
        "epochs": 3,
        "learning_rate": 0.01,
        "mixed_precision": False,
        "patient_pattern": "(p \\d+)",
    }


def test_nothing_is_given_where_nothing_is_asked_for() -> None:
    assert read_parameters("", "") == {}


def test_synthetic_images_lie_in_a_bucket_of_their_own(tmp_path: Path) -> None:
    assert RunRequest.from_environment({}).bucket == "synthetic-breast-images"
    assert RunRequest.from_environment({"IMAGES": str(tmp_path)}).bucket == "breast-images"
    own = {"AIRFLOW_CONN_AWS_DEFAULT": "{}", "BCC_BUCKET": "hospital"}
    request = RunRequest.from_environment(own)
    assert (request.bucket, request.own_s3, request.synthetic) == ("hospital", False, False)


@pytest.mark.parametrize(("value", "once"), [("", False), ("0", False), ("no", False), ("1", True), ("yes", True)])
def test_once_is_what_it_says(value: str, once: bool) -> None:
    assert RunRequest.from_environment({"ONCE": value}).once is once


def test_bounds_are_those_of_the_form() -> None:
    with pytest.raises(ConfigError, match="image_size"):
        read_parameters("", "image_size=8")
    with pytest.raises(WrongUse, match="PARAMS"):
        read_parameters("", "slice_pattern='(")


def test_secrets_are_random_kept_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    first, again = LocalStack(tmp_path), LocalStack(tmp_path)
    assert first.secrets == again.secrets and first.passwords == again.passwords
    assert LocalStack(tmp_path / "other").secrets["jwt_secret"] != first.secrets["jwt_secret"]
    assert len(first.secrets["jwt_secret"]) >= 64
    for name in ("secrets.json", "passwords.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("terminal", [True, False])
def test_passwords_are_shown_on_a_terminal_and_never_written_to_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    stack = LocalStack(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    stored = f"admin, password in {tmp_path / 'passwords.json'}"
    assert login(stack, "admin") == (f"admin / {stack.passwords['admin']}" if terminal else stored)


def test_an_airflow_or_aws_of_the_users_own_does_not_reach_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFLOW_HOME", "AIRFLOW__CORE__EXECUTOR", "AWS_PROFILE", "AWS_ENDPOINT_URL", "BCC_BUCKET", "BCC_SCHEDULE"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("AIRFLOW_CONN_SLACK", "slack://")
    environment = LocalStack(tmp_path, variables={"BCC_SCHEDULE": "0 4 * * *"}).environment
    assert environment["AIRFLOW_HOME"] == str(tmp_path / "airflow" / "breast-images")
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert environment["AIRFLOW_CONN_SLACK"] == "slack://"
    assert environment["BCC_BUCKET"] == "breast-images"
    assert environment["BCC_SCHEDULE"] == "0 4 * * *"
    assert not {"AWS_PROFILE", "AWS_ENDPOINT_URL"} & environment.keys()


def test_this_process_keeps_to_its_own_airflow_and_s3_too() -> None:
    environment = {
        "AWS_PROFILE": "gone",
        "AIRFLOW_HOME": "/mine",
        "AIRFLOW_CONN_SLACK": "slack://",
        "BCC_BUCKET": "b",
        "no_proxy": "intra",
    }
    keep_to_ones_own(environment, own_s3=True)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "127.0.0.1,localhost,intra"
    assert environment["AIRFLOW_CONN_SLACK"] == "slack://" and environment["BCC_BUCKET"] == "b"
    assert environment["AWS_CONFIG_FILE"] == os.devnull
    assert not {"AWS_PROFILE", "AIRFLOW_HOME"} & environment.keys()


def test_an_s3_of_ones_own_keeps_its_profile() -> None:
    environment = {"AWS_PROFILE": "hospital"}
    keep_to_ones_own(environment, own_s3=False)
    assert environment["AWS_PROFILE"] == "hospital"
