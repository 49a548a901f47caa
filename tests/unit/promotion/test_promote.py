"""Versions and pointer against a real S3 server: races, kills, errors, damage."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bcc_ops.exceptions import (
    AccessDenied,
    ArtifactError,
    ModelError,
    NothingNew,
    PromotionLost,
    StorageError,
    StorageUnavailable,
    UnsafeStore,
)
from bcc_ops.models.registry import MODEL_FILES, ModelRegistry, version_name
from bcc_ops.promotion.promote import release_hold, set_champion, upload_challenger
from bcc_ops.runs.documents import ChampionDocument, Hold, PromotionDocument
from bcc_ops.runs.object_store import ObjectStore
from local.s3_server import S3Server
from tests.services.faulty_proxy import FaultyProxy, faulty
from tests.unit.promotion.samples import AS_OF, NOW, approved, client_error, failing_registry, upload
from tests.unit.report.samples import gate_document


def fine(path: Path) -> None:
    assert path.stat().st_size


@pytest.fixture
def registry(store: ObjectStore) -> ModelRegistry:
    return ModelRegistry(store, "models")


def promote(
    registry: ModelRegistry, content: bytes, days: int = 0, smoke_test: Any = fine, gate: Any = None
) -> PromotionDocument:
    gate = gate or approved(registry.read_pointer())
    return upload_challenger(registry, upload(registry, content, days), gate, smoke_test, by="the gate", reason="better", now=NOW)


def champion(registry: ModelRegistry) -> ChampionDocument:
    pointer = registry.champion()
    assert pointer is not None and pointer.champion is not None
    return pointer.champion


def assert_sound(registry: ModelRegistry) -> None:
    """The pointer names a whole version with the file that it promises."""
    named = champion(registry)
    document = registry.model(named.version)
    assert document.model.sha256 == named.sha256
    assert all(registry.store.head(registry.key(named.version, name)) for name in MODEL_FILES)
    assert hashlib.sha256(registry.store.get(registry.key(named.version, "model.h5"))).hexdigest() == named.sha256


# The plain way --------------------------------------------------------------------------------------------------------


def test_a_first_model_becomes_champion_and_the_next_one_keeps_it_in_the_history(registry: ModelRegistry) -> None:
    assert registry.champion() is None
    first = promote(registry, b"one")
    assert (first.promoted, first.previous_champion) == (True, None)
    second = promote(registry, b"two", days=1)
    assert second.previous_champion == first.version
    now = champion(registry)
    assert (now.version, [move.version for move in now.history]) == (second.version, [first.version])
    assert (now.by, now.reason, now.at) == ("the gate", "better", NOW)
    assert registry.versions() == [first.version, second.version]
    assert_sound(registry)


def test_s3_tools_see_what_the_model_file_is(registry: ModelRegistry) -> None:
    done = promote(registry, b"one")
    key = registry.key(done.version, "model.h5")
    head = registry.store.head(key)
    assert head is not None
    assert head.metadata["sha256"] == hashlib.sha256(b"one").hexdigest()
    assert (head.metadata["classes"], head.metadata["image-size"]) == ("benign,malignant,normal", "256")
    tags = registry.store.client.get_object_tagging(Bucket=registry.store.bucket, Key=key)["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {
        "version": done.version,
        "as_of": "2026-11-22T02:00:00+00:00",
        "synthetic": "false",
    }


def test_the_smoke_test_gets_the_file_as_uploaded_before_the_pointer_moves(registry: ModelRegistry) -> None:
    tested: list[bytes] = []

    def look(path: Path) -> None:
        tested.append(path.read_bytes())
        assert registry.champion() is None

    promote(registry, b"as uploaded", smoke_test=look)
    assert tested == [b"as uploaded"]


def test_a_model_that_fails_its_smoke_test_is_never_whole_and_never_in_use(registry: ModelRegistry) -> None:
    first = promote(registry, b"one")

    def refuse(path: Path) -> None:
        raise ModelError("smoke test: the answers differ")

    with pytest.raises(ModelError, match="answers differ"):
        promote(registry, b"two", days=1, smoke_test=refuse)
    assert champion(registry).version == first.version
    with pytest.raises(ModelError, match="is not whole"):
        registry.model(version_name(AS_OF.replace(day=23), hashlib.sha256(b"two").hexdigest()))


def test_a_rejected_model_is_never_uploaded(registry: ModelRegistry) -> None:
    with pytest.raises(ArtifactError, match="rejected"):
        promote(registry, b"one", gate=gate_document("rejected"))
    assert registry.versions() == []


def test_doing_an_upload_again_changes_nothing(registry: ModelRegistry) -> None:
    gate = approved(None)
    first = promote(registry, b"one", gate=gate)
    pointer = registry.read_pointer()
    assert promote(registry, b"one", gate=gate) == first
    assert registry.read_pointer() == pointer


# The anchor -----------------------------------------------------------------------------------------------------------


def anchored(registry: ModelRegistry, content: bytes, days: int, *, better: bool = False, compared: bool = True) -> None:
    """Promote a model that was compared with the anchor, if there was another than the champion."""
    before = registry.read_pointer()
    named = before.champion.anchor if before and before.champion else None
    gate = approved(before).model_copy(
        update={"becomes_anchor": better or before is None, "anchor_version": named.version if named and compared else None}
    )
    promote(registry, content, days, gate=gate)


def anchor(registry: ModelRegistry) -> str:
    named = champion(registry).anchor
    assert named is not None
    return named.version


def test_the_first_model_is_the_anchor_until_one_is_better_with_confidence(registry: ModelRegistry) -> None:
    anchored(registry, b"one", 0)
    first = champion(registry)
    assert first.anchor is not None
    assert (first.anchor.version, first.anchor.sha256, first.anchor.by) == (first.version, first.sha256, "the gate")
    anchored(registry, b"two", 1)
    anchored(registry, b"three", 2)
    assert champion(registry).anchor == first.anchor
    anchored(registry, b"four", 3, better=True)
    assert anchor(registry) == champion(registry).version


def test_a_champion_of_before_is_named_as_the_anchor_once_another_model_follows_it(registry: ModelRegistry) -> None:
    first = promote(registry, b"one")
    older = champion(registry).model_copy(update={"anchor": None})
    registry.store.put(registry.pointer_key, older.to_json(), content_type="application/json")
    anchored(registry, b"two", 1)
    assert anchor(registry) == first.version != champion(registry).version


def test_a_champion_that_stood_in_for_an_anchor_that_cannot_be_compared_is_the_anchor_from_then_on(
    registry: ModelRegistry,
) -> None:
    anchored(registry, b"one", 0)
    anchored(registry, b"two", 1)
    second = champion(registry)
    anchored(registry, b"three", 2, compared=False)
    assert anchor(registry) == second.version != champion(registry).version


def test_the_version_that_a_person_chooses_is_the_anchor_and_a_release_leaves_it(registry: ModelRegistry) -> None:
    anchored(registry, b"one", 0)
    first = champion(registry).version
    anchored(registry, b"two", 1, better=True)
    set_champion(registry, first, lambda *given: None, by="ana", reason="misses lesions", now=NOW)
    named = champion(registry).anchor
    assert named is not None and (named.version, named.by, named.reason) == (first, "ana", "misses lesions")
    assert release_hold(registry, by="ben", reason="labels are corrected", now=NOW).anchor == named


def test_a_person_can_make_the_champion_the_anchor(registry: ModelRegistry) -> None:
    anchored(registry, b"one", 0)
    anchored(registry, b"two", 1)
    second = champion(registry).version
    assert anchor(registry) != second
    set_champion(registry, second, lambda *given: None, by="ana", reason="good enough", now=NOW, release_hold=True)
    assert (champion(registry).version, anchor(registry), champion(registry).withdrawn) == (second, second, ())
    with pytest.raises(NothingNew, match="is the champion already"):
        set_champion(registry, second, lambda *given: None, by="ana", reason="again", now=NOW)


# Races ----------------------------------------------------------------------------------------------------------------


RACES, CONTENDERS = 20, 3


def contend(server: S3Server, bucket: str, number: int, barrier: Any, results: Any) -> None:
    """One contender in a process of its own. In each race all read the same pointer, and all hold a whole version when
    they reach for it."""
    registry = ModelRegistry(ObjectStore(server.client(), bucket), "models")
    for race in range(RACES):
        barrier.wait(120)
        before = registry.read_pointer()

        def wait_for_all(path: Path) -> None:
            barrier.wait(120)

        try:
            one = upload(registry, b"race %d, contender %d" % (race, number), days=race)
            done = upload_challenger(registry, one, approved(before), wait_for_all, by="the gate", reason="race", now=NOW)
            results.put((race, "won", done.version, done.previous_champion))
        except PromotionLost as error:
            results.put((race, "lost", str(error), None))


@pytest.mark.slow
def test_twenty_races_between_processes_have_one_winner_each_and_the_others_say_that_they_lost(
    registry: ModelRegistry, s3_server: S3Server
) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(CONTENDERS), context.Queue()
    arguments = [(s3_server, registry.store.bucket, number, barrier, results) for number in range(CONTENDERS)]
    processes = [context.Process(target=contend, args=own) for own in arguments]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=240) for _ in range(RACES * CONTENDERS)]
    for process in processes:
        process.join(60)
    previous = None
    for race in range(RACES):
        of_race = [outcome for outcome in outcomes if outcome[0] == race]
        won = [(version, before) for _, how, version, before in of_race if how == "won"]
        assert len(won) == 1, of_race
        assert won[0][1] == previous
        assert all(
            "is uploaded but was not promoted, since the champion has moved to" in said
            for _, how, said, _ in of_race
            if how == "lost"
        )
        previous = won[0][0]
    assert champion(registry).version == previous
    assert len(champion(registry).history) == RACES - 1
    assert_sound(registry)


def test_a_champion_that_moved_after_the_comparison_is_not_replaced(registry: ModelRegistry) -> None:
    promote(registry, b"one")
    gate = approved(registry.read_pointer())
    between = promote(registry, b"two", days=1)
    with pytest.raises(PromotionLost, match=f"was not uploaded, since .* the champion is now {between.version}"):
        promote(registry, b"three", days=2, gate=gate)
    assert champion(registry).version == between.version
    assert len(registry.versions()) == 2


def test_a_roll_back_and_an_upload_cannot_both_win(registry: ModelRegistry) -> None:
    first = promote(registry, b"one")
    second = promote(registry, b"two", days=1)

    def roll_back_meanwhile(path: Path) -> None:
        set_champion(registry, first.version, lambda document, path: None, by="ana", reason="worse on our images", now=NOW)

    with pytest.raises(PromotionLost, match=f"is uploaded but was not promoted, since the champion has moved to {first.version}"):
        promote(registry, b"three", days=2, smoke_test=roll_back_meanwhile)
    assert champion(registry).version == first.version
    assert registry.model(registry.versions()[2]).as_of == AS_OF.replace(day=24)
    assert [move.version for move in champion(registry).history] == [second.version, first.version]


# What a person decided ------------------------------------------------------------------------------------------------


def test_a_persons_move_holds_the_champion_and_withdraws_the_model_that_it_replaces(registry: ModelRegistry) -> None:
    first, second = promote(registry, b"one"), promote(registry, b"two", days=1)
    assert champion(registry).hold is None and champion(registry).withdrawn == ()
    rolled_back = set_champion(registry, first.version, lambda *given: None, by="ana", reason="misses lesions", now=NOW)
    assert rolled_back.hold == Hold(by="ana", at=NOW, reason="misses lesions")
    assert rolled_back.withdrawn == (second.model.sha256,)
    assert champion(registry) == rolled_back


def test_a_hold_and_what_was_withdrawn_outlive_an_approved_model_and_a_release(registry: ModelRegistry) -> None:
    first, second = promote(registry, b"one"), promote(registry, b"two", days=1)
    set_champion(registry, first.version, lambda *given: None, by="ana", reason="misses lesions", now=NOW)
    promote(registry, b"three", days=2)
    assert champion(registry).hold is not None and champion(registry).withdrawn == (second.model.sha256,)
    released = release_hold(registry, by="ben", reason="labels are corrected", now=NOW)
    assert (released.hold, released.withdrawn) == (None, (second.model.sha256,))
    assert [move.by for move in released.history][:2] == ["the gate", "ana"]
    with pytest.raises(NothingNew, match="nobody holds the champion"):
        release_hold(registry, by="ben", reason="again", now=NOW)


def test_a_withdrawn_model_is_welcome_again_once_a_person_chooses_it(registry: ModelRegistry) -> None:
    first, second = promote(registry, b"one"), promote(registry, b"two", days=1)
    for version, withdrawn in ((first.version, second.model.sha256), (second.version, first.model.sha256)):
        set_champion(registry, version, lambda *given: None, by="ana", reason="look again", now=NOW)
        assert champion(registry).withdrawn == (withdrawn,)


def test_a_release_that_meets_another_move_is_lost(registry: ModelRegistry) -> None:
    first, _ = promote(registry, b"one"), promote(registry, b"two", days=1)
    set_champion(registry, first.version, lambda *given: None, by="ana", reason="misses lesions", now=NOW)
    read = registry.champion()
    promote(registry, b"three", days=2)
    assert read is not None
    with pytest.raises(PromotionLost):
        registry.release(read, by="ben", reason="late", at=NOW)


# Kills and errors -----------------------------------------------------------------------------------------------------

STEPS = ("model.h5", "split.parquet", "evaluation.json", "model_card.md", "model.json", "champion.json")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_the_old_champion_or_the_new_one_and_a_retry_finishes(
    registry: ModelRegistry, step: str, after: bool
) -> None:
    old = promote(registry, b"old")
    gate = approved(registry.read_pointer())
    dying, client = failing_registry(
        registry.store, lambda name, key: name == "put_object" and key.endswith(step), Killed(), after
    )
    with pytest.raises(Killed):
        promote(dying, b"new", days=1, gate=gate)
    assert client.calls[-1][1].endswith(step)
    new = version_name(AS_OF.replace(day=23), hashlib.sha256(b"new").hexdigest())
    assert champion(registry).version == (new if step == "champion.json" and after else old.version)
    assert_sound(registry)
    done = promote(registry, b"new", days=1, gate=gate)
    assert (done.version, done.promoted, done.previous_champion) == (new, True, old.version)
    assert champion(registry).version == new
    assert_sound(registry)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [("SlowDown", 503, StorageUnavailable), ("AccessDenied", 403, AccessDenied), ("InternalError", 500, StorageUnavailable)],
)
def test_an_s3_error_at_any_step_is_one_clear_line_and_harms_nothing(
    registry: ModelRegistry, step: str, code: str, status: int, expected: type[StorageError]
) -> None:
    old = promote(registry, b"old")
    broken, _ = failing_registry(
        registry.store, lambda name, key: name == "put_object" and key.endswith(step), client_error(code, status)
    )
    with pytest.raises(expected) as told:
        promote(broken, b"new", days=1)
    assert step in str(told.value) and "\n" not in str(told.value)
    assert champion(registry).version == old.version
    assert promote(registry, b"new", days=1).previous_champion == old.version


def test_an_s3_error_when_the_uploaded_file_is_read_back_harms_nothing(registry: ModelRegistry) -> None:
    old = promote(registry, b"old")
    broken, _ = failing_registry(
        registry.store, lambda name, key: name == "get_object" and key.endswith("model.h5"), client_error("SlowDown", 503)
    )
    with pytest.raises(StorageUnavailable, match=r"reading s3://.*model\.h5"):
        promote(broken, b"new", days=1)
    assert champion(registry).version == old.version


def test_an_answer_that_was_lost_on_the_way_is_not_taken_for_a_lost_race(registry: ModelRegistry) -> None:
    """The client sent the pointer's write again after a time-out: the second one finds its own first one."""
    old = promote(registry, b"old")
    put = registry.store.client.put_object

    class Resending:
        def __getattr__(self, name: str) -> Any:
            return getattr(registry.store.client, name)

        def put_object(self, **arguments: Any) -> Any:
            answer = put(**arguments)
            return put(**arguments) if arguments["Key"].endswith("champion.json") else answer

    twice = ModelRegistry(ObjectStore(Resending(), registry.store.bucket), "models")  # type: ignore[arg-type]
    done = promote(twice, b"new", days=1)
    assert (done.promoted, done.previous_champion) == (True, old.version)
    assert [move.version for move in champion(registry).history] == [old.version]


