"""What an evaluation takes from its run: what training started from, and the images of an external test."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.image_cache import ImageCache
from bcc_ops.dataset.sync import sync_images
from bcc_ops.evaluation.run_evaluation import RunInputs, evaluate_run, external_images
from bcc_ops.runs.documents import PARTITIONS
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.tables import AssignmentRow, ContentRow, SplitRow, write_rows
from tests.unit.report.samples import (
    CLASSES,
    PATHS,
    checks_document,
    snapshot_document,
    split_document,
    training_document,
)


def picture(seed: int) -> Image.Image:
    """Texture that no other seed has."""
    noise = np.random.default_rng(seed).normal(0, 60, (24, 24))
    smooth = Image.fromarray(np.clip(128 + noise, 0, 255).astype(np.uint8))
    return smooth.resize((160, 160), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


@pytest.fixture
def inputs(store: ObjectStore, tmp_path: Path) -> RunInputs:
    """A run that looks at elsewhere/, with everything that was uploaded by then."""
    return RunInputs(
        config=RetrainingConfig.resolve({"external_prefix": "elsewhere/"}),
        snapshot=snapshot_document(as_of=datetime.now(timezone.utc) + timedelta(days=1)),
        checks=checks_document(),
        split=split_document(),
        training=training_document(),
        images={},
        fetch=partial(sync_images, store, cache=ImageCache(tmp_path / "cache", 10**9)),
    )


class Undecided:
    """A classifier that gives every image the same answer."""

    image_size, classes_count = 256, 3

    def predict(self, paths: Any, batch_size: int = 32) -> np.ndarray:
        return np.tile([0.5, 0.3, 0.2], (len(paths), 1))


def test_the_evaluation_tells_what_the_runs_training_started_from(
    store: ObjectStore, inputs: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcc_ops.models.classifier.load_classifier", lambda path: Undecided())
    rows = [
        SplitRow(f"{label}-{part}", f"{label}-{part}", label, f"{label}-{part}", part) for label in CLASSES for part in PARTITIONS
    ]
    contents = [ContentRow(row.key, row.label, row.sha256, 99, 99, "L", 90.0, 40.0, False, row.group, "") for row in rows]
    split = store.put_referenced(PATHS.document("split.parquet"), write_rows(SplitRow, rows))
    assignments = store.put_referenced(PATHS.document("assignments.parquet"), write_rows(AssignmentRow, []))
    table = store.put_referenced(PATHS.document("contents.parquet"), write_rows(ContentRow, contents))
    model = store.put_referenced(PATHS.document("model.h5"), b"weights")
    warm = replace(
        inputs,
        config=RetrainingConfig.resolve({}),
        checks=checks_document(contents=table),
        split=split_document(table=split, assignments=assignments, previous_run=None),
        training=training_document(model=model, warm_started_from="v1"),
        images={row.key: Path(row.key) for row in rows},
    )
    document = evaluate_run(store, warm, None, folder=tmp_path, say=lambda sentence: None).document
    assert (document.warm_start_note or "").startswith("Training started from version v1")


def test_near_duplicates_from_elsewhere_are_one_group_and_what_a_run_refuses_is_left_out(
    store: ObjectStore, inputs: RunInputs, tmp_path: Path
) -> None:
    own = encoded(picture(9))
    objects = {
        "benign/a.png": encoded(picture(1)),
        "benign/a-again.jpg": encoded(picture(1), "JPEG"),
        "malignant/b.png": encoded(picture(2)),
        "malignant/c.png": encoded(picture(3)),
        "normal/c.jpg": encoded(picture(3), "JPEG"),
        "normal/d.png": encoded(picture(4)),
        "normal/small.png": encoded(picture(5).resize((32, 32))),
        "normal/broken.png": b"no image",
        "normal/own.png": own,
    }
    for key, content in objects.items():
        store.put(f"elsewhere/{key}", content)
    images, note = external_images(store, inputs, frozenset({hashlib.sha256(own).hexdigest()}), tmp_path)
    assert note == (
        "4 images in 3 near-duplicate groups under elsewhere/ (2 benign, 1 malignant, 1 normal); left out: 1 also in this run, "
        "1 not an image, 1 too small, 2 under two labels."
    )
    assert images is not None
    assert images.keys == (
        "elsewhere/benign/a-again.jpg",
        "elsewhere/benign/a.png",
        "elsewhere/malignant/b.png",
        "elsewhere/normal/d.png",
    )
    assert images.labels == ("benign", "benign", "malignant", "normal")
    assert images.groups[0] == images.groups[1]
    assert len(set(images.groups)) == 3
    assert [path.read_bytes() for path in images.paths] == [objects[key.removeprefix("elsewhere/")] for key in images.keys]


def test_images_from_elsewhere_that_are_all_refused_fail_no_run(store: ObjectStore, inputs: RunInputs, tmp_path: Path) -> None:
    store.put("elsewhere/benign/broken.png", b"no image")
    images, note = external_images(store, inputs, frozenset(), tmp_path)
    assert images is None
    assert note == (
        "0 images in 0 near-duplicate groups under elsewhere/ (0 benign, 0 malignant, 0 normal); left out: 1 not an image."
    )


def test_no_images_elsewhere_and_no_elsewhere_are_told_apart(store: ObjectStore, inputs: RunInputs, tmp_path: Path) -> None:
    empty = "0 images in 0 near-duplicate groups under elsewhere/ (0 benign, 0 malignant, 0 normal)."
    assert external_images(store, inputs, frozenset(), tmp_path) == (None, empty)
    none = replace(inputs, config=RetrainingConfig.resolve({}))
    assert external_images(store, none, frozenset(), tmp_path) == (None, None)
