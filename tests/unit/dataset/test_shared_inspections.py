"""Workers that share what the image checks learned, over a real object store."""

from __future__ import annotations

import hashlib
import io
import logging
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset import feature_search, image_checks, image_content, inspection_slices, near_duplicates, shared_inspections
from bcc_ops.dataset.dicom import keep_of_dicom
from bcc_ops.dataset.image_checks import check_images, inspect_images
from bcc_ops.dataset.inspection_cache import ContentFacts, InspectionCache
from bcc_ops.dataset.inspection_shards import (
    FACTS,
    FINDINGS,
    KINDS,
    ROWS_PER_SHARD,
    SEARCH,
    SIMILARITY,
    VERSION,
    Shard,
    read_shard,
    write_shard,
)
from bcc_ops.dataset.inspection_slices import cut_slices
from bcc_ops.dataset.pseudonyms import Pseudonyms
from bcc_ops.dataset.shared_inspections import shards_about, sharing_inspections
from bcc_ops.dataset.similarity import Similarity
from bcc_ops.dataset.sync import LocalImage
from bcc_ops.dataset.synthetic import draw_image
from bcc_ops.exceptions import AccessDenied, TooManyRefused
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import ContentRow
from bcc_ops.runs.tables import read_digests, write_rows
from tests.factories.dicom_files import dicom_file

CONFIG = RetrainingConfig.resolve({"min_side": 32, "max_refused_fraction": 1.0})
FOLDER = f"artifacts/inspections/{VERSION}/"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[LocalImage]:
    """Nine images: six synthetic scans, a crop and a JPEG of the first, and a broken file. Not to be changed."""
    folder = tmp_path_factory.mktemp("images")
    scans = [Image.fromarray(draw_image("benign", np.random.default_rng(number))).convert("RGB") for number in range(6)]
    for number, scan in enumerate(scans):
        scan.save(folder / f"{number}.png")
    width, height = scans[0].size
    scans[0].crop((20, 20, width - 10, height - 10)).save(folder / "6.png")
    scans[0].save(folder / "7.jpg", quality=85)
    (folder / "8.png").write_bytes((folder / "1.png").read_bytes()[:200])
    return [of_file(path) for path in sorted(folder.iterdir())]


def of_file(path: Path) -> LocalImage:
    return LocalImage(f"images/benign/{path.name}", "benign", hashlib.sha256(path.read_bytes()).hexdigest(), path)


def check(images: Sequence[LocalImage], memory: Path, config: RetrainingConfig = CONFIG, **more: Any) -> bytes:
    """Everything that a run writes of its image checks."""
    result = check_images(images, config, memory_path=memory, snapshot_digest="d", classes=("benign",), previous=None, **more)
    return result.document.to_json() + write_rows(ContentRow, result.contents)


class Worker:
    """A worker with a disk of its own, in front of one bucket."""

    def __init__(self, store: ObjectStore, disk: Path) -> None:
        self.store, self.memory = store, disk / "contents.sqlite3"

    def check(self, images: Sequence[LocalImage], config: RetrainingConfig = CONFIG, **more: Any) -> bytes:
        with self.sharing(images, config):
            return check(images, self.memory, config, **more)

    def inspect(self, images: Sequence[LocalImage]) -> None:
        with self.sharing(images), InspectionCache(self.memory) as memory:
            inspect_images(images, CONFIG, memory)

    def sharing(self, images: Sequence[LocalImage], config: RetrainingConfig = CONFIG) -> Any:
        contents = {image.sha256 for image in images}
        return sharing_inspections(self.store, "artifacts", self.memory, contents, config)


Hire = Callable[[], Worker]