def test_a_models_prefix_that_may_not_be_written_says_so_at_the_first_write(registry: ModelRegistry) -> None:
    denied, client = failing_registry(
        registry.store, lambda name, key: name == "put_object" and key.startswith("models/"), client_error("AccessDenied", 403)
    )
    with pytest.raises(AccessDenied, match=r"writing s3://.*/models/\.conditional-writes.*policy"):
        promote(denied, b"one")
    assert [name for name, _ in client.calls].count("put_object") == 1


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"not json at all", b'{"version": "v1"}', b'{"schema_version": 4}', b"\xff\xfe"])
def test_a_pointer_that_is_no_json_is_named_with_the_way_out(registry: ModelRegistry, content: bytes) -> None:
    registry.store.put("models/champion.json", content)
    with pytest.raises(ArtifactError, match=r"models/champion\.json is not a ChampionDocument.*bcc_set_champion"):
        registry.champion()
    with pytest.raises(ArtifactError, match="bcc_set_champion"):
        promote(registry, b"one")


def test_a_damaged_pointer_is_replaced_by_choosing_a_version(registry: ModelRegistry) -> None:
    first = promote(registry, b"one")
    registry.store.put("models/champion.json", b"{")
    set_champion(registry, first.version, lambda document, path: None, by="ana", reason="pointer was damaged", now=NOW)
    assert champion(registry).version == first.version
    assert champion(registry).history == ()


