"""Hand-worked answers on small arrays, scikit-learn's on random ones."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics as reference

from bcc_ops.evaluation.intervals import auc_interval, dice_of_overlap, student, wilson
from bcc_ops.evaluation.metrics import (
    Evaluation,
    ScoredModel,
    Scores,
    Threshold,
    area_under_roc,
    calibration_error,
    calibration_slope,
    choose_threshold,
    correlation_within,
    cross_fit,
    equal_mass_bins,
    fit_temperature,
    paired_difference,
    scale_temperature,
    variance_of,
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


def evaluated(scores: Scores, threshold: Threshold = AT_HALF, temperature: float | None = None) -> Evaluation:
    return Evaluation(ScoredModel(scores, threshold, temperature), CLASSES, "malignant")


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
    # One bin of eight images misses its mean confidence by 1/80, which is less than chance alone does.
    assert model.calibration.error == Estimate(value=0)


@pytest.mark.parametrize("seed", range(5))
def test_random_answers_get_the_figures_that_scikit_learn_gives(seed: int) -> None:
    scores = random_scores(seed=seed)
    labels, p, predicted = scores.labels, scores.probabilities, scores.predicted
    model = evaluated(scores).evaluation()
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


@pytest.mark.parametrize("seed", range(3))
def test_auc_with_ties_is_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    positive, score = generator.random(80) < 0.4, generator.integers(0, 6, 80) / 5
    assert area_under_roc(positive, score).value == pytest.approx(reference.roc_auc_score(positive, score))


def test_an_influence_is_how_much_a_metric_moves_with_an_images_weight() -> None:
    """Against scikit-learn's weighted metrics, with one image a little heavier."""
    scores, step = random_scores(n=60), 1e-5
    labels, called, p = scores.labels, scores.predicted, scores.probabilities
    model = evaluated(scores)
    weighted = {
        "accuracy": lambda w: reference.accuracy_score(labels, called, sample_weight=w),
        "balanced_accuracy": lambda w: reference.balanced_accuracy_score(labels, called, sample_weight=w),
        "macro_f1": lambda w: reference.f1_score(labels, called, average="macro", sample_weight=w),
        "malignant.precision": lambda w: reference.precision_score(labels == 1, called == 1, sample_weight=w),
        "malignant.auc": lambda w: reference.roc_auc_score(labels == 1, p[:, 1], sample_weight=w),
    }
    for name, metric in weighted.items():
        for image in (0, 17, 42):
            heavier = np.ones(60)
            heavier[image] += step
            moved = (metric(heavier) - metric(np.ones(60))) / step
            assert model.metrics[name].influence[image] == pytest.approx(moved, abs=1e-4), name


def test_confusion_has_the_truth_in_rows() -> None:
    one = Scores(np.array([0, 1]), np.array([[0.1, 0.9, 0.0], [0.2, 0.8, 0.0]]), np.arange(2))
    assert evaluated(one).evaluation().confusion_matrix == ((0, 1, 0), (0, 1, 0), (0, 0, 0))


# Calibration ----------------------------------------------------------------------------------------------------------


def test_bins_hold_about_equally_many_images_and_never_part_equal_confidences() -> None:
    bins = equal_mass_bins(np.linspace(0, 1, 100))
    assert np.bincount(bins).tolist() == [10] * 10
    assert len(np.unique(equal_mass_bins(np.full(100, 0.7)))) == 1
    tied = np.r_[np.full(55, 0.4), np.linspace(0.5, 1, 45)]
    assert len(np.unique(equal_mass_bins(tied)[:55])) == 1


def test_the_calibration_error_is_the_gap_less_what_chance_adds() -> None:
    # Twenty images in two bins: sure 0.5 and right 1 of 10; sure 0.9 and right 8 of 10.
    confidence = np.repeat([0.5, 0.9], 10)
    correct = np.r_[np.arange(10) < 1, np.arange(10) < 8]
    by_hand = (0.4**2 - 0.1 * 0.9 / 9 + 0.1**2 - 0.8 * 0.2 / 9) / 2
    assert calibration_error(correct, confidence) == pytest.approx(math.sqrt(by_hand))


