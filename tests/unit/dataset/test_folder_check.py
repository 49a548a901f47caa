from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from bcc_ops.config import NO_FINDINGS, RetrainingConfig
from bcc_ops.dataset.folder_check import check_folder, check_tables
from bcc_ops.exceptions import MetadataProblem, NoImages
from bcc_ops.runs.documents import FOLDS, CheckDocument, parse_document
from benchmarks.dicom import rewrite
from tests.factories.dicom_files import dicom_file
from tests.factories.images import scan_pixels, scan_png

CONFIG = RetrainingConfig.resolve({"max_refused_fraction": 0.5})


def write(path, seed, label="benign"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scan_png(seed, label))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for start, label in enumerate(("benign", "malignant")):
        for number in range(5):
            write(root / label / f"{label} ({number}).png", 100 * start + number, label)
            (root / label / f"{label} ({number})_mask.png").write_bytes(b"a mask")
    (root / "notes.txt").write_text("not an image")
    return root


def printed(document):
    sink = io.StringIO()
    console = Console(file=sink, width=120)
    for table in check_tables(document):
        console.print(table)
    return sink.getvalue()


def test_a_folder_is_checked_and_split(folder):
    document = check_folder(folder, CONFIG)
    assert document.checks.checked == 10
    assert {one.reason: one.count for one in document.ignored} == {"in no class folder": 1, "name to ignore (masks)": 10}
    assert document.classes == ("benign", "malignant")
    assert document.split is not None
    assert document.split.counts == {fold: {"benign": 1, "malignant": 1} for fold in FOLDS}
    assert len(document.folds) == 10
    assert sorted(document.folds[f"benign/benign ({number}).png"] for number in range(5)) == list(FOLDS)
    row = next(line for line in printed(document).splitlines() if line.startswith("│ malignant"))
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["malignant", "5", *"11111", "1.000"]
    assert parse_document(CheckDocument, document.to_json(), "the test") == document


def test_no_path_of_this_machine_is_in_the_document(folder):
    assert str(folder) not in json.dumps(json.loads(check_folder(folder, CONFIG).to_json()))


def test_an_empty_file_is_refused_and_told(folder):
    (folder / "benign" / "nothing [0].png").touch()
    document = check_folder(folder, CONFIG)
    assert [(one.key, one.reason) for one in document.checks.refused] == [("benign/nothing [0].png", "empty")]
    assert "nothing [0].png" in printed(document)  # brackets are no markup


def test_patients_of_a_table_in_the_folder_stay_together(folder):
    (folder / "metadata.csv").write_text("key,patient_id,age\n*(0).png,MARKER,45\n*(1).png,B,45\n*gone.png,C,45\n")
    document = check_folder(folder, CONFIG)
    assert document.folds["benign/benign (0).png"] == document.folds["malignant/malignant (0).png"]
    assert (document.split.grouping, document.split.patients_unknown, document.checks.patients) == ("patient", 6, 2)
    assert {one.reason: one.count for one in document.ignored}["in no class folder"] == 1
    told = printed(document)
    assert "rows without an image" in told and "row 4" in told
    assert "MARKER" not in told + document.to_json().decode()
    (folder / "metadata.csv").write_text("no key\n")
    assert "has no column named `key`" in printed(check_folder(folder, CONFIG))
    with pytest.raises(MetadataProblem, match="require_metadata"):
        check_folder(folder, CONFIG.model_copy(update={"require_metadata": True}))


def test_the_patient_whom_a_dicom_file_names_is_the_one_of_the_table(folder):
    for label, seed in (("benign", 71), ("malignant", 72)):
        (folder / label / "scan.dcm").write_bytes(
            dicom_file(np.asarray(scan_pixels(seed, label).convert("L")), PatientID="MARKER")
        )
    (folder / "metadata.csv").write_text("key,patient_id\n*(0).png, marker \n")
    document = check_folder(folder, CONFIG)
    assert (document.checks.dicom, document.checks.patients, document.split.grouping) == (2, 1, "patient")
    of_patient = ["benign/scan.dcm", "malignant/scan.dcm", "benign/benign (0).png", "malignant/malignant (0).png"]
    assert len({document.folds[key] for key in of_patient}) == 1
    assert "marker" not in (printed(document) + document.to_json().decode()).casefold()


def test_lossless_copies_of_all_images_draw_the_folds_that_the_images_draw(folder, tmp_path):
    for path in (tmp_path / "images").glob("*/*).png"):
        packed = tmp_path / "packed" / path.parent.name / path.name
        packed.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(packed, compress_level=1)
        assert packed.read_bytes() != path.read_bytes()
    (tmp_path / "dicom").mkdir()
    assert len(list(rewrite(folder, tmp_path / "dicom"))) == 10

    drawn = {}
    for name in ("images", "packed", "dicom"):
        document = check_folder(tmp_path / name, CONFIG)
        drawn[name] = {key.rpartition(".")[0]: fold for key, fold in document.folds.items()}
    assert len(drawn["images"]) == 10
    assert drawn["packed"] == drawn["images"]
    assert drawn["dicom"] == drawn["images"]