@pytest.mark.parametrize("versioned", [False, True])
def test_a_pointer_that_was_put_aside_lets_the_next_model_begin_and_its_versions_stay(
    make_store: Callable[..., ObjectStore], versioned: bool
) -> None:
    """The way out of a champion that can never be compared, as docs/operations.md tells it."""
    registry = ModelRegistry(make_store(versioned=versioned), "models")
    old = promote(registry, b"old", days=1)
    under_way = approved(registry.read_pointer())
    client, bucket = registry.store.client, registry.store.bucket
    source: Any = {"Bucket": bucket, "Key": "models/champion.json"}
    client.copy_object(Bucket=bucket, Key="models/champion-2026-11-23.json", CopySource=source)
    client.delete_object(**source)
    assert registry.champion() is None
    with pytest.raises(PromotionLost, match="the champion is now nobody"):
        promote(registry, b"new", days=2, gate=under_way)
    new = promote(registry, b"new")  # of older images than the old champion's, too
    assert (new.promoted, new.previous_champion) == (True, None)
    assert champion(registry).history == ()
    assert registry.versions() == [new.version, old.version]
    back = set_champion(registry, old.version, lambda document, path: None, by="ana", reason="after all", now=NOW)
    assert [move.version for move in back.history] == [new.version]
    assert_sound(registry)


