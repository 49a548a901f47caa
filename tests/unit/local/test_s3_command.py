"""`make s3`: the S3 server alone, and what it prints to be reached by."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_printed_variables_lead_boto3_to_the_server_until_a_signal_ends_it(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "BCC_", "AWS_"))}
    environment = {**clean, "PYTHONPATH": str(REPOSITORY / "plugins"), "LOCAL": str(tmp_path / "local")}
    behind_a_proxy = {**environment, "HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    command = [sys.executable, "-m", "local", "s3"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=behind_a_proxy, stdout=subprocess.PIPE, text=True, umask=0o022) as server:
        try:
            assert server.stdout is not None
            exports = (shlex.split(line)[1] for line in server.stdout if line.startswith("export "))
            aws = dict(next(exports).split("=", 1) for _ in range(3))
            assert next(exports).startswith("AIRFLOW_CONN_AWS_DEFAULT={")
            models = subprocess.run(
                [sys.executable, "-m", "bcc_ops", "models"],
                cwd=REPOSITORY,
                env={**environment, **aws},
                capture_output=True,
                text=True,
                check=False,
            )
            home = tmp_path / "local"
            kept = [home, *home.rglob("*")]
            open_to_others = [path for path in kept if path.lstat().st_mode & 0o077]
        finally:
            server.terminate()
    assert (models.returncode, models.stdout, models.stderr) == (0, "There are no versions yet.\n", "")
    assert server.returncode == 0
    assert len(kept) > 10 and open_to_others == []
    assert not (tmp_path / "local" / "processes.json").exists()
