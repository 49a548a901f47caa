"""Which new images are shared out, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcc_ops.config import NO_FINDINGS, RetrainingConfig
from bcc_ops.dataset import inspection_slices, text_reader
from bcc_ops.dataset.inspection_cache import ContentFacts, InspectionCache
from bcc_ops.dataset.inspection_slices import MOST_SLICES, PER_SLICE, cut_slices, not_inspected
from bcc_ops.runs.rows import ContentRow

CONFIG = RetrainingConfig.resolve({})
IGNORING = RetrainingConfig.resolve({"content_findings": NO_FINDINGS})


def row(sha256: str, findings: str = "", refused: str = "") -> ContentRow:
    return ContentRow("k", "benign", sha256, 90, 80, "RGB", 60, 30, False, sha256, refused, findings=findings)


def left(
    contents: str, tmp_path: Path, *previous: ContentRow, config: RetrainingConfig = CONFIG, **known: dict[str, Any]
) -> set[str]:
    with InspectionCache(tmp_path / "contents.sqlite3") as memory:
        memory.remember(known.get("facts", {}).items(), config.min_side, config.max_pixels)
        memory.remember_findings(known.get("findings", {}).items())
        return set(not_inspected(set(contents), previous, memory, config))


@pytest.fixture(autouse=True)
def _with_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_reader, "can_read", lambda: True)


def test_what_was_looked_at_here_or_by_an_earlier_run_is_left_out(tmp_path: Path) -> None:
    assert left("abcde", tmp_path, row("a", "2t"), row("b", "1t"), findings={"c": "2t axilla", "d": "2"}) == {"b", "d", "e"}


def test_a_refused_image_is_left_out_wherever_it_was_refused(tmp_path: Path) -> None:
    """That it is refused is not shared, so another worker would learn it for nothing."""
    facts = {"a": ContentFacts(reason="truncated"), "b": ContentFacts(width=90, height=80)}
    assert left("abcd", tmp_path, row("c", refused="too small"), row("d", "1t", refused="content finding"), facts=facts) == {
        "b",
        "d",
    }


def test_where_findings_are_ignored_the_facts_count(tmp_path: Path) -> None:
    facts = {"a": ContentFacts(width=90, height=80)}
    assert left("abc", tmp_path, row("b"), config=IGNORING, facts=facts) == {"c"}


def test_slices_hold_equally_many_new_contents_and_leave_out_what_is_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection_slices, "PER_SLICE", 2)
    contents = ["known", "a", None, "b", "a", "c", "known", "d", "e", "b", "known"]
    assert cut_slices(contents, {"a", "b", "c", "d", "e"}) == [(1, 2), (3, 6), (7, 9)]
    assert cut_slices(contents, {"a", "b"}) == []
    assert cut_slices(contents, set()) == []


@pytest.mark.parametrize(
    ("new", "slices"), [(PER_SLICE, 0), (PER_SLICE + 1, 2), (100_000, MOST_SLICES)], ids=["one slice", "two", "very many"]
)
def test_a_night_has_no_slice_or_several_and_a_first_night_not_hundreds(new: int, slices: int) -> None:
    contents = [str(number) for number in range(new)]
    assert len(cut_slices(contents, set(contents))) == slices


@given(st.lists(st.sampled_from([None, *"abcdefghij"]), max_size=40), st.frozensets(st.sampled_from("abcdefghij")))
def test_every_new_content_is_in_a_slice_and_no_image_in_two(contents: list[str | None], new: frozenset[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection_slices, "PER_SLICE", 2)
        slices = cut_slices(contents, new)
    positions = [position for start, stop in slices for position in range(start, stop)]
    assert positions == sorted(set(positions))
    if slices:
        assert {contents[position] for position in positions} >= new & set(contents)
        per_slice = [len(new & set(contents[start:stop]) - set(contents[:start])) for start, stop in slices]
        assert max(per_slice) <= 2 and max(per_slice) - min(per_slice) <= 1
    else:
        assert len(new & set(contents)) <= 2
