"""What must be there before anything is downloaded. Whole trainings are in tests/integration/test_train_model.py."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from bcc_ops.config import RetrainingConfig
from bcc_ops.exceptions import GpuMissing, WeightsUnavailable
from bcc_ops.runs.rows import SplitRow
from bcc_ops.training.checkpoints import CheckpointFolder
from bcc_ops.training.run_training import FoldInputs, train_fold
from tests.unit.report.samples import PATHS, reference, snapshot_document, split_document


def inputs(tmp_path: Path, weights: Any, **parameters: Any) -> FoldInputs:
    """A training of fold 2. Its images must not be asked for."""
    return FoldInputs(
        fold=2,
        config=RetrainingConfig.resolve({"mixed_precision": False, **parameters}),
        config_digest="c" * 64,
        snapshot=snapshot_document(),
        split=split_document(),
        split_reference=reference("split.json"),
        rows=[SplitRow(f"{fold}.png", f"{fold}", "benign", f"{fold}", fold) for fold in (1, 2, 3, 2)],
        synthetic=False,
        images=lambda: pytest.fail("images were downloaded"),
        weights=weights,
        scratch=tmp_path,
    )


def train(given: FoldInputs, tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, "artifacts/checkpoints/a", None)
    train_fold(PATHS, given, checkpoints, stop=threading.Event(), publish=lambda history: None)


def test_the_images_of_the_fold_are_held_out_and_no_others(tmp_path: Path) -> None:
    assert [row.fold for row in inputs(tmp_path, None).held_out] == [2, 2]


def test_without_the_gpu_that_was_asked_for_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise GpuMissing("no GPU")

    monkeypatch.setattr("bcc_ops.training.run_training.require_gpu", missing)
    given = inputs(tmp_path, lambda: pytest.fail("weights were downloaded"), require_gpu=True)
    with pytest.raises(GpuMissing, match="no GPU"):
        train(given, tmp_path)


def test_without_the_weights_no_image_is_downloaded(tmp_path: Path) -> None:
    def unavailable() -> None:
        raise WeightsUnavailable("no weights")

    with pytest.raises(WeightsUnavailable, match="no weights"):
        train(inputs(tmp_path, unavailable), tmp_path)
