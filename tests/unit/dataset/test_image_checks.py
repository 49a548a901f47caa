from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset import image_checks
from bcc_ops.dataset.decoding import decode_image
from bcc_ops.dataset.dicom import keep_of_dicom
from bcc_ops.dataset.image_checks import CONFLICT, UNREADABLE, check_images, summary
from bcc_ops.dataset.inspection_cache import InspectionCache
from bcc_ops.dataset.metadata import Metadata
from bcc_ops.dataset.pseudonyms import Pseudonyms
from bcc_ops.dataset.splits import count_folds, split_images
from bcc_ops.dataset.sync import LocalImage
from bcc_ops.dataset.synthetic import draw_image, write_images
from bcc_ops.exceptions import NoImages, OutOfResources, TooManyRefused
from bcc_ops.runs.rows import ContentRow
from bcc_ops.runs.tables import read_rows, write_rows
from tests.factories.dicom_files import dicom_file
from tests.unit.dataset.broken_images import MAX_PIXELS, MIN_SIDE, broken_files, encoded

CLASSES = ("benign", "malignant", "normal")


def local(path: Path, label: str, key: str | None = None) -> LocalImage:
    return LocalImage(key or f"{label}/{path.name}", label, hashlib.sha256(path.read_bytes()).hexdigest(), path)


def check(images, memory, previous=None, **parameters):
    config = RetrainingConfig.resolve({"min_side": MIN_SIDE, "max_pixels": MAX_PIXELS, **parameters})
    return check_images(images, config, memory_path=memory, snapshot_digest="digest", classes=CLASSES, previous=previous)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> list[LocalImage]:
    """Eight good images a class, synthetic but not marked as such: the pixels alone are taken. Not to be changed."""
    folder = tmp_path_factory.mktemp("good")
    images = []
    for label in CLASSES:
        for number in range(8):
            path = folder / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([number, CLASSES.index(label)])
            Image.fromarray(draw_image(label, rng)).convert("RGB").save(path)
            images.append(local(path, label))
    return images


def test_fifty_broken_files_are_refused_by_the_right_reason_and_the_good_ones_are_split(tmp_path, good):
    broken = []
    for name, content, _ in broken_files():
        path = tmp_path / "broken" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        broken.append(local(path, "benign", key=f"benign/broken {name}"))
    result = check(good + broken, tmp_path / "memory.sqlite3", max_refused_fraction=0.9)

    expected = {f"benign/broken {name}": reason for name, _, reason in broken_files()}
    assert {image.key: image.reason for image in result.document.refused} == expected
    assert result.document.checked == 74
    assert result.document.usable == dict.fromkeys(CLASSES, 8)
    refused_rows = {row.key: row.refused for row in result.contents if row.refused}
    assert refused_rows == expected
    config = RetrainingConfig.resolve({})
    counts = count_folds(split_images(result.contents, (), config, CLASSES).rows, CLASSES)
    assert sum(counts[fold][name] for fold in counts for name in CLASSES) == 24


def test_more_refused_than_allowed_fails_with_the_list(tmp_path, good):
    (tmp_path / "cut.png").write_bytes(encoded(Image.open(good[0].path))[:-100])
    (tmp_path / "empty.png").write_bytes(b"")
    images = [*good, local(tmp_path / "cut.png", "benign"), local(tmp_path / "empty.png", "normal")]
    with pytest.raises(
        TooManyRefused, match=r"2 of 26 .*max_refused_fraction = 0.05.*benign/cut.png: truncated.*normal/empty.png: empty"
    ):
        check(images, tmp_path / "memory.sqlite3", max_refused_fraction=0.05)
    assert len(check(images, tmp_path / "memory.sqlite3", max_refused_fraction=0.1).document.refused) == 2


def test_images_that_the_store_does_not_give_are_refused_and_count_as_refused(tmp_path, good):
    """An archived object, or one with a key of its uploader's, keeps itself out and nothing else."""
    config = RetrainingConfig.resolve({"min_side": MIN_SIDE, "max_refused_fraction": 0.04})

    def checked(unreadable: dict[str, str]):
        memory = tmp_path / "memory.sqlite3"
        return check_images(
            good,
            config,
            memory_path=memory,
            snapshot_digest="digest",
            classes=CLASSES,
            previous=None,
            unreadable=unreadable,
        )

    result = checked({"benign/archived.png": "its storage class"})
    assert [(image.key, image.reason, image.detail) for image in result.document.refused] == [
        ("benign/archived.png", UNREADABLE, "its storage class")
    ]
    assert (result.document.checked, len(result.contents)) == (25, 24)
    assert result.document.usable == dict.fromkeys(CLASSES, 8)
    with pytest.raises(TooManyRefused, match=r"2 of 26 images are refused.*benign/b.png: not readable in the store \(denied\)"):
        checked({"benign/a.png": "denied", "benign/b.png": "denied"})