@pytest.mark.parametrize("damage", ["gone", "truncated", "swapped"])
def test_a_champions_file_that_is_not_the_promised_one_is_never_handed_out(
    registry: ModelRegistry, tmp_path: Path, damage: str
) -> None:
    done = promote(registry, b"the real weights")
    key = registry.key(done.version, "model.h5")
    if damage == "gone":
        registry.store.client.delete_object(Bucket=registry.store.bucket, Key=key)
    else:
        registry.store.put(key, b"the real" if damage == "truncated" else b"other weights")
    with pytest.raises(ModelError, match="is gone" if damage == "gone" else "is not the promised file") as told:
        registry.fetch(done.version, done.model.sha256, tmp_path / "model.h5")
    assert "bcc_set_champion" in str(told.value)
    assert not (tmp_path / "model.h5").exists()


# By hand --------------------------------------------------------------------------------------------------------------


def test_a_roll_back_is_tested_moved_and_kept_with_who_and_why(registry: ModelRegistry) -> None:
    first, second = promote(registry, b"one"), promote(registry, b"two", days=1)
    tested: list[tuple[str, bytes]] = []

    def look(document: Any, path: Path) -> None:
        tested.append((document.version, path.read_bytes()))

    now = set_champion(registry, first.version, look, by="ana", reason="misses small lesions", now=NOW)
    assert tested == [(first.version, b"one")]
    assert (now.version, now.by, now.reason) == (first.version, "ana", "misses small lesions")
    assert [move.version for move in now.history] == [second.version, first.version]
    assert json.loads(registry.store.get("models/champion.json"))["by"] == "ana"


