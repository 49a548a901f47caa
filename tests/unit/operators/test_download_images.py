"""The task that fills a worker's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bcc_ops.dataset.sync import LocalImage
from bcc_ops.operators.download_images import DownloadImagesOperator
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.sensors.new_images import NewImagesSensor
from tests.factories.nights import context_of, upload


def test_download_tells_counts_and_fetches_once(place: ObjectStore) -> None:
    upload(place, "benign/a", "malignant/b")
    context = context_of("manual", "asked")
    run = SnapshotDatasetOperator(task_id="s", arrivals=NewImagesSensor(task_id="wait").execute(context)).execute(context)
    assert DownloadImagesOperator(task_id="d", run=run).execute(context) == [], "two images need no slices"
    counts = context["pushed"]["counts"]
    assert (counts["images"], counts["fetched"]) == (2, 2)
    DownloadImagesOperator(task_id="d", run=run).execute(context)
    assert context["pushed"]["counts"]["fetched"] == 0


def local_images(run: dict[str, str], context: Any) -> list[LocalImage]:
    task = DownloadImagesOperator(task_id="d", run=run)
    return task.local_images(task.load_run(run, context).snapshot)


def test_a_worker_without_the_images_fills_its_cache_from_the_same_snapshot(
    place: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    upload(place, "benign/a", "malignant/b")
    context = context_of("manual", "asked")
    run = SnapshotDatasetOperator(task_id="s", arrivals=NewImagesSensor(task_id="wait").execute(context)).execute(context)
    here = local_images(run, context)
    monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / "another-host"))
    upload(place, "normal/c")
    there = local_images(run, context)
    assert [(image.key, image.sha256) for image in there] == [(image.key, image.sha256) for image in here]
    assert all((tmp_path / "another-host") in image.path.parents and image.path.exists() for image in there)