def calibrated(n: int, seed: int, slope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, 3) whose logits are `slope` times those that the labels were drawn from."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, 3)) * 2
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(3, p=row) for row in honest])
    stated = np.exp(slope * logits)
    return stated / stated.sum(axis=1, keepdims=True), labels


def test_a_calibrated_model_has_on_average_no_calibration_error_and_a_slope_of_one() -> None:
    """The plain error (ECE) of such models at 160 images is 0.086 on average, and its interval excluded 0 in 47 of 100 cases."""
    errors, slopes = [], []
    for seed in range(60):
        p, labels = calibrated(160, seed)
        errors.append(calibration_error(p.argmax(axis=1) == labels, p.max(axis=1)))
        slope = calibration_slope(p, labels, np.arange(160))
        assert slope is not None
        slopes.append(slope.value)
    assert np.mean(errors) < 0.05
    assert np.mean(slopes) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_the_slope_undoes_what_was_done_to_the_logits(slope: float) -> None:
    p, labels = calibrated(20_000, 1, slope)
    found = calibration_slope(p, labels, np.arange(20_000))
    assert found is not None and found.value == pytest.approx(1 / slope, rel=0.03)


def test_a_model_without_an_error_has_no_slope() -> None:
    labels = np.repeat([0, 1, 2], 10)
    assert calibration_slope(np.eye(3)[labels] * 0.97 + 0.01, labels, np.arange(30)) is None
    missing = evaluated(Scores(labels, np.eye(3)[labels] * 0.97 + 0.01, np.arange(30))).estimate("calibration_slope")
    assert missing == Estimate.missing("these images do not settle it")


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
    assert model.calibration.slope_scaled == Estimate.missing("the images do not settle a temperature")


# Operating point ------------------------------------------------------------------------------------------------------


def malignant_scores(positives: list[float], others: list[float]) -> Scores:
    score = np.array(positives + others)
    labels = np.array([1] * len(positives) + [0] * len(others))
    return Scores(labels, np.stack([1 - score, score, np.zeros(len(score))], axis=1), np.arange(len(score)))


NINE = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.2]


def test_the_threshold_is_the_highest_that_is_expected_to_find_what_is_wanted() -> None:
    # The second lowest of nine scores has 2 of 10 below it among scores to come: 0.8 is found.
    fitted = malignant_scores(NINE, [0.5, 0.1])
    chosen = choose_threshold(fitted, 1, 0.8, "out-of-fold answers")
    assert chosen.value == pytest.approx((0.6 + 0.5) / 2)  # halfway to the next lower score
    assert chosen.chosen_on == "out-of-fold answers: 9 positive and 2 other images"
    assert choose_threshold(fitted, 1, 0.81, "t").value == pytest.approx((0.2 + 0.1) / 2)


def test_a_wanted_sensitivity_is_not_missed_by_a_rounding_error() -> None:
    # (1 - 0.9) * 10 is 0.9999999999999998, and (1 - 0.7) * 10 is 3.0000000000000004: the lowest, and the third lowest.
    fitted = malignant_scores(NINE, [0.05])
    assert choose_threshold(fitted, 1, 0.9, "t").value == pytest.approx((0.2 + 0.05) / 2)
    assert choose_threshold(fitted, 1, 0.3 * 3, "t").value == pytest.approx((0.2 + 0.05) / 2)
    assert choose_threshold(fitted, 1, 0.7, "t").value == pytest.approx((0.65 + 0.6) / 2)


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
    ("fitted", "reason"),
    [
        (malignant_scores([], [0.3]), "no positive image"),
        (malignant_scores([0.3], []), "no other image"),
        (malignant_scores([0.3, 0.3], [0.3]), "all scores are the same"),
    ],
)
def test_no_threshold_is_synthetic(fitted: Scores, reason: str) -> None:
    chosen = choose_threshold(fitted, 1, 0.9, "out-of-fold answers")
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
    sensitivity = evaluated(scores).estimate("operating.sensitivity")
    assert sensitivity.value == 0.9
    assert (sensitivity.low, sensitivity.high) == pytest.approx((0.7695, 0.9604), abs=1e-4)  # Wilson's


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