def test_a_version_that_fails_the_smoke_test_is_not_chosen(registry: ModelRegistry) -> None:
    first, second = promote(registry, b"one"), promote(registry, b"two", days=1)

    def refuse(document: Any, path: Path) -> None:
        raise ModelError("smoke test: has a layer of the class Lambda")

    with pytest.raises(ModelError, match="Lambda"):
        set_champion(registry, first.version, refuse, by="ana", reason="x", now=NOW)
    assert champion(registry).version == second.version


def test_choosing_the_champion_again_is_nothing_new(registry: ModelRegistry) -> None:
    anchored(registry, b"one", 0)
    first = champion(registry)
    smoke_test: Callable[..., None] = lambda document, path: pytest.fail("was tested")  # noqa: E731
    with pytest.raises(NothingNew, match="is the champion already"):
        set_champion(registry, first.version, smoke_test, by="ana", reason="x", now=NOW)


# Stores and pointers that are not what they should be -----------------------------------------------------------------


def through(proxy: FaultyProxy, server: S3Server, registry: ModelRegistry) -> ModelRegistry:
    """The same registry, by way of a proxy."""
    client = S3Server(proxy.endpoint, server.access_key, server.secret_key, 0).client()
    return ModelRegistry(ObjectStore(client, registry.store.bucket), registry.models_prefix)