@pytest.fixture
def hire(store: ObjectStore, tmp_path: Path) -> Hire:
    """Get a worker with an empty disk."""
    return lambda: Worker(store, Path(tempfile.mkdtemp(dir=tmp_path)))


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count what is done to the images: each is a piece of work that a night would have to do again."""
    done = dict.fromkeys(("decoded", "looked at", "compared", "searched from the beginning"), 0)

    def counted(what: str, function: Any) -> Any:
        def counting(*args: Any, **kwargs: Any) -> Any:
            done[what] += 1
            return function(*args, **kwargs)

        return counting

    for what, module, name in (
        ("decoded", image_checks, "inspect_file"),
        ("looked at", image_content, "_look"),
        ("compared", near_duplicates, "compare"),
        ("searched from the beginning", feature_search, "search_features"),
    ):
        monkeypatch.setattr(module, name, counted(what, getattr(module, name)))
    return done


def shards(store: ObjectStore, kind: str = "") -> list[str]:
    return sorted(entry["Key"] for entry in store.list_objects(f"{FOLDER}{kind}"))


def keys_about(store: ObjectStore, sha256: str) -> list[str]:
    return [key for key, _ in shards_about(store, "artifacts", {sha256})]


def test_a_worker_without_a_memory_learns_nothing_again_and_finds_the_same(
    hire: Hire, images: list[LocalImage], learned: dict[str, int], tmp_path: Path
) -> None:
    alone = check(images, tmp_path / "alone.sqlite3")
    warm = hire()
    assert warm.check(images) == alone
    assert learned["decoded"] == 2 * 9 and learned["looked at"] == 2 * 8
    assert learned["compared"] >= 2 * 2 and learned["searched from the beginning"] == 2
    learned.update(dict.fromkeys(learned, 0))
    assert hire().check(images) == alone
    # What was refused is not shared: nobody but the file itself may keep an image out.
    assert learned == {"decoded": 1, "looked at": 0, "compared": 0, "searched from the beginning": 0}
    assert warm.check(images) == alone


def test_a_night_writes_what_is_new_and_nothing_else(hire: Hire, images: list[LocalImage], store: ObjectStore) -> None:
    worker = hire()
    worker.check(images[:7])
    before = shards(store)
    assert [len(shards(store, f"{kind}/")) for kind in KINDS] == [1, 1, 1, 1]
    worker.check(images[:7])
    assert shards(store) == before
    worker.check(images)
    added = {key for key in shards(store) if key not in before}
    facts = [key for key in added if f"/{FACTS}/" in key]
    findings = [key for key in added if f"/{FINDINGS}/" in key]
    assert [read_digests(store.get(key)) for key in findings] == [{images[7].sha256}]
    assert len(facts) == 1 and pq.read_table(io.BytesIO(store.get(facts[0]))).num_rows == 1
    for key in shards(store):
        assert hashlib.sha256(store.get(key)).hexdigest() == Path(key).stem


def test_a_night_that_fails_leaves_what_it_learned(hire: Hire, images: list[LocalImage], learned: dict[str, int]) -> None:
    strict = RetrainingConfig.resolve({"min_side": 32, "max_refused_fraction": 0.01})
    with pytest.raises(TooManyRefused):
        hire().check(images, strict)
    learned.update(dict.fromkeys(learned, 0))
    with pytest.raises(TooManyRefused):
        hire().check(images, strict)
    assert (learned["decoded"], learned["looked at"]) == (1, 0)


def test_workers_that_write_at_once_lose_nothing_of_one_another(
    hire: Hire, images: list[LocalImage], learned: dict[str, int], tmp_path: Path
) -> None:
    """Both have read the bucket before either has written."""
    one, other = hire(), hire()
    with one.sharing(images[:5]), other.sharing(images[3:]):
        check(images[:5], one.memory)
        check(images[3:], other.memory)
    alone = check(images, tmp_path / "alone.sqlite3")
    learned.update(dict.fromkeys(learned, 0))
    assert hire().check(images) == alone
    assert (learned["decoded"], learned["looked at"]) == (1, 0)


def test_shards_of_many_nights_are_merged_and_lose_nothing(
    hire: Hire,
    images: list[LocalImage],
    store: ObjectStore,
    learned: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(shared_inspections, "MERGED_FROM", 3)
    alone = check(images, tmp_path / "alone.sqlite3")
    worker = hire()
    for night in (2, 4, 6, 7, 9):
        worker.check(images[:night])
        assert all(len(shards(store, f"{kind}/")) <= 4 for kind in KINDS)
    learned.update(dict.fromkeys(learned, 0))
    assert hire().check(images) == alone
    assert learned == {"decoded": 1, "looked at": 0, "compared": 0, "searched from the beginning": 0}


def test_shards_that_another_worker_merges_meanwhile_are_read_where_they_are_now(
    hire: Hire, images: list[LocalImage], store: ObjectStore, learned: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, late = hire(), hire()
    for night in (3, 5, 7):
        worker.check(images[:night])
    listing = store.list_objects

    def merged_after_the_listing(prefix: str) -> list[Any]:
        found = list(listing(prefix))
        monkeypatch.undo()
        with monkeypatch.context() as patch:
            patch.setattr(shared_inspections, "MERGED_FROM", 2)
            worker.check(images)
        return found

    counts = dict(learned)
    monkeypatch.setattr(store, "list_objects", merged_after_the_listing)
    with late.sharing(images):
        pass
    with InspectionCache(late.memory) as memory:
        assert len(memory.recall([image.sha256 for image in images], CONFIG.min_side, CONFIG.max_pixels)) == 8
    assert counts is not None and len(shards(store, f"{FACTS}/")) == 1


def test_a_merge_that_may_not_delete_says_so_and_does_not_grow_every_night(
    hire: Hire, images: list[LocalImage], store: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A policy of an older release allows no deletion here."""

    def refuse(key: str) -> None:
        raise AccessDenied(f"removing {key}: denied")

    monkeypatch.setattr(shared_inspections, "MERGED_FROM", 2)
    monkeypatch.setattr(store, "delete", refuse)
    worker = hire()
    for night in (3, 5, 7, 8):
        worker.check(images[:night])
    assert "denied" in caplog.text
    before = len(shards(store, f"{FACTS}/"))
    assert before == 4 + 1  # one a night, and one by the first merge
    hire().check(images[:8])
    assert len(shards(store, f"{FACTS}/")) == before


