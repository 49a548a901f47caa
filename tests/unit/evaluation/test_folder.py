"""The images of a labelled folder that a model can fairly be evaluated on."""

from __future__ import annotations

from pathlib import Path

from bcc_ops.config import RetrainingConfig
from bcc_ops.evaluation.folder import usable_images
from tests.factories.images import scan_png

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
