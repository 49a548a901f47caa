"""A labelled folder -> the images in it that a model can fairly be evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bcc_ops.artifacts import ValidationDocument, digest_of
from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.check import validate_folder
from bcc_ops.evaluation.evaluate import LabelledImages


@dataclass(frozen=True)
class FolderImages:
    """The usable images, what validation said of the others, and a digest over the usable ones' contents."""

    images: LabelledImages
    validation: ValidationDocument
    digest: str


def usable_images(folder: Path, config: RetrainingConfig, classes: Sequence[str]) -> FolderImages:
    """Check a folder as a run checks its snapshot; refused images and lesions under two labels are left out.

    Args:
        folder: with a folder of images a class.
        config: the knobs of the section "Checks".
        classes: the model's classes; other folders are ignored.

    Raises:
        NoImages, TooManyRefused: as `check_folder` says.
    """
    _, listed, _, validation = validate_folder(folder, config, classes=classes)
    paths = {image.key: image.path for image in listed}
    rows = [row for row in validation.contents if not row.refused]
    return FolderImages(LabelledImages.of_rows(rows, paths), validation.document, digest_of(sorted(row.sha256 for row in rows)))
