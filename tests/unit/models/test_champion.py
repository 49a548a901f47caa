"""What a version has seen, its ancestors' images included."""

from __future__ import annotations

import pytest

from bcc_ops.exceptions import ModelError, ObjectNotFound
from bcc_ops.models.champion import images_seen
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.runs.documents import ModelDocument
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.tables import SplitRow, write_rows
from tests.unit.report.samples import model_document


def version(store: ObjectStore, name: str, started_from: str | None = None) -> ModelDocument:
    """A version with one image of its own a partition."""
    rows = [SplitRow(f"{name}-{part}.png", f"{name}-{part}", "benign", "g", part) for part in ("train", "tuning", "validation")]
    split = store.put_referenced(f"artifacts/runs/{name}/split.parquet", write_rows(SplitRow, rows))
    document = model_document(name, split=split, warm_started_from=started_from)
    store.save(f"models/{name}/model.json", document)
    return document


def test_a_version_has_seen_its_train_and_tuning_images(store: ObjectStore) -> None:
    alone = version(store, "v1")
    assert images_seen(ModelRegistry(store, "models"), alone) == {"v1-train", "v1-tuning"}


def test_a_version_has_seen_bytes_and_pixels(store: ObjectStore) -> None:
    row = SplitRow("a.png", "bytes", "benign", "g", "train", "pixels")
    split = store.put_referenced("artifacts/runs/v1/split.parquet", write_rows(SplitRow, [row]))
    assert images_seen(ModelRegistry(store, "models"), model_document("v1", split=split)) == {"bytes", "pixels"}


def test_a_version_has_seen_what_those_have_that_its_weights_come_from(store: ObjectStore) -> None:
    version(store, "v1")
    version(store, "v2", started_from="v1")
    third = version(store, "v3", started_from="v2")
    assert images_seen(ModelRegistry(store, "models"), third) == {
        f"v{n}-{part}" for n in (1, 2, 3) for part in ("train", "tuning")
    }


def test_where_an_ancestor_or_its_split_is_gone_nobody_knows(store: ObjectStore) -> None:
    registry = ModelRegistry(store, "models")
    first, second = version(store, "v1", started_from="v0"), version(store, "v2", started_from="v1")
    with pytest.raises(ModelError, match="there is no version v0"):
        images_seen(registry, second)
    store.client.delete_object(Bucket=store.bucket, Key=first.split.key)
    with pytest.raises(ObjectNotFound):
        images_seen(registry, second)