def test_conflicts_are_listed(folder):
    Image.open(folder / "benign" / "benign (0).png").save(folder / "malignant" / "copy [b].jpg", quality=85)
    text = printed(check_folder(folder, CONFIG))
    assert "malignant/copy [b].jpg" in text
    assert "benign, malignant" in text


def test_too_few_images_for_a_split_are_no_crash(folder):
    write(folder / "normal" / "only.png", 999, "normal")
    document = check_folder(folder, CONFIG)
    assert document.split is None
    assert "class normal has no image" in document.split_problem
    assert "class normal has no image" in printed(document)


def test_a_missing_or_empty_folder_is_told_in_one_line(tmp_path):
    with pytest.raises(NoImages, match="is not a folder"):
        check_folder(tmp_path / "nowhere", CONFIG)
    with pytest.raises(NoImages, match="holds no image"):
        check_folder(tmp_path, CONFIG)


def test_contact_sheets_show_every_conflict_and_the_nearest_pairs(folder, tmp_path):
    original = Image.open(folder / "benign" / "benign (0).png")
    original.save(folder / "malignant" / "copy.jpg", quality=85)
    original.resize((original.width * 2, original.height * 2)).save(folder / "malignant" / "larger.png")
    Image.open(folder / "benign" / "benign (1).png").save(folder / "malignant" / "other.jpg", quality=85)
    check_folder(folder, CONFIG, sheets=tmp_path / "sheets")
    names = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert names[:2] == ["conflict-01.png", "conflict-02.png"]
    assert names[2] == "nearest-01.png"
    with Image.open(tmp_path / "sheets" / "conflict-01.png") as sheet:
        assert sheet.width == 3 * 420


def test_a_finding_is_counted_listed_and_drawn_and_what_it_excludes_is_in_no_fold(folder, tmp_path):
    Image.new("RGB", (300, 200), (250, 250, 250)).save(folder / "benign" / "page.png")
    document = check_folder(folder, CONFIG, sheets=tmp_path / "sheets")
    (found,) = [one for one in document.checks.findings if one.finding == "not_ultrasound"]
    assert (found.action, found.images, found.labels, found.keys) == ("exclude", 1, {"benign": 1}, ("benign/page.png",))
    assert document.checks.excluded == {"exclude": 1}
    assert document.checks.usable == {"benign": 5, "malignant": 5} and "benign/page.png" not in document.folds
    assert document.checks.findings_unavailable == "text was not looked for: RapidOCR is not installed on the worker"
    told = printed(document)
    assert "white like paper" in told and "text was not looked for" in told
    assert (tmp_path / "sheets" / "finding-not_ultrasound.png").exists()


@pytest.fixture(scope="module")
def real_document(real_images):
    """What is said of the real images. Reading all their text would take minutes."""
    return check_folder(real_images, RetrainingConfig.resolve({"content_findings": NO_FINDINGS}))


@pytest.mark.slow
def test_the_real_images(real_document):
    checks = real_document.checks
    assert checks.checked == 623
    assert not checks.refused
    assert not any("_mask" in key for key in real_document.folds)
    groups = [*checks.groups, *checks.conflicts]
    assert max(len(group.keys) for group in groups) <= 10
    assert 5 <= len(checks.conflicts) <= 10
    group_of = {key: group.group for group in groups for key in group.keys}

    # Shifted crops that were looked at: a plain hash puts them 10 to 26 bits apart.
    for label, one, other in (
        ("malignant", 65, 66),
        ("malignant", 98, 99),
        ("malignant", 95, 97),
        ("malignant", 95, 96),
        ("malignant", 77, 78),
        ("malignant", 80, 81),
        ("malignant", 106, 107),
        ("malignant", 11, 113),
        ("malignant", 128, 129),
        ("benign", 140, 62),
        ("benign", 141, 64),
    ):
        keys = [f"{label}/{label} ({number}).png" for number in (one, other)]
        assert group_of[keys[0]] == group_of[keys[1]], keys
    assert group_of["benign/benign (333).png"] == group_of["malignant/malignant (78).png"]

    counts = real_document.split.counts
    for name in real_document.classes:
        assert all(abs(counts[fold][name] / sum(counts[side][name] for side in counts) - 0.2) <= 0.02 for fold in FOLDS)


@pytest.mark.slow
def test_the_size_of_the_real_images_tells_their_class(real_document):
    (size,) = (one for one in real_document.checks.shortcuts if (one.properties, one.label) == ("size and aspect", "malignant"))
    assert size.warning
    assert 0.67 < size.auc.value < 0.78
