"""`make env`: write `.env` for docker-compose.yaml, with random secrets, or add those that an earlier one lacks.

What is there is never changed.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import shutil
import sys
from pathlib import Path

from local.s3_server import airflow_connection, make_identity

COMPOSE_FILE = Path(__file__).resolve().parents[1] / "docker-compose.yaml"
HEADER = """\
# Written by `make env`; read by docker-compose.yaml. Keep it secret and keep a copy: without FERNET_KEY, connections and
# variables that were saved in the UI can no longer be read.
"""


def make_env(gpu: bool) -> str:
    """Return the text of a fresh `.env`.

    Args:
        gpu: whether this host has an NVIDIA GPU; it decides which worker serves the queue of the trainings.
    """
    access_key, secret_key = secrets.token_hex(10), secrets.token_urlsafe(32)
    sections = {
        "What the names of volumes and containers begin with. Under another one, the volumes would be new and empty.": {
            "COMPOSE_PROJECT_NAME": "breast-ultrasound",
        },
        "What runs here. Leave out s3 if there is a real one, and point AIRFLOW_CONN_AWS_DEFAULT to it.": {
            "COMPOSE_PROFILES": f"s3,{'gpu' if gpu else 'cpu'}",
            "GPU_SLOTS": "1",
            "UI_ADDRESS": "127.0.0.1",
            "UI_PORT": "8080",
        },
        "Logins of the UI": {
            "LOGIN_ADMIN": secrets.token_urlsafe(16),
            "LOGIN_VIEWER": secrets.token_urlsafe(16),
        },
        "Secrets that the services share": {
            "POSTGRES_PASSWORD": secrets.token_hex(24),
            "REDIS_PASSWORD": secrets.token_hex(24),
            "FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "API_SECRET_KEY": secrets.token_hex(32),
            "JWT_SECRET": secrets.token_hex(64),
        },
        "The S3 server of the profile s3, and the connection to it": {
            "S3_ACCESS_KEY": access_key,
            "S3_SECRET_KEY": secret_key,
            "S3_IDENTITY_KEY": make_identity(),
            "AIRFLOW_CONN_AWS_DEFAULT": f"'{airflow_connection('http://s3:8333', access_key, secret_key)}'",
            "AIRFLOW_CONN_AWS_READER": f"'{airflow_connection('http://s3:8333', access_key, secret_key)}'",
            "BCC_BUCKET": "breast-images",
            "CREATE_BUCKET": "true",
        },
    }
    parts = [HEADER]
    for title, variables in sections.items():
        parts.append("\n".join([f"\n# {title}", *(f"{name}={value}" for name, value in variables.items()), ""]))
    return "".join(parts)


def missing_from(env: str, compose: str) -> dict[str, str]:
    """Return a fresh value for each variable that the compose file requires and `env` does not set."""
    required = set(re.findall(r"\$\{(\w+):\?", compose))
    there = set(re.findall(r"^(\w+)=", env, re.M))
    fresh = dict(re.findall(r"^(\w+)=(.*)$", make_env(gpu=False), re.M))
    # Random keys would not fit an S3 server that is there already.
    fresh["AIRFLOW_CONN_AWS_READER"] = dict(re.findall(r"^(\w+)=(.*)$", env, re.M)).get("AIRFLOW_CONN_AWS_DEFAULT", "")
    return {name: value for name, value in fresh.items() if name in required - there}


def main() -> int:
    """Write `.env` into the folder named by the argument, or into this one, or complete the one that is there."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else ".") / ".env"
    try:
        # O_EXCL: of two that write at once one wins; and there is no moment at which others may read the file.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _complete(path)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(make_env(gpu=shutil.which("nvidia-smi") is not None))
    print(f"wrote {path} (mode 600); LOGIN_ADMIN in it is the password of the UI's user admin")
    return 0


def _complete(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    missing = missing_from(text, COMPOSE_FILE.read_text(encoding="utf-8"))
    if missing:
        lines = "".join(f"{name}={value}\n" for name, value in missing.items())
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{'' if text.endswith(chr(10)) else chr(10)}\n# Added by a later `make env`\n{lines}")
        print(f"{path} exists; added {', '.join(missing)}, which docker-compose.yaml requires")
    else:
        print(f"{path} exists and stays as it is; remove it for new secrets")
    return 0


if __name__ == "__main__":
    sys.exit(main())
