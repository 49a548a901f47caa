from __future__ import annotations

import numpy as np
import pytest

from bcc_ops.config import RetrainingConfig
from benchmarks.gate_simulation import (
    HISTORIES,
    START,
    TRUTHS,
    Images,
    Model,
    counts_of,
    many_nights,
    night,
    one_night,
    true_sensitivities,
)

BY_NAME = {truth.name: truth for truth in TRUTHS}
CONFIG = RetrainingConfig.resolve({})


@pytest.mark.parametrize(
    ("name", "at_the_threshold"),
    [("10 points worse", 0.80), ("5 points worse", 0.85), ("equal", 0.90), ("5 points better", 0.95)],
)
def test_a_simulated_challenger_differs_by_what_its_name_says(name: str, at_the_threshold: float) -> None:
    truth = BY_NAME[name]
    assert true_sensitivities(truth) == pytest.approx((at_the_threshold, START + truth.points), abs=0.005)


def test_the_malignant_images_are_of_about_as_many_groups_as_the_real_ones() -> None:
    images = Images.draw(np.random.default_rng(1), counts_of(600))
    malignant = images.groups[images.labels == 1]
    assert len(malignant) == 162
    assert 125 <= len(np.unique(malignant)) <= 150


def test_images_and_what_a_model_answered_about_them_stay_from_night_to_night() -> None:
    generator = np.random.default_rng(1)
    images = Images.draw(generator, counts_of(100))
    model = Model.draw(generator, images, START)
    more = images.with_new(generator, 10)
    later = model.asked(generator, more)
    assert len(more.labels) == len(later.own) == 110
    assert np.array_equal(later.scores(more).probabilities[:100], model.scores(images).probabilities)
    assert not set(more.groups[100:]) & set(images.groups)


def test_a_night_is_judged_by_the_pipelines_own_gate() -> None:
    generator = np.random.default_rng(1)
    images = Images.draw(generator, counts_of(600))
    champion, anchor = (Model.draw(generator, images, START) for _ in range(2))
    hopeless = Model.draw(generator, images, START, everywhere=-3.0)
    gate, comparison = night(images, hopeless, champion, anchor, CONFIG)
    failed = {rule.rule for rule in gate.rules if rule.applies and not rule.passed}
    assert gate.verdict == "rejected" and {"min_balanced_accuracy", "anchor_balanced_accuracy_not_worse"} <= failed
    assert comparison.challenger is not None and comparison.challenger.images == 600
    perfect = Model.draw(generator, images, START, everywhere=3.0)
    assert night(images, perfect, champion, anchor, CONFIG)[0].becomes_anchor


def test_the_same_seed_tells_the_same_story() -> None:
    assert one_night(3, BY_NAME["equal"], 121, 1) == one_night(3, BY_NAME["equal"], 121, 1)
    assert many_nights(3, HISTORIES[0], nights=2) == many_nights(3, HISTORIES[0], nights=2)


def test_after_a_loss_that_nobody_saw_another_one_does_not_follow() -> None:
    """Two points a night are too few to be seen, and without an anchor the champion would lose them again and again."""
    told = many_nights(1, HISTORIES[0], nights=12)
    assert told.sensitivity >= START - 0.0201
    assert told.promotions <= 1