def test_no_images_at_all_fail(tmp_path):
    with pytest.raises(NoImages):
        check([], tmp_path / "memory.sqlite3")


def test_one_scan_under_two_labels_is_left_out_and_listed(tmp_path, good):
    again = tmp_path / "again.jpg"
    Image.open(good[0].path).save(again, quality=80)
    result = check([*good, local(again, "malignant")], tmp_path / "memory.sqlite3")
    (conflict,) = result.document.conflicts
    assert conflict.keys == ("benign/0.png", "malignant/again.jpg")
    assert conflict.labels == ("benign", "malignant")
    assert result.document.usable == {"benign": 7, "malignant": 8, "normal": 8}
    assert {row.key for row in result.contents if row.refused == CONFLICT} == set(conflict.keys)
    assert not result.document.refused  # nothing is wrong with the files themselves
    assert "1 group of near-duplicates is under more than one label: 2 images" in result.document.warnings[0]


def test_the_same_bytes_twice_are_a_group(tmp_path, good):
    twice = good[0]
    result = check([*good, LocalImage("benign/copy.png", "benign", twice.sha256, twice.path)], tmp_path / "memory.sqlite3")
    (group,) = result.document.groups
    assert group.keys == ("benign/0.png", "benign/copy.png")
    assert group.how == ("bytes",)
    assert result.document.usable["benign"] == 9


def test_the_second_night_decodes_only_what_is_new(tmp_path, good, monkeypatch):
    decoded = []
    inspect = image_checks.inspect_file

    def spy(path, *limits):
        decoded.append(path)
        return inspect(path, *limits)

    monkeypatch.setattr(image_checks, "inspect_file", spy)
    memory = tmp_path / "memory.sqlite3"
    first = check(good[:-1], memory)
    assert len(decoded) == 23
    second = check(good, memory)
    assert decoded[23:] == [good[-1].path]
    assert check(good, memory).document == second.document
    assert len(decoded) == 24
    assert {row for row in second.contents if row.key != good[-1].key} == set(first.contents)


def test_what_was_learned_counts_only_under_the_same_limits(tmp_path, good):
    memory = tmp_path / "memory.sqlite3"
    assert not check(good, memory).document.refused
    smaller = check(good, memory, min_side=160, max_refused_fraction=1)
    assert {image.reason for image in smaller.document.refused} == {"too small"}
    assert not check(good, memory).document.refused


def test_a_damaged_memory_is_thrown_away(tmp_path, good):
    memory = tmp_path / "memory.sqlite3"
    expected = check(good, memory).document
    for file in tmp_path.glob("memory.sqlite3*"):
        file.write_bytes(b"not a database, but long enough to be mistaken for one" * 100)
    assert check(good, memory).document == expected


def test_a_memory_of_another_method_is_forgotten(tmp_path, good):
    with InspectionCache(tmp_path / "memory.sqlite3") as memory:
        memory._db.execute("CREATE TABLE facts_before (x)")
        memory._db.execute("DROP TABLE facts")
        memory._db.execute("CREATE TABLE facts (sha256 TEXT)")
        memory._db.execute("PRAGMA user_version=1000")
    assert check(good, tmp_path / "memory.sqlite3").document.checked == 24


def test_a_memory_that_cannot_be_written_says_so(tmp_path, good):
    from bcc_ops.exceptions import CacheError

    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(CacheError, match="cannot be used"):
        check(good, tmp_path / "file" / "memory.sqlite3")


def test_colour_modes_that_are_converted_are_counted(tmp_path, good):
    for number, mode in enumerate(("L", "RGBA", "P", "L")):
        Image.open(good[number].path).convert(mode).save(tmp_path / f"{number}{mode}.png")
    images = [*good[8:], *(local(path, "benign") for path in sorted(tmp_path.glob("*.png")))]
    assert check(images, tmp_path / "memory.sqlite3").document.converted == {"L": 2, "P": 1, "RGBA": 1}


def test_synthetic_images_are_counted_and_warned_of(tmp_path):
    write_images(tmp_path / "made", per_class=4)
    images = [local(path, path.parent.name) for path in sorted((tmp_path / "made").rglob("*.png"))]
    result = check(images, tmp_path / "memory.sqlite3")
    assert result.document.synthetic == 12
    assert all(row.synthetic for row in result.contents)
    assert "12 of 12 images are synthetic" in result.document.warnings[0]
    assert not result.document.groups


