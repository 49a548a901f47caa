"""From listing entries to a snapshot: which keys are images, as of which moment, and what differs."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.snapshot import (
    ImageRules,
    Listing,
    ListingBuilder,
    compare,
    describe_config,
    digest_of_images,
    moment_of,
)
from bcc_ops.exceptions import DatedInTheFuture
from bcc_ops.runs.rows import ImageRow

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
RULES = ImageRules("images", ("benign", "malignant", "normal"), ("*_mask*", "thumb_?.png"))


def entry(key: str, at: datetime = NOON, size: int = 10, etag: str = "e", **more: Any) -> dict[str, Any]:
    return {"Key": key, "Size": size, "ETag": f'"{etag}"', "LastModified": at, **more}


def version(key: str, version_id: str, minutes: int, latest: bool = False) -> dict[str, Any]:
    return entry(key, NOON + timedelta(minutes=minutes), etag=version_id, VersionId=version_id, IsLatest=latest)


def removal(key: str, minutes: int, latest: bool = False) -> dict[str, Any]:
    moment = NOON + timedelta(minutes=minutes)
    return {"Key": key, "VersionId": f"marker{minutes}", "LastModified": moment, "IsLatest": latest, "DeleteMarker": True}


def listing(*entries: dict[str, Any], versioned: bool = False, as_of: datetime | None = None) -> Listing:
    builder = ListingBuilder(RULES, versioned, as_of)
    for one in entries:
        builder.add(one)
    return builder.build()


def row(key: str, etag: str = "e", version_id: str = "", label: str = "benign") -> ImageRow:
    return ImageRow(key, label, 10, etag, version_id, NOON)


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("images/benign/a.png", "benign"),
        ("images/malignant/deep/er/b.JPG", "malignant"),
        ("images/normal/c (1).jpeg", "normal"),
        ("images/normal/é+%.bmp", "normal"),
        ("images/benign//twice.png", "benign"),
        ("images/benign/..png", "benign"),
        ("images/benign/scan.DCM", "benign"),
        ("images/benign/study/IM000001", "benign"),
        ("images/benign/1.2.840.113619.2.55", "benign"),
    ],
)
def test_the_first_folder_under_the_prefix_is_the_label(key: str, label: str) -> None:
    assert [(image.key, image.label) for image in listing(entry(key)).images] == [(key, label)]


@pytest.mark.parametrize(
    ("key", "size", "reason"),
    [
        ("images/", 0, "folder marker"),
        ("images/benign/", 0, "folder marker"),
        ("images/a.png", 10, "in no class folder"),
        ("images/Benign/a.png", 10, "folder of no configured class"),
        ("images//benign/a.png", 10, "folder of no configured class"),
        ("images/benign/notes.txt", 10, "not a .png, .jpg, .jpeg, .bmp or .dcm"),
        ("images/benign/a.dcm.gz", 10, "not a .png, .jpg, .jpeg, .bmp or .dcm"),
        ("images/benign/1.2.3.txt", 10, "not a .png, .jpg, .jpeg, .bmp or .dcm"),
        ("images/benign/a_mask.png", 10, "name to ignore (masks)"),
        ("images/benign/A_MASK_1.PNG", 10, "name to ignore (masks)"),
        ("images/benign/thumb_3.png", 10, "name to ignore (masks)"),
        ("images/benign/a.png", 0, "empty"),
        ("images/benign/../a.png", 10, "'.' or '..' in its path"),
        ("images/benign/\ufffd.png", 10, "unreadable characters in its name"),
        ("images/benign/./a.png", 10, "'.' or '..' in its path"),
    ],
)
def test_what_is_no_image_is_counted_with_its_reason(key: str, size: int, reason: str) -> None:
    seen = listing(entry(key, size=size))
    assert not seen.images
    assert [(ignored.reason, ignored.count, ignored.examples) for ignored in seen.ignored] == [(reason, 1, (key,))]


def test_only_some_ignored_keys_are_named_and_all_are_counted() -> None:
    [ignored] = listing(*(entry(f"images/benign/{n}_mask.png") for n in range(9))).ignored
    assert ignored.count == 9
    assert len(ignored.examples) == 5


def test_without_versions_what_was_written_later_is_left_out() -> None:
    entries = [entry("images/benign/a.png", NOON), entry("images/benign/b.png", NOON + timedelta(seconds=1))]
    assert [image.key for image in listing(*entries, as_of=NOON).images] == ["images/benign/a.png"]
    assert len(listing(*entries).images) == 2


HISTORY = [
    version("images/benign/a.png", "a1", 0),
    version("images/benign/a.png", "a2", 10, latest=True),
    version("images/benign/b.png", "b1", 5),
    removal("images/benign/b.png", 15, latest=True),
    version("images/benign/c.png", "c1", 0),
    removal("images/benign/c.png", 5),
    version("images/benign/c.png", "c2", 20, latest=True),
]


@pytest.mark.parametrize(
    ("minutes", "versions"),
    [
        (-1, []),
        (0, ["a1", "c1"]),
        (5, ["a1", "b1"]),
        (10, ["a2", "b1"]),
        (15, ["a2"]),
        (20, ["a2", "c2"]),
        (None, ["a2", "c2"]),
    ],
)
def test_with_versions_a_past_moment_is_exact(minutes: int | None, versions: list[str]) -> None:
    as_of = None if minutes is None else NOON + timedelta(minutes=minutes)
    for entries in (HISTORY, HISTORY[::-1]):
        assert [image.version_id for image in listing(*entries, versioned=True, as_of=as_of).images] == versions


def test_within_one_second_the_latest_version_is_certain() -> None:
    put, gone = version("images/benign/a.png", "a1", 0), removal("images/benign/a.png", 0, latest=True)
    assert not listing(put, gone, versioned=True, as_of=NOON).images
    put, gone = version("images/benign/a.png", "a1", 0, latest=True), removal("images/benign/a.png", 0)
    assert len(listing(gone, put, versioned=True, as_of=NOON).images) == 1


def test_newest_is_when_an_image_was_last_written_or_removed() -> None:
    assert listing(entry("images/benign/a_mask.png")).newest is None
    assert listing(*HISTORY[:4], versioned=True).newest == NOON + timedelta(minutes=15)
    assert listing(entry("images/benign/a.png"), entry("images/x.txt", NOON + timedelta(1))).newest == NOON


def test_moments_are_told_in_utc() -> None:
    tokyo = timezone(timedelta(hours=9))
    [image] = listing(entry("images/benign/a.png", datetime(2026, 11, 22, 21, tzinfo=tokyo))).images
    assert image.last_modified == NOON
    assert image.last_modified.tzinfo is timezone.utc


def test_the_digest_is_over_key_version_and_label_in_the_order_of_keys() -> None:
    images = [row("images/benign/a.png", "e1"), row("images/normal/b.png", "e2", "v2", "normal")]
    expected = hashlib.sha256(b"images/benign/a.png\0e1\0benign\nimages/normal/b.png\0v2\0normal\n").hexdigest()
    assert digest_of_images(images) == expected


@given(st.permutations(HISTORY))
def test_the_order_of_the_listing_does_not_matter(entries: list[dict[str, Any]]) -> None:
    assert listing(*entries, versioned=True) == listing(*HISTORY, versioned=True)


def test_objects_from_before_versions_were_kept_are_the_same_images() -> None:
    before, after = row("images/benign/a.png", "e", ""), row("images/benign/a.png", "e", "null")
    assert digest_of_images([before]) == digest_of_images([after])
    assert compare([before], [after]).total == 0
    assert compare([after], [row("images/benign/a.png", "other", "null")]).changed == 1


def test_what_changed_is_counted_by_kind() -> None:
    before = [row("a"), row("b"), row("c", "e1"), row("d", "e", "v1")]
    now = [row("b"), row("c", "e2"), row("d", "e", "v2"), row("x"), row("y")]
    change = compare(before, now)
    assert (change.added, change.changed, change.removed, change.total) == (2, 2, 1, 5)
    assert change.examples == {"added": ("x", "y"), "changed": ("c", "d"), "removed": ("a",)}


@given(
    st.dictionaries(st.text("abc", max_size=3), st.sampled_from("12")),
    st.dictionaries(st.text("abc", max_size=3), st.sampled_from("12")),
)
def test_walking_side_by_side_sees_what_a_lookup_sees(before: dict[str, str], now: dict[str, str]) -> None:
    change = compare(
        [row(key, etag) for key, etag in sorted(before.items())], [row(key, etag) for key, etag in sorted(now.items())]
    )
    changed = sum(before[key] != now[key] for key in before.keys() & now.keys())
    assert (change.added, change.changed, change.removed) == (
        len(now.keys() - before.keys()),
        changed,
        len(before.keys() - now.keys()),
    )


def test_the_moment_of_a_listing_has_whole_seconds_and_holds_all_that_it_saw() -> None:
    assert moment_of(NOON, None) == NOON
    assert moment_of(NOON + timedelta(microseconds=1), None) == NOON + timedelta(seconds=1)
    assert moment_of(NOON, NOON + timedelta(seconds=90)) == NOON + timedelta(seconds=90)
    assert moment_of(NOON, NOON - timedelta(days=1)) == NOON


def test_the_rules_are_those_of_the_settings_and_the_run() -> None:
    settings = Settings(images_prefix="/scans/", classes=("a", "b"), positive_class="a")
    rules = ImageRules.of(settings, RetrainingConfig.resolve({"ignore_patterns": "*_mask*, *.tmp.png"}))
    assert rules == ("scans", ("a", "b"), ("*_mask*", "*.tmp.png"), 64_000_000)


def test_the_configuration_says_where_each_parameter_came_from() -> None:
    config = RetrainingConfig.resolve({"preset": "notebook", "epochs": 3, "seed": 20261122, "batch_size": None})
    document = describe_config(config, "manual__x", "manual")
    assert document.config.epochs == 3
    assert document.origins["epochs"] == "given"
    assert document.origins["image_size"] == "preset"
    assert document.origins["seed"] == "default"
    other_gate = RetrainingConfig.resolve({"preset": "notebook", "epochs": 3, "min_macro_auc": 0.5})
    assert describe_config(other_gate, "manual__x", "manual").digest == document.digest
    other_fit = RetrainingConfig.resolve({"preset": "notebook", "epochs": 4})
    assert describe_config(other_fit, "manual__x", "manual").digest != document.digest


def test_an_object_too_large_for_an_image_is_ignored_with_the_reason():
    builder = ListingBuilder(RULES._replace(max_bytes=1_000_000), versioned=False)
    for name, size in (("huge", 5 * 10**12), ("just", 1_000_000), ("over", 1_000_001)):
        builder.add({"Key": f"images/benign/{name}.png", "Size": size, "ETag": '"e"', "LastModified": datetime.now(timezone.utc)})
    listing = builder.build()
    assert [image.key for image in listing.images] == ["images/benign/just.png"]
    assert [(one.reason, one.count) for one in listing.ignored] == [("larger than 1 MB", 2)]


def test_one_object_dated_in_the_future_is_told_and_makes_no_model_of_then() -> None:
    now = datetime(2026, 11, 22, 2, tzinfo=timezone.utc)
    assert moment_of(now, now + timedelta(minutes=59)) == now + timedelta(minutes=59)
    with pytest.raises(DatedInTheFuture, match=r"an image is dated 2099-01-01 .* and it is 2026-11-22 02:00:00 UTC here"):
        moment_of(now, datetime(2099, 1, 1, tzinfo=timezone.utc))


def test_the_metadata_table_is_neither_an_image_nor_ignored_and_is_no_news() -> None:
    images = [entry("images/benign/a.png"), entry("images/malignant/metadata.csv")]
    without = listing(*images)
    found = listing(*images, entry("images/metadata.csv", NOON + timedelta(days=1)), entry("images/metadata.parquet"))
    assert [table.key for table in found.tables] == ["images/metadata.parquet", "images/metadata.csv"]
    assert (found.digest, found.newest, found.ignored) == (without.digest, NOON, without.ignored)


def test_a_past_moment_has_its_own_table_only_where_versions_are_kept() -> None:
    table = [version("images/metadata.csv", "t2", minutes=9, latest=True), version("images/metadata.csv", "t1", minutes=0)]
    assert [one.version_id for one in listing(*table, versioned=True, as_of=NOON).tables] == ["t1"]
    assert listing(removal("images/metadata.csv", minutes=2), *table[1:], versioned=True).tables == ()
    later = entry("images/metadata.csv", NOON + timedelta(minutes=9))
    assert [one.last_modified for one in listing(later, as_of=NOON).tables] == [NOON + timedelta(minutes=9)]
