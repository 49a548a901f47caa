"""Split the usable images into folds, count the classes and weigh them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bcc_ops.exceptions import ArtifactError, ObjectNotFound
from bcc_ops.operators.base import BccOperator, Run
from bcc_ops.runs.documents import ChecksDocument, Reference, SplitDocument, parse_document

if TYPE_CHECKING:
    from airflow.sdk import Context


class SplitDatasetOperator(BccOperator):
    """Put every usable image into a fold, and weigh the classes.

    Writes split.parquet, assignments.parquet and split.json. The XCom `split` is the reference to the latter; the task returns
    the folds that are held out in turn, over which `train_model` is mapped.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        checks: reference to this run's checks.json.
    """

    template_fields: Sequence[str] = ("run", "checks")

    def __init__(self, *, run: Mapping[str, str], checks: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.checks = checks

    def work(self, context: Context) -> list[int]:
        """Split the run's images."""
        run = self.load_run(self.run, context)
        reference, document = self._split(run)
        context["ti"].xcom_push(key="split", value=reference.to_xcom())
        return document.held_out(run.config.folds)

    def _split(self, run: Run) -> tuple[Reference, SplitDocument]:
        from bcc_ops.dataset.splits import describe_split, split_images, split_is_made_of
        from bcc_ops.runs.previous import assigned_before, read_contents
        from bcc_ops.runs.rows import AssignmentRow, SplitRow
        from bcc_ops.runs.tables import write_rows

        checks = self.load_document(ChecksDocument, run, self.checks)
        contents = read_contents(self.store, checks)
        made_of = split_is_made_of(contents, run.config)
        kept = self._kept(run.paths.document("split.json"), made_of)
        if kept is not None:
            return kept
        assigned = assigned_before(self.store, run.paths)
        split = split_images(contents, assigned.rows, run.config, run.snapshot.classes)
        table, assignments = (
            self.store.put_referenced(run.paths.document(name), content)
            for name, content in (
                ("split.parquet", write_rows(SplitRow, split.rows)),
                ("assignments.parquet", write_rows(AssignmentRow, split.assignments)),
            )
        )
        document = describe_split(
            split,
            run.config,
            run.snapshot.classes,
            previous_run=assigned.previous_run,
            ancestors=assigned.ancestors,
            made_of=made_of,
            table=table,
            assignments=assignments,
        )
        self.log.info("counts %s, weights %s, %d carried forward", document.counts, document.weights, split.carried_forward)
        return self.store.save(run.paths.document("split.json"), document), document

    def _kept(self, key: str, made_of: str) -> tuple[Reference, SplitDocument] | None:
        """Return the split that this run made before of the same images, and the reference to it, if it did.

        Later runs carried it forward and a model may have been trained on it, so doing the task again must not change it.
        """
        try:
            content = self.store.get(key)
            document = parse_document(SplitDocument, content, key)
            if document.made_of != made_of:
                return None
            for table in (document.table, document.assignments):
                if table is not None:
                    self.store.get_referenced(table)
        except (ObjectNotFound, ArtifactError):
            return None
        self.log.info("this run made its split before, of the same images and parameters: it is kept")
        return Reference.of(key, content), document
