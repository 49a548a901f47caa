"""Write down which images the run is about, and with which knobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bcc_ops import metrics
from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.snapshot import take_snapshot
from bcc_ops.operators.base import BccOperator, run_kind

if TYPE_CHECKING:
    from airflow.sdk import Context


class SnapshotDatasetOperator(BccOperator):
    """List the images as of the moment that the sensor decided on, and write config.json and snapshot.json.

    A run whose snapshot lies there already keeps to it. Returns the run's handle, from which every later task loads the run.

    Args:
        sighting: the sensor's XCom.
    """

    template_fields: Sequence[str] = ("sighting",)

    def __init__(self, *, sighting: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sighting = sighting

    def work(self, context: Context) -> dict[str, str]:
        """Take the run's snapshot."""
        handle = take_snapshot(
            self.store,
            self.settings,
            RetrainingConfig.resolve(context["params"]),
            datetime.fromisoformat(self.sighting["as_of"]),
            run_id=context["run_id"],
            run_kind=run_kind(context),
        )
        metrics.new_images(self.sighting)
        self.log.info("the run's folder: %s", handle.folder)
        return handle.to_xcom()
