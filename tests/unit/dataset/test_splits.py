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
    count_folds,
    describe_split,
    fold_older,
    held_out_digest,
    split_images,
    split_is_made_of,
)
from bcc_ops.exceptions import SplitError
from bcc_ops.runs.documents import FOLDS, digest_of
from bcc_ops.runs.rows import AssignmentRow, ContentRow

CLASSES = ("benign", "malignant", "normal")
CONFIG = RetrainingConfig.resolve({})
holds = settings(max_examples=60)
"""Properties are about answers; how fast a loaded machine gives them is measured elsewhere."""


def image(name, label="benign", group=None, refused="", content=None):
    sha256 = hashlib.sha256((content or name).encode()).hexdigest()
    return ContentRow(f"images/{label}/{name}.png", label, sha256, 500, 400, "RGB", 60, 30, False, group or sha256, refused)


def copies(name, label, size):
    """A group of near-duplicates, named by its smallest digest, as the image checks name it."""
    members = [image(f"{name}-{number}", label) for number in range(size)]
    group = min(member.sha256 for member in members)
    return [member._replace(group=group) for member in members]


def folds(split):
    return {row.key: row.fold for row in split.rows}


def contents_by_fold(split):
    return {row.sha256: row.fold for row in split.rows}


@st.composite
def datasets(draw, prefix="a", least=5, most=12):
    """Some groups of each class, of 1 to 5 images."""
    images = []
    for label in CLASSES:
        sizes = draw(st.lists(st.integers(1, 5), min_size=least, max_size=most))
        for number, size in enumerate(sizes):
            images += copies(f"{prefix}{label}{number}", label, size)
    return images


@holds
@given(datasets(), st.randoms())
def test_folds_are_disjoint_and_whole_and_groups_stay_together(images, rng):
    rng.shuffle(images)
    split = split_images(images, (), CONFIG, CLASSES)
    assert sorted(row.key for row in split.rows) == sorted(one.key for one in images)
    groups = defaultdict(set)
    for row in split.rows:
        groups[row.group].add(row.fold)
    assert all(len(found) == 1 for found in groups.values())
    counts = count_folds(split.rows, CLASSES)
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
        before = folds(split)
        images = images + [one._replace(key=f"{one.key}.{night}", sha256=one.sha256[::-1], group=one.group[::-1]) for one in new]
        rng.shuffle(images)
        split = split_images(images, split.assignments, CONFIG, CLASSES)
        after = folds(split)
        assert {key: after[key] for key in before} == before


@holds
@given(datasets(), st.randoms())
def test_nothing_moves_when_everything_is_renamed(images, rng):
    split = split_images(images, (), CONFIG, CLASSES)
    names = list(range(len(images)))
    rng.shuffle(names)
    renamed = [one._replace(key=f"images/{one.label}/new name {name}.jpg") for one, name in zip(images, names)]
    again = split_images(renamed, split.assignments, CONFIG, CLASSES)
    assert contents_by_fold(again) == contents_by_fold(split)
    assert again.carried_forward == len(images)
    assert held_out_digest(again.rows, 5) == held_out_digest(split.rows, 5)


@holds
@given(datasets())
def test_a_second_upload_of_everything_goes_to_the_same_folds(images):
    split = split_images(images, (), CONFIG, CLASSES)
    twice = images + [one._replace(key=f"{one.key} (1)") for one in images]
    again = split_images(twice, split.assignments, CONFIG, CLASSES)
    assert {key: side for key, side in folds(again).items() if not key.endswith("(1)")} == folds(split)
    assert {key.removesuffix(" (1)"): side for key, side in folds(again).items() if key.endswith("(1)")} == folds(split)


@holds
@given(datasets(), st.sampled_from([(1, 2), (3, 4), (2, 4)]))
def test_a_new_image_that_bridges_two_folds_is_left_out_and_the_known_ones_stay(images, between):
    split = split_images(images, (), CONFIG, CLASSES)
    one, other = (next(row for row in split.rows if row.fold == fold and row.label == "benign") for fold in between)
    tied = [row._replace(group="tied") if row.group in (one.group, other.group) else row for row in images]
    bridge = image("bridge", "benign", group="tied")
    again = split_images([*tied, bridge], split.assignments, CONFIG, CLASSES)
    assert folds(again) == folds(split)
    assert [left.key for left in again.left_out] == [bridge.key]
    assert all(str(fold) in again.left_out[0].reason for fold in between)


