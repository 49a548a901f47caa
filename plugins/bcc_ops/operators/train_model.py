"""Train the challenger."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcc_ops.artifacts import ClassWeightsDocument, Reference, ValidationDocument
from bcc_ops.operators.base import BccOperator

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
        validation, class_weights: references to this run's documents.
    """

    template_fields: Sequence[str] = ("run", "validation", "class_weights")

    def __init__(self, *, run: Any, validation: Any, class_weights: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.validation = validation
        self.class_weights = class_weights
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
            class_weights=self.store.load(ClassWeightsDocument, self.class_weights),
            class_weights_reference=Reference.model_validate(dict(self.class_weights)),
            made_up=self.store.load(ValidationDocument, self.validation).made_up > 0,
            images=partial(self.local_images, run.snapshot),
            warm_start=self._champion,
            cache_dir=self.settings.cache_dir,
            notes=context.get("task_state_store"),
        )
        return train_run(self.store, run.paths, inputs, self._stop).to_xcom()

    def _champion(self) -> WarmStart | None:
        from bcc_ops.evaluation.predict import Classifier
        from bcc_ops.promotion.champion import load_champion
        from bcc_ops.promotion.registry import ModelRegistry
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
