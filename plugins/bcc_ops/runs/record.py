"""A run as its documents tell it: what is there, what is missing, and what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import (
    FOLDS,
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

_JSON, _CSV, _H5, _PARQUET = "application/json", "text/csv", "application/x-hdf5", "application/vnd.apache.parquet"

FOLD_FILES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        f"fold-{fold}.{suffix}": (what.format(fold=fold), media_type)
        for fold in FOLDS
        for suffix, what, media_type in (
            ("json", "how the model that holds out fold {fold} was trained", _JSON),
            ("csv", "its learning curves: one row per epoch", _CSV),
            ("h5", "the model: trained on the other folds", _H5),
            ("parquet", "its answers about the images of fold {fold}", _PARQUET),
        )
    }
)
"""What may be downloaded of the folds' models: file name -> (what it is, media type)."""

FILES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "report.html": ("this report, with its pictures", "text/html"),
        "model.h5": ("the challenger: raw 0-255 RGB in, probabilities out", _H5),
        "evaluation.json": ("every metric, with its interval", _JSON),
        "gate.json": ("the verdict, rule by rule", _JSON),
        "approval.json": ("what a person answered, if one was asked", _JSON),
        "promotion.json": ("what became of an approved model", _JSON),
        "training.json": ("how the challenger was trained and made from the folds' models", _JSON),
        "history.csv": ("one row per epoch, of a run of an older release", _CSV),
        "out_of_fold.parquet": ("each image's answer by the model that did not train on its fold", _PARQUET),
        "predictions.parquet": ("one row per held-out image, with the answers of the models compared", _PARQUET),
        "split.json": ("counts per fold and class, and the classes' weights", _JSON),
        "split.parquet": ("which image is in which fold", _PARQUET),
        "checks.json": ("refused images, near-duplicates, conflicts", _JSON),
        "contents.parquet": ("what the image checks saw of each image", _PARQUET),
        "snapshot.json": ("which images the run is about", _JSON),
        "images.parquet": ("one row per image of the snapshot", _PARQUET),
        "config.json": ("every parameter, and where its value came from", _JSON),
        **FOLD_FILES,
    }
)
"""What may be downloaded of a run: file name -> (what it is, media type). Nothing else of the folder is served."""

HISTORIES = (*(f"fold-{fold}.csv" for fold in FOLDS), "history.csv")
"""The files with a run's epochs: one per fold, or one in a run of an older release."""


@dataclass(frozen=True)
class RunRecord:
    """The documents of one run; None if there is none (yet)."""

    config: ConfigDocument | None = None
    snapshot: SnapshotDocument | None = None
    checks: ChecksDocument | None = None
    split: SplitDocument | None = None
    training: TrainingDocument | None = None
    epochs: tuple[EpochRow, ...] = ()
    """Of every fold's model, fold by fold."""
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
    epochs: list[EpochRow] = []
    for name in HISTORIES:
        try:
            epochs.extend(parse_history(read(name) or b"", name))
        except ArtifactError as error:
            unreadable[name] = str(error)
    return RunRecord(**documents, epochs=tuple(epochs), unreadable=unreadable)  # type: ignore[arg-type]


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

RUN_DOCUMENTS = (*(f"{name}.json" for name in _KINDS), *HISTORIES, *OLDER_FILES.values())
"""The files that `read_record` asks for."""