@holds
@given(datasets())
def test_a_new_near_duplicate_takes_the_fold_of_the_known_one(images):
    split = split_images(images, (), CONFIG, CLASSES)
    known = {row.key: row for row in split.rows}
    late = [image(f"late {one.key}", one.label, group=one.group) for one in images]
    again = split_images(images + late, split.assignments, CONFIG, CLASSES)
    fold_of = folds(again)
    for one, copy in zip(images, late):
        assert fold_of[copy.key] == known[one.key].fold


def test_of_known_images_in_two_folds_that_turn_out_near_duplicates_only_the_lower_fold_stays():
    images = [row for number in range(40) for row in copies(f"x{number}", CLASSES[number % 3], 1)]
    split = split_images(images, (), CONFIG, CLASSES)
    low, high = (next(row for row in split.rows if row.fold == fold and row.label == "benign") for fold in (2, 4))
    tied = [row._replace(group="tied") if row.sha256 in (low.sha256, high.sha256) else row for row in images]
    again = split_images(tied, split.assignments, CONFIG, CLASSES)
    assert folds(again)[low.key] == 2
    assert [left.key for left in again.left_out] == [high.key]


@holds
@given(st.integers(0, 10_000))
def test_every_fold_has_a_fifth_of_each_class_within_two_points_at_500_images(seed):
    rng = random.Random(seed)
    images = []
    for label, count in zip(CLASSES, (280, 135, 85)):
        made = []
        while len(made) < count:
            size = rng.choices((1, 2, 3, 7), weights=(70, 20, 8, 2))[0]
            made += copies(f"{seed}{label}{len(made)}", label, min(size, count - len(made)))
        images += made
    counts = count_folds(split_images(images, (), CONFIG, CLASSES).rows, CLASSES)
    for label in CLASSES:
        total = sum(counts[fold][label] for fold in FOLDS)
        assert all(abs(counts[fold][label] / total - 0.2) <= 0.02 for fold in FOLDS)


def test_folds_stay_balanced_while_the_set_grows():
    images: list[ContentRow] = []
    assigned: tuple[AssignmentRow, ...] = ()
    for night in range(6):
        images = images + [row for number in range(100) for row in copies(f"n{night}-{number}", CLASSES[number % 3], 1)]
        split = split_images(images, assigned, CONFIG, CLASSES)
        assigned = split.assignments
        counts = Counter(row.fold for row in split.rows)
        assert max(counts.values()) - min(counts.values()) <= 3


def test_folds_stay_balanced_when_one_image_a_class_comes_a_night():
    images = [row for number in range(30) for row in copies(f"o{number}", CLASSES[number % 3], 1)]
    split = split_images(images, (), CONFIG, CLASSES)
    for night in range(40):
        images = images + [row for label in CLASSES for row in copies(f"o-{night}", label, 1)]
        split = split_images(images, split.assignments, CONFIG, CLASSES)
    assert count_folds(split.rows, CLASSES) == {fold: dict.fromkeys(CLASSES, 10) for fold in FOLDS}


def test_how_many_folds_are_held_out_moves_no_image():
    images = [row for number in range(60) for row in copies(f"h{number}", CLASSES[number % 3], 1)]
    quick = RetrainingConfig.resolve({"folds": 1})
    split = split_images(images, (), CONFIG, CLASSES)
    assert folds(split_images(images, (), quick, CLASSES)) == folds(split)
    assert folds(split_images(images, split.assignments, quick, CLASSES)) == folds(split)


# Older releases had three parts instead of folds --------------------------------------------------------------------------


def older(images, held_out):
    """What the assignments of an older release say: 1 for what it held out, 0 for what it trained on."""
    return [
        AssignmentRow(row.key, row.sha256, row.pixels, row.label, row.group, 1 if row in held_out else 0, int(row in held_out))
        for row in images
    ]


