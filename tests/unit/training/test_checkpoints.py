from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bcc_ops.exceptions import AccessDenied, StorageUnavailable
from bcc_ops.runs.documents import EpochRow
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.training.checkpoints import Checkpoint, CheckpointFolder

FOLDER = "artifacts/checkpoints/abc-def"


def _row(epoch: int) -> EpochRow:
    return EpochRow(
        fold=2,
        epoch=epoch,
        loss=1.0 / epoch,
        accuracy=0.5,
        held_out_loss=0.1 + 0.2,
        held_out_accuracy=0.5,
        held_out_balanced_accuracy=0.4,
        learning_rate=0.001,
        seconds=2.5,
        images_per_second=30.0,
    )


def _checkpoint(epochs: int) -> Checkpoint:
    variables = (np.full((2, 3), epochs, np.float32), np.array(epochs, np.int64), np.array([1, 2], np.uint32))
    weights = (np.arange(3, dtype=np.float32),)
    return Checkpoint(variables, weights, tuple(_row(epoch + 1) for epoch in range(epochs)), (1,), 12.5)


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path: Path, store: ObjectStore) -> None:
    folder = CheckpointFolder(tmp_path, FOLDER, store)
    folder.save(_checkpoint(2))

    found = folder.load()

    assert found is not None
    saved = _checkpoint(2)
    told = ("epochs", "rows", "resumed_after", "seconds")
    assert [getattr(found, name) for name in told] == [2, saved.rows, (1,), 12.5]
    assert (len(found.variables), len(found.weights)) == (len(saved.variables), len(saved.weights))
    for one, other in zip((*found.variables, *found.weights), (*saved.variables, *saved.weights)):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_another_worker_finds_it_in_the_bucket(tmp_path: Path, store: ObjectStore) -> None:
    CheckpointFolder(tmp_path / "one", FOLDER, store).save(_checkpoint(3))

    found = CheckpointFolder(tmp_path / "other", FOLDER, store).load()

    assert found is not None
    assert found.epochs == 3


def test_the_farther_of_cache_and_bucket_counts(tmp_path: Path, store: ObjectStore) -> None:
    stale = CheckpointFolder(tmp_path / "stale", FOLDER, store)
    stale.save(_checkpoint(1))
    CheckpointFolder(tmp_path / "other", FOLDER, store).save(_checkpoint(4))

    found = stale.load()

    assert found is not None
    assert found.epochs == 4


