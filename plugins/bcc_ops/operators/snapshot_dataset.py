"""Write down which images the run is about, and with which parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bcc_ops import metrics
from bcc_ops.dataset.snapshot import take_snapshot
from bcc_ops.operators.base import BccOperator, run_kind

if TYPE_CHECKING:
    from airflow.sdk import Context


class SnapshotDatasetOperator(BccOperator):
    """List the images as of the moment that the sensor decided on, and write config.json and snapshot.json.

    A run whose snapshot is there already keeps to it. Returns the run's handle, from which every later task loads the run.

    Args:
        arrivals: the sensor's XCom.
    """

    template_fields: Sequence[str] = ("arrivals",)

    def __init__(self, *, arrivals: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arrivals = arrivals

    def work(self, context: Context) -> dict[str, str]:
        """Take the run's snapshot."""
        handle = take_snapshot(
            self.store,
            self.settings,
            self.deployment.resolve(context["params"]),
            datetime.fromisoformat(self.arrivals["as_of"]),
            run_id=context["run_id"],
            run_kind=run_kind(context),
            deployment=self.deployment.values,
        )
        metrics.new_images(self.arrivals)
        self.log.info("the run's folder: %s", handle.folder)
        return handle.to_xcom()
