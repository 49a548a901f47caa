"""Versions and the pointer to the one in use. An odd `champion.json` is one clear message that names the way out."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bcc_ops.exceptions import (
    ArtifactError,
    ModelError,
    PromotionLost,
)
from bcc_ops.models.registry import LARGEST_POINTER, ModelRegistry, Pointer, version_name
from bcc_ops.runs.documents import ChampionDocument
from bcc_ops.runs.object_store import ObjectStore
from tests.unit.promotion import samples
from tests.unit.promotion.samples import AS_OF, NOW, upload
from tests.unit.report.samples import champion_document, model_document


def changed(**fields: Any) -> bytes:
    """A pointer with some fields changed."""
    return json.dumps({**json.loads(champion_document().to_json()), **fields}).encode()


ODD = {
    "a list": b"[]",
    "text": b'"champion"',
    "null": b"null",
    "invalid UTF-8": b'{"version": "\xff"}',
    "UTF-16": champion_document().to_json().decode().encode("utf-16"),
    "half a character": changed(version="\ud800"),
    "a version that is a number": changed(version=5),
    "a version that is an object": changed(version={"name": "v1"}),
    "a number of thousands of digits": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "no number": b'{"schema_version": NaN}',
    "a schema version that is a list": changed(schema_version=[3]),
    "a time without a zone": changed(as_of="2026-11-15T02:00:00"),
    "a time that no calendar has": changed(as_of="0001-01-01T00:00:00+14:00"),
    "a move without a zone": changed(history=[{**json.loads(changed())["history"][0], "at": "2026-11-15T02:00:00"}]),
    "a history that is text": changed(history="yes"),
    "a hold that is true": changed(hold=True),
    "a field of two lines": changed(**{"first\nsecond": 1}),
    "a field with a long name": changed(**{"x" * 100_000: 1}),
    "an older pointer with an address that is a number": changed(schema_version=2, older={"uri": 5, "sha256": "a"}),
    "an older pointer that is nested deeply": b'{"schema_version": 2, "older": ' + b"[" * 900 + b"]" * 900 + b"}",
    "nested beyond any depth": b"[" * 200_000,
    "larger than any pointer": champion_document().to_json() + b" " * LARGEST_POINTER,
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD.keys())
def test_an_odd_pointer_is_named_in_one_line_with_the_way_out(store: ObjectStore, content: bytes) -> None:
    store.put("models/champion.json", content)
    with pytest.raises(ArtifactError) as refused:
        ModelRegistry(store, "models").champion()
    said = str(refused.value)
    assert said.startswith(f"s3://{store.bucket}/models/champion.json is not a ChampionDocument: ")
    assert said.endswith("; bcc_set_champion replaces it with a version of your choice")
    assert "\n" not in said and len(said) < 1000


def test_of_a_pointer_that_is_too_large_no_more_is_read_than_a_pointer_may_have(store: ObjectStore) -> None:
    store.put("models/champion.json", b" " * (3 * LARGEST_POINTER))
    pointer = ModelRegistry(store, "models").read_pointer()
    assert pointer is not None and pointer.champion is None
    assert len(pointer.content) == LARGEST_POINTER + 1


def test_a_pointer_that_is_too_large_is_replaced_by_a_version_of_ones_choice(store: ObjectStore) -> None:
    store.put("models/champion.json", b" " * (LARGEST_POINTER + 1))
    registry, document = ModelRegistry(store, "models"), model_document()
    registry.move(document, registry.read_pointer(), by="ana", reason="it was odd", at=document.as_of, by_person=True)
    pointer = registry.champion()
    assert pointer is not None and pointer.champion is not None and pointer.champion.version == document.version


@pytest.fixture
def registry(store: ObjectStore) -> ModelRegistry:
    return ModelRegistry(store, "models")


def champion(registry: ModelRegistry) -> ChampionDocument:
    pointer = registry.champion()
    assert pointer is not None and pointer.champion is not None
    return pointer.champion


def test_versions_sort_by_the_time_of_their_images_and_differ_by_content() -> None:
    names = [version_name(AS_OF, "a" * 64), version_name(AS_OF, "b" * 64), version_name(AS_OF.replace(day=23), "a" * 64)]
    assert len(set(names)) == 3
    assert max(names) == names[2]
    assert names[0].startswith("20261122T020000Z-")


def test_a_versions_files_are_never_written_over(registry: ModelRegistry) -> None:
    registry.write_once("v1", "model_card.md", b"first")
    registry.write_once("v1", "model_card.md", b"first")
    with pytest.raises(ModelError, match="written once"):
        registry.write_once("v1", "model_card.md", b"second")
    assert registry.store.get(registry.key("v1", "model_card.md")) == b"first"


@pytest.mark.slow
def test_twenty_races_between_threads_have_one_winner_each(registry: ModelRegistry) -> None:
    for race in range(20):
        before = registry.read_pointer()
        contenders = [upload(registry, b"%d-%d" % (race, number), days=race) for number in range(4)]
        for one in contenders:
            registry.write_once(one.document.version, "model.h5", one.model)
        ready = threading.Barrier(len(contenders))

        def move(one: Any, ready: threading.Barrier = ready, before: Pointer | None = before) -> str | None:
            ready.wait(30)
            try:
                return registry.move(one.document, before, by="the gate", reason="race", at=NOW).version
            except PromotionLost:
                return None

        with ThreadPoolExecutor(len(contenders)) as pool:
            won = [version for version in pool.map(move, contenders) if version]
        assert len(won) == 1
        assert champion(registry).version == won[0]
        assert len(champion(registry).history) == race


def test_a_version_that_does_not_exist_is_said(registry: ModelRegistry) -> None:
    with pytest.raises(ModelError, match="there is no version 2020"):
        registry.model("2020")


def test_a_model_json_that_was_copied_from_another_version_is_refused(registry: ModelRegistry) -> None:
    registry.store.save(registry.key("copied", "model.json"), samples.model_document(registry, b"x"))
    with pytest.raises(ArtifactError, match="is about version"):
        registry.model("copied")


def test_the_probe_of_a_good_store_leaves_one_object_that_is_not_a_version(registry: ModelRegistry) -> None:
    for _ in range(2):
        registry.require_conditional_writes()
    assert registry.versions() == []
    assert [entry["Key"] for entry in registry.store.list_objects("models/")] == ["models/.conditional-writes"]