def ignored(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The addresses of the shards that a warning says to be ignored."""
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return sorted(message.split()[0] for message in messages if "It is ignored" in message)


BAD: dict[str, tuple[bool, Callable[[bytes], bytes]]] = {
    "damaged": (False, lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:]),
    "truncated": (False, lambda content: content[:-100]),
    "truncated, by its own name": (True, lambda content: content[:-100]),
    "empty, by its own name": (True, lambda content: b""),
    "of another version, by its own name": (True, lambda content: content.replace(VERSION.encode(), b"0-0-0")),
}


@pytest.mark.parametrize(("renamed", "spoilt"), BAD.values(), ids=BAD)
def test_a_bad_shard_is_named_once_and_what_it_is_about_is_learned_again(
    hire: Hire,
    images: list[LocalImage],
    store: ObjectStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    renamed: bool,
    spoilt: Callable[[bytes], bytes],
) -> None:
    """Whether chance did it, or somebody who gave the shard the name of what is in it now."""
    alone = check(images, tmp_path / "alone.sqlite3")
    hire().check(images)
    bad = []
    for key in shards(store):
        content = spoilt(store.get(key))
        store.delete(key)
        bad.append(f"{key.rpartition('/')[0]}/{hashlib.sha256(content).hexdigest()}.parquet" if renamed else key)
        store.put(bad[-1], content)
    worker = hire()
    caplog.clear()
    assert worker.check(images) == alone
    assert ignored(caplog) == sorted(map(store.uri, bad))
    caplog.clear()
    assert worker.check(images) == alone
    assert ignored(caplog) == []


def test_a_shard_that_is_too_large_is_named_and_not_fetched(
    hire: Hire, images: list[LocalImage], store: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hire().check(images[:2])
    monkeypatch.setattr(shared_inspections, "LARGEST_SHARD", 10)
    monkeypatch.setattr(store, "get_with_etag", lambda *args, **kwargs: pytest.fail("it was fetched"))
    with hire().sharing(images):
        pass
    assert ignored(caplog) == sorted(map(store.uri, shards(store)))


def test_what_is_stored_beside_the_shards_is_left_alone(hire: Hire, images: list[LocalImage], store: ObjectStore) -> None:
    for name in ("notes.txt", "facts/notes.txt", f"../0-0-0/facts/{'a' * 64}.parquet"):
        store.put(f"{FOLDER}{name}".replace(f"{VERSION}/../", ""), b"something else")
    before = {entry["Key"] for entry in store.list_objects("artifacts/inspections/")}
    hire().check(images[:2])
    assert before < {entry["Key"] for entry in store.list_objects("artifacts/inspections/")}


def test_a_store_that_refuses_costs_time_and_no_run(
    images: list[LocalImage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    store: ObjectStore,
) -> None:
    alone = check(images, tmp_path / "alone.sqlite3")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AccessDenied("reading s3://b/artifacts: denied")

    monkeypatch.setattr(store, "list_objects", refuse)
    monkeypatch.setattr(store, "put", refuse)
    assert Worker(store, tmp_path / "worker").check(images) == alone
    assert caplog.text.count("denied") == 2


def test_what_goes_wrong_while_it_is_shared_is_told_and_hides_no_error_of_the_run(
    hire: Hire, images: list[LocalImage], store: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(store, "list_objects", break_down)
    monkeypatch.setattr(store, "put", break_down)
    with pytest.raises(TooManyRefused), hire().sharing(images):
        raise TooManyRefused("all of them")
    worker = hire()
    assert worker.check(images[:2]) == check(images[:2], worker.memory)
    assert "can't start new thread" in caplog.text


def test_one_shard_that_the_store_does_not_give_holds_no_other_back(
    hire: Hire,
    images: list[LocalImage],
    store: ObjectStore,
    learned: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is in an archive, say. Tomorrow it may be read."""
    hire().check(images[:3])
    (archived,) = shards(store, f"{FACTS}/")
    other = hire()
    other.check(images[3:6])
    get = store.get_with_etag

    def archive(key: str, *args: Any, **kwargs: Any) -> Any:
        if key == archived:
            raise AccessDenied(f"reading {key}: it is archived")
        return get(key, *args, **kwargs)

    monkeypatch.setattr(store, "get_with_etag", archive)
    learned.update(dict.fromkeys(learned, 0))
    worker = hire()
    worker.check(images[:6])
    assert (learned["decoded"], learned["looked at"]) == (3, 0)
    assert "it is archived" in caplog.text
    monkeypatch.undo()
    with InspectionCache(worker.memory) as memory:
        assert memory.shards().get(archived.removeprefix(FOLDER)) is not False, "it is not refused for ever"


@pytest.mark.parametrize("superseded", ["by findings with text", "by a refusal here"])
def test_a_shard_whose_rows_are_superseded_is_merged_away_for_good(
    hire: Hire, images: list[LocalImage], store: ObjectStore, monkeypatch: pytest.MonkeyPatch, superseded: str
) -> None:
    monkeypatch.setattr(shared_inspections, "MERGED_FROM", 2)
    kind = FINDINGS if superseded == "by findings with text" else FACTS
    for image in images[:4]:
        place = shared_inspections._Place(store, FOLDER)
        worker = hire()
        with InspectionCache(worker.memory) as memory:
            if kind == FINDINGS:
                place.write(memory, Shard(findings=[(image.sha256, "2")]))
            else:
                check([image], worker.memory)
                limits = [(image.sha256, f"{CONFIG.min_side} {CONFIG.max_pixels}")]
                place.write(memory, memory.recall_shared(FACTS, limits))
    assert len(shards(store, f"{kind}/")) == 4
    worker = hire()
    for _ in range(3):
        with worker.sharing(images[:4]), InspectionCache(worker.memory) as memory:
            if kind == FINDINGS:
                memory.remember_findings([(image.sha256, "2t") for image in images[:4]])
            else:
                refused = ContentFacts(reason="too small")
                memory.remember([(image.sha256, refused) for image in images[:3]], CONFIG.min_side, CONFIG.max_pixels)
                memory.remember_findings([(images[0].sha256, "2t")])  # something to write
    assert len(shards(store, f"{kind}/")) == 1
    if kind == FINDINGS:
        assert {found for key in shards(store, f"{kind}/") for _, found in read_shard(FINDINGS, store.get(key)).findings} == {
            "2t"
        }


def test_a_full_shard_is_not_merged_any_more() -> None:
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(ROWS_PER_SHARD[SIMILARITY])]
    full = {
        FINDINGS: Shard(findings=[(digest, "2t") for digest in digests]),
        SIMILARITY: Shard(similarity=[((min(two), max(two)), Similarity(0.9, 0.5)) for two in zip(digests, digests[::-1])]),
    }
    for kind, shard in full.items():
        assert len(write_shard(shard)) > shared_inspections.SMALL[kind]