def test_the_order_of_the_images_changes_nothing(tmp_path, good):
    one = check(good, tmp_path / "one.sqlite3")
    other = check(good[::-1], tmp_path / "other.sqlite3")
    assert one.document == other.document
    assert one.contents == other.contents


def test_rows_say_size_brightness_and_contrast(tmp_path):
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, :100] = 200
    path = tmp_path / "half.png"
    Image.fromarray(pixels).save(path)
    (row,) = check([local(path, "benign")], tmp_path / "memory.sqlite3").contents
    assert (row.width, row.height, row.mode, row.mean, row.contrast) == (200, 100, "RGB", 100, 100)
    assert read_rows(ContentRow, write_rows(ContentRow, [row])) == [row]


def test_the_summary_counts_reasons_and_groups(tmp_path, good):
    (tmp_path / "empty.png").write_bytes(b"")
    document = check([*good, local(tmp_path / "empty.png", "normal")], tmp_path / "memory.sqlite3").document
    assert summary(document) == [
        "25 images checked, 1 refused (1 empty); usable: 8 benign, 8 malignant, 8 normal",
        "0 groups of near-duplicates hold 0 images; 0 conflicts",
    ]


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")], ids=["memory", "disk"])
def test_what_the_machine_could_not_do_is_never_remembered_of_an_image(tmp_path, good, monkeypatch, error):
    memory = tmp_path / "memory.sqlite3"
    victim = good[3].path

    if isinstance(error, MemoryError):
        decode = decode_image
        content = victim.read_bytes()

        def out_of_memory(given, *limits):
            if given == content:
                raise MemoryError
            return decode(given, *limits)

        monkeypatch.setattr(image_checks, "decode_image", out_of_memory)
    else:
        read = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(error) if path == victim else read(path))
    with pytest.raises(OutOfResources) as caught:
        check(good, memory)
    assert caught.value.retryable
    monkeypatch.undo()
    assert check(good, memory).document.refused == ()


def test_coloured_images_draw_the_same_folds_as_dicom_whose_colours_were_rounded(tmp_path, good):
    images, rounded = [], []
    for number, known in enumerate(good):
        picture = decode_image(known.path.read_bytes()).rgb.copy()
        picture[8:24, 8:40] = (250, 120 + number, 30)  # YBR stores some of these colours with a rounding error
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.dcm").write_bytes(keep_of_dicom(dicom_file(picture, photometric="YBR_FULL")))
        images.append(local(tmp_path / f"{number}.png", known.label))
        rounded.append(local(tmp_path / f"{number}.dcm", known.label))
    drawn = []
    for form in (images, rounded):
        contents = check(form, tmp_path / "memory.sqlite3").contents
        split = split_images(contents, (), RetrainingConfig.resolve({}), CLASSES)
        drawn.append(({row.pixels for row in contents}, {Path(row.key).stem: row.fold for row in split.rows}))
    (pixels, folds), (pixels_after, folds_after) = drawn
    assert pixels - pixels_after, "nothing was rounded: the test tests nothing"
    assert folds == folds_after


def test_patients_whom_dicom_files_name_are_known_by_their_pseudonyms_unless_the_salt_is_another(tmp_path):
    images = []
    today, before = b"the salt of today", b"another salt, of before"
    names = Pseudonyms(today)
    for number, (patient, salt) in enumerate((("P 1", today), ("P 1", today), ("P 2", today), ("P 2", before))):
        path = tmp_path / f"{number}.dcm"
        picture = draw_image("benign", np.random.default_rng(number))
        path.write_bytes(keep_of_dicom(dicom_file(np.ascontiguousarray(picture), PatientID=patient), partial(Pseudonyms, salt)))
        images.append(local(path, "benign"))
    table = Metadata({images[2].key: {"patient_id": "told"}})
    config = RetrainingConfig.resolve({"min_side": MIN_SIDE})
    given: dict[str, Any] = {"snapshot_digest": "digest", "classes": CLASSES, "previous": None, "metadata": table}
    result = check_images(images, config, memory_path=tmp_path / "memory.sqlite3", pseudonyms=lambda: names, **given)
    both = " ".join(sorted([names.of("P 2"), "told"]))
    assert [row.patient for row in result.contents] == [names.of("P 1"), names.of("P 1"), both, ""]
    assert (result.document.dicom, result.document.burned_in, result.document.patients) == (4, 4, 2)
    told = {"patient_id": names.of("P 1"), "acquired_at": "2026-Q1", "laterality": "left", "age": "50 to 59"}
    assert result.by_files.cells[images[0].key] == told  # two patients are too few for the device to be told
    assert any("4 DICOM images say that text is burned" in warning for warning in result.document.warnings)
