from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import ImageOps

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset import shortcuts
from bcc_ops.dataset.folder_check import check_folder
from bcc_ops.dataset.image_checks import check_images, summary
from bcc_ops.dataset.shortcuts import PROPERTY_SETS, TOGETHER, audit_shortcuts
from bcc_ops.dataset.sync import LocalImage
from bcc_ops.runs.rows import ContentRow
from tests.factories.images import scan_pixels

CLASSES = ("benign", "malignant", "normal")


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """Forests that are quick to grow; what the tests plant is plain."""
    monkeypatch.setattr(shortcuts, "_TREES", 6)


def rows(count=60, classes=CLASSES, seed=1):
    """Rows of contents.parquet whose properties have nothing to do with the class, each a group of its own."""
    rng = np.random.default_rng(seed)
    return [
        ContentRow(
            key=f"images/{label}/{label} ({number}).png",
            label=label,
            sha256=f"{label}{number}",
            width=int(rng.integers(300, 600)),
            height=int(rng.integers(300, 600)),
            mode="RGB",
            mean=80.0,
            contrast=40.0,
            synthetic=False,
            group=f"{label}{number}",
            refused="",
            file_format="PNG",
            file_bytes=int(rng.integers(50_000, 200_000)),
            border_left=float(rng.random()),
            coloured=float(rng.random()),
            strokes=float(rng.random()),
        )
        for label in classes
        for number in range(1, count + 1)
    ]


def found(audit):
    return {(finding.properties, finding.label) for finding in audit.findings if finding.warning}


def area(audit, properties, label):
    return next(one.auc for one in audit.findings if (one.properties, one.label) == (properties, label))


def test_a_planted_shortcut_is_found_and_named_and_no_other():
    planted = [row._replace(width=row.width + 250 * (row.label == "malignant")) for row in rows()]
    audit = audit_shortcuts(planted, CLASSES)
    assert {"size and aspect", TOGETHER} >= {properties for properties, _ in found(audit)}
    assert {("size and aspect", "malignant"), (TOGETHER, "malignant")} <= found(audit)
    assert area(audit, "size and aspect", "malignant").value > 0.9
    (sentence,) = audit.warnings()
    assert sentence.startswith("size and aspect alone predict the class (")
    assert "malignant with an AUC of 0.9" in sentence


def test_nothing_is_found_if_there_is_nothing():
    audit = audit_shortcuts(rows(), CLASSES)
    assert not found(audit)
    assert audit.warnings() == []
    assert audit.unavailable is None
    assert [one.properties for one in audit.findings] == [name for name in PROPERTY_SETS for _ in CLASSES]
    for finding in audit.findings:
        if finding.auc.value is not None:
            assert finding.auc.low < 0.5 < finding.auc.high or abs(finding.auc.value - 0.5) < 0.15
    assert area(audit, "file type", "benign").reason == "it does not differ between the images"


def test_the_same_rows_give_the_same_audit():
    assert audit_shortcuts(rows(20), CLASSES) == audit_shortcuts(rows(20), CLASSES)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ([], "no image is usable"),
        (rows(5), "two classes with 10 groups are needed (5 benign, 5 malignant, 5 normal)"),
        (rows(60, ("benign",)), "two classes with 10 groups are needed (60 benign, 0 malignant, 0 normal)"),
        ([row._replace(group=row.label) for row in rows()], "(1 benign, 1 malignant, 1 normal)"),
        ([row._replace(refused="damaged") for row in rows()], "no image is usable"),
        ([ContentRow(*row[:12]) for row in rows()], "the properties were not measured: an older release checked these images"),
    ],
    ids=["none", "few", "one class", "one group per class", "all refused", "older release"],
)
def test_what_cannot_be_told_is_said(contents, reason):
    audit = audit_shortcuts(contents, CLASSES)
    assert audit.findings == ()
    assert reason in audit.unavailable
    assert audit.warnings() == []


def test_a_class_of_few_images_is_not_told_about_and_the_others_are():
    audit = audit_shortcuts([*rows(30, CLASSES[:2]), *rows(4, CLASSES[2:])], CLASSES)
    assert area(audit, "size and aspect", "normal").reason == "4 independent images; 10 are needed"
    assert area(audit, "size and aspect", "benign").value is not None


