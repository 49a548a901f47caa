"""Make a run's challenger from its folds' models: their documents in, the contents of training.json and its files out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bcc_ops.exceptions import ArtifactError
from bcc_ops.models.combination import average_weights, mean_of_answers
from bcc_ops.runs.documents import FoldDocument, FoldSummary, Reference, TrainingDocument
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.tables import read_answers, write_answers
from bcc_ops.training.pretrained import begins_at_random

AVERAGED = "average of the weights of {} models"
MEAN = "mean of the answers of {} models"
_OF_ONE = frozenset(
    {
        *(
            "fold",
            "images",
            "resumed_after_epochs",
            "sagemaker",
            "seconds",
            "seconds_per_epoch",
            "images_per_second",
            "peak_memory_mb",
        ),
        *("host", "devices", "versions", "history", "model", "answers", "epochs", "determinism_note", "mixed_precision", "xla"),
    }
)
"""Fields that differ between the models of one run; they agree on all others."""


@dataclass(frozen=True)
class Combined:
    """The contents of training.json, model.h5 and out_of_fold.parquet."""

    document: TrainingDocument
    model: bytes
    answers: bytes


def combine_folds(
    paths: RunPaths, folds: Sequence[FoldDocument], models: Sequence[bytes], answers: Sequence[bytes], *, ensemble: bool = True
) -> Combined:
    """Make one model of the folds' models, and put their answers together.

    Args:
        paths: of the run's documents, to refer to them.
        folds: their documents.
        models, answers: the contents of their `.h5` and `.parquet` files, in the same order.
        ensemble: the model answers the mean of their answers. Otherwise it has the average of their weights, unless training
            began with random ones: these have no average.

    Raises:
        ArtifactError: they are not of one training, or one is there twice.
        ModelError: the models have no average.
    """
    if len({fold.fold for fold in folds}) != len(folds) or not folds:
        raise ArtifactError(f"models of the folds {[fold.fold for fold in folds]} were handed in: each fold must occur once")
    common = [fold.model_dump(exclude=set(_OF_ONE)) for fold in folds]
    if differing := next((name for name in common[0] for other in common[1:] if other[name] != common[0][name]), None):
        raise ArtifactError(f"the folds' models differ in {differing}: clear train_model, so that all are trained alike")
    first, classes = folds[0], folds[0].classes
    tables = [read_answers(content, classes) for content in answers]
    rows = [row for table, _ in tables for row in table]
    out_of_fold = write_answers(rows, classes, np.concatenate([probabilities for _, probabilities in tables]))
    ensemble = ensemble or begins_at_random(first.architecture, first.weights)
    model = mean_of_answers(models) if ensemble else average_weights(models)
    document = TrainingDocument(
        **first.model_dump(exclude={*_OF_ONE, "schema_version", "split"}),
        split=first.split,
        determinism_note=next((fold.determinism_note for fold in folds if fold.determinism_note), None),
        mixed_precision=any(fold.mixed_precision for fold in folds),
        xla=first.xla,
        versions=first.versions,
        devices=tuple(sorted({device for fold in folds for device in fold.devices})),
        host=", ".join(sorted({fold.host for fold in folds})),
        epochs=max(fold.epochs for fold in folds),
        seconds=sum(fold.seconds for fold in folds),
        peak_memory_mb=max(fold.peak_memory_mb for fold in folds),
        images=first.images if len(folds) == 1 else first.images + sum(row.trained_on for row in tables[0][0]),
        folds=tuple(
            FoldSummary(
                held_out=len(table),
                **fold.model_dump(include=set(FoldSummary.model_fields) - {"held_out", "model"}),
                model=fold.model,
            )
            for fold, (table, _) in zip(folds, tables)
        ),
        combined="the one model" if len(folds) == 1 else (MEAN if ensemble else AVERAGED).format(len(folds)),
        model=Reference.of(paths.document("model.h5"), model),
        answers=Reference.of(paths.document("out_of_fold.parquet"), out_of_fold),
    )
    return Combined(document, model, out_of_fold)
