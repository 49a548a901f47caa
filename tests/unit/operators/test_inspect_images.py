"""The task that inspects a slice of many new images, on workers that share nothing but the bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bcc_ops.dataset import image_checks, inspection_slices
from bcc_ops.operators.check_images import CheckImagesOperator
from bcc_ops.operators.download_images import DownloadImagesOperator
from bcc_ops.operators.inspect_images import InspectImagesOperator, is_last_of_several
from bcc_ops.operators.snapshot_dataset import SnapshotDatasetOperator
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.sensors.new_images import NewImagesSensor
from tests.factories.images import scan_png
from tests.factories.nights import context_of

NIGHT = "manual__first"


class Night:
    """A first night of five images, shared out in three slices. Each task is on the worker that it is given."""

    def __init__(self, store: ObjectStore, on: Callable[[str], None]) -> None:
        self.store, self.on = store, on
        for number in range(5):
            store.put(f"images/benign/{number}.png", scan_png(number))
        self.context = context_of("manual", NIGHT)
        self.run = SnapshotDatasetOperator(
            task_id="snapshot_dataset", arrivals=NewImagesSensor(task_id="wait").execute(self.context)
        ).execute(self.context)

    def download(self, worker: str) -> list[tuple[int, int]]:
        self.on(worker)
        slices: list[tuple[int, int]] = DownloadImagesOperator(task_id="download_images", run=self.run).execute(self.context)
        return slices

    def inspect(self, worker: str, part: tuple[int, int], attempt: int = 1) -> None:
        self.on(worker)
        context = {**self.context, "ti": SimpleNamespace(try_number=attempt, max_tries=2)}
        InspectImagesOperator(task_id="inspect_images", run=self.run, part=list(part)).execute(context)

    def check(self, worker: str) -> tuple[bytes, bytes]:
        """Both files that the checks write."""
        self.on(worker)
        document = CheckImagesOperator(task_id="check_images", run=self.run).execute(self.context)["key"]
        return self.store.get(document), self.store.get(document.replace("checks.json", "contents.parquet"))


@pytest.fixture
def night(place: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Night:
    monkeypatch.setattr(inspection_slices, "PER_SLICE", 2)
    return Night(place, lambda worker: monkeypatch.setenv("BCC_CACHE_DIR", str(tmp_path / worker)))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are inspected, as they are."""
    files = []
    inspect = image_checks.inspect_file
    monkeypatch.setattr(image_checks, "inspect_file", lambda path, *more: files.append(path) or inspect(path, *more))
    return files


def files_of(worker: Path) -> int:
    return len(list((worker / "files").glob("?/*")))


def test_slices_on_several_workers_leave_nothing_to_inspect_and_change_no_byte(
    night: Night, decoded: list[Path], tmp_path: Path
) -> None:
    slices = night.download("one")
    assert slices == [(0, 1), (1, 3), (3, 5)]
    night.inspect("two", slices[0])
    night.inspect("one", slices[1])
    night.inspect("two", slices[2])
    assert len(decoded) == 5 and files_of(tmp_path / "two") == 3
    decoded.clear()
    shared = night.check("three")
    assert decoded == []
    for entry in list(night.store.list_objects("artifacts/inspections/")):
        night.store.delete(entry["Key"])
    assert night.check("alone") == shared
    assert len(decoded) == 5


def test_a_slice_that_is_done_again_finds_what_was_learned(night: Night, decoded: list[Path]) -> None:
    *_, part = night.download("one")
    night.inspect("two", part)
    before = sorted(entry["Key"] for entry in night.store.list_objects("artifacts/inspections/"))
    decoded.clear()
    night.inspect("three", part, attempt=2)
    assert decoded == []
    assert sorted(entry["Key"] for entry in night.store.list_objects("artifacts/inspections/")) == before


def test_a_slice_whose_worker_died_twice_is_left_to_the_checks(
    night: Night, decoded: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Killed(BaseException):
        """What nothing can catch."""

    first, second, lost = night.download("one")
    night.inspect("one", first)
    night.inspect("two", second)
    with monkeypatch.context() as patch:
        patch.setattr(image_checks, "inspect_file", lambda *_: (_ for _ in ()).throw(Killed()))
        for attempt in (1, 2):
            with pytest.raises(Killed):
                night.inspect("two", lost, attempt)
    decoded.clear()
    night.inspect("two", lost, 3)
    assert decoded == []
    assert "images 4 to 5 of" in caplog.text and "are left to check_images" in caplog.text
    night.check("one")
    assert len(decoded) == 2


def test_a_night_that_knows_most_is_not_shared_out(night: Night) -> None:
    for part in night.download("one")[1:]:
        night.inspect("two", part)
    assert night.download("one") == [], "what the other worker learned is read"
    assert night.download("three") == []


@pytest.mark.parametrize(
    ("attempt", "attempts", "is_last"),
    [(1, 3, False), (2, 3, False), (3, 3, True), (1, 1, False), (2, 2, True), (4, 6, False)],
    ids=["first", "second", "last", "the only one", "second of two", "first after it was cleared"],
)
def test_only_the_last_attempt_after_others_gives_up(attempt: int, attempts: int, is_last: bool) -> None:
    assert is_last_of_several(SimpleNamespace(try_number=attempt, max_tries=attempts - 1)) is is_last
