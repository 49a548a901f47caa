"""Write down which images the run is about, and with which parameters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bcc_ops import metrics
from bcc_ops.dataset.arrivals import ArrivalCheck
from bcc_ops.dataset.snapshot import PreviousSnapshot, describe_config, describe_snapshot, saved_snapshot
from bcc_ops.operators.base import BccOperator, run_kind
from bcc_ops.runs.documents import RunHandle
from bcc_ops.runs.paths import RunPaths

if TYPE_CHECKING:
    from airflow.sdk import Context


class SnapshotDatasetOperator(BccOperator):
    """List the images as of the moment that the sensor decided on, and write config.json, images.parquet and snapshot.json.

    If there is a metadata table beside the images, metadata.parquet has what it says, without what identifies a patient.

    If the images are no longer those that the sensor saw, they must settle again first. A run whose snapshot is there already
    keeps to it, and one whose model came into use keeps its parameters too. Returns the run's handle, from which every later
    task loads the run.

    Args:
        arrivals: the sensor's XCom.
    """

    template_fields: Sequence[str] = ("arrivals",)

    def __init__(self, *, arrivals: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arrivals = arrivals

    def work(self, context: Context) -> dict[str, str]:
        """Take the run's snapshot."""
        from bcc_ops.dataset.metadata_source import METADATA_FILE, snapshot_metadata

        config = self.deployment.resolve(context["params"])
        run_id, kind = context["run_id"], run_kind(context)
        prefix = self.settings.artifacts_prefix
        described = describe_config(config, run_id, kind, self.deployment.values)
        saved = saved_snapshot(self.store, prefix, run_id)
        if saved is not None:
            paths, _ = saved
            snapshot = self.store.reference(paths.document("snapshot.json"))
        else:
            about_now = kind in ("nightly", "event") or (kind == "manual" and config.as_of is None)
            check = ArrivalCheck(self.store, self.settings, config)
            as_of, listing = check.listing_of(self.arrivals, may_settle=about_now, sleep=time.sleep)
            paths = RunPaths.of(prefix, as_of, run_id)
            previous = PreviousSnapshot.before(self.store, prefix, paths.as_of)
            metadata, rows = snapshot_metadata(self.store, self.settings, config, listing, paths=paths, previous=previous)
            document, images = describe_snapshot(
                listing,
                self.settings,
                paths,
                previous,
                run_id=run_id,
                run_kind=kind,
                max_removed_fraction=config.max_removed_fraction,
                metadata=metadata,
            )
            self.store.put(paths.document("images.parquet"), images)
            if metadata is not None:
                self.store.put(paths.document(METADATA_FILE), rows)
            snapshot = self.store.save(paths.document("snapshot.json"), document)
        config_key = paths.document("config.json")
        kept = saved is not None and self.promoted(paths) is not None and self.store.head(config_key) is not None
        saved_config = self.store.reference(config_key) if kept else self.store.save(config_key, described)
        metrics.new_images(self.arrivals)
        self.log.info("the run's folder: %s", paths.folder)
        return RunHandle(folder=paths.folder_name, config=saved_config.sha256, snapshot=snapshot.sha256).to_xcom()
