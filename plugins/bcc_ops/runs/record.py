"""A run as its documents tell it: what is there, what is missing, and what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import (
    ApprovalDocument,
    ChecksDocument,
    ConfigDocument,
    Document,
    EpochRow,
    EvaluationDocument,
    GateDocument,
    PromotionDocument,
    SnapshotDocument,
    SplitDocument,
    TrainingDocument,
    parse_document,
)
from bcc_ops.runs.epochs import parse_history
from bcc_ops.runs.upgrade import OLDER_FILES

FILES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "report.html": ("this report, with its pictures", "text/html"),
        "model.h5": ("the challenger: raw 0-255 RGB in, probabilities out", "application/x-hdf5"),
        "evaluation.json": ("every metric, with its interval", "application/json"),
        "gate.json": ("the verdict, rule by rule", "application/json"),
        "approval.json": ("what a person answered, if one was asked", "application/json"),
        "promotion.json": ("what became of an approved model", "application/json"),
        "training.json": ("how the challenger was trained", "application/json"),
        "history.csv": ("one row per epoch", "text/csv"),
        "predictions.parquet": ("one row per validation image", "application/vnd.apache.parquet"),
        "split.json": ("counts and weights a class", "application/json"),
        "split.parquet": ("which image is in which partition", "application/vnd.apache.parquet"),
        "checks.json": ("refused images, near-duplicates, conflicts", "application/json"),
        "contents.parquet": ("what validation saw of each image", "application/vnd.apache.parquet"),
        "snapshot.json": ("which images the run is about", "application/json"),
        "images.parquet": ("one row per image of the snapshot", "application/vnd.apache.parquet"),
        "config.json": ("every parameter, and where its value came from", "application/json"),
    }
)
"""What may be downloaded of a run: file name -> (what it is, media type). Nothing else of the folder is served."""


@dataclass(frozen=True)
class RunRecord:
    """The documents of one run; None if there is none (yet)."""

    config: ConfigDocument | None = None
    snapshot: SnapshotDocument | None = None
    checks: ChecksDocument | None = None
    split: SplitDocument | None = None
    training: TrainingDocument | None = None
    epochs: tuple[EpochRow, ...] = ()
    evaluation: EvaluationDocument | None = None
    gate: GateDocument | None = None
    approval: ApprovalDocument | None = None
    promotion: PromotionDocument | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """File name -> why it cannot be read."""

    @property
    def synthetic(self) -> bool:
        """Whether any document says that its metrics come from synthetic images."""
        flags = (document.synthetic for document in (self.training, self.evaluation, self.gate) if document)
        return any(flags) or bool(self.checks and self.checks.synthetic)

    @property
    def is_empty(self) -> bool:
        """Whether the run left nothing at all."""
        return not any((self.config, self.snapshot, self.checks, self.unreadable))


def read_record(read: Callable[[str], bytes | None]) -> RunRecord:
    """Read a run's documents; one that is damaged is listed in `unreadable` and hides nothing but itself.

    Args:
        read: content of a file of the run's folder by its name, or None if there is none.
    """
    unreadable: dict[str, str] = {}

    def find(kind: type[Document], name: str) -> Document | None:
        try:
            content = read(name)
            if content is None and name in OLDER_FILES:
                content = read(OLDER_FILES[name])
            return None if content is None else parse_document(kind, content, name)
        except ArtifactError as error:
            unreadable[name] = str(error)
            return None

    documents = {name: find(kind, f"{name}.json") for name, kind in _KINDS.items()}
    try:
        epochs = parse_history(read("history.csv") or b"")
    except ArtifactError as error:
        epochs, unreadable["history.csv"] = (), str(error)
    return RunRecord(**documents, epochs=epochs, unreadable=unreadable)  # type: ignore[arg-type]


_KINDS: Mapping[str, type[Document]] = {
    "config": ConfigDocument,
    "snapshot": SnapshotDocument,
    "checks": ChecksDocument,
    "split": SplitDocument,
    "training": TrainingDocument,
    "evaluation": EvaluationDocument,
    "gate": GateDocument,
    "approval": ApprovalDocument,
    "promotion": PromotionDocument,
}


DOCUMENT_FILES: Mapping[type[Document], str] = {kind: f"{name}.json" for name, kind in _KINDS.items()}
"""Class of a document -> its file in the run's folder."""

RUN_DOCUMENTS = (*(f"{name}.json" for name in _KINDS), "history.csv", *OLDER_FILES.values())
"""The files that `read_record` asks for."""
