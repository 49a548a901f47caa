"""The task that decides which images may be used. Several nights of it are played in test_split_dataset.py."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG

from bcc_ops.dataset import image_checks
from bcc_ops.dataset.image_checks import UNREADABLE
from bcc_ops.dataset.inspection_cache import MEMORY_FILE
from bcc_ops.dataset.sync import LocalImage
from bcc_ops.operators.check_images import CheckImagesOperator
from bcc_ops.runs.documents import ChecksDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import ContentRow
from bcc_ops.runs.tables import read_rows
from tests.factories.images import scan_png
from tests.factories.tasks import context, in_bucket
from tests.unit.report.samples import PATHS, config_document, run_handle, snapshot_document

Check = Callable[..., dict[str, str]]


@pytest.fixture
def check(store: ObjectStore, tmp_path: Path) -> Check:
    """Do the task for a run with two good images, a broken one, and one that the store does not give."""
    images = []
    for number, content in enumerate((scan_png(1), scan_png(2), scan_png(3)[:500])):
        path = tmp_path / f"{number}.png"
        path.write_bytes(content)
        images.append(LocalImage(f"images/benign/{number}.png", "benign", str(number) * 64, path))

    def local_images(snapshot: Any, *, unreadable: dict[str, str]) -> list[LocalImage]:
        unreadable["images/benign/3.png"] = "access denied"
        return images

    def do(**parameters: Any) -> dict[str, str]:
        run = run_handle(store, config_document(**parameters), snapshot_document(bucket=store.bucket, previous_run=None))
        with DAG("bcc_retraining", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
            task = in_bucket(CheckImagesOperator(task_id="check_images", run=run), store, cache_dir=tmp_path)
        task.__dict__["local_images"] = local_images
        done: dict[str, str] = task.execute(context())
        return done

    return do


def test_what_is_refused_is_told_and_every_image_is_in_the_table(check: Check, store: ObjectStore) -> None:
    document = store.load(ChecksDocument, check())
    assert (document.checked, document.usable["benign"], document.usable["normal"]) == (4, 2, 0)
    assert [(image.key[-5:], image.reason) for image in document.refused] == [("2.png", "truncated"), ("3.png", UNREADABLE)]
    assert document.contents is not None and document.contents.key == PATHS.document("contents.parquet")
    rows = read_rows(ContentRow, store.get_referenced(document.contents))
    assert [(row.key[-5:], row.refused) for row in rows][:3] == [("0.png", ""), ("1.png", ""), ("2.png", "truncated")]


def test_too_many_refused_images_fail_at_once_and_leave_no_document(check: Check, store: ObjectStore) -> None:
    with pytest.raises(AirflowFailException, match=r"TooManyRefused: 2 of 4 images are refused"):
        check(max_refused_fraction=0.4)
    assert store.head(PATHS.document("checks.json")) is None


def test_what_was_learned_is_in_the_bucket_for_a_worker_with_an_empty_disk(
    check: Check, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.get(check()["key"])
    assert {entry["Key"].split("/")[3] for entry in store.list_objects("artifacts/inspections/")} >= {
        "facts",
        "findings",
        "search",
    }
    (tmp_path / MEMORY_FILE).unlink()
    decoded = []
    inspect = image_checks.inspect_file
    monkeypatch.setattr(image_checks, "inspect_file", lambda path, *more: decoded.append(path.name) or inspect(path, *more))
    assert store.get(check()["key"]) == first
    assert decoded == ["2.png"]  # the broken one: that an image is refused, only its file may tell