def test_a_model_that_knows_one_answer_has_no_certain_balanced_accuracy() -> None:
    labels = np.repeat([0, 1, 2], 20)
    always = np.tile([0.1, 0.8, 0.1], (60, 1))
    balanced = evaluated(Scores(labels, always, np.arange(60))).estimate("balanced_accuracy")
    missed = (1 - wilson(1, 20)[0]) * student(20) / 1.959963984540054
    assert balanced.value == pytest.approx(1 / 3)
    assert balanced.low == pytest.approx(1 / 3 - missed / 3)
    assert balanced.high == pytest.approx(1 / 3 + np.sqrt(2) * missed / 3)


@pytest.mark.parametrize(
    ("metric", "low"),
    [
        ("accuracy", wilson(1, 40)[0]),
        ("malignant.sensitivity", wilson(1, 20)[0]),
        ("malignant.f1", dice_of_overlap((float(wilson(1, 20)[0]), 1.0))[0]),
        ("malignant.auc", auc_interval(1, 20, 20, 0)[0]),
    ],
)
def test_what_is_perfect_is_counted_in_groups(metric: str, low: float) -> None:
    labels = np.repeat([0, 1, 1, 0], 20)
    groups = np.tile(np.arange(40), 2) // 2 * 2 + (labels == 1)  # two images a group, all of a class
    p = np.eye(3)[labels] * 0.97 + 0.01
    assert evaluated(Scores(labels, p, groups)).estimate(metric).low == pytest.approx(low)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_auc", "macro_f1"])
def test_the_interval_of_a_mean_stays_between_nought_and_one_however_few_the_groups(metric: str) -> None:
    two_patients = Scores(HAND.labels, HAND.probabilities, np.arange(8) % 2)
    estimate = evaluated(two_patients).estimate(metric)
    assert estimate.low is not None and estimate.high is not None
    assert 0 <= estimate.low < estimate.high <= 1


@pytest.mark.parametrize(("metric", "most"), [("loss", -np.log(1e-7)), ("brier", 2.0)])
def test_the_interval_of_an_amount_ends_at_what_it_can_be_at_most_if_nearly_all_images_are_of_one_patient(
    metric: str, most: float
) -> None:
    """One patient of 200 images that are all right, and one of a single image that is wrong: the images settle nothing."""
    labels = np.r_[np.tile([0, 1, 2], 67)[:200], 1]
    p = np.eye(3)[labels] * 0.97 + 0.01
    p[-1] = [0.98, 0.01, 0.01]
    estimate = evaluated(Scores(labels, p, labels * 0 + (np.arange(201) == 200))).estimate(metric)
    assert (estimate.low, estimate.high) == (0.0, pytest.approx(most))


def test_the_variance_is_that_of_whole_groups() -> None:
    influence, counted = np.array([0.3, 0.1, -0.2, -0.2]), np.ones(4, bool)
    assert variance_of(influence, np.arange(4), counted) == pytest.approx((0.09 + 0.01 + 0.04 + 0.04) * 4 / 3)
    assert variance_of(influence, np.array([0, 0, 1, 1]), counted) == pytest.approx((0.16 + 0.16) * 2)


def test_the_correlation_within_groups_is_that_of_an_analysis_of_variance() -> None:
    # Two groups of two, means 1.25 and 2.25: 1 between (1 degree of freedom), 0.25 within (2), so (1 - 0.125) / (1 + 0.125).
    assert correlation_within(np.array([1.0, 1.5, 2.0, 2.5]), np.array([0, 0, 1, 1])) == pytest.approx(0.875 / 1.125)
    assert correlation_within(np.array([0.0, 1.0, 0.0, 1.0]), np.arange(4)) == 0
    assert correlation_within(np.ones(4), np.array([0, 0, 1, 1])) == 1, "nothing tells, so groups count once"


def test_near_duplicates_make_intervals_wider_and_not_narrower() -> None:
    scores = random_scores(n=200)
    twice = np.repeat(np.arange(200), 2)
    copied = Scores(scores.labels[twice], scores.probabilities[twice], twice)
    single, double = evaluated(scores).estimate("accuracy"), evaluated(copied).estimate("accuracy")
    assert double.high - double.low == pytest.approx(single.high - single.low, rel=1e-6)


