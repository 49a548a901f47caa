"""`make env` and what the services make of it."""

from __future__ import annotations

import base64
import json
import re
import stat
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bcc_ops.exceptions import BucketNotFound, StorageUnavailable
from bcc_ops.runs.object_store import ObjectStore
from deploy.prepare_bucket import prepare
from deploy.write_logins import logins
from local import make_env
from local.s3_server import S3Server, free_ports

REPOSITORY = Path(__file__).resolve().parents[3]


def read(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value.strip("'") for name, value in (line.split("=", 1) for line in lines)}


def test_two_env_files_share_no_secret() -> None:
    one, other = read(make_env.make_env(gpu=False)), read(make_env.make_env(gpu=False))
    alike = {name for name in one if one[name] == other[name]}
    assert alike == {
        *("COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES", "GPU_SLOTS", "UI_ADDRESS", "UI_PORT", "BCC_BUCKET", "CREATE_BUCKET"),
    }


def test_secrets_are_what_airflow_takes() -> None:
    env = read(make_env.make_env(gpu=True))
    Fernet(env["FERNET_KEY"])
    assert len(env["JWT_SECRET"]) >= 64
    connection = json.loads(env["AIRFLOW_CONN_AWS_DEFAULT"])
    assert (connection["login"], connection["password"]) == (env["S3_ACCESS_KEY"], env["S3_SECRET_KEY"])


def test_env_is_for_its_owner_alone_and_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_env", str(tmp_path)])
    assert make_env.main() == 0
    first = (tmp_path / ".env").read_text()
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert make_env.main() == 0
    assert (tmp_path / ".env").read_text() == first


def test_env_of_an_earlier_version_gets_the_secrets_that_it_lacks_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_env", str(tmp_path)])
    complete = make_env.make_env(gpu=True)
    earlier = re.sub(r"^(S3_IDENTITY_KEY|CREATE_BUCKET|GPU_SLOTS)=.*\n", "", complete, flags=re.M).rstrip("\n")
    (tmp_path / ".env").write_text(earlier)
    assert make_env.main() == 0
    completed = (tmp_path / ".env").read_text()
    assert completed.startswith(earlier + "\n")
    assert read(completed).keys() - read(earlier).keys() == {"S3_IDENTITY_KEY"}
    assert read(completed)["S3_IDENTITY_KEY"]
    assert make_env.main() == 0
    assert (tmp_path / ".env").read_text() == completed


def test_identity_of_the_s3_server_is_one_key_and_the_certificate_for_it() -> None:
    identity = base64.b64decode(read(make_env.make_env(gpu=True))["S3_IDENTITY_KEY"])
    key, certificate = load_pem_private_key(identity, None), x509.load_pem_x509_certificate(identity)
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(certificate)


def test_profiles_follow_the_host() -> None:
    assert read(make_env.make_env(gpu=True))["COMPOSE_PROFILES"] == "s3,gpu"
    assert read(make_env.make_env(gpu=False))["COMPOSE_PROFILES"] == "s3,cpu"


def test_the_volume_that_the_docs_back_up_is_of_this_project() -> None:
    """Docker makes an empty volume where the name is wrong, and the backup would be one of nothing."""
    copied = re.findall(r"-v (\S+):/from", (REPOSITORY / "docs" / "operations.md").read_text())
    assert copied == [f"{read(make_env.make_env(gpu=False))['COMPOSE_PROJECT_NAME']}_s3"]


def test_each_user_has_the_password_of_its_variable() -> None:
    environment = {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin, viewer:viewer",
        "LOGIN_ADMIN": "one",
        "LOGIN_VIEWER": "two",
    }
    assert logins(environment) == {"admin": "one", "viewer": "two"}
    with pytest.raises(KeyError, match="LOGIN_VIEWER"):
        logins({name: value for name, value in environment.items() if name != "LOGIN_VIEWER"})


def test_bucket_is_made_once_with_versions_and_then_left_alone(s3_server: S3Server) -> None:
    store = ObjectStore(s3_server.client(), "prepared")
    with pytest.raises(BucketNotFound):
        prepare(store, create=False)
    assert "made the bucket" in prepare(store, create=True)
    store.put("images/benign/a.png", b"x")
    assert prepare(store, create=True) == "the bucket prepared is there and keeps versions; it honours conditional writes"
    assert store.get("images/benign/a.png") == b"x"


def test_bucket_that_never_answers_is_an_error_and_no_endless_wait() -> None:
    server = S3Server(f"http://127.0.0.1:{free_ports(1)[0]}", "a", "b", pid=0)
    with pytest.raises(StorageUnavailable):
        prepare(ObjectStore(server.client(connect_timeout=0.2), "nowhere"), create=True, patience=0.5)


def test_an_older_env_gets_a_reader_that_its_own_s3_server_knows() -> None:
    older = "\n".join(
        line for line in make_env.make_env(gpu=False).splitlines() if "AWS_READER" not in line and "S3_IDENTITY" not in line
    )
    connection = next(line for line in older.splitlines() if line.startswith("AIRFLOW_CONN_AWS_DEFAULT=")).split("=", 1)[1]
    added = make_env.missing_from(older, (REPOSITORY / "docker-compose.yaml").read_text())
    assert set(added) == {"AIRFLOW_CONN_AWS_READER", "S3_IDENTITY_KEY"}
    assert added["AIRFLOW_CONN_AWS_READER"] == connection
