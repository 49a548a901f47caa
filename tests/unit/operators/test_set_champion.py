"""The task of bcc_set_champion: what it asks for, announces and hands on."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from airflow.sdk import DAG

from bcc_ops.config import Settings
from bcc_ops.models.registry import ModelRegistry
from bcc_ops.operators.assets import champion_asset
from bcc_ops.operators.set_champion import SetChampionOperator
from bcc_ops.runs.object_store import ObjectStore
from tests.factories.tasks import context, in_bucket
from tests.unit.promotion.samples import NOW, upload


@pytest.fixture
def registry(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    """Two versions, the second in use; every smoke test passes."""
    monkeypatch.setattr("bcc_ops.promotion.run_upload.smoke_test_version", lambda *given: None)
    registry = ModelRegistry(store, "models")
    for days, content in enumerate((b"one", b"two")):
        one = upload(registry, content, days)
        registry.write_once(one.document.version, "model.h5", content)
        registry.write_once(one.document.version, "model.json", one.document.to_json())
        registry.move(one.document, registry.read_pointer(), by="the gate", reason="better", at=NOW)
    return registry


def choose(registry: ModelRegistry, version: str, reason: str, given: Any, release_hold: str = "False") -> Any:
    with DAG("bcc_set_champion", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
        task = SetChampionOperator(task_id="set_champion", version=version, reason=reason, release_hold=release_hold)
    return in_bucket(task, registry.store).execute(given)


def test_a_roll_back_from_the_ui_is_kept_with_who_and_why_and_announced(registry: ModelRegistry) -> None:
    first, second = registry.versions()
    given = context()
    moved = choose(registry, f" {first} ", "misses small lesions", given)
    assert moved["version"] == first and moved["previous"] == second
    pointer = registry.champion()
    assert pointer is not None and pointer.champion is not None
    assert (pointer.champion.by, pointer.champion.reason) == ("ana", "misses small lesions")
    asset = champion_asset(Settings(bucket=registry.store.bucket))
    assert given["outlet_events"][asset].extra == {"version": first, "sha256": moved["sha256"]}


@pytest.mark.parametrize(("version", "reason"), [("", "because"), ("20261122T020000Z-x", "  ")])
def test_a_form_without_version_or_reason_is_refused(registry: ModelRegistry, version: str, reason: str) -> None:
    with pytest.raises(AirflowFailException, match="give a reason, and a version or release_hold"):
        choose(registry, version, reason, context())


def test_an_unknown_version_fails_at_once_and_the_champion_stays(registry: ModelRegistry) -> None:
    with pytest.raises(AirflowFailException, match="there is no version 20200101T000000Z-abc"):
        choose(registry, "20200101T000000Z-abc", "because", context())


def test_a_hold_is_released_from_the_ui_with_who_and_why_and_the_champion_stays(registry: ModelRegistry) -> None:
    first, _ = registry.versions()
    choose(registry, first, "misses small lesions", context())
    held = registry.champion()
    assert held is not None and held.champion is not None and held.champion.hold is not None
    assert (held.champion.hold.by, held.champion.hold.reason) == ("ana", "misses small lesions")
    assert choose(registry, "", "the labels are corrected", context("ben"), "True")["version"] == first
    pointer = registry.champion()
    assert pointer is not None and pointer.champion is not None
    assert (pointer.champion.version, pointer.champion.hold, pointer.champion.by) == (first, None, "ben")
    assert pointer.champion.reason == "The hold was released: the labels are corrected"
    assert pointer.champion.history[0].reason == "misses small lesions"
    with pytest.raises(AirflowSkipException, match="nobody holds the champion"):
        choose(registry, "", "again", context(), "True")


def test_a_version_can_be_chosen_and_left_to_the_nights_in_one_step(registry: ModelRegistry) -> None:
    first, _ = registry.versions()
    choose(registry, first, "misses small lesions", context(), "True")
    pointer = registry.champion()
    assert pointer is not None and pointer.champion is not None
    assert (pointer.champion.version, pointer.champion.hold) == (first, None)


def test_choosing_the_champion_is_a_skip_if_it_is_the_anchor_too(registry: ModelRegistry) -> None:
    with pytest.raises(AirflowSkipException, match="is the champion already"):
        choose(registry, registry.versions()[1], "because", context())