def test_one_miss_never_makes_the_low_end_rise() -> None:
    """39 of 40 had a higher low end than 40 of 40."""
    ends = []
    for missed in range(4):
        labels = np.r_[np.ones(40, int), np.zeros(60, int)]
        p = np.eye(3)[labels] * 0.97 + 0.01
        p[:missed] = [0.9, 0.05, 0.05]
        ends.append(evaluated(Scores(labels, p, np.arange(100))).estimate("malignant.sensitivity").low or 0.0)
    assert ends == sorted(ends, reverse=True)


def test_images_of_a_group_that_are_not_alike_count_for_more_than_one() -> None:
    generator = np.random.default_rng(4)
    labels, groups = np.zeros(200, int), np.arange(200) // 4
    by_image, by_group = generator.random(200) < 0.8, np.repeat(generator.random(50) < 0.8, 4)
    widths = []
    for right in (by_image, by_group):
        p = np.where(right[:, None], [0.9, 0.05, 0.05], [0.05, 0.9, 0.05])
        found = evaluated(Scores(labels, p, groups)).estimate("accuracy")
        assert found.low is not None and found.high is not None
        widths.append(found.high - found.low)
    assert 1.6 < widths[1] / widths[0] < 2.4  # four alike are worth one: twice as wide


# Pairs ----------------------------------------------------------------------------------------------------------------


def test_a_difference_is_taken_pair_by_pair() -> None:
    one = random_scores(n=300, skill=1.0)
    worse = Scores(one.labels, one.probabilities.copy(), one.groups)
    right = np.flatnonzero(one.predicted == one.labels)[:6]  # six images that only the first gets right
    worse.probabilities[right] = np.eye(3)[(one.labels[right] + 1) % 3]
    difference = paired_difference(evaluated(one), evaluated(worse), "accuracy")
    assert difference.value == pytest.approx(6 / 300)
    # Six discordant pairs of one sign: a standard error of sqrt(6)/300 and not the 0.04 of two separate samples.
    assert difference.high - difference.low < 4.5 * math.sqrt(6) / 300
    assert difference.low > 0


def difference_of(one: Scores, other: Scores, metric: str) -> Estimate:
    return paired_difference(evaluated(one), evaluated(other), metric)


@pytest.mark.parametrize("metric", ["accuracy", "malignant.sensitivity", "operating.sensitivity", "malignant.specificity"])
def test_two_models_that_answer_alike_are_not_equal_with_certainty(metric: str) -> None:
    labels = np.repeat([0, 1, 2], 20)
    right = Scores(labels, np.eye(3)[labels] * 0.97 + 0.01, np.repeat(np.arange(30), 2))  # two images a group
    counted = {"accuracy": 30, "malignant.specificity": 20}.get(metric, 10)
    found = difference_of(right, right, metric)
    assert (found.value, found.low, found.high) == pytest.approx((0, -1.96 / (counted + 2), 1.96 / (counted + 2)), abs=1e-4)


def test_one_cancer_that_both_models_find_says_nothing_of_their_sensitivities() -> None:
    labels = np.r_[1, np.zeros(30, int), np.full(30, 2)]
    right = Scores(labels, np.eye(3)[labels] * 0.97 + 0.01, np.arange(61))
    for metric in ("malignant.sensitivity", "balanced_accuracy"):
        assert (difference_of(right, right, metric).reason or "").startswith("too few groups")


def test_where_no_image_speaks_against_a_model_the_low_end_is_no_promise() -> None:
    labels = np.repeat([0, 1, 2], 6)
    one = Scores(labels, np.eye(3)[labels] * 0.97 + 0.01, np.arange(18))
    other = Scores(labels, one.probabilities.copy(), one.groups)
    other.probabilities[6] = [0.9, 0.05, 0.05]  # a cancer of six that only the first finds
    found = difference_of(one, other, "malignant.sensitivity")
    assert found.value == pytest.approx(1 / 6)
    assert found.low is not None and found.low <= 1 / 8 - 1.96 * math.sqrt(2 - 1 / 8) / 8
    assert found.high == pytest.approx(1 / 6 + student(6) * math.sqrt(5 / 36 / 5), abs=1e-4), "what speaks for it has a variance"


