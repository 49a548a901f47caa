from __future__ import annotations

import numpy as np
import pytest

from bcc_ops.dataset.drift import CLASS_MIX, compare_distributions
from bcc_ops.runs.rows import ContentRow

CLASSES = ("benign", "malignant")


def rows(prefix, label, means, width=500, group=None):
    return [
        ContentRow(
            f"{prefix}{i}",
            label,
            f"{prefix}{label}{i}",
            width,
            width,
            "RGB",
            float(mean),
            30.0 + i % 7,
            False,
            group or f"{prefix}{label}{i}",
            "",
        )
        for i, mean in enumerate(means)
    ]


def findings(contents, previous):
    found, reason = compare_distributions(contents, previous, CLASSES)
    assert reason is None
    return {(one.label, one.quantity): one for one in found}


@pytest.fixture
def before():
    rng = np.random.default_rng(0)
    return rows("old", "benign", rng.normal(60, 5, 80)) + rows("old", "malignant", rng.normal(60, 5, 40))


def test_brighter_new_images_warn_for_their_class_alone(before):
    rng = np.random.default_rng(1)
    new = rows("new", "benign", rng.normal(90, 5, 40)) + rows("new", "malignant", rng.normal(60, 5, 20))
    found = findings(before + new, before)
    assert found["benign", "mean intensity"].warning
    assert found["benign", "mean intensity"].statistic > 0.9
    assert (found["benign", "mean intensity"].images_before, found["benign", "mean intensity"].images_new) == (80, 40)
    assert "90 in the new ones, 60 before" in found["benign", "mean intensity"].sentence
    assert not found["malignant", "mean intensity"].warning
    assert not found["", CLASS_MIX].warning


def test_new_images_like_the_old_ones_do_not_warn(before):
    rng = np.random.default_rng(2)
    new = rows("new", "benign", rng.normal(60, 5, 80)) + rows("new", "malignant", rng.normal(60, 5, 40))
    assert not any(one.warning for one in findings(before + new, before).values())


def test_the_statistic_is_that_of_kolmogorov_and_smirnov_by_hand():
    before = rows("old", "benign", range(10)) + rows("old", "malignant", range(10))
    new = rows("new", "benign", range(5, 15))  # half of the old ones lie below all of the new ones
    found = findings(before + new, before)
    assert found["benign", "mean intensity"].statistic == pytest.approx(0.5)


def test_another_mix_of_classes_warns(before):
    rng = np.random.default_rng(3)
    new = rows("new", "benign", rng.normal(60, 5, 10)) + rows("new", "malignant", rng.normal(60, 5, 70))
    mix = findings(before + new, before)["", CLASS_MIX]
    assert mix.warning
    assert "malignant 88% of the new ones, 33% before" in mix.sentence


def test_near_duplicates_count_once(before):
    new = rows("new", "benign", [90] * 50, group="one scan fifty times")
    found, reason = compare_distributions(before + new, before, CLASSES)
    assert found == ()
    assert "too few images are new: 1 independent" in reason


def test_copies_of_known_images_are_not_new(before):
    copies = [row._replace(key=f"{row.key}copy", sha256=f"{row.sha256}copy") for row in before]
    found, reason = compare_distributions(before + copies, before, CLASSES)
    assert (found, reason) == ((), "no image is new")


def test_without_an_earlier_run_there_is_nothing_to_compare_with(before):
    assert compare_distributions(before, None, CLASSES) == ((), "there is no assessed earlier run to compare with")


def test_refused_images_are_not_compared(before):
    new = [row._replace(refused="truncated") for row in rows("new", "benign", [200] * 30)]
    assert compare_distributions(before + new, before, CLASSES) == ((), "no image is new")
