from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bcc_ops.evaluation.metrics import Evaluation
from benchmarks.robustness import (
    CHANGES,
    blurred,
    evaluate_seed,
    markdown,
    middle,
    squeezed,
    with_contrast,
    with_gamma,
    with_grain,
)
from benchmarks.training import evaluated

RAMP = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 256, 1), 3, axis=2).repeat(40, axis=0)
"""40 x 256 pixels: each column has its number as its value."""


def test_gamma_and_contrast_replace_values() -> None:
    darker, brighter, flatter = with_gamma(1.8, RAMP), with_gamma(0.55, RAMP), with_contrast(0.55, RAMP)
    assert [int(image[0, 128, 0]) for image in (darker, brighter, flatter)] == [74, 175, 128]
    assert (darker[0, 255, 0], brighter[0, 0, 0]) == (255, 0)
    assert [int(flatter[0, place, 0]) for place in (0, 255)] == [57, 198]


def test_the_middle_and_the_squeezed_image_have_their_sizes_and_what_was_there() -> None:
    inner, narrow = middle(0.76, RAMP), squeezed(2 / 3, RAMP)
    assert (inner.shape, narrow.shape) == ((30, 195, 3), (40, 171, 3))
    assert (inner[0, 0, 0], inner[0, -1, 0]) == (30, 224)
    assert int(narrow[0, 85, 0]) == pytest.approx(127, abs=2)


def test_blur_and_grain_are_as_wide_on_a_larger_image() -> None:
    edge = np.zeros((64, 256, 3), np.uint8)
    edge[:, 128:] = 200
    large = edge.repeat(2, axis=0).repeat(2, axis=1)
    soft, large_soft = blurred(2.2, edge), blurred(2.2, large)
    assert 20 < soft[32, 126, 0] < 90 and soft[32, 100, 0] == 0
    assert int(large_soft[64, 253, 0]) == pytest.approx(int(soft[32, 126, 0]), abs=8)
    flat = np.full((128, 256, 3), 100, np.uint8)
    grained = with_grain(0.25, flat)
    assert grained[..., 0].std() == pytest.approx(25, abs=1.5)
    assert (grained[..., 0] == grained[..., 2]).all() and (with_grain(0.25, flat) == grained).all()
    assert not with_grain(0.25, np.zeros_like(flat)).any()


def evaluation(right: float) -> Evaluation:
    labels = np.arange(60) % 3
    answers = np.full((60, 3), (1 - right) / 2)
    answers[np.arange(60), labels] = right
    return evaluated(labels, answers, np.arange(60), np.arange(60) % 5 + 1)


def test_the_table_has_the_intervals_of_one_seed_and_the_means_of_several() -> None:
    good, bad = evaluation(0.8), evaluation(0.2)
    one = markdown([{"as they are": good, "darker": bad}])
    assert "1 seed, 60 images" in one
    assert "| as they are | 1.000 (" in one and "| darker | 0.000 (" in one
    both = markdown([{"as they are": good}, {"as they are": bad}])
    assert "| as they are | 0.500 | 0.500 | 0.500 |" in both


def test_a_fold_that_was_not_trained_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"seed-3-fold-1.parquet is missing: run python -m benchmarks.training"):
        evaluate_seed(tmp_path, 3, {})
    assert len(CHANGES) == 7