def test_near_duplicates_do_not_pass_for_a_shortcut_or_for_evidence():
    copies = [row._replace(key=f"{row.key}-{copy}.png") for row in rows(15) for copy in range(8)]
    grouped = audit_shortcuts(copies, CLASSES)
    assert not found(grouped)
    apart = audit_shortcuts([row._replace(group=row.key) for row in copies], CLASSES)
    assert area(apart, "size and aspect", "benign").value > 0.9  # it recognises the copies
    few, many = area(grouped, "size and aspect", "benign"), area(apart, "size and aspect", "benign")
    assert few.high - few.low > 2 * (many.high - many.low)


def test_images_of_a_patient_count_once():
    copies = [row._replace(key=f"{row.key}-{copy}.png", group=f"{row.group}-{copy}") for row in rows(15) for copy in range(8)]
    assert found(audit_shortcuts(copies, CLASSES))
    assert not found(audit_shortcuts(copies, CLASSES, r"(\w+ \(\d+\))"))


def test_classes_whose_files_are_named_in_different_ways_were_collected_apart():
    named = [
        row._replace(key=f"images/{row.label}/{'Scan_' if row.label == 'normal' else ''}{number}.png")
        for number, row in enumerate(rows())
    ]
    audit = audit_shortcuts(named, CLASSES)
    assert ("file name", "normal") in found(audit)
    assert any(one.startswith("the file name predicts the class") for one in audit.warnings())


def test_a_number_counts_only_if_the_classes_share_one_sequence():
    own = [*rows(60, CLASSES[:1]), *rows(20, CLASSES[1:])]
    assert area(audit_shortcuts(own, CLASSES), "file name", "benign").reason == "it does not differ between the images"
    shared = [row._replace(key=f"images/{row.label}/{number:04}.png") for number, row in enumerate(rows())]
    assert ("file name", "benign") in found(audit_shortcuts(shared, CLASSES))


def test_of_many_images_the_same_whole_groups_are_audited_each_time(monkeypatch):
    monkeypatch.setattr(shortcuts, "MOST_IMAGES", 60)
    pairs = [row._replace(key=f"{row.key}-{copy}.png") for row in rows(50) for copy in range(2)]
    audit = audit_shortcuts(pairs, CLASSES)
    assert (audit.images, audit.audited) == (300, 60)
    keys = set(audit.scores[TOGETHER]["benign"])
    assert {f"{key.rpartition('-')[0]}-{copy}.png" for key in keys for copy in range(2)} == keys
    more = audit_shortcuts([*pairs, *rows(1, ("other",))], CLASSES)
    assert len(keys & set(more.scores[TOGETHER]["benign"])) >= 58


@pytest.fixture(scope="module")
def bordered(tmp_path_factory):
    """Fourteen files a class that differ in nothing but a black border around the malignant ones."""
    root = tmp_path_factory.mktemp("bordered")
    for start, label in enumerate(("benign", "malignant")):
        (root / label).mkdir()
        for number in range(14):
            pixels = scan_pixels(100 * start + number).resize((220, 180)).convert("RGB")
            if label == "malignant":
                pixels = ImageOps.expand(pixels.resize((180, 140)), 20)
            pixels.save(root / label / f"{number}.png")
    return root


def test_the_checks_of_files_name_the_shortcut(bordered, tmp_path):
    images = []
    for path in sorted(bordered.rglob("*.png")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        images.append(LocalImage(f"{path.parent.name}/{path.name}", path.parent.name, digest, path))
    result = check_images(
        images,
        RetrainingConfig.resolve({}),
        memory_path=tmp_path / "memory.sqlite3",
        snapshot_digest="",
        classes=("benign", "malignant"),
        previous=None,
    )
    assert any(one.startswith("border alone predicts the class") for one in result.document.warnings)
    assert any("border alone" in line for line in summary(result.document))
    named = {finding.properties: finding for finding in result.document.shortcuts if finding.label == "malignant"}
    assert named["border"].auc.value == 1.0
    assert not named["colour"].warning
    again = check_images(
        images,
        RetrainingConfig.resolve({}),
        memory_path=tmp_path / "memory.sqlite3",
        snapshot_digest="",
        classes=("benign", "malignant"),
        previous=result.contents,
    )
    assert again.document.shortcuts == result.document.shortcuts  # from what was remembered


def test_the_command_shows_them(bordered):
    from rich.console import Console

    from bcc_ops.dataset.folder_check import check_tables

    sink = io.StringIO()
    for table in check_tables(check_folder(bordered, RetrainingConfig.resolve({}))):
        Console(file=sink, width=160).print(table)
    assert "Shortcuts" in sink.getvalue()
    assert "warning: border alone predicts the class" in sink.getvalue()
