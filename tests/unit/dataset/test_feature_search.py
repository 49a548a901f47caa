"""A search that goes on from the last one finds what a search from the beginning finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcc_ops.dataset import feature_search
from bcc_ops.dataset.feature_search import FeatureSearch, extend_search, search_features
from bcc_ops.dataset.fingerprints import Fingerprint

WORDS = np.random.default_rng(0).integers(0, 256, (40, 32), dtype=np.uint8)
"""Descriptors that images have in common; each is far from all others."""


def image(words: list[int], shift: tuple[int, int] = (0, 0), scale: float = 1.0) -> Fingerprint:
    """Return an image that shows some of the words, each at a place of its own, all shifted and scaled alike."""
    places = np.array([((7 * word) % 97 * scale + shift[0], (11 * word) % 89 * scale + shift[1], scale) for word in words])
    return Fingerprint.of("", bytes(8), places.reshape(-1, 3).astype(np.float32), WORDS[words].reshape(-1, 32))


def test_images_agree_whose_common_features_are_arranged_alike() -> None:
    marks = {
        "a": image([0, 1, 2, 3, 4, 5]),
        "b": image([0, 1, 2, 3, 4, 5, 9], shift=(30, 12)),
        "c": image([0, 1, 2, 3, 4]),  # five votes are not enough
        "d": image([10, 11, 12, 13, 14, 15]),
    }
    marks["e"] = Fingerprint.of("", bytes(8), marks["a"].features().points[::-1].copy(), marks["a"].features().descriptors)
    assert search_features(marks).pairs == {("a", "b")}


def test_which_of_two_images_has_the_smaller_digest_does_not_decide_whether_they_agree() -> None:
    """Of the candidates among 1,557 real scans, 12 of 354 hung on it; one of them is a near-duplicate."""
    small, large = image([0, 1, 2, 3, 4, 5]), image([0, 1, 2, 3, 4, 5], shift=(-32, 0), scale=2)
    large.features().points[::2, 0] += 26  # more than a cell of the large image, and half a cell of the small one
    assert search_features({"a": small, "b": large}).pairs == search_features({"a": large, "b": small}).pairs == {("a", "b")}


def test_what_too_many_images_have_in_common_tells_nothing() -> None:
    marks = {f"{number:02}": image([0, 1, 2, 3, 4, 5]) for number in range(21)}
    assert search_features(marks).pairs == frozenset()
    del marks["20"]
    assert len(search_features(marks).pairs) == 20 * 19 / 2


def test_a_search_of_nothing_finds_nothing() -> None:
    assert search_features({}) == FeatureSearch()
    assert extend_search(None, {}, lambda sha256: None) == FeatureSearch()


images = st.lists(st.integers(0, 11), max_size=12, unique=True)
libraries = st.dictionaries(st.sampled_from([f"{number:02}" for number in range(12)]), images, min_size=4)


@pytest.mark.parametrize("at_once", [2, 1000])
@settings(max_examples=60, deadline=None)
@given(before=libraries, now=libraries)
def test_a_search_that_goes_on_finds_what_one_from_the_beginning_finds(at_once: int, before: dict, now: dict) -> None:
    """With buckets so small that new images fill them, and images that go empty them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_search, "ALIKE_AT_MOST", 3)
        patch.setattr(feature_search, "_LEAST_VOTES", 2)
        patch.setattr(feature_search, "_IMAGES_AT_ONCE", at_once)
        patch.setattr(feature_search, "_WORTH_EXTENDING", 100)
        before = {name: image(words, shift=(int(name), 0)) for name, words in before.items()}
        now = before | {name: image(words, shift=(int(name), 0)) for name, words in now.items() if name not in before}
        for name in list(now)[::3]:
            del now[name]
        found = extend_search(search_features(before), now, lambda sha256: before[sha256].features())
        assert found == search_features(now)


@settings(max_examples=60, deadline=None)
@given(library=libraries, at_once=st.integers(1, 40))
def test_votes_that_are_counted_in_parts_are_those_that_are_counted_at_once(library: dict, at_once: int) -> None:
    marks = {name: image(words, shift=(int(name) % 3 * 8, 0)) for name, words in library.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_search, "_LEAST_VOTES", 2)
        whole = search_features(marks)
        patch.setattr(feature_search, "_COUNTED_AT_ONCE", at_once)
        assert search_features(marks) == whole


@pytest.mark.parametrize(
    ("at_once", "parts"),
    [(1, [[1, 1], [4], [6, 6, 6]]), (2, [[1, 1], [4], [6, 6, 6]]), (4, [[1, 1, 4], [6, 6, 6]]), (9, [[1, 1, 4, 6, 6, 6]])],
)
def test_no_part_ends_within_an_images_matches(at_once: int, parts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_search, "_COUNTED_AT_ONCE", at_once)
    owners = np.array([1, 1, 4, 6, 6, 6])
    assert [owners[part].tolist() for part in feature_search._parts(owners)] == parts


def test_a_search_goes_on_only_if_it_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = {f"{number:02}": image([number]) for number in range(20)}
    before = search_features(marks)
    monkeypatch.setattr(feature_search, "search_features", lambda marks: "from the beginning")
    assert extend_search(before, marks, lambda sha256: None) is before
    assert extend_search(before, {**marks, "20": image([20])}, lambda sha256: None).contents[-1] == "20"
    less = {name: mark for name, mark in marks.items() if name != "00"}
    assert extend_search(before, less, lambda sha256: None) == "from the beginning"  # nobody knows the features of what is gone
    assert extend_search(before, less, lambda sha256: marks[sha256].features()).contents == tuple(less)
    many = {f"{number:02}": image([number]) for number in range(30)}
    assert extend_search(before, many, lambda sha256: None) == "from the beginning"
