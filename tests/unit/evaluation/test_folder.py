"""The images of a labelled folder that a model can fairly be evaluated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bcc_ops.config import RetrainingConfig
from bcc_ops.evaluation.folder import usable_images
from tests.factories.dicom_files import dicom_file
from tests.factories.images import scan_pixels, scan_png

CLASSES = ("benign", "malignant")
CONFIG = RetrainingConfig.resolve({"max_refused_fraction": 0.5})


def fill(folder: Path, prefix: str = "") -> Path:
    """Two good images, one broken, one lesion under two labels, and a class that the model does not know."""
    for label in (*CLASSES, "cyst"):
        (folder / label).mkdir(parents=True)
        (folder / label / f"{prefix}same.png").write_bytes(scan_png(9))
    (folder / "benign" / f"{prefix}good.png").write_bytes(scan_png(1))
    (folder / "malignant" / f"{prefix}good.png").write_bytes(scan_png(2, "malignant"))
    (folder / "malignant" / f"{prefix}broken.png").write_bytes(scan_png(3)[:500])
    return folder


def test_refused_images_lesions_under_two_labels_and_unknown_classes_are_left_out(tmp_path: Path) -> None:
    found = usable_images(fill(tmp_path / "a"), CONFIG, CLASSES)
    assert [key.rpartition("/")[2] for key in found.images.keys] == ["good.png", "good.png"]
    assert found.images.labels == CLASSES
    assert [path.read_bytes() for path in found.images.paths] == [scan_png(1), scan_png(2, "malignant")]
    assert [image.key.rpartition("/")[2] for image in found.checks.refused] == ["broken.png"]
    assert len(found.checks.conflicts) == 1


def test_the_digest_names_the_usable_contents_and_not_their_names(tmp_path: Path) -> None:
    first = usable_images(fill(tmp_path / "a"), CONFIG, CLASSES)
    assert usable_images(fill(tmp_path / "b", "renamed "), CONFIG, CLASSES).digest == first.digest
    (tmp_path / "b" / "benign" / "more.png").write_bytes(scan_png(4))
    assert usable_images(tmp_path / "b", CONFIG, CLASSES).digest != first.digest


def test_images_of_one_patient_are_one_piece_of_evidence_whoever_names_the_patient(tmp_path: Path) -> None:
    """A table, a DICOM file or the key."""
    for seed, name in enumerate(("a", "b", "KIM_c", "KIM_d", "e")):
        path = tmp_path / CLASSES[seed % 2] / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(scan_png(seed))
    alone = usable_images(tmp_path, CONFIG, CLASSES)
    assert (len(set(alone.images.groups)), alone.grouping) == (5, "near-duplicate group")

    for seed, label in enumerate(CLASSES):
        (tmp_path / label / "scan").write_bytes(
            dicom_file(np.asarray(scan_pixels(30 + seed, label).convert("L")), PatientID="17")
        )
    (tmp_path / "metadata.csv").write_text("key,patient_id\n*/a.png,17\n*/b.png,18\n")
    config = CONFIG.model_copy(update={"patient_pattern": r"/([A-Z]{3})_"})
    known = usable_images(tmp_path, config, CLASSES)
    assert known.grouping == "patient"
    groups: dict[str, set[str]] = {}
    for key, group in zip(known.images.keys, known.images.groups):
        groups.setdefault(group, set()).add(key.rpartition("/")[2])
    assert sorted(map(sorted, groups.values())) == [["KIM_c.png", "KIM_d.png"], ["a.png", "scan"], ["b.png"], ["e.png"]]
    assert len(known.images.keys) == 7
