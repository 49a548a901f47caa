"""Train the challenger."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcc_ops.operators.base import BccOperator
from bcc_ops.runs.documents import ChecksDocument, Reference, SplitDocument

if TYPE_CHECKING:
    from airflow.sdk import Context

    from bcc_ops.training.run_training import WarmStart


log = logging.getLogger(__name__)


class TrainModelOperator(BccOperator):
    """Train on this snapshot's train part, with its tuning part to pick the epoch.

    Goes on from a checkpoint where an earlier attempt left one, and trains nothing where one had finished. Writes
    `history.csv` as epochs end, `model.h5` and `training.json`; returns the reference to the latter.

    Args:
        run: the run's handle, from `snapshot_dataset`.
        checks, split: references to this run's documents.
    """

    template_fields: Sequence[str] = ("run", "checks", "split")

    def __init__(self, *, run: Any, checks: Any, split: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.checks = checks
        self.split = split
        self._stop: threading.Event | None = None

    def work(self, context: Context) -> dict[str, str]:
        """Hand the run's documents to training, write what comes of it."""
        from bcc_ops.training.run_training import RunInputs, train_run

        self._stop = threading.Event()
        run = self.load_run(self.run)
        inputs = RunInputs(
            config=run.config,
            config_digest=run.config_document.digest,
            snapshot=run.snapshot,
            split=self.store.load(SplitDocument, self.split),
            split_reference=Reference.model_validate(dict(self.split)),
            synthetic=self.store.load(ChecksDocument, self.checks).synthetic > 0,
            images=partial(self.local_images, run.snapshot),
            warm_start=self._champion,
            cache_dir=self.settings.cache_dir,
            notes=context.get("task_state_store"),
        )
        return train_run(self.store, run.paths, inputs, self._stop).to_xcom()

    def _champion(self) -> WarmStart | None:
        from bcc_ops.models.champion import load_champion
        from bcc_ops.models.classifier import Classifier
        from bcc_ops.models.registry import ModelRegistry
        from bcc_ops.training.run_training import WarmStart

        with tempfile.TemporaryDirectory(prefix="bcc-champion-") as folder:
            champion = load_champion(ModelRegistry(self.store, self.settings.models_prefix), Path(folder))
        if champion is None or not isinstance(champion.model, Classifier):
            log.warning("there is no champion to start from: %s", champion.problem if champion else "none was promoted yet")
            return None
        return WarmStart(champion.version, champion.model.model)

    def on_kill(self) -> None:
        """Ask training to stop: Airflow kills the process some ten seconds after this, wherever it is."""
        if self._stop is not None:
            self._stop.set()
