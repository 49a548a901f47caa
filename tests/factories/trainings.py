"""The folder of a training, with what a run would put there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bcc_ops.dataset.sync import LocalImage
from bcc_ops.runs.documents import Reference
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.tables import write_rows
from bcc_ops.training.job_folder import JobFolder, TrainingRequest
from tests.unit.report.samples import PATHS, config_document, snapshot_document, split_document


def lay_out(root: Path, images: list[LocalImage], *, fold: int = 2, weights: Path | None = None, **parameters: Any) -> JobFolder:
    """The training of a fold on these images, every second of which is held out."""
    table = write_rows(
        SplitRow, [SplitRow(image.key, image.sha256, image.label, image.key, 1 + n % 2) for n, image in enumerate(images)]
    )
    split = split_document(table=Reference.of(PATHS.document("split.parquet"), table))
    documents = {"config": config_document(**parameters), "snapshot": snapshot_document(), "split": split}
    contents = {f"{name}.json": document.to_json() for name, document in documents.items()}
    references = {name: Reference.of(PATHS.document(f"{name}.json"), contents[f"{name}.json"]) for name in documents}
    job = JobFolder(root)
    request = TrainingRequest.of(PATHS, fold, references, synthetic=True)
    job.write_input(request, {**contents, "split.parquet": table}, images, weights)
    return job


def image_at(path: Path, key: str, label: str = "benign") -> LocalImage:
    """A file as the image of this key."""
    return LocalImage(key, label, hashlib.sha256(path.read_bytes()).hexdigest(), path)
