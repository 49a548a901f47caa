"""A night with files among its images that were made to stop it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bcc_ops.dataset.synthetic import write_images
from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import S3Server
from tests.factories.hostile_dicoms import hostile_dicoms
from tests.factories.hostile_images import hostile_files, largest_files

pytestmark = pytest.mark.slow

MOST_BYTES = 1_500_000_000
CLASSES = ("benign", "malignant", "normal")

CHECK = """
import json, os, re
if hasattr(os, "sched_setaffinity"):  # the more processors there are, the more images are looked at side by side
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from datetime import datetime, timezone
from types import SimpleNamespace
from bcc_ops.operators.download_images import DownloadImagesOperator
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.operators.check_images import CheckImagesOperator
from bcc_ops.sensors.new_images import NewImagesSensor
now = datetime.now(timezone.utc)
ti = SimpleNamespace(xcom_push=lambda key, value: None)
parameters = {"max_refused_fraction": 0.8}
context = {"run_id": "night", "params": parameters, "ti": ti, "dag_run": SimpleNamespace(run_type="manual", run_after=now)}
seen = NewImagesSensor(task_id="wait_for_new_images").execute(context)
run = SnapshotDatasetOperator(task_id="snapshot_dataset", arrivals=seen).execute(context)
DownloadImagesOperator(task_id="download_images", run=run).execute(context)
checked = CheckImagesOperator(task_id="check_images", run=run).execute(context)
# Not getrusage: on Linux, its maximum includes that of the process which started this one.
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(json.dumps({"run": run, "checked": checked, "peak": peak}))
"""


def good_images(folder: Path, real: Path) -> list[tuple[str, bytes]]:
    """Some real images if they are there, else synthetic ones: key below the prefix, content. Text is read in each of them."""
    if real.is_dir():
        chosen = [p for name in CLASSES for p in sorted(p for p in (real / name).glob("*.png") if "_mask" not in p.name)[:12]]
    else:
        chosen = write_images(folder, per_class=12)
    return [(f"{path.parent.name}/{path.name}", path.read_bytes()) for path in chosen]


def check_in_a_process(store: ObjectStore, s3_server: S3Server, cache: Path) -> dict[str, Any]:
    """Run the tasks up to the image checks as a worker does, in a process of its own; what they returned, and its peak."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={
            **os.environ,
            "BCC_BUCKET": store.bucket,
            "BCC_CACHE_DIR": str(cache),
            "AIRFLOW_CONN_AWS_DEFAULT": s3_server.airflow_connection,
            "PYTHONPATH": os.pathsep.join(["plugins", "."]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_hostile_files_among_good_images_are_named_and_the_checks_stay_small(
    store: ObjectStore, s3_server: S3Server, tmp_path: Path
) -> None:
    from bcc_ops.runs.documents import ChecksDocument
    from tests.conftest import REAL_IMAGES

    for key, content in good_images(tmp_path / "images", REAL_IMAGES):
        store.put(f"images/{key}", content)
    for name, content in largest_files():
        store.put(f"images/normal/{name}", content)
    expected = {}
    for name, content, reason in (*hostile_files(), *hostile_dicoms()):
        store.put(f"images/normal/{name}", content)
        expected[f"images/normal/{name}".replace("\\", "/")] = reason  # the local S3 server takes a backslash for a slash
    own_key: Any = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}
    store.client.put_object(Bucket=store.bucket, Key="images/normal/own key.png", Body=b"only its uploader reads it", **own_key)
    expected["images/normal/own key.png"] = "not readable in the store"
    result = check_in_a_process(store, s3_server, tmp_path / "cache")
    document = store.load(ChecksDocument, result["checked"])
    assert {image.key: image.reason for image in document.refused} == expected
    assert document.checked == 36 + 5 + len(expected)
    assert result["peak"] < MOST_BYTES, f"the checks took {result['peak'] / 1e6:.0f} MB"
