from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bcc_ops.dataset import decoding, image_content, marks, text_reader
from bcc_ops.dataset.inspection_cache import InspectionCache
from bcc_ops.dataset.marks import Mark
from bcc_ops.dataset.resources import MemoryBudget
from bcc_ops.dataset.text_reader import Line
from bcc_ops.runs.rows import ContentRow


class Reserved(MemoryBudget):
    """A budget that notes what it was asked for, in bytes."""

    def __init__(self, size):
        super().__init__(size)
        self.asked = []

    def reserve(self, wanted):
        self.asked.append(wanted)
        return super().reserve(wanted)


@pytest.fixture
def gray_image(tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(np.random.default_rng(3).integers(40, 90, (80, 90), np.uint8)).save(path)
    return path


@pytest.fixture
def looked(monkeypatch):
    """The files that were decoded and looked at."""
    seen = []

    def find(rgb, *, read):
        seen.append(rgb.shape)
        return frozenset({"axilla"} if read else {"calipers"})

    monkeypatch.setattr(image_content, "find_content", find)
    monkeypatch.setattr(text_reader, "can_read", lambda: True)
    return seen


def row(sha256, findings):
    return ContentRow("k", "benign", sha256, 90, 80, "RGB", 60, 30, False, sha256, "", findings=findings)


def test_a_content_is_looked_at_once(tmp_path, gray_image, looked):
    with InspectionCache(tmp_path / "memory") as memory:
        for _ in range(2):
            assert image_content.find_in_contents({"a": gray_image}, (), memory, 1) == {"a": "2t axilla"}
    assert looked == [(80, 90, 3)]


@pytest.mark.parametrize("can_read", [True, False])
def test_the_memory_of_looking_is_reserved_besides_that_of_the_image(tmp_path, gray_image, looked, monkeypatch, can_read):
    budget = Reserved(10**9)
    monkeypatch.setattr(decoding, "IMAGES", budget)
    monkeypatch.setattr(text_reader, "can_read", lambda: can_read)
    with InspectionCache(tmp_path / "memory") as memory:
        image_content.find_in_contents({"a": gray_image}, (), memory, 1)
    image = decoding.BYTES_PER_PIXEL * 80 * 90 + gray_image.stat().st_size
    assert budget.asked == [image + (text_reader.memory_to_read(80, 90) if can_read else marks.memory_to_find(80, 90))]


def test_large_images_are_looked_at_on_copies_of_a_bounded_size():
    """A pixel takes 37 bytes at the peak, 24 of which decoding has reserved."""
    assert marks.memory_to_find(1000, 1000) == 14_000_000
    assert marks.memory_to_find(5000, 5000) == marks.memory_to_find(1600, 1600)


@pytest.mark.parametrize(("height", "width"), [(1600, 1600), (1600, 40), (30, 1600), (8, 8)])
def test_reading_takes_more_memory_than_finding_marks(height, width):
    """So that the memory of one of them is enough: they do not happen at the same time."""
    assert text_reader.memory_to_read(height, width) > marks.memory_to_find(height, width)


def test_what_an_earlier_run_found_is_not_looked_for_on_another_worker(tmp_path, gray_image, looked):
    with InspectionCache(tmp_path / "memory") as memory:
        found = image_content.find_in_contents({"a": gray_image}, [row("a", "2t device"), row("b", "2t")], memory, 1)
    assert found == {"a": "2t device"} and looked == []


@pytest.mark.parametrize("before", ["", "1t device", "2 calipers"])
def test_what_another_method_or_no_reader_found_is_looked_at_again(tmp_path, gray_image, looked, before):
    with InspectionCache(tmp_path / "memory") as memory:
        assert image_content.find_in_contents({"a": gray_image}, [row("a", before)], memory, 1) == {"a": "2t axilla"}


@pytest.mark.parametrize("can_read", [True, False])
def test_what_was_read_counts_before_what_was_only_looked_at(tmp_path, gray_image, looked, monkeypatch, can_read):
    monkeypatch.setattr(text_reader, "can_read", lambda: can_read)
    with InspectionCache(tmp_path / "memory") as memory:
        memory.remember_findings([("a", "1"), ("b", "2t axilla")])
        told = [row("a", "2t axilla"), row("b", "1")]
        found = image_content.find_in_contents({"a": gray_image, "b": gray_image}, told, memory, 1)
    assert found == {"a": "2t axilla", "b": "2t axilla"} and looked == []


def test_without_a_reader_marks_are_found_and_text_of_earlier_runs_is_kept(tmp_path, gray_image, looked, monkeypatch):
    monkeypatch.setattr(text_reader, "can_read", lambda: False)
    with InspectionCache(tmp_path / "memory") as memory:
        paths = {"a": gray_image, "b": gray_image}
        assert image_content.find_in_contents(paths, [row("b", "2t axilla")], memory, 1) == {"a": "2 calipers", "b": "2t axilla"}


def test_the_strokes_of_a_word_are_no_calipers_and_a_calipers_number_is_no_text(monkeypatch):
    rgb = np.random.default_rng(3).integers(40, 90, (200, 200, 3), np.uint8)
    word, number = Line("BREAST", 20, 20, 90, 40), Line("14", 100, 100, 130, 130)
    in_word, in_number = Mark(38, 18, 24, 24), Mark(103, 103, 24, 24)
    monkeypatch.setattr(text_reader, "read_lines", lambda _: [word, number])
    monkeypatch.setattr(marks, "find_calipers", lambda *_: [in_word])
    assert image_content.find_content(rgb, read=True) == {"position", "unread_text"}
    monkeypatch.setattr(marks, "find_calipers", lambda *_: [in_word, in_number])
    assert image_content.find_content(rgb, read=True) == {"position", "calipers"}
