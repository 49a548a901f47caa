"""Hand-worked answers on small arrays, scikit-learn's on random ones."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics as reference

from bcc_ops.evaluation.intervals import auc_at_an_end, dice_of_overlap, wilson
from bcc_ops.evaluation.metrics import (
    Bootstrapped,
    Resamples,
    ScoredModel,
    Scores,
    Threshold,
    bootstrap,
    choose_threshold,
    equal_mass_bins,
    fit_temperature,
    interval,
    paired_difference,
    scale_temperature,
    weighted_auc,
    weighted_confusion,
    weighted_ece,
    weighted_metrics,
)
from bcc_ops.runs.documents import Estimate, ModelEvaluation

CLASSES = ("benign", "malignant", "normal")
AT_HALF = Threshold(0.5, 0.9, "by hand")

# Eight images. Most probable: benign benign malignant | malignant malignant benign | normal malignant.
HAND = Scores(
    np.array([0, 0, 0, 1, 1, 1, 2, 2]),
    np.array(
        [
            [0.8, 0.1, 0.1],
            [0.6, 0.3, 0.1],
            [0.3, 0.6, 0.1],
            [0.1, 0.9, 0.0],
            [0.3, 0.4, 0.3],
            [0.5, 0.2, 0.3],
            [0.2, 0.2, 0.6],
            [0.1, 0.7, 0.2],
        ]
    ),
    np.arange(8),
)


def evaluated(
    scores: Scores, threshold: Threshold = AT_HALF, temperature: float | None = None, resamples: int = 500
) -> Bootstrapped:
    scored = ScoredModel(scores, threshold, temperature)
    return bootstrap({"m": scored}, CLASSES, "malignant", resamples=resamples, seed=1)["m"]


def random_scores(n: int = 400, seed: int = 0, skill: float = 0.5) -> Scores:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, n)
    probabilities = generator.dirichlet([1, 1, 1], n) + skill * np.eye(3)[labels] * generator.random((n, 1))
    return Scores(labels, probabilities / probabilities.sum(axis=1, keepdims=True), np.arange(n))


def test_every_figure_of_eight_images_is_what_a_hand_works_out() -> None:
    model = evaluated(HAND).evaluation()
    assert model.confusion_matrix == ((2, 1, 0), (1, 2, 0), (0, 1, 1))
    assert model.accuracy.value == pytest.approx(5 / 8)
    assert model.balanced_accuracy.value == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)
    malignant = model.per_class["malignant"]
    assert malignant.support == 3
    assert malignant.sensitivity.value == pytest.approx(2 / 3)
    assert malignant.specificity.value == pytest.approx(3 / 5)
    assert malignant.precision.value == pytest.approx(2 / 4)
    assert malignant.f1.value == pytest.approx(4 / 7)
    assert model.macro_f1.value == pytest.approx((4 / 6 + 4 / 7 + 2 / 3) / 3)
    # Malignant 0.9, 0.4, 0.2 against 0.1, 0.3, 0.6, 0.2, 0.7: 5 + 3 + (1 + half a tie) of 15 pairs.
    assert malignant.auc.value == pytest.approx(9.5 / 15)
    assert model.loss.value == pytest.approx(-np.log([0.8, 0.6, 0.3, 0.9, 0.4, 0.2, 0.6, 0.2]).mean())
    assert model.calibration.brier.value == pytest.approx(np.mean([0.06, 0.26, 0.86, 0.02, 0.54, 0.98, 0.24, 1.14]))
    # At 0.5: found 1 of 3 malignant; called malignant by mistake 2 of 5.
    assert model.operating_point.sensitivity.value == pytest.approx(1 / 3)
    assert model.operating_point.specificity.value == pytest.approx(3 / 5)
    # One bin of eight images: accuracy 5/8 against a mean confidence of 0.6375.
    assert model.calibration.ece.value == pytest.approx(0.6375 - 0.625)


@pytest.mark.parametrize("seed", range(5))
def test_random_answers_get_the_figures_that_scikit_learn_gives(seed: int) -> None:
    scores = random_scores(seed=seed)
    labels, p, predicted = scores.labels, scores.probabilities, scores.predicted
    model = evaluated(scores, resamples=100).evaluation()
    assert model.accuracy.value == pytest.approx(reference.accuracy_score(labels, predicted))
    assert model.balanced_accuracy.value == pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    assert model.macro_f1.value == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    assert model.macro_auc.value == pytest.approx(reference.roc_auc_score(labels, p, multi_class="ovr", average="macro"))
    assert model.loss.value == pytest.approx(reference.log_loss(labels, p))
    assert np.array_equal(model.confusion_matrix, reference.confusion_matrix(labels, predicted))
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, predicted)
    for c, name in enumerate(CLASSES):
        of_class = model.per_class[name]
        assert (of_class.precision.value, of_class.sensitivity.value) == pytest.approx((precision[c], recall[c]))
        assert (of_class.f1.value, of_class.support) == pytest.approx((f1[c], support[c]))
        assert of_class.specificity.value == pytest.approx(reference.recall_score(labels != c, predicted != c))


def test_weights_mean_what_repeating_the_images_means() -> None:
    scores = random_scores(n=60)
    weights = np.random.default_rng(1).integers(0, 4, 60)
    repeated = np.repeat(np.arange(60), weights)
    again = Scores(scores.labels[repeated], scores.probabilities[repeated], repeated)
    scored, plain = ScoredModel(scores, AT_HALF, 1.3), ScoredModel(again, AT_HALF, 1.3)
    by_weight = weighted_metrics(scored, CLASSES, "malignant", weights[None, :].astype(float))
    by_repeating = weighted_metrics(plain, CLASSES, "malignant", np.ones((1, len(repeated))))
    for name, value in by_weight.items():
        if not name.startswith("ece"):  # its bins are those of the images, whatever their weights
            assert value[0] == pytest.approx(by_repeating[name][0]), name


@pytest.mark.parametrize("seed", range(3))
def test_auc_with_ties_and_weights_is_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    positive, score = generator.random(80) < 0.4, generator.integers(0, 6, 80) / 5
    weights = generator.integers(0, 3, (4, 80)).astype(float)
    expected = [reference.roc_auc_score(positive, score, sample_weight=row) for row in weights]
    assert weighted_auc(positive, score, weights) == pytest.approx(expected)


def test_confusion_has_the_truth_in_rows() -> None:
    one = Scores(np.array([0, 1]), np.array([[0.1, 0.9, 0.0], [0.2, 0.8, 0.0]]), np.arange(2))
    assert weighted_confusion(one, np.array([[3.0, 2.0]]))[0].tolist() == [[0, 3, 0], [0, 2, 0], [0, 0, 0]]


# Calibration ----------------------------------------------------------------------------------------------------------


def test_bins_hold_about_equally_many_images_and_never_part_equal_confidences() -> None:
    bins = equal_mass_bins(np.linspace(0, 1, 100))
    assert np.bincount(bins).tolist() == [10] * 10
    assert len(np.unique(equal_mass_bins(np.full(100, 0.7)))) == 1
    tied = np.r_[np.full(55, 0.4), np.linspace(0.5, 1, 45)]
    assert len(np.unique(equal_mass_bins(tied)[:55])) == 1


def test_ece_is_the_gap_between_confidence_and_accuracy_by_mass() -> None:
    # Twenty images in two bins: sure 0.5 and right 3 of 10; sure 0.9 and right 8 of 10.
    confidence = np.repeat([0.5, 0.9], 10)
    correct = np.r_[np.arange(10) < 3, np.arange(10) < 8]
    assert weighted_ece(correct, confidence, np.ones((1, 20)))[0] == pytest.approx(0.5 * 0.2 + 0.5 * 0.1)


def test_a_temperature_of_two_undoes_doubled_logits() -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(4000, 3)) * 2
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(3, p=row) for row in honest])
    too_sure = scale_temperature(honest, 0.5)
    assert fit_temperature(Scores(labels, too_sure, np.arange(4000))) == pytest.approx(2.0, rel=0.08)


def test_no_temperature_is_fitted_where_the_images_do_not_settle_it() -> None:
    labels = np.array([0, 1, 2] * 5)
    perfect = Scores(labels, np.eye(3)[labels] * 0.7 + 0.1, np.arange(15))
    assert fit_temperature(perfect) is None
    assert fit_temperature(Scores(labels, np.full((15, 3), 1 / 3), np.arange(15))) is None
    assert fit_temperature(Scores(np.empty(0, int), np.empty((0, 3)), np.empty(0))) is None
    model = evaluated(perfect).evaluation()
    assert model.calibration.ece_scaled == Estimate.missing("the tuning part does not settle a temperature")


# Operating point ------------------------------------------------------------------------------------------------------


def malignant_scores(positives: list[float], others: list[float]) -> Scores:
    score = np.array(positives + others)
    labels = np.array([1] * len(positives) + [0] * len(others))
    return Scores(labels, np.stack([1 - score, score, np.zeros(len(score))], axis=1), np.arange(len(score)))


NINE = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.2]


def test_the_threshold_is_the_highest_that_is_expected_to_find_what_is_wanted() -> None:
    # The second lowest of nine scores has 2 of 10 below it among scores to come: 0.8 is found.
    tuning = malignant_scores(NINE, [0.5, 0.1])
    chosen = choose_threshold(tuning, 1, 0.8, "tuning part")
    assert chosen.value == pytest.approx((0.6 + 0.5) / 2)  # halfway to the next lower score
    assert chosen.chosen_on == "tuning part: 9 positive and 2 other images"
    assert choose_threshold(tuning, 1, 0.81, "t").value == pytest.approx((0.2 + 0.1) / 2)


def test_a_wanted_sensitivity_is_not_missed_by_a_rounding_error() -> None:
    # (1 - 0.9) * 10 is 0.9999999999999998, and (1 - 0.7) * 10 is 3.0000000000000004: the lowest, and the third lowest.
    tuning = malignant_scores(NINE, [0.05])
    assert choose_threshold(tuning, 1, 0.9, "t").value == pytest.approx((0.2 + 0.05) / 2)
    assert choose_threshold(tuning, 1, 0.3 * 3, "t").value == pytest.approx((0.2 + 0.05) / 2)
    assert choose_threshold(tuning, 1, 0.7, "t").value == pytest.approx((0.65 + 0.6) / 2)


def test_where_positives_are_too_few_to_promise_it_the_threshold_finds_them_all() -> None:
    assert choose_threshold(malignant_scores([0.9, 0.4], [0.3]), 1, 0.9, "t").value == pytest.approx((0.4 + 0.3) / 2)


def test_scores_to_come_are_found_as_often_as_wanted() -> None:
    generator = np.random.default_rng(1)
    found = []
    for _ in range(2000):
        scores = generator.uniform(size=20).tolist()
        threshold = choose_threshold(malignant_scores(scores, [0.0]), 1, 0.9, "t").value
        assert threshold is not None
        found.append(1 - threshold)  # of uniform scores, this part lies above
    assert 0.9 <= np.mean(found) < 0.94


@pytest.mark.parametrize(
    ("tuning", "reason"),
    [
        (malignant_scores([], [0.3]), "no positive image"),
        (malignant_scores([0.3], []), "no other image"),
        (malignant_scores([0.3, 0.3], [0.3]), "all scores on the tuning part are the same"),
    ],
)
def test_no_threshold_is_synthetic(tuning: Scores, reason: str) -> None:
    chosen = choose_threshold(tuning, 1, 0.9, "tuning part")
    assert chosen.value is None
    assert reason in (chosen.reason or "")
    point = evaluated(HAND, chosen).evaluation().operating_point
    assert point.threshold is None
    assert point.sensitivity.reason == chosen.reason


# Intervals ------------------------------------------------------------------------------------------------------------


def test_the_interval_of_thirty_six_found_of_forty_is_about_what_tables_say() -> None:
    labels = np.r_[np.ones(40, int), np.zeros(100, int)]
    found = np.r_[np.full(36, 0.9), np.full(4, 0.1), np.full(100, 0.2)]
    scores = Scores(labels, np.stack([1 - found, found, 0 * found], axis=1), np.arange(140))
    sensitivity = evaluated(scores, resamples=2000).estimate("operating.sensitivity")
    assert sensitivity.value == 0.9
    assert sensitivity.low == pytest.approx(0.80, abs=0.02)
    assert sensitivity.high == pytest.approx(0.98, abs=0.02)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1", "macro_auc"])
def test_a_perfect_figure_and_a_hopeless_one_keep_an_interval_instead_of_certainty(metric: str) -> None:
    labels = np.repeat([0, 1, 2], 20)
    truth = np.eye(3)[labels]
    perfect = evaluated(Scores(labels, truth * 0.97 + 0.01, np.arange(60))).estimate(metric)
    hopeless = evaluated(Scores(labels, (1 - truth) / 2, np.arange(60))).estimate(metric)
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert 0.8 < perfect.low < 0.96
    assert (hopeless.value, hopeless.low) == (0.0, 0.0)
    assert 0.04 < hopeless.high < 0.3


def test_the_interval_of_the_balanced_accuracy_is_about_that_of_its_draws_where_all_classes_vary() -> None:
    model = evaluated(random_scores(n=400), resamples=2000)
    balanced = model.estimate("balanced_accuracy")
    drawn = np.quantile(model.draws["balanced_accuracy"], [0.025, 0.975])
    assert (balanced.low, balanced.high) == pytest.approx(tuple(drawn), abs=0.006)


def test_a_model_that_knows_one_answer_has_no_certain_balanced_accuracy() -> None:
    labels = np.repeat([0, 1, 2], 20)
    always = np.tile([0.1, 0.8, 0.1], (60, 1))
    balanced = evaluated(Scores(labels, always, np.arange(60))).estimate("balanced_accuracy")
    missed = 1 - wilson(1, 20)[0]
    assert balanced.value == pytest.approx(1 / 3)
    assert balanced.low == pytest.approx(1 / 3 - missed / 3)
    assert balanced.high == pytest.approx(1 / 3 + np.sqrt(2) * missed / 3)


@pytest.mark.parametrize(
    ("metric", "low"),
    [
        ("accuracy", wilson(1, 40)[0]),
        ("malignant.sensitivity", wilson(1, 20)[0]),
        ("malignant.f1", dice_of_overlap((wilson(1, 20)[0], 1))[0]),
        ("malignant.auc", auc_at_an_end(1, 20, 20)[0]),
    ],
)
def test_what_is_perfect_is_counted_in_groups(metric: str, low: float) -> None:
    labels = np.repeat([0, 1, 1, 0], 20)
    groups = np.tile(np.arange(40), 2) // 2 * 2 + (labels == 1)  # two images a group, all of a class
    p = np.eye(3)[labels] * 0.97 + 0.01
    assert evaluated(Scores(labels, p, groups)).estimate(metric).low == pytest.approx(low)


def test_groups_and_not_images_are_drawn() -> None:
    groups = np.array(["a", "b", "a", "c", "b"])
    weights = np.concatenate(list(Resamples(groups, 300, 7).weights()))
    assert weights.shape == (300, 5)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights[:, 0].mean() == pytest.approx(1.0, abs=0.15)


def test_near_duplicates_make_intervals_wider_and_not_narrower() -> None:
    scores = random_scores(n=200)
    twice = np.repeat(np.arange(200), 2)
    copied = Scores(scores.labels[twice], scores.probabilities[twice], twice)
    single, double = evaluated(scores).estimate("accuracy"), evaluated(copied).estimate("accuracy")
    assert double.high - double.low == pytest.approx(single.high - single.low, rel=1e-6)


def test_the_same_seed_gives_the_same_bytes_and_the_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = random_scores(n=50)
    first = evaluated(scores).evaluation()
    assert evaluated(scores).evaluation() == first
    groups = np.arange(50)
    whole = np.concatenate(list(Resamples(groups, 40, 3).weights()))
    monkeypatch.setattr("bcc_ops.evaluation.metrics._CHUNK", 50 * 7)
    assert np.array_equal(np.concatenate(list(Resamples(groups, 40, 3).weights())), whole)


def test_a_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        correct = generator.random(150) < 0.8
        labels = np.zeros(150, int)
        p = np.where(correct[:, None], [0.9, 0.05, 0.05], [0.05, 0.9, 0.05])
        scored = ScoredModel(Scores(labels, p, np.arange(150)), AT_HALF, None)
        bounds = bootstrap({"m": scored}, CLASSES, "malignant", resamples=300, seed=seed)["m"].estimate("accuracy")
        covered += bounds.low <= 0.8 <= bounds.high
    assert 0.90 <= covered / 200 <= 0.99


def test_the_reflected_interval_of_the_ece_is_not_pushed_up_by_noise() -> None:
    generator = np.random.default_rng(5)
    draws = 0.05 + np.abs(generator.normal(0.03, 0.01, 1000))  # a resample's ECE lies above the sample's
    low, high = interval(0.05, draws, reflected=True)
    assert 0 <= low < 0.05
    assert high == 0.05, "a metric outside of its own interval reads like a mistake"


# Pairs ----------------------------------------------------------------------------------------------------------------


def test_a_difference_is_taken_pair_by_pair() -> None:
    one = random_scores(n=300, skill=1.0)
    worse = Scores(one.labels, one.probabilities.copy(), one.groups)
    right = np.flatnonzero(one.predicted == one.labels)[:6]  # six images that only the first gets right
    worse.probabilities[right] = np.eye(3)[(one.labels[right] + 1) % 3]
    models = {"one": ScoredModel(one, AT_HALF, None), "other": ScoredModel(worse, AT_HALF, None)}
    both = bootstrap(models, CLASSES, "malignant", resamples=1000, seed=2)
    difference = paired_difference(both["one"], both["other"], "accuracy")
    assert difference.value == pytest.approx(6 / 300)
    # Six discordant pairs of one sign: a standard error of sqrt(6)/300 and not the 0.04 of two separate samples.
    assert difference.high - difference.low < 4.5 * math.sqrt(6) / 300
    assert difference.low > 0


def difference_of(one: Scores, other: Scores, metric: str) -> Estimate:
    models = {"one": ScoredModel(one, AT_HALF, None), "other": ScoredModel(other, AT_HALF, None)}
    both = bootstrap(models, CLASSES, "malignant", resamples=400, seed=3)
    return paired_difference(both["one"], both["other"], metric)


@pytest.mark.parametrize("metric", ["accuracy", "malignant.sensitivity", "operating.sensitivity", "malignant.specificity"])
def test_two_models_that_answer_alike_are_not_equal_with_certainty(metric: str) -> None:
    labels = np.repeat([0, 1, 2], 20)
    right = Scores(labels, np.eye(3)[labels] * 0.97 + 0.01, np.repeat(np.arange(30), 2))  # two images a group
    counted = {"accuracy": 30, "malignant.specificity": 20}.get(metric, 10)
    found = difference_of(right, right, metric)
    assert (found.value, found.low, found.high) == pytest.approx((0, -1.96 / (counted + 2), 1.96 / (counted + 2)), abs=1e-4)


def test_one_cancer_that_both_models_find_says_hardly_anything_of_their_sensitivities() -> None:
    labels = np.r_[1, np.zeros(30, int), np.full(30, 2)]
    right = Scores(labels, np.eye(3)[labels] * 0.97 + 0.01, np.arange(61))
    assert difference_of(right, right, "malignant.sensitivity").low == pytest.approx(-1.96 / 3, abs=1e-3)
    balanced = difference_of(right, right, "balanced_accuracy")
    assert balanced.low == pytest.approx(-math.hypot(1.96 / 3, 1.96 / 32, 1.96 / 32) / 3, abs=1e-3)


def test_where_no_image_speaks_against_a_model_the_low_end_is_no_promise() -> None:
    labels = np.repeat([0, 1, 2], 6)
    one = Scores(labels, np.eye(3)[labels] * 0.97 + 0.01, np.arange(18))
    other = Scores(labels, one.probabilities.copy(), one.groups)
    other.probabilities[6] = [0.9, 0.05, 0.05]  # a cancer of six that only the first finds
    found = difference_of(one, other, "malignant.sensitivity")
    assert found.value == pytest.approx(1 / 6)
    assert found.low == pytest.approx(1 / 8 - 1.96 * math.sqrt(2 - 1 / 8) / 8, abs=1e-4)
    assert found.high == pytest.approx(0.5, abs=0.17), "of what speaks for it, resamples tell"


def test_patients_with_images_of_two_classes_are_drawn_whole_for_the_balanced_accuracy() -> None:
    scores = random_scores(n=200)
    patients = Scores(scores.labels, scores.probabilities, np.arange(200) // 4)
    model = evaluated(patients, resamples=1000)
    balanced = model.estimate("balanced_accuracy")
    drawn = np.quantile(model.draws["balanced_accuracy"], [0.025, 0.975])
    assert (balanced.low, balanced.high) == pytest.approx(tuple(drawn), abs=1e-12)


def test_models_on_other_images_are_never_compared() -> None:
    one, other = random_scores(n=30, seed=1), random_scores(n=30, seed=2)
    with pytest.raises(ValueError, match="same images"):
        bootstrap(
            {"a": ScoredModel(one, AT_HALF, None), "b": ScoredModel(other, AT_HALF, None)},
            CLASSES,
            "malignant",
            resamples=10,
            seed=0,
        )


# What is not available ---------------------------------------------------------------------------------------------------


def no_nan(model: ModelEvaluation) -> None:
    text = json.dumps(model.model_dump(mode="json"), allow_nan=False)
    assert "NaN" not in text


def test_a_class_without_images_has_no_figures_and_a_reason() -> None:
    chosen = HAND.labels != 1
    model = evaluated(HAND.subset(chosen)).evaluation()
    no_nan(model)
    assert model.balanced_accuracy == Estimate.missing("there is not an image of malignant")
    assert model.macro_auc.value is None and model.macro_f1.value is None
    assert model.per_class["malignant"].sensitivity == Estimate.missing("there is not an image of malignant")
    assert model.operating_point.sensitivity.reason == "there is not an image of malignant"
    assert model.per_class["malignant"].specificity.value == pytest.approx(3 / 5)
    assert model.accuracy.value == pytest.approx(3 / 5)


def test_one_group_only_tells_nothing() -> None:
    model = evaluated(Scores(HAND.labels, HAND.probabilities, np.zeros(8))).evaluation()
    no_nan(model)
    assert model.accuracy == Estimate.missing("all images are of one group, which tells nothing of others")
    assert model.per_class["benign"].auc.value is None


def test_constant_scores_rank_nothing() -> None:
    labels = np.tile([0, 1, 2], 20)
    model = evaluated(Scores(labels, np.full((60, 3), 1 / 3), np.arange(60))).evaluation()
    no_nan(model)
    assert model.macro_auc == Estimate.missing("all scores are the same: they rank nothing")
    assert model.per_class["normal"].precision == Estimate.missing("no image was called normal")
    assert model.balanced_accuracy.value == pytest.approx(1 / 3)


def test_only_one_class_has_no_specificity() -> None:
    labels = np.ones(10, int)
    model = evaluated(Scores(labels, np.tile([0.2, 0.7, 0.1], (10, 1)), np.arange(10))).evaluation()
    no_nan(model)
    assert model.per_class["malignant"].specificity == Estimate.missing("there are only images of malignant")
    assert model.per_class["malignant"].sensitivity.value == 1.0


def test_no_images_at_all_is_said() -> None:
    model = evaluated(Scores(np.empty(0, int), np.empty((0, 3)), np.empty(0))).evaluation()
    no_nan(model)
    assert (model.images, model.groups, model.calibration.bins) == (0, 0, ())
    assert model.loss == Estimate.missing("there are not images")


def test_too_few_groups_for_an_interval_are_said() -> None:
    # One malignant group among three: over a third of the resamples leave it out, and two of three groups decide the rest.
    labels = np.array([1, 1, 0, 0, 2, 2])
    p = np.eye(3)[labels] * 0.7 + 0.1
    p[0] = [0.6, 0.3, 0.1]
    draws = evaluated(Scores(labels, p, np.array([0, 0, 1, 1, 2, 2])), resamples=300)
    assert draws.estimate("balanced_accuracy").reason == (
        "too few groups for an interval: most bootstrap resamples leave the metric undefined"
    )


@pytest.mark.parametrize(
    ("labels", "p", "problem"),
    [
        (np.array([0, 3]), np.full((2, 3), 1 / 3), "not a class number"),
        (np.array([0, 1]), np.array([[1.0, 0, 0], [np.nan, 0, 0]]), "not finite"),
        (np.array([0]), np.full((2, 3), 1 / 3), "1 labels"),
    ],
)
def test_what_is_no_answer_is_refused(labels: np.ndarray, p: np.ndarray, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Scores(labels, p, np.arange(len(labels)))
