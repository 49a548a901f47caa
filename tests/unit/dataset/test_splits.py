from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.splits import (
    class_weights,
    count_partitions,
    describe_split,
    split_images,
    validation_digest,
)
from bcc_ops.exceptions import SplitError
from bcc_ops.runs.tables import AssignmentRow, ContentRow

CLASSES = ("benign", "malignant", "normal")
CONFIG = RetrainingConfig.resolve({})
holds = settings(max_examples=60)
"""Properties are about answers; how fast a loaded machine gives them is measured elsewhere."""


def image(name, label="benign", group=None, refused="", content=None):
    sha256 = hashlib.sha256((content or name).encode()).hexdigest()
    return ContentRow(f"images/{label}/{name}.png", label, sha256, 500, 400, "RGB", 60, 30, False, group or sha256, refused)


def copies(name, label, size):
    """A group of near-duplicates, named by its smallest digest, as validation names it."""
    members = [image(f"{name}-{number}", label) for number in range(size)]
    group = min(member.sha256 for member in members)
    return [member._replace(group=group) for member in members]


def sides(split):
    return {row.key: row.partition for row in split.rows}


def contents_by_side(split):
    return {row.sha256: row.partition for row in split.rows}


@st.composite
def datasets(draw, prefix="a", least=4, most=12):
    """Some groups of each class, of 1 to 5 images."""
    images = []
    for label in CLASSES:
        sizes = draw(st.lists(st.integers(1, 5), min_size=least, max_size=most))
        for number, size in enumerate(sizes):
            images += copies(f"{prefix}{label}{number}", label, size)
    return images


@holds
@given(datasets(), st.randoms())
def test_partitions_are_disjoint_and_whole_and_groups_stay_together(images, rng):
    rng.shuffle(images)
    split = split_images(images, (), CONFIG, CLASSES)
    assert sorted(row.key for row in split.rows) == sorted(one.key for one in images)
    groups = defaultdict(set)
    for row in split.rows:
        groups[row.group].add(row.partition)
    assert all(len(found) == 1 for found in groups.values())
    counts = count_partitions(split.rows, CLASSES)
    assert all(count > 0 for by_class in counts.values() for count in by_class.values())


@holds
@given(datasets(), st.randoms())
def test_the_order_of_the_listing_changes_nothing(images, rng):
    expected = split_images(images, (), CONFIG, CLASSES)
    shuffled = list(images)
    rng.shuffle(shuffled)
    assert split_images(shuffled, (), CONFIG, CLASSES) == expected


@holds
@given(datasets(), st.lists(datasets(prefix="b", least=0, most=6), max_size=3), st.randoms())
def test_nothing_moves_when_images_are_added_night_by_night(images, nights, rng):
    split = split_images(images, (), CONFIG, CLASSES)
    for night, new in enumerate(nights):
        before = sides(split)
        images = images + [one._replace(key=f"{one.key}.{night}", sha256=one.sha256[::-1], group=one.group[::-1]) for one in new]
        rng.shuffle(images)
        split = split_images(images, split.assignments, CONFIG, CLASSES)
        after = sides(split)
        assert {key: after[key] for key in before} == before


@holds
@given(datasets(), st.randoms())
def test_nothing_moves_when_everything_is_renamed(images, rng):
    split = split_images(images, (), CONFIG, CLASSES)
    names = list(range(len(images)))
    rng.shuffle(names)
    renamed = [one._replace(key=f"images/{one.label}/new name {name}.jpg") for one, name in zip(images, names)]
    again = split_images(renamed, split.assignments, CONFIG, CLASSES)
    assert contents_by_side(again) == contents_by_side(split)
    assert again.carried_forward == len(images)
    assert validation_digest(again.rows) == validation_digest(split.rows)


@holds
@given(datasets())
def test_a_second_upload_of_everything_goes_to_the_same_sides(images):
    split = split_images(images, (), CONFIG, CLASSES)
    twice = images + [one._replace(key=f"{one.key} (1)") for one in images]
    again = split_images(twice, split.assignments, CONFIG, CLASSES)
    assert {key: side for key, side in sides(again).items() if not key.endswith("(1)")} == sides(split)
    assert {key.removesuffix(" (1)"): side for key, side in sides(again).items() if key.endswith("(1)")} == sides(split)


