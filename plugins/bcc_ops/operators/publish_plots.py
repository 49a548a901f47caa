"""Draw the run's plots and its stand-alone report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcc_ops.operators.base import BccOperator
from bcc_ops.runs.documents import Reference, SnapshotDocument

if TYPE_CHECKING:
    from airflow.sdk import Context


class PublishPlotsOperator(BccOperator):
    """Write `plots/*.png` and `report.html` into the run's folder; return the reference to the latter.

    What the run lacks is left out, and the report says so. Repeating it writes the same.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        checks, split, training, evaluation, gate: references to this run's documents; each may be None.
    """

    template_fields: Sequence[str] = ("run", "checks", "split", "training", "evaluation", "gate")

    def __init__(
        self,
        *,
        run: Any,
        checks: Any = None,
        split: Any = None,
        training: Any = None,
        evaluation: Any = None,
        gate: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.checks = checks
        self.split = split
        self.training = training
        self.evaluation = evaluation
        self.gate = gate

    def work(self, context: Context) -> dict[str, str]:
        """Hand the references on, and write what comes of them."""
        from bcc_ops.report.publish import publish_report
        from bcc_ops.runs.bundle import write_bundle

        run = self.load_run(self.run, context)
        references = {f"{name}.json": getattr(self, name) for name in self.template_fields if name != "run"}
        for name, reference in references.items():
            if reference is not None:
                run.require_own(name, Reference.model_validate(dict(reference)))
        references |= {f"{name}.json": reference.to_xcom() for name, reference in run.references.items()}
        published = publish_report(
            self.store,
            run.paths,
            run.config_document.run_id,
            references,
            fetch=partial(self._local_files, run.snapshot),
            say=self.log.info,
        )
        for name, png in published.plots.items():
            self.store.put_referenced(run.paths.plot(name), png, "image/png")
        report = self.store.put_referenced(run.paths.document("report.html"), published.page, "text/html; charset=utf-8")
        write_bundle(self.store, run.paths)
        self.log.info("the run's report: %s", self.store.uri(report.key))
        return report.to_xcom()

    def _local_files(self, snapshot: SnapshotDocument, keys: Iterable[str]) -> Mapping[str, Path]:
        """Return the files of a few of the snapshot's images; what is missing on this worker is fetched."""
        from bcc_ops.dataset.snapshot import read_images

        wanted = set(keys)
        rows = [row for row in read_images(self.store, snapshot) if row.key in wanted]
        return {image.key: image.path for image in self.fetch_images(rows)}
