"""Evaluate the challenger, beside the champion and the anchor."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcc_ops.operators.base import BccOperator
from bcc_ops.runs.documents import ChecksDocument, SplitDocument, TrainingDocument

if TYPE_CHECKING:
    from airflow.sdk import Context

    from bcc_ops.dataset.sync import LocalImage
    from bcc_ops.runs.rows import ImageRow

PARQUET = "application/vnd.apache.parquet"


class EvaluateModelOperator(BccOperator):
    """Evaluate the challenger by its out-of-fold answers, beside the champion and the anchor, and its file on external images.

    One task for all, since each process that predicts pays for the import of TensorFlow. Writes `predictions.parquet`
    and `evaluation.json`; returns the reference to the latter.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        checks, split, training: references to this run's documents.
    """

    template_fields: Sequence[str] = ("run", "checks", "split", "training")

    def __init__(self, *, run: Any, checks: Any, split: Any, training: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.checks = checks
        self.split = split
        self.training = training

    def work(self, context: Context) -> dict[str, str]:
        """Load what was trained and what is in use, evaluate, write."""
        from bcc_ops.dataset.inspection_cache import MEMORY_FILE
        from bcc_ops.dataset.shared_inspections import sharing_inspections
        from bcc_ops.evaluation.evaluate import with_references
        from bcc_ops.evaluation.run_evaluation import RunInputs, evaluate_run
        from bcc_ops.models.champion import load_anchor, load_champion
        from bcc_ops.models.registry import ModelRegistry
        from bcc_ops.runs.bundle import write_bundle

        run = self.load_run(self.run, context)
        if self.promoted(run.paths) is not None:
            return self.store.reference(run.paths.document("evaluation.json")).to_xcom()
        checks = self.load_document(ChecksDocument, run, self.checks)
        refused = {image.key for image in checks.refused}
        images = self.local_images(run.snapshot, without=refused)
        contents: set[str] = set()

        def fetch(rows: list[ImageRow]) -> list[LocalImage]:
            fetched = self.fetch_images(rows, unreadable={})
            contents.update(image.sha256 for image in fetched)
            return fetched

        memory = self.settings.cache_dir / MEMORY_FILE
        inputs = RunInputs(
            config=run.config,
            snapshot=run.snapshot,
            checks=checks,
            split=self.load_document(SplitDocument, run, self.split),
            training=self.load_document(TrainingDocument, run, self.training),
            images={image.key: image.path for image in images},
            fetch=fetch,
            memory_path=memory,
            pseudonyms=lambda: self.pseudonyms,
        )
        sharing: AbstractContextManager[None] = nullcontext()
        if run.config.external_sets:  # their images are checked here, and compared with the run's own
            contents.update(image.sha256 for image in images)
            prefix = self.settings.artifacts_prefix
            sharing = sharing_inspections(self.store, prefix, memory, contents, run.config, with_search=False)
        with sharing, tempfile.TemporaryDirectory(prefix="bcc-evaluate-") as folder:
            registry = ModelRegistry(self.store, self.settings.models_prefix)
            champion, anchor = load_champion(registry, Path(folder)), load_anchor(registry, Path(folder))
            evaluated = evaluate_run(self.store, inputs, champion, anchor, folder=Path(folder), say=self.log.info)
        table = self.store.put_referenced(run.paths.document("predictions.parquet"), evaluated.predictions, PARQUET)
        document = with_references(evaluated, inputs.training.model, table)
        reference = self.store.save(run.paths.document("evaluation.json"), document)
        write_bundle(self.store, run.paths)
        return reference.to_xcom()