@holds
@given(datasets(), st.sampled_from([("train", "validation"), ("tuning", "validation"), ("train", "tuning")]))
def test_a_new_image_that_bridges_two_sides_is_left_out_and_the_known_ones_stay(images, between):
    split = split_images(images, (), CONFIG, CLASSES)
    one, other = (next(row for row in split.rows if row.partition == side and row.label == "benign") for side in between)
    tied = [row._replace(group="tied") if row.group in (one.group, other.group) else row for row in images]
    bridge = image("bridge", "benign", group="tied")
    again = split_images([*tied, bridge], split.assignments, CONFIG, CLASSES)
    assert sides(again) == sides(split)
    assert [left.key for left in again.left_out] == [bridge.key]
    assert all(side in again.left_out[0].reason for side in between)


@holds
@given(datasets())
def test_a_new_near_duplicate_takes_the_side_of_the_known_one(images):
    split = split_images(images, (), CONFIG, CLASSES)
    known = {row.key: row for row in split.rows}
    late = [image(f"late {one.key}", one.label, group=one.group) for one in images]
    again = split_images(images + late, split.assignments, CONFIG, CLASSES)
    side_of = sides(again)
    for one, copy in zip(images, late):
        assert side_of[copy.key] == known[one.key].partition


def test_known_near_duplicates_of_one_another_on_two_sides_stay_only_in_validation():
    images = [row for number in range(40) for row in copies(f"x{number}", CLASSES[number % 3], 1)]
    split = split_images(images, (), CONFIG, CLASSES)
    train, held_out = (
        next(row for row in split.rows if row.partition == side and row.label == "benign") for side in ("train", "validation")
    )
    tied = [row._replace(group="tied") if row.sha256 in (train.sha256, held_out.sha256) else row for row in images]
    again = split_images(tied, split.assignments, CONFIG, CLASSES)
    assert sides(again)[held_out.key] == "validation"
    assert [left.key for left in again.left_out] == [train.key]


@holds
@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.3]))
def test_shares_are_within_two_points_per_class_at_500_images(seed, fraction):
    rng = random.Random(seed)
    images = []
    for label, count in zip(CLASSES, (280, 135, 85)):
        made = []
        while len(made) < count:
            size = rng.choices((1, 2, 3, 7), weights=(70, 20, 8, 2))[0]
            made += copies(f"{seed}{label}{len(made)}", label, min(size, count - len(made)))
        images += made
    config = RetrainingConfig.resolve({"validation_fraction": fraction})
    counts = count_partitions(split_images(images, (), config, CLASSES).rows, CLASSES)
    for label in CLASSES:
        total = sum(counts[side][label] for side in counts)
        assert abs(counts["validation"][label] / total - fraction) <= 0.02
        assert abs(counts["tuning"][label] / (total - counts["validation"][label]) - config.tuning_fraction) <= 0.03


def test_shares_are_kept_while_the_set_grows():
    images: list[ContentRow] = []
    assigned: tuple[AssignmentRow, ...] = ()
    for night in range(6):
        images = images + [row for number in range(100) for row in copies(f"n{night}-{number}", CLASSES[number % 3], 1)]
        split = split_images(images, assigned, CONFIG, CLASSES)
        assigned = split.assignments
        counts = Counter(row.partition for row in split.rows)
        assert abs(counts["validation"] / len(split.rows) - 0.2) <= 0.02


def test_shares_are_kept_when_one_image_a_class_comes_a_night():
    images = [row for number in range(30) for row in copies(f"o{number}", CLASSES[number % 3], 1)]
    split = split_images(images, (), CONFIG, CLASSES)
    for night in range(40):
        images = images + [row for label in CLASSES for row in copies(f"o-{night}", label, 1)]
        split = split_images(images, split.assignments, CONFIG, CLASSES)
    # of 50 images a class, 10 are for validation, and 15 % of the other 40 for tuning
    assert count_partitions(split.rows, CLASSES) == {
        "train": dict.fromkeys(CLASSES, 34),
        "tuning": dict.fromkeys(CLASSES, 6),
        "validation": dict.fromkeys(CLASSES, 10),
    }


def test_the_salt_draws_another_split_of_what_is_new_only():
    images = [row for number in range(300) for row in copies(f"s{number}", CLASSES[number % 3], 1)]
    split = split_images(images, (), CONFIG, CLASSES)
    salted = RetrainingConfig.resolve({"split_salt": "other"})
    assert sides(split_images(images, (), salted, CLASSES)) != sides(split)
    assert sides(split_images(images, split.assignments, salted, CLASSES)) == sides(split)


def test_refused_images_and_conflicts_are_in_no_partition():
    images = [row for number in range(30) for row in copies(f"r{number}", CLASSES[number % 3], 1)]
    images += [image("broken", refused="truncated"), image("both", refused="conflict")]
    split = split_images(images, (), CONFIG, CLASSES)
    assert not {"images/benign/broken.png", "images/benign/both.png"} & set(sides(split))
    assert split.left_out == ()