def test_without_one_there_is_none(tmp_path: Path, store: ObjectStore) -> None:
    assert CheckpointFolder(tmp_path, FOLDER, store).load() is None


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped", "no archive", "empty", "an unknown compression"])
def test_a_damaged_one_is_ignored_with_a_warning_and_the_other_copy_used(
    tmp_path: Path, store: ObjectStore, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    folder = CheckpointFolder(tmp_path, FOLDER, store)
    folder.save(_checkpoint(2))
    content = bytearray(folder.path.read_bytes())
    if damage == "a bit flipped":
        content[content.index(np.float32(2).tobytes() * 6)] ^= 1
    if damage == "an unknown compression":  # the field lies 10 bytes into each entry of the archive's directory
        content[content.index(b"PK\x01\x02") + 10] = 99
    damaged = {"cut short": bytes(content[:-200]), "no archive": b"x" * 500, "empty": b""}.get(damage, bytes(content))
    folder.path.write_bytes(damaged)

    found = folder.load()

    assert found is not None
    assert found.variables[0][0, 0] == 2
    assert "ignored" in caplog.text
    assert str(folder.path) in caplog.text


def test_it_tells_whether_it_is_of_a_network_of_this_shape() -> None:
    checkpoint = _checkpoint(1)

    assert checkpoint.fits([np.zeros((2, 3)), np.zeros(()), np.zeros(2)], [np.zeros(3)])
    assert not checkpoint.fits([np.zeros((3, 2)), np.zeros(()), np.zeros(2)], [np.zeros(3)])
    assert not checkpoint.fits([np.zeros((2, 3)), np.zeros(())], [np.zeros(3)])
    assert not checkpoint.fits([np.zeros((2, 3)), np.zeros(()), np.zeros(2)], [np.zeros(4)])


def test_a_bucket_that_fails_costs_a_warning_and_no_training(
    tmp_path: Path, store: ObjectStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise StorageUnavailable("writing: no answer")

    monkeypatch.setattr(store, "put", refuse)
    folder = CheckpointFolder(tmp_path, FOLDER, store)

    folder.save(_checkpoint(2))

    assert "is not kept in the bucket" in caplog.text
    assert folder.path.exists()


def test_a_disk_that_fails_costs_a_warning_and_the_bucket_has_it(
    tmp_path: Path, store: ObjectStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    folder = CheckpointFolder(tmp_path, FOLDER, store)

    folder.save(_checkpoint(2))

    assert "is not kept on this worker: the disk of" in caplog.text
    assert list(folder.path.parent.iterdir()) == [], "what was written until then fills the disk"
    found = folder.load()
    assert found is not None
    assert found.epochs == 2


def test_a_done_training_leaves_nothing_behind(tmp_path: Path, store: ObjectStore) -> None:
    folder = CheckpointFolder(tmp_path, FOLDER, store)
    folder.save(_checkpoint(2))
    other = CheckpointFolder(tmp_path, "artifacts/checkpoints/other", store)
    other.save(_checkpoint(1))

    folder.clear()

    assert folder.load() is None
    assert list(store.list_objects(f"{FOLDER}/")) == []
    assert other.path.exists()
    assert other.load() is not None


def test_with_it_goes_what_was_abandoned_on_this_worker_two_weeks_ago(tmp_path: Path) -> None:
    done, lately, abandoned = (CheckpointFolder(tmp_path, f"artifacts/checkpoints/{name}", None) for name in "abc")
    for folder, days in ((done, 0), (lately, 13), (abandoned, 15)):
        folder.save(_checkpoint(1))
        written = time.time() - days * 24 * 3600
        os.utime(folder.path, (written, written))

    done.clear()

    assert [folder.path.exists() for folder in (done, lately, abandoned)] == [False, True, False]


@pytest.mark.parametrize(
    ("whose", "before"),
    [("done", "unlink"), ("abandoned", "stat"), ("abandoned", "unlink")],
)
def test_a_file_that_another_training_removes_in_the_same_moment_is_no_reason_to_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, whose: str, before: str
) -> None:
    """The folds of a run tidy up beside each other."""
    folders = {
        name: CheckpointFolder(tmp_path, f"artifacts/checkpoints/{name}", None)
        for name in ("done", "abandoned", "also abandoned")
    }
    for name, folder in folders.items():
        folder.save(_checkpoint(1))
        if name != "done":
            os.utime(folder.path, (0, 0))
    contended, at_once, remove = folders[whose].path, getattr(Path, before), Path.unlink

    def too_late(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == contended:
            remove(path, missing_ok=True)
        return at_once(path, *args, **kwargs)

    with monkeypatch.context() as race:
        race.setattr(Path, before, too_late)
        folders["done"].clear()

    assert caplog.messages == []
    assert [name for name, folder in folders.items() if folder.path.exists()] == []


def test_one_that_cannot_be_removed_costs_a_warning(
    tmp_path: Path, store: ObjectStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> int:
        raise AccessDenied("removing: access denied")

    monkeypatch.setattr(store, "delete_folder", refuse)
    folder = CheckpointFolder(tmp_path, FOLDER, store)
    folder.save(_checkpoint(1))

    folder.clear()

    assert f"{FOLDER} could not be removed: removing: access denied" in caplog.text


def test_a_checkpoint_that_somebody_else_put_into_the_bucket_is_ignored(store: ObjectStore, tmp_path: Path) -> None:
    notes = Notes()
    CheckpointFolder(tmp_path / "one", FOLDER, store, notes).save(_checkpoint(3))
    planted = CheckpointFolder(tmp_path / "attacker", FOLDER, store)
    planted.save(_checkpoint(9))
    assert CheckpointFolder(tmp_path / "other", FOLDER, store, notes).load() is None
    after_a_clear = CheckpointFolder(tmp_path / "other", FOLDER, store, Notes()).load()
    assert after_a_clear is not None and after_a_clear.epochs == 9


def test_a_worker_that_died_between_note_and_upload_still_finds_its_last_checkpoint(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    folder = CheckpointFolder(tmp_path / "one", FOLDER, store, notes)
    folder.save(_checkpoint(3))
    with monkeypatch.context() as dying:
        dying.setattr(store, "put", lambda *given, **more: (_ for _ in ()).throw(StorageUnavailable("gone")))
        folder.save(_checkpoint(4))
    found = CheckpointFolder(tmp_path / "other", FOLDER, store, notes).load()
    assert found is not None and found.epochs == 3


def test_a_checkpoint_of_another_training_under_this_name_is_ignored(store: ObjectStore, tmp_path: Path) -> None:
    CheckpointFolder(tmp_path / "one", "artifacts/checkpoints/other", store).save(_checkpoint(3))
    store.put(f"{FOLDER}/checkpoint.npz", store.get("artifacts/checkpoints/other/checkpoint.npz"))
    assert CheckpointFolder(tmp_path / "two", FOLDER, store).load() is None


def test_a_checkpoint_of_the_release_before_is_ignored(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held the best epoch and not the last, of a network that was trained on other images."""
    folder = CheckpointFolder(tmp_path, FOLDER, store)
    with monkeypatch.context() as before:
        before.setattr("bcc_ops.training.checkpoints._FORMAT", 4)
        folder.save(_checkpoint(3))
    assert folder.load() is None


class Notes(dict[str, Any]):
    def set(self, key: str, value: Any) -> None:
        self[key] = value


def test_a_process_without_the_bucket_is_given_its_checkpoint_and_its_own_is_kept_there(
    tmp_path: Path, store: ObjectStore
) -> None:
    notes: dict[str, Any] = {}
    noted: Any = SimpleNamespace(get=lambda key, default=None: notes.get(key, default), set=notes.__setitem__)
    CheckpointFolder(tmp_path / "one", FOLDER, store, noted).save(_checkpoint(2))

    other = CheckpointFolder(tmp_path / "other", FOLDER, store, noted)
    other.take_over()
    alone = CheckpointFolder(tmp_path / "other", FOLDER, None)
    assert alone.load() is not None and alone.load().epochs == 2
    alone.save(_checkpoint(3))
    other.hand_on()

    found = CheckpointFolder(tmp_path / "third", FOLDER, store, noted).load()
    assert found is not None and found.epochs == 3


def test_without_a_checkpoint_there_is_nothing_to_take_over_or_to_hand_on(tmp_path: Path, store: ObjectStore) -> None:
    folder = CheckpointFolder(tmp_path, FOLDER, store)
    folder.take_over()
    folder.hand_on()
    assert not folder.path.exists()
    assert store.head(folder.key) is None
