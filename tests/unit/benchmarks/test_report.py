"""The sections of docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report import write_section


def test_a_section_is_replaced_and_the_others_are_kept(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "benchmarks.md"
    write_section("first", "## First\n\nold \\1 metric", page)
    write_section("second", "## Second", page)
    write_section("first", "## First\n\nnew \\1 metric", page)
    text = page.read_text()
    assert text.count("## First") == 1
    assert "old" not in text
    assert "new \\1 metric" in text
    assert text.index("<!-- /first -->") < text.index("<!-- second -->")
    assert text.count("Python 3.") == 2


def test_a_name_that_is_no_marker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="small letters"):
        write_section("a --> b", "## X", tmp_path / "page.md")
