"""A labelled folder -> the images in it that a model can fairly be evaluated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.folder_check import check_labelled_folder
from bcc_ops.dataset.splits import group_images
from bcc_ops.evaluation.comparison import LabelledImages
from bcc_ops.evaluation.subgroups import slice_values
from bcc_ops.runs.documents import ChecksDocument, digest_of


@dataclass(frozen=True)
class FolderImages:
    """The usable images, what checks said of the others, and a digest over the usable ones' contents.

    `grouping` says which images count as one piece of evidence, as `EvaluationDocument.grouping` does; `by` what makes
    subgroups of them, as `slice_values` does.
    """

    images: LabelledImages
    checks: ChecksDocument
    digest: str
    grouping: str
    by: Mapping[str, list[str]]


def usable_images(folder: Path, config: RetrainingConfig, classes: Sequence[str]) -> FolderImages:
    """Check a folder as a run checks its snapshot; refused images and lesions under two labels are left out.

    Near-duplicates are one group, and so are the images of a patient whom a metadata table, a DICOM file or the key names.

    Args:
        folder: with one folder of images per class.
        config: the parameters of the section "Checks", `patient_pattern` and `slice_pattern`.
        classes: the model's classes; other folders are ignored.

    Raises:
        NoImages, TooManyRefused: as `check_folder` says.
    """
    _, listed, _, checks = check_labelled_folder(folder, config, classes=classes)
    paths = {image.key: image.path for image in listed}
    rows = [row for row in checks.contents if not row.refused]
    group_of = group_images(rows, config.patient_pattern)
    images = LabelledImages.of_rows([row._replace(group=group_of[row.key]) for row in rows], paths)
    grouping = "patient" if checks.document.patients else "near-duplicate group"
    by = slice_values(rows, checks.contents, None, config.slice_pattern, checks.metadata)
    return FolderImages(images, checks.document, digest_of(sorted(row.sha256 for row in rows)), grouping, by)
