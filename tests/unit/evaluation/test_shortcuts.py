from __future__ import annotations

import numpy as np
import pytest

from bcc_ops.dataset import shortcuts
from bcc_ops.evaluation.evaluate import Evaluated
from bcc_ops.evaluation.shortcuts import correlation_within_labels, with_shortcuts
from bcc_ops.runs.documents import EvaluationDocument, parse_document
from bcc_ops.runs.tables import write_predictions
from tests.unit.dataset.test_shortcuts import CLASSES, rows
from tests.unit.report import samples


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(shortcuts, "_TREES", 20)


LABELS = np.repeat(CLASSES, 60)
GROUPS = np.arange(180).astype(str)


def draws(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(180)


def test_what_two_scores_have_in_common_by_the_label_does_not_count():
    shift = 5.0 * (LABELS == "malignant")
    both = correlation_within_labels(LABELS, GROUPS, draws(1) + shift, draws(2) + shift)
    assert np.corrcoef(draws(1) + shift, draws(2) + shift)[0, 1] > 0.9
    assert both.low < 0 < both.high


def test_answers_that_follow_a_property_are_told():
    score = draws(1)
    follows = correlation_within_labels(LABELS, GROUPS, score**3, score)
    assert follows.value == pytest.approx(1.0)
    assert follows.low > 0.9
    noisy = correlation_within_labels(LABELS, GROUPS, score + draws(2), score)
    assert 0.5 < noisy.low < noisy.value < noisy.high < 0.85


def test_images_of_one_group_are_one_piece_of_evidence():
    score = draws(1)
    apart = correlation_within_labels(LABELS, GROUPS, score + draws(2), score)
    every = np.tile(LABELS, 4), np.tile(GROUPS, 4), np.tile(score + draws(2), 4), np.tile(score, 4)
    together = correlation_within_labels(*every)
    assert (together.low, together.high) == pytest.approx((apart.low, apart.high), abs=0.02)


def test_the_interval_holds_no_correlation_as_often_as_it_says():
    held = 0
    for seed in range(300):
        found = correlation_within_labels(LABELS, GROUPS, draws(2 * seed), draws(2 * seed + 1))
        held += found.low <= 0 <= found.high
    assert 0.92 <= held / 300 <= 0.98


def test_what_cannot_be_told_is_said():
    few = correlation_within_labels(LABELS[:9], GROUPS[:9], draws(1)[:9], draws(2)[:9])
    assert few.reason == "9 independent images; 20 are needed"
    constant = correlation_within_labels(LABELS, GROUPS, np.full(180, 0.5), draws(2))
    assert "do not differ within any class" in constant.reason


def evaluated(contents, answers):
    document = samples.evaluation_document()
    keys, labels, groups = ([getattr(row, name) for row in contents] for name in ("key", "label", "group"))
    challenger = {name: answers if name == "malignant" else [0.0] * len(keys) for name in CLASSES}
    return Evaluated(document, write_predictions(keys, labels, groups, {"challenger": challenger}))


def test_the_evaluation_names_the_shortcut_that_the_model_takes():
    contents = [row._replace(width=row.width + 250 * (row.label == "malignant")) for row in rows()]
    by_width = [row.width / 1000 for row in contents]
    document = with_shortcuts(evaluated(contents, by_width), contents, "").document
    followed = {one.properties: one for one in document.shortcuts}
    assert followed["size and aspect"].warning
    assert not followed["colour"].warning
    assert parse_document(EvaluationDocument, document.to_json(), "the test") == document

    by_label = [0.9 * (row.label == "malignant") + 0.1 * value for row, value in zip(contents, draws(3))]
    told = with_shortcuts(evaluated(contents, by_label), contents, "").document.shortcuts
    assert told
    assert not any(one.warning for one in told)


def test_an_image_that_the_model_was_not_asked_about_does_not_count():
    contents = rows()
    answers = [None if place % 2 else 0.5 + 0.001 * place for place in range(len(contents))]
    assert with_shortcuts(evaluated(contents, answers), contents, "").document.shortcuts


def test_contents_of_an_older_release_tell_nothing():
    contents = [row._replace(file_format="") for row in rows()]
    assert with_shortcuts(evaluated(contents, draws(1).tolist()), contents, "").document.shortcuts == ()