def test_models_on_other_images_are_never_compared() -> None:
    one, other = random_scores(n=30, seed=1), random_scores(n=30, seed=2)
    with pytest.raises(ValueError, match="same images"):
        paired_difference(evaluated(one), evaluated(other), "accuracy")


# What is not available ---------------------------------------------------------------------------------------------------


def no_nan(model: ModelEvaluation) -> None:
    text = json.dumps(model.model_dump(mode="json"), allow_nan=False)
    assert "NaN" not in text


def test_a_class_without_images_has_no_figures_and_a_reason() -> None:
    chosen = HAND.labels != 1
    model = evaluated(HAND.subset(chosen)).evaluation()
    no_nan(model)
    assert model.balanced_accuracy == Estimate.missing("none of the images is malignant")
    assert model.macro_auc.value is None and model.macro_f1.value is None
    assert model.per_class["malignant"].sensitivity == Estimate.missing("none of the images is malignant")
    assert model.operating_point.sensitivity.reason == "none of the images is malignant"
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
    assert model.loss == Estimate.missing("the set is empty")


@pytest.mark.parametrize("metric", ["malignant.sensitivity", "malignant.auc", "balanced_accuracy", "macro_auc"])
def test_too_few_groups_for_an_interval_are_said(metric: str) -> None:
    labels = np.array([1, 1, 0, 0, 0, 2, 2, 2])  # one malignant group
    p = np.eye(3)[labels] * 0.7 + 0.1
    p[0] = [0.6, 0.3, 0.1]
    model = evaluated(Scores(labels, p, np.array([0, 0, 1, 1, 2, 3, 3, 4])))
    assert model.estimate(metric).reason == "too few groups for an interval: all images that count are of one group"


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


# Cross-fitting --------------------------------------------------------------------------------------------------------


def test_each_image_is_judged_by_what_the_other_folds_gave() -> None:
    malignant = [0.9, 0.8, 0.3, 0.6, 0.5, 0.4]
    scores = malignant_scores(malignant, [0.2, 0.1, 0.25, 0.15, 0.05, 0.35])
    parts = np.array([1, 2, 3] * 4)
    fitted = cross_fit(scores, parts, 1, 0.5, "answers")
    assert fitted.threshold == choose_threshold(scores, 1, 0.5, "answers")
    assert fitted.cuts is not None
    for part in (1, 2, 3):
        others = choose_threshold(scores.subset(parts != part), 1, 0.5, "answers").value
        assert set(fitted.cuts[parts == part]) == {others}
    assert len(set(fitted.cuts)) > 1


def test_what_is_reported_of_an_operating_point_is_by_each_images_own_cut() -> None:
    scores = malignant_scores([0.9, 0.8, 0.3, 0.6], [0.2, 0.1, 0.25, 0.15])
    cuts = np.array([0.95, 0.5, 0.2, 0.5, 0.1, 0.5, 0.5, 0.5])
    scored = ScoredModel(scores, Threshold(0.5, 0.9, "answers"), None, cuts)
    point = Evaluation(scored, CLASSES, "malignant").evaluation().operating_point
    assert (point.sensitivity.value, point.specificity.value, point.threshold) == (0.75, 0.75, 0.5)


def test_a_single_fold_is_dealt_into_parts_by_groups() -> None:
    scores = malignant_scores(list(np.linspace(0.3, 0.9, 20)), list(np.linspace(0.05, 0.5, 20)))
    fitted = cross_fit(scores, np.ones(40, dtype=np.int64), 1, 0.9, "answers")
    assert fitted.cuts is not None and fitted.threshold.value is not None
    assert 1 < len(set(fitted.cuts)) <= 5


def test_too_few_images_to_choose_from_some_and_judge_others_is_said() -> None:
    scores = malignant_scores([0.9], [0.2, 0.1, 0.3])
    fitted = cross_fit(scores, np.array([1, 2, 3, 4]), 1, 0.9, "answers")
    assert (fitted.threshold.value, fitted.temperature) == (None, None)
    assert fitted.threshold.reason == "too few images to choose it from some and judge others"