def test_an_image_that_changed_its_label_keeps_its_side():
    images = [row for number in range(60) for row in copies(f"l{number}", CLASSES[number % 3], 1)]
    split = split_images(images, (), CONFIG, CLASSES)
    moved = next(row for row in split.rows if row.partition == "validation" and row.label == "benign")
    relabelled = [
        row._replace(label="malignant", key="images/malignant/moved.png") if row.sha256 == moved.sha256 else row for row in images
    ]
    again = split_images(relabelled, split.assignments, CONFIG, CLASSES)
    assert sides(again)["images/malignant/moved.png"] == "validation"


def test_patients_stay_together_and_tie_groups():
    config = RetrainingConfig.resolve({"patient_pattern": r"(patient\d+)"})
    images = [image(f"patient{number // 4}_{number}", CLASSES[(number // 4) % 3]) for number in range(240)]
    split = split_images(images, (), config, CLASSES)
    by_patient = defaultdict(set)
    for row in split.rows:
        by_patient[row.key.split("/")[-1].split("_")[0]].add((row.partition, row.group))
    assert len(by_patient) == 60
    assert all(len(found) == 1 for found in by_patient.values())
    document = describe_split(split, config, CLASSES)
    assert document.grouping == "patient"


def test_patients_with_images_of_two_classes_are_split_whole():
    config = RetrainingConfig.resolve({"patient_pattern": r"p(\d+)_"})
    images = [image(f"p{patient}_{label}", label) for patient in range(50) for label in CLASSES]
    split = split_images(images, (), config, CLASSES)
    counts = count_partitions(split.rows, CLASSES)
    assert counts["validation"] == dict.fromkeys(CLASSES, 10)
    assert counts["tuning"] == dict.fromkeys(CLASSES, 6)


def test_too_few_groups_of_a_class_fail_with_how_many_are_needed():
    images = [row for number in range(20) for row in copies(f"f{number}", CLASSES[number % 2], 1)]
    images += copies("same", "normal", 6)
    with pytest.raises(SplitError, match=r"class normal .* 6 usable images in 1 group.* at least 3 groups are needed"):
        split_images(images, (), CONFIG, CLASSES)


@pytest.mark.parametrize("emptied", [["validation"], ["tuning"], ["train"], ["tuning", "validation"], ["train", "validation"]])
def test_a_class_whose_images_were_removed_says_how_many_must_come_and_goes_on_with_them(emptied):
    images = [row for number in range(30) for row in copies(f"g{number}", CLASSES[number % 3], 1)]
    split = split_images(images, (), CONFIG, CLASSES)
    gone = {row.sha256 for row in split.rows if row.label == "normal" and row.partition in emptied}
    left = [one for one in images if one.sha256 not in gone]
    needed = f"{len(emptied)} new groups" if len(emptied) > 1 else "1 new group"
    with pytest.raises(SplitError, match=f"normal has no image for {' and '.join(emptied)}: .* so that {needed} must come"):
        split_images(left, split.assignments, CONFIG, CLASSES)
    new = [row for number in range(len(emptied)) for row in copies(f"new{number}", "normal", 1)]
    after = sides(split_images(left + new, split.assignments, CONFIG, CLASSES))
    assert sorted(after[row.key] for row in new) == emptied


def test_a_class_without_any_image_fails():
    images = [row for number in range(20) for row in copies(f"f{number}", CLASSES[number % 2], 1)]
    with pytest.raises(SplitError, match="class normal has no image for train and tuning and validation: it has 0 usable"):
        split_images(images, (), CONFIG, CLASSES)


def test_three_groups_of_a_class_are_enough():
    images = [row for number in range(9) for row in copies(f"t{number}", CLASSES[number % 3], 1)]
    counts = count_partitions(split_images(images, (), CONFIG, CLASSES).rows, CLASSES)
    assert counts == {side: dict.fromkeys(CLASSES, 1) for side in ("train", "tuning", "validation")}


def test_class_weights_by_hand():
    # 10 images, 2 classes: 10 / (2 x 8) and 10 / (2 x 2)
    assert class_weights({"benign": 8, "malignant": 2}) == {"benign": 0.625, "malignant": 2.5}


def test_class_weights_come_from_train_alone():
    images = [row for number in range(120) for row in copies(f"w{number}", CLASSES[min(number % 4, 2)], 1)]
    document = describe_split(split_images(images, (), CONFIG, CLASSES), CONFIG, CLASSES)
    train = document.counts["train"]
    total = sum(train.values())
    assert document.weights == {name: total / (3 * train[name]) for name in CLASSES}
    assert sum(document.weights[name] * train[name] for name in CLASSES) == pytest.approx(total)


def test_the_validation_digest_names_contents_and_not_keys():
    images = [row for number in range(30) for row in copies(f"d{number}", CLASSES[number % 3], 1)]
    rows = split_images(images, (), CONFIG, CLASSES).rows
    renamed = [row._replace(key=f"x/{row.key}") for row in reversed(rows)]
    assert validation_digest(renamed) == validation_digest(rows)
    smaller = [row for row in rows if row.partition != "validation"] + [row for row in rows if row.partition == "validation"][1:]
    assert validation_digest(smaller) != validation_digest(rows)


# Groups that merge ------------------------------------------------------------------------------------------------------


def singles(prefix, count):
    return [row for number in range(count) for row in copies(f"{prefix}{number}", CLASSES[number % 3], 1)]


def night(images, before=None, config=CONFIG):
    return split_images(images, before.assignments if before else (), config, CLASSES)


def test_an_image_that_is_absent_or_refused_for_a_night_keeps_its_side():
    """69 of 156 images changed sides when only the last run's rows were carried forward."""
    images = singles("a", 90)
    first = night(images)
    gone = {row.key for row in images[::3]}
    without = [*images[1::3], *(row._replace(refused="truncated") for row in images[2::3]), *singles("b", 30)]
    third = night(images, night(without, first))
    assert {key: side for key, side in sides(third).items() if key in gone} == {
        key: side for key, side in sides(first).items() if key in gone
    }
    assert sides(third) == sides(first)


def test_an_image_whose_metadata_was_stripped_keeps_its_side():
    """Without the digest of the pixels, 120 of 156 held-out images had been trained on."""
    images = [row._replace(pixels=f"pixels of {row.key}") for row in singles("m", 90)]
    stripped = [row._replace(sha256=row.sha256[::-1], group=row.sha256[::-1]) for row in images]
    first = night(images)
    second = night(stripped, first)
    assert sides(second) == sides(first)
    assert second.carried_forward == 90


def test_a_patient_pattern_that_is_switched_on_lets_no_patient_cross_and_nobody_change_sides():
    images = [image(f"P{number // 3:02d}_{number}", CLASSES[(number // 3) % 3]) for number in range(180)]
    patients = RetrainingConfig.resolve({"patient_pattern": r"(P\d+)_"})
    first = night(images)
    second = night(images, first, patients)
    assert_no_patient_crosses(second)
    assert all(sides(first)[key] == side for key, side in sides(second).items())
    new = [image(f"P{number:02d}_late", CLASSES[number % 3]) for number in range(60)]
    third = night(images + new, second, patients)
    assert_no_patient_crosses(third)
    assert all(sides(first).get(key, side) == side for key, side in sides(third).items())


def assert_no_patient_crosses(split):
    found = defaultdict(set)
    for row in split.rows:
        found[row.key.split("/")[-1].split("_")[0]].add(row.partition)
    assert {patient: on for patient, on in found.items() if len(on) > 1} == {}


def test_images_that_were_left_out_keep_their_side_for_the_day_when_they_are_used_again():
    """Forgotten, they were drawn anew: 231 images that had been trained on became held-out in one scenario."""
    images = [image(f"P{number // 3:02d}_{number}", CLASSES[(number // 3) % 3]) for number in range(180)]
    patients = RetrainingConfig.resolve({"patient_pattern": r"(P\d+)_"})
    first = night(images)
    joined = night(images, first, patients)
    assert joined.left_out
    assert sides(night(images, joined)) == sides(first)


def test_a_new_image_of_a_patient_whose_images_are_absent_goes_to_their_side():
    patients = RetrainingConfig.resolve({"patient_pattern": r"(P\d+)_"})
    images = [image(f"P{number:02d}_a", CLASSES[number % 3]) for number in range(60)]
    first = night(images, config=patients)
    here = [row for number, row in enumerate(images) if number % 2]
    late = [image(f"P{number:02d}_b", CLASSES[number % 3]) for number in range(0, 60, 2)]
    second = night(here + late, first, patients)
    for row in late:
        assert sides(second)[row.key] == sides(first)[row.key.replace("_b", "_a")]


def test_decisions_are_counted_per_held_out_image():
    """Over 365 nights of one new image each, identical sets were counted and the maximum was 6."""
    images = singles("h", 90)
    split = night(images)
    assert split.holdout_reuse == 1
    for number in range(30):
        images = [*images, image(f"late {number}", CLASSES[number % 3])]
        split = night(images, split)
    old = [row.decisions for row in split.assignments if row.partition == "validation" and "late" not in row.key]
    assert old == [31] * len(old)
    assert 25 < split.holdout_reuse < 31