@pytest.mark.parametrize(("header", "parameter"), [("If-Match", "IfMatch"), ("If-None-Match", "IfNoneMatch")])
def test_a_store_that_ignores_conditions_promotes_nothing(
    registry: ModelRegistry, s3_server: S3Server, header: str, parameter: str
) -> None:
    first = promote(registry, b"one")
    promote(registry, b"two", days=1)
    client = s3_server.client()
    client.meta.events.register("before-parameter-build.s3.PutObject", lambda params, **_: params.pop(parameter, None))
    careless = ModelRegistry(ObjectStore(client, registry.store.bucket), "models")
    with pytest.raises(UnsafeStore, match=f"ignores {header}:"):
        promote(careless, b"three", days=2)
    with pytest.raises(UnsafeStore, match=f"ignores {header}:"):
        set_champion(careless, first.version, lambda *given: None, by="ana", reason="back", now=NOW)
    assert len(registry.versions()) == 2, "the refused model must leave no version"
    assert champion(registry).version != first.version


def test_a_conflict_with_another_conditional_write_is_tried_again(registry: ModelRegistry, s3_server: S3Server) -> None:
    with faulty(s3_server, conflicts=3) as proxy:
        promote(through(proxy, s3_server, registry), b"one")
    assert_sound(registry)


def test_a_pointer_of_another_release_is_kept_before_a_person_replaces_it(registry: ModelRegistry) -> None:
    first, second = promote(registry, b"one"), promote(registry, b"two", days=1)
    newer = {**json.loads(registry.store.get(registry.pointer_key)), "a_field_of_a_newer_release": True}
    content = json.dumps(newer).encode()
    registry.store.put(registry.pointer_key, content)
    with pytest.raises(ArtifactError, match="bcc_set_champion"):
        promote(registry, b"three", days=2, gate=approved(None))
    set_champion(registry, first.version, lambda *given: None, by="ana", reason="back", now=NOW)
    replaced = champion(registry).replaced
    assert replaced is not None and registry.store.get(replaced) == content
    assert json.loads(registry.store.get(replaced))["history"][0]["version"] == first.version != second.version


def test_no_move_is_ever_forgotten(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcc_ops.models.registry.LONGEST_HISTORY", 6)
    promote(registry, b"one")
    promote(registry, b"two", days=1)
    versions = registry.versions()
    for number in range(40):
        move = registry.model(versions[number % 2])
        registry.move(move, registry.read_pointer(), by="ana", reason=f"move {number}", at=NOW)
    now = champion(registry)
    assert len(now.history) <= 6 and now.older is not None
    told = [move.reason for move in registry.history(now)]
    assert told == [*(f"move {number}" for number in range(38, -1, -1)), "better", "better"]
    assert registry.versions() == versions