@holds
@given(datasets(least=6), st.randoms())
def test_what_an_older_release_held_out_is_fold_1_and_what_it_trained_on_is_not(images, rng):
    groups = sorted({row.group for row in images})
    held = set(rng.sample(groups, len(groups) // 5)) | {
        next(row.group for row in images if row.label == name) for name in CLASSES
    }
    held_out = [row for row in images if row.group in held]
    split = split_images(images, older(images, held_out), CONFIG, CLASSES)
    assert {row.key for row in split.rows if row.fold == 1} == {row.key for row in held_out}
    assert split.left_out == () and split.carried_forward == len(images)
    again = split_images(images, split.assignments, CONFIG, CLASSES)
    assert folds(again) == folds(split)


def test_what_an_older_release_trained_on_is_spread_evenly_over_the_other_folds():
    images = [row for number in range(150) for row in copies(f"e{number}", CLASSES[number % 3], 1)]
    drawn = fold_older(older(images, images[:30]))
    assert Counter((row.fold, row.label) for row in drawn if row.fold > 1) == {
        (fold, name): 10 for fold in FOLDS[1:] for name in CLASSES
    }
    assert [row.fold for row in fold_older(drawn)] == [row.fold for row in drawn]


def test_the_salt_draws_another_split_of_what_is_new_only():
    images = [row for number in range(300) for row in copies(f"s{number}", CLASSES[number % 3], 1)]
    split = split_images(images, (), CONFIG, CLASSES)
    salted = RetrainingConfig.resolve({"split_salt": "other"})
    assert folds(split_images(images, (), salted, CLASSES)) != folds(split)
    assert folds(split_images(images, split.assignments, salted, CLASSES)) == folds(split)


@holds
@given(datasets(), st.integers(0, 10_000))
def test_a_draw_is_that_of_the_pixels_whatever_files_hold_them(images, export):
    images = [one._replace(pixels=digest_of(["pixels", one.sha256])) for one in images]
    names = {one.sha256: digest_of([export, one.sha256]) for one in images}
    members = defaultdict(list)
    for one in images:
        members[one.group].append(names[one.sha256])
    exported = [one._replace(key=f"{one.key}.dcm", sha256=names[one.sha256], group=min(members[one.group])) for one in images]
    again = folds(split_images(exported, (), CONFIG, CLASSES))
    assert {key.removesuffix(".dcm"): fold for key, fold in again.items()} == folds(split_images(images, (), CONFIG, CLASSES))


@holds
@given(datasets(), st.sets(st.integers(0, 35), min_size=1))
def test_a_draw_stays_where_images_come_back_with_rounded_pixels(images, rounded):
    images = [
        one._replace(pixels=digest_of(["pixels", one.sha256]), perceptual_hash=digest_of(["hash", one.sha256])[:16])
        for one in images
    ]
    again = [
        one._replace(pixels=digest_of(["rounded", one.sha256])) if number in rounded else one for number, one in enumerate(images)
    ]
    assert folds(split_images(again, (), CONFIG, CLASSES)) == folds(split_images(images, (), CONFIG, CLASSES))


def hashed(images):
    return [one._replace(perceptual_hash=digest_of(["hash", one.sha256])[:16]) for one in images]


@pytest.mark.parametrize("changed", [0, 150, 299])
def test_an_image_more_or_less_and_one_that_looks_otherwise_move_few_others_in_a_first_draw(changed):
    """Dealt in turn, one image moved a tenth of the others, and a JPEG of each moved seven in ten."""
    images = hashed([row for number in range(300) for row in copies(f"d{number}", CLASSES[number % 3], 1)])
    drawn = folds(split_images(images, (), CONFIG, CLASSES))
    others = [one for number, one in enumerate(images) if number != changed]
    otherwise = images[changed]._replace(perceptual_hash=digest_of("another")[:16])
    for again in (others, [*others, otherwise], [*images, *hashed([image("one more")])]):
        moved = {key for key, fold in folds(split_images(again, (), CONFIG, CLASSES)).items() if drawn.get(key, fold) != fold}
        assert len(moved) <= 5


def test_images_with_one_hash_are_spread_over_the_folds():
    images = hashed([row for number in range(300) for row in copies(f"b{number}", CLASSES[number % 3], 1)])
    blank = [one._replace(perceptual_hash="0" * 16) if number < 60 else one for number, one in enumerate(images)]
    drawn = folds(split_images(blank, (), CONFIG, CLASSES))
    assert all(9 <= count <= 15 for count in Counter(drawn[one.key] for one in blank[:60]).values())
    assert set(Counter(drawn.values()).values()) == {60}


def test_refused_images_and_conflicts_are_in_no_fold():
    images = [row for number in range(30) for row in copies(f"r{number}", CLASSES[number % 3], 1)]
    images += [image("broken", refused="truncated"), image("both", refused="conflict")]
    split = split_images(images, (), CONFIG, CLASSES)
    assert not {"images/benign/broken.png", "images/benign/both.png"} & set(folds(split))
    assert split.left_out == ()


def test_an_image_that_changed_its_label_keeps_its_fold():
    images = [row for number in range(60) for row in copies(f"l{number}", CLASSES[number % 3], 1)]
    split = split_images(images, (), CONFIG, CLASSES)
    moved = next(row for row in split.rows if row.fold == 3 and row.label == "benign")
    relabelled = [
        row._replace(label="malignant", key="images/malignant/moved.png") if row.sha256 == moved.sha256 else row for row in images
    ]
    again = split_images(relabelled, split.assignments, CONFIG, CLASSES)
    assert folds(again)["images/malignant/moved.png"] == 3


def test_patients_stay_together_and_tie_groups():
    config = RetrainingConfig.resolve({"patient_pattern": r"(patient\d+)"})
    images = [image(f"patient{number // 4}_{number}", CLASSES[(number // 4) % 3]) for number in range(240)]
    split = split_images(images, (), config, CLASSES)
    by_patient = defaultdict(set)
    for row in split.rows:
        by_patient[row.key.split("/")[-1].split("_")[0]].add((row.fold, row.group))
    assert len(by_patient) == 60
    assert all(len(found) == 1 for found in by_patient.values())
    document = describe_split(split, config, CLASSES)
    assert document.grouping == "patient"


def test_patients_with_images_of_two_classes_are_split_whole():
    config = RetrainingConfig.resolve({"patient_pattern": r"p(\d+)_"})
    images = [image(f"p{patient}_{label}", label) for patient in range(50) for label in CLASSES]
    split = split_images(images, (), config, CLASSES)
    counts = count_folds(split.rows, CLASSES)
    assert counts == {fold: dict.fromkeys(CLASSES, 10) for fold in FOLDS}


def test_too_few_groups_of_a_class_fail_with_how_many_are_needed():
    images = [row for number in range(20) for row in copies(f"f{number}", CLASSES[number % 2], 1)]
    images += copies("same", "normal", 6)
    with pytest.raises(
        SplitError,
        match=r"class normal .* 6 usable images in 1 group that may not be torn apart, and at least 2 groups are needed",
    ):
        split_images(images, (), CONFIG, CLASSES)


def test_a_class_with_one_image_fails_with_what_is_missing():
    images = [row for number in range(20) for row in copies(f"f{number}", CLASSES[number % 2], 1)] + copies("one", "normal", 1)
    with pytest.raises(
        SplitError, match="class normal has no image outside of fold 1 to train on: it has 1 usable image in 1 group that"
    ):
        split_images(images, (), CONFIG, CLASSES)


def test_a_class_whose_images_of_the_held_out_fold_were_removed_says_what_must_come_and_goes_on_with_it():
    images = [row for number in range(30) for row in copies(f"g{number}", CLASSES[number % 3], 1)]
    quick = RetrainingConfig.resolve({"folds": 1})
    split = split_images(images, (), quick, CLASSES)
    gone = {row.sha256 for row in split.rows if row.label == "normal" and row.fold == 1}
    left = [one for one in images if one.sha256 not in gone]
    with pytest.raises(SplitError, match=r"normal has no image in fold 1 to be asked about: .* so that new groups must come"):
        split_images(left, split.assignments, quick, CLASSES)
    new = copies("new", "normal", 1)
    assert folds(split_images(left + new, split.assignments, quick, CLASSES))[new[0].key] == 1


def test_a_class_that_is_in_other_folds_only_says_how_many_folds_ask_about_it():
    """A class may have its two groups and none in fold 1, where patients have images of several classes."""
    images = [image(f"{patient}-{number}")._replace(patient=patient) for patient, number in ("a1", "a2", "a3", "b1", "c1")]
    images += [image(f"{patient}-2", "normal")._replace(patient=patient) for patient in "bc"]
    quick = RetrainingConfig.resolve({"folds": 1})
    with pytest.raises(SplitError, match=r"normal has no image in fold 1 .*; some are in fold 2, which a run with folds=2 asks"):
        split_images(images, (), quick, CLASSES[::2])
    two = split_images(images, (), RetrainingConfig.resolve({"folds": 2}), CLASSES[::2])
    assert count_folds(two.rows, CLASSES[::2])[2]["normal"] == 1


@pytest.mark.parametrize("settled", [(2, 2), (3,)])
def test_a_number_of_folds_with_which_a_class_had_nothing_to_be_trained_on_is_not_named(settled):
    """All its images are in one fold: a run that asks about that one fails as well."""
    images = [image(f"b{number}") for number in range(10)]
    images += [image(f"n{number}", "normal") for number in range(len(settled))]
    folds_before = [1 + number % 5 for number in range(10)] + list(settled)
    before = [
        AssignmentRow(row.key, row.sha256, row.pixels, row.label, row.group, fold, 0) for row, fold in zip(images, folds_before)
    ]
    with pytest.raises(SplitError, match=r"normal has no image in fold 1 to be asked about: .* new groups must come$"):
        split_images(images, before, RetrainingConfig.resolve({"folds": 1}), CLASSES[::2])
    with pytest.raises(SplitError, match="normal has no image outside of fold"):
        split_images(images, before, RetrainingConfig.resolve({"folds": settled[0]}), CLASSES[::2])


def test_a_class_without_any_image_fails():
    images = [row for number in range(20) for row in copies(f"f{number}", CLASSES[number % 2], 1)]
    with pytest.raises(SplitError, match=r"class normal has no image .* it has 0 usable images in 0 groups that"):
        split_images(images, (), CONFIG, CLASSES)


def test_a_class_of_fewer_groups_than_folds_is_in_the_first_folds():
    images = [row for number in range(40) for row in copies(f"t{number}", CLASSES[number % 2], 1)]
    images += [row for number in range(3) for row in copies(f"few{number}", "normal", 1)]
    counts = count_folds(split_images(images, (), CONFIG, CLASSES).rows, CLASSES)
    assert [counts[fold]["normal"] for fold in FOLDS] == [1, 1, 1, 0, 0]


def test_class_weights_by_hand():
    # 10 images, 2 classes: 10 / (2 x 8) and 10 / (2 x 2)
    assert class_weights({"benign": 8, "malignant": 2}) == {"benign": 0.625, "malignant": 2.5}


def test_class_weights_come_from_all_folds():
    images = [row for number in range(120) for row in copies(f"w{number}", CLASSES[min(number % 4, 2)], 1)]
    document = describe_split(split_images(images, (), CONFIG, CLASSES), CONFIG, CLASSES)
    assert document.weights == {"benign": 120 / 90, "malignant": 120 / 90, "normal": 120 / 180}


def test_the_held_out_digest_names_contents_and_not_keys():
    images = [row for number in range(30) for row in copies(f"d{number}", CLASSES[number % 3], 1)]
    rows = split_images(images, (), CONFIG, CLASSES).rows
    renamed = [row._replace(key=f"x/{row.key}") for row in reversed(rows)]
    assert held_out_digest(renamed, 5) == held_out_digest(rows, 5)
    assert held_out_digest(rows[1:], 5) != held_out_digest(rows, 5)
    assert held_out_digest([row for row in rows if row.fold == 1], 5) == held_out_digest(rows, 1)


# Groups that merge ------------------------------------------------------------------------------------------------------


def singles(prefix, count):
    return [row for number in range(count) for row in copies(f"{prefix}{number}", CLASSES[number % 3], 1)]


def night(images, before=None, config=CONFIG):
    return split_images(images, before.assignments if before else (), config, CLASSES)


def test_an_image_that_is_absent_or_refused_for_a_night_keeps_its_fold():
    """69 of 156 images changed sides when only the last run's rows were carried forward."""
    images = singles("a", 90)
    first = night(images)
    gone = {row.key for row in images[::3]}
    without = [*images[1::3], *(row._replace(refused="truncated") for row in images[2::3]), *singles("b", 30)]
    third = night(images, night(without, first))
    assert {key: side for key, side in folds(third).items() if key in gone} == {
        key: side for key, side in folds(first).items() if key in gone
    }
    assert folds(third) == folds(first)


def test_an_absent_image_is_listed_with_the_group_that_its_near_duplicates_are_in_by_now():
    """A group is named by its smallest digest, which is another one without that image. It was listed apart from the rest."""
    images = singles("a", 30)
    low, high = sorted(copies("pair", "benign", 2), key=lambda row: row.sha256)
    first = night([*images, low, high])
    second = night([*images, high._replace(group=high.sha256)], first)
    assert {row.sha256: row.group for row in first.assignments if row.sha256 in (low.sha256, high.sha256)} == {
        low.sha256: low.sha256,
        high.sha256: low.sha256,
    }
    assert {row.sha256: row.group for row in second.assignments if row.sha256 in (low.sha256, high.sha256)} == {
        low.sha256: high.sha256,
        high.sha256: high.sha256,
    }
    apart = {row.sha256: row.group for row in first.assignments if row.sha256 not in (low.sha256, high.sha256)}
    assert apart.items() <= {row.sha256: row.group for row in second.assignments}.items()


def test_an_image_whose_metadata_was_stripped_keeps_its_fold():
    """Without the digest of the pixels, 120 of 156 held-out images had been trained on."""
    images = [row._replace(pixels=f"pixels of {row.key}") for row in singles("m", 90)]
    stripped = [row._replace(sha256=row.sha256[::-1], group=row.sha256[::-1]) for row in images]
    first = night(images)
    second = night(stripped, first)
    assert folds(second) == folds(first)
    assert second.carried_forward == 90


def test_a_patient_pattern_that_is_switched_on_lets_no_patient_cross_and_nobody_change_folds():
    images = [image(f"P{number // 3:02d}_{number}", CLASSES[(number // 3) % 3]) for number in range(180)]
    patients = RetrainingConfig.resolve({"patient_pattern": r"(P\d+)_"})
    first = night(images)
    second = night(images, first, patients)
    assert_no_patient_crosses(second)
    assert all(folds(first)[key] == side for key, side in folds(second).items())
    new = [image(f"P{number:02d}_late", CLASSES[number % 3]) for number in range(60)]
    third = night(images + new, second, patients)
    assert_no_patient_crosses(third)
    assert all(folds(first).get(key, side) == side for key, side in folds(third).items())


def of_patients(images):
    """The images with the patient in their key told by the metadata instead."""
    return [row._replace(patient=f"pseudonym-{row.key.split('/')[-1].split('_')[0]}") for row in images]


def test_patients_of_the_metadata_stay_together_as_those_of_a_pattern_do():
    images = [image(f"P{number // 4:02d}_{number}", CLASSES[(number // 4) % 3]) for number in range(180)]
    pattern = RetrainingConfig.resolve({"patient_pattern": r"(P\d+)_"})
    by_metadata, by_key = night(of_patients(images)), night(images, config=pattern)
    assert folds(by_metadata) == folds(by_key)
    assert_no_patient_crosses(by_metadata)
    for split, config in ((by_metadata, CONFIG), (by_key, pattern)):
        document = describe_split(split, config, CLASSES)
        assert (document.grouping, document.patients_unknown) == ("patient", 0)


def test_a_table_that_arrives_lets_no_patient_cross_and_nobody_change_folds():
    images = [image(f"P{number // 3:02d}_{number}", CLASSES[(number // 3) % 3]) for number in range(180)]
    first = night(images)
    second = night(of_patients(images), first)
    assert_no_patient_crosses(second)
    assert second.left_out
    assert all(folds(first)[key] == side for key, side in folds(second).items())


def test_a_table_that_is_lost_for_a_night_sets_nobody_apart():
    """Forgotten, new images of a patient would be drawn into other folds as soon as the old ones are gone."""
    images = [image(f"P{number:02d}_a", CLASSES[number % 3]) for number in range(60)]
    first = night(of_patients(images))
    without = night(images, first)
    assert folds(without) == folds(first) and describe_split(without, CONFIG, CLASSES).grouping == "patient"
    here = [row for number, row in enumerate(images) if number % 2]
    late = [image(f"P{number:02d}_b", CLASSES[number % 3]) for number in range(0, 60, 2)]
    third = night(of_patients(here + late), without)
    for row in late:
        assert folds(third)[row.key] == folds(first)[row.key.replace("_b", "_a")]


def test_of_a_key_and_the_metadata_neither_overrules_the_other():
    pattern = RetrainingConfig.resolve({"patient_pattern": r"(P\d+)_"})
    images = [image(f"P{number:02d}_{view}", CLASSES[number % 3]) for number in range(40) for view in "ab"]
    married = {"P00": "now one", "P39": "now one"}
    told = [row._replace(patient=married.get(row.key.split("/")[-1][:3], "")) for row in images]
    split = night(told, config=pattern)
    assert_no_patient_crosses(split)
    assert len({row.fold for row in split.rows if row.key.split("/")[-1][:3] in married}) == 1


def test_an_image_that_two_patients_claim_keeps_both_in_its_fold():
    images = [image(f"{name}_{number}", CLASSES[number % 3]) for name in "ABCDEFGHIJKL" for number in range(3)]
    told = [row._replace(patient=row.key.split("/")[-1][0]) for row in images]
    told.append(image("between")._replace(patient="A B"))
    split = night(told)
    assert len({row.fold for row in split.rows if row.key.split("/")[-1][0] in "ABb"}) == 1


def test_images_whose_patient_is_not_known_are_counted_where_others_are_known():
    images = singles("k", 60)
    told = [row._replace(patient=f"p{number}") for number, row in enumerate(images[:50])] + images[50:]
    assert describe_split(night(told), CONFIG, CLASSES).patients_unknown == 10
    assert describe_split(night(images), CONFIG, CLASSES).patients_unknown == 0


def test_a_split_is_made_of_patients_too_and_as_ever_without_them():
    images = singles("m", 9)
    assert split_is_made_of(of_patients(images), CONFIG) != split_is_made_of(images, CONFIG)
    older = digest_of(
        [sorted((row.key, row.sha256, row.group, row.refused) for row in images), (CONFIG.folds, CONFIG.split_salt, "")]
    )
    assert split_is_made_of(images, CONFIG) == older


@holds
@given(datasets(least=8), st.integers(2, 9), st.lists(st.booleans(), min_size=4, max_size=4), st.randoms(use_true_random=False))
def test_through_any_history_of_the_table_no_image_changes_folds_and_no_known_patient_crosses(images, shared, there, draw):
    """The table comes, goes and is corrected from night to night; images come and go."""
    patients = {row.sha256: f"p{draw.randrange(len(images) // shared + 2)}" for row in images}
    given_to: dict[str, int] = {}
    split = None
    for is_there in there:
        if draw.random() < 0.3:
            patients[draw.choice(images).sha256] = "corrected"
        present = [row for row in images if draw.random() < 0.9]
        told = [row._replace(patient=patients[row.sha256] if is_there and draw.random() < 0.9 else "") for row in present]
        try:
            split = night(told, split)
        except SplitError:  # that night ends without a split
            continue
        for row in split.rows:
            assert given_to.setdefault(row.sha256, row.fold) == row.fold
        for row in split.assignments:
            given_to.setdefault(row.sha256, row.fold)
        on: defaultdict[str, set[int]] = defaultdict(set)
        fold_of = contents_by_fold(split)
        for row in told:
            if row.patient and row.sha256 in fold_of:
                on[row.patient].add(fold_of[row.sha256])
        assert {patient: where for patient, where in on.items() if len(where) > 1} == {}


def assert_no_patient_crosses(split):
    found = defaultdict(set)
    for row in split.rows:
        found[row.key.split("/")[-1].split("_")[0]].add(row.fold)
    assert {patient: on for patient, on in found.items() if len(on) > 1} == {}


def test_images_that_were_left_out_keep_their_fold_for_the_day_when_they_are_used_again():
    """Forgotten, they were drawn anew: 231 images that had been trained on became held-out in one scenario."""
    images = [image(f"P{number // 3:02d}_{number}", CLASSES[(number // 3) % 3]) for number in range(180)]
    patients = RetrainingConfig.resolve({"patient_pattern": r"(P\d+)_"})
    first = night(images)
    joined = night(images, first, patients)
    assert joined.left_out
    assert folds(night(images, joined)) == folds(first)


def test_a_new_image_of_a_patient_whose_images_are_absent_goes_to_their_fold():
    patients = RetrainingConfig.resolve({"patient_pattern": r"(P\d+)_"})
    images = [image(f"P{number:02d}_a", CLASSES[number % 3]) for number in range(60)]
    first = night(images, config=patients)
    here = [row for number, row in enumerate(images) if number % 2]
    late = [image(f"P{number:02d}_b", CLASSES[number % 3]) for number in range(0, 60, 2)]
    second = night(here + late, first, patients)
    for row in late:
        assert folds(second)[row.key] == folds(first)[row.key.replace("_b", "_a")]


def test_decisions_are_counted_per_held_out_image():
    """Over 365 nights of one new image each, identical sets were counted and the maximum was 6."""
    images = singles("h", 90)
    split = night(images)
    assert split.holdout_reuse == 1
    for number in range(30):
        images = [*images, image(f"late {number}", CLASSES[number % 3])]
        split = night(images, split)
    assert [row.decisions for row in split.assignments if "late" not in row.key] == [31] * 90
    assert 25 < split.holdout_reuse < 31


def test_an_image_excluded_from_training_has_a_fold_and_is_not_trained_on():
    images = [image(f"{label}{number}", label) for label in CLASSES for number in range(10)]
    images[0] = images[0]._replace(findings="1t axilla")
    config = RetrainingConfig.resolve({"content_findings": "axilla=exclude_from_training"})
    split = split_images(images, (), config, CLASSES)
    assert [row.key for row in split.rows if not row.trained_on] == [images[0].key]
    assert folds(split) == folds(split_images(images, (), CONFIG, CLASSES))
    document = describe_split(split, config, CLASSES)
    assert sum(by["benign"] for by in document.counts.values()) == 10
    assert document.weights["benign"] == pytest.approx(29 / (3 * 9))


def test_a_class_of_which_nothing_may_be_trained_on_is_refused():
    images = [image(f"{label}{number}", label) for label in CLASSES for number in range(10)]
    images = [one._replace(findings="1t axilla") if one.label == "malignant" else one for one in images]
    with pytest.raises(SplitError, match="class malignant has no image outside of fold 1 to train on"):
        split_images(images, (), RetrainingConfig.resolve({"content_findings": "axilla=exclude_from_training"}), CLASSES)


def refused_for(images, key, **told):
    """The images of a night on which this one is excluded for what it holds, with what the checks tell of it."""
    return [row._replace(refused="content finding", **told) if row.key == key else row for row in images]


def test_new_images_of_a_patient_go_to_the_fold_of_the_image_that_is_excluded_tonight():
    """A model was trained on it: its file would be asked about a patient whom it knows."""
    images = singles("a", 60)
    first = night(images)
    for out in images[:5]:
        of_another_class = CLASSES[CLASSES.index(out.label) - 1]  # else the gap that the image leaves would draw them there
        late = [image(f"late{number}", of_another_class)._replace(patient="p") for number in range(2)]
        second = night([*refused_for(images, out.key, patient="p"), *late], first)
        assert {folds(second)[row.key] for row in late} == {folds(first)[out.key]}
        afterwards = night([*images, *late], second)  # the table is gone, and the image is used again
        assert folds(afterwards)[out.key] == folds(first)[out.key] == folds(afterwards)[late[0].key]


def test_a_near_duplicate_of_an_excluded_image_stays_with_the_patient_of_that_image():
    images = singles("a", 60)
    first = night(images)
    for out, other in zip(images[:5], images[5:10]):
        patients = [row._replace(patient="p") if row.key == other.key else row for row in images if row.key != out.key]
        second = night(patients, first)
        bridge = out._replace(sha256=digest_of(out.key), patient="p", group=out.sha256, refused="content finding")
        copy = image(f"copy-of-{out.key[-4:]}", out.label, group=out.sha256)
        third = night([*patients, bridge, copy], second)
        assert folds(third).get(copy.key) == folds(first)[other.key]
