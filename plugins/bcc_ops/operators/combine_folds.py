"""Make the challenger from the folds' models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bcc_ops.exceptions import ArtifactError
from bcc_ops.operators.base import BccOperator
from bcc_ops.runs.documents import FoldDocument, Reference, SplitDocument
from bcc_ops.runs.paths import fold_file

if TYPE_CHECKING:
    from airflow.sdk import Context

PARQUET = "application/vnd.apache.parquet"


class CombineFoldsOperator(BccOperator):
    """Make one file from the folds' models, and put their answers together.

    Writes `model.h5`, `out_of_fold.parquet` and `training.json`; returns the reference to the latter.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        split: reference to this run's split.json.
        folds: references to the documents of the folds' models, from the mapped `train_model`.
    """

    template_fields: Sequence[str] = ("run", "split", "folds")

    def __init__(self, *, run: Any, split: Any, folds: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.split = split
        self.folds = folds

    def work(self, context: Context) -> dict[str, str]:
        """Load the folds' models, combine them, write."""
        from bcc_ops.runs.bundle import write_bundle
        from bcc_ops.training.combine import combine_folds

        run = self.load_run(self.run, context)
        if self.promoted(run.paths) is not None:
            return self.store.reference(run.paths.document("training.json")).to_xcom()
        folds = []
        for reference in self.folds:
            folds.append(self.store.load(FoldDocument, dict(reference)))
            run.require_own(fold_file(folds[-1].fold, "json"), Reference.model_validate(dict(reference)))
        folds.sort(key=lambda fold: fold.fold)
        wanted = self.load_document(SplitDocument, run, self.split).held_out(run.config.folds)
        if len(folds) != len(wanted):
            raise ArtifactError(f"{len(folds)} models of {len(wanted)} folds were handed in: clear train_model")
        if any(fold.split != Reference.model_validate(dict(self.split)) for fold in folds):
            raise ArtifactError("a fold's model was trained with another split than this run's: clear train_model")
        models, answers = (
            [self.store.get_referenced(named) for named in column] for column in zip(*((f.model, f.answers) for f in folds))
        )
        combined = combine_folds(run.paths, folds, models, answers, ensemble=run.config.ensemble)
        key = run.paths.document
        self.store.put(key("model.h5"), combined.model)
        self.store.put(key("out_of_fold.parquet"), combined.answers, content_type=PARQUET)
        reference = self.store.save(key("training.json"), combined.document)
        write_bundle(self.store, run.paths)
        return reference.to_xcom()