def test_rows_of_a_shard_that_is_gone_are_forgotten_with_it_or_not_at_all(hire: Hire, images: list[LocalImage]) -> None:
    worker = hire()
    worker.check(images[:2])
    with InspectionCache(worker.memory) as memory:
        known = memory.shards()
        memory._db.execute("CREATE TRIGGER stop BEFORE DELETE ON shared BEGIN SELECT RAISE(ABORT, 'killed'); END")
        with pytest.raises(sqlite3.Error, match="killed"):
            memory.forget_shards([])
        assert memory.shards() == known


def test_an_image_is_found_in_versions_of_shards_that_were_merged_away(make_store: Callable[..., ObjectStore]) -> None:
    versioned_store = make_store(versioned=True)
    key = f"{FOLDER}{FINDINGS}/{'a' * 64}.parquet"
    versioned_store.put(key, write_shard(Shard(findings=[("b" * 64, "2")])))
    versioned_store.delete(key)
    ((named, version),) = shards_about(versioned_store, "artifacts", {"b" * 64})
    assert named == key
    assert read_shard(FINDINGS, versioned_store.get(key, version)).findings == [("b" * 64, "2")]


def test_a_shard_that_is_merged_away_while_it_is_looked_for_is_found_in_the_merged_one(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_shard(Shard(findings=[("b" * 64, "2")]))
    small, merged = (f"{FOLDER}{FINDINGS}/{letter * 64}.parquet" for letter in "ac")
    store.put(small, content)
    get = store.get

    def merge_first(key: str, *args: Any) -> bytes:
        if key == small:
            store.put(merged, content)
            store.delete(small)
        return get(key, *args)

    monkeypatch.setattr(store, "get", merge_first)
    assert keys_about(store, "b" * 64) == [merged]


def test_a_search_that_is_ahead_of_the_snapshot_is_gone_on_from_or_made_anew(
    hire: Hire, images: list[LocalImage], learned: dict[str, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run about the images of a past day: the bucket knows more than it has."""
    caplog.set_level(logging.INFO)
    hire().check(images)
    for count, searched, said in ((7, 0, 0), (3, 1, 1)):
        alone = check(images[:count], tmp_path / f"{count}.sqlite3")
        learned.update(dict.fromkeys(learned, 0))
        caplog.clear()
        assert hire().check(images[:count]) == alone
        assert (learned["decoded"], learned["searched from the beginning"]) == (0, searched)
        assert caplog.text.count("are searched from the beginning") == said


def test_an_image_that_is_erased_does_not_come_back(hire: Hire, images: list[LocalImage], store: ObjectStore) -> None:
    erased, kept = images[0], images[1:]
    worker = hire()
    worker.check(images)
    named = keys_about(store, erased.sha256)
    assert {key.split("/")[-2] for key in named} == set(KINDS)
    assert list(shards_about(store, "artifacts", {"f" * 64})) == [] == list(shards_about(store, "artifacts", set()))
    for key in named:
        store.delete(key)
    worker.check(kept)
    assert list(shards_about(store, "artifacts", {erased.sha256})) == []
    for image in kept[:-1]:
        written = {key.split("/")[-2] for key in keys_about(store, image.sha256)}
        assert {FACTS, FINDINGS, SEARCH} <= written


def test_a_shard_that_cannot_be_read_may_hold_the_image(store: ObjectStore) -> None:
    key = f"artifacts/inspections/0-0-0/facts/{'a' * 64}.parquet"
    store.put(key, b"no Parquet")
    assert list(shards_about(store, "artifacts", {"f" * 64})) == [(key, "")]


def test_of_a_dicom_file_only_what_its_pixels_show_is_shared(
    hire: Hire, images: list[LocalImage], store: ObjectStore, tmp_path: Path, learned: dict[str, int]
) -> None:
    """Its tags have a day, an age and a pseudonym, which no document has so exactly."""
    path = tmp_path / "0.dcm"
    names = Pseudonyms(b"a salt that is long enough")
    path.write_bytes(keep_of_dicom(dicom_file(draw_image("benign", np.random.default_rng(9))), lambda: names))
    dicom = LocalImage("images/benign/0.dcm", "benign", "d" * 64, path)
    alone = check([*images, dicom], tmp_path / "alone.sqlite3", pseudonyms=lambda: names)
    assert hire().check([*images, dicom], pseudonyms=lambda: names) == alone
    named = {key.split("/")[-2] for key in keys_about(store, dicom.sha256)}
    assert FACTS not in named and {FINDINGS, SEARCH} <= named
    learned.update(dict.fromkeys(learned, 0))
    assert hire().check([*images, dicom], pseudonyms=lambda: names) == alone
    assert (learned["decoded"], learned["looked at"]) == (2, 0)  # it, and the broken one


def test_what_was_read_with_text_is_not_forgotten_for_what_was_seen_without(
    hire: Hire, images: list[LocalImage], store: ObjectStore
) -> None:
    blind, reader = hire(), hire()
    sha256 = images[0].sha256
    with blind.sharing(images), InspectionCache(blind.memory) as memory:
        memory.remember_findings([(sha256, "2 calipers")])
    with reader.sharing(images), InspectionCache(reader.memory) as memory:
        assert memory.recall_findings([sha256]) == {sha256: "2 calipers"}
        memory.remember_findings([(sha256, "2t device calipers")])
    for worker in (blind, hire(), reader):
        with worker.sharing(images), InspectionCache(worker.memory) as memory:
            assert memory.recall_findings([sha256]) == {sha256: "2t device calipers"}
    assert len(shards(store, FINDINGS)) == 2


chosen = st.sets(st.integers(0, 8), min_size=1)
nights = st.lists(st.tuples(st.integers(0, 2), chosen, st.sampled_from([0, 1, 2, 3])), min_size=1, max_size=5)
"""Nights: which worker checks which images; 1: it has lost its disk; 2: a shard is lost; 3: all had inspected a slice before."""


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(nights=nights)
def test_whoever_checks_whatever_it_finds_what_a_worker_alone_finds(
    nights: list[tuple[int, set[int], int]],
    images: list[LocalImage],
    make_store: Callable[..., ObjectStore],
    tmp_path: Path,
    alone: Callable[[frozenset[int]], bytes],
) -> None:
    store = make_store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_inspections, "MERGED_FROM", 2)
        patch.setattr(inspection_slices, "PER_SLICE", 2)
        disk = partial(tempfile.mkdtemp, dir=tmp_path)
        workers = [Worker(store, Path(disk())) for _ in range(3)]
        for number, numbers, mishap in nights:
            if mishap == 1:
                workers[number] = Worker(store, Path(disk()))
            if mishap == 2 and shards(store):
                store.delete(shards(store)[-1])
            if mishap == 3:
                new = [images[place] for place in sorted(numbers)]
                digests = [image.sha256 for image in new]
                for worker, part in zip(cycle(workers), cut_slices(digests, set(digests))):
                    worker.inspect(new[slice(*part)])
            assert workers[number].check([images[place] for place in sorted(numbers)]) == alone(frozenset(numbers))


@pytest.fixture
def alone(images: list[LocalImage]) -> Iterator[Callable[[frozenset[int]], bytes]]:
    """What a worker finds in some of the images that has no memory and no bucket; an error is a result too."""
    known: dict[frozenset[int], bytes] = {}
    with tempfile.TemporaryDirectory() as folder:

        def of(numbers: frozenset[int]) -> bytes:
            if numbers not in known:
                memory = Path(folder) / f"{len(known)}.sqlite3"
                known[numbers] = check([images[place] for place in sorted(numbers)], memory)
            return known[numbers]

        yield of
