from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from bcc_ops.dataset import text_reader

pytestmark = pytest.mark.skipif(not text_reader.can_read(), reason="RapidOCR is not installed")


def page(*lines, size=(500, 400), font=20):
    image = Image.new("RGB", size, (20, 20, 20))
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((30, 20 + number * (font + 8)), line, (230, 230, 230), ImageFont.load_default(font))
    return np.array(image)


def test_a_line_is_read_and_its_box_holds_it():
    (line,) = text_reader.read_lines(page("RT AXILLA"))
    assert line.text.replace(" ", "") == "RTAXILLA"
    assert 15 <= line.left <= 35 and 10 <= line.top <= 30 and line.right > 100 and line.bottom < 60


def test_no_more_lines_are_read_than_the_limit(monkeypatch):
    monkeypatch.setattr(text_reader, "MOST_LINES", 2)
    assert len(text_reader.read_lines(page("LEFT BREAST", "RIGHT BREAST", "LOGIQ", "AXILLA"))) == 2


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 900, 3), (900, 8, 3), (64, 64, 3)])
def test_an_image_of_any_shape_without_text_gives_no_line(shape):
    assert text_reader.read_lines(np.full(shape, 60, np.uint8)) == []


def test_threads_that_read_together_load_the_engines_once(monkeypatch):
    import rapidocr

    text_reader._engines.cache_clear()
    made, build = [], rapidocr.RapidOCR
    monkeypatch.setattr(rapidocr, "RapidOCR", lambda **given: made.append(given) or build(**given))
    together = Barrier(4)

    def read_together(_):
        together.wait()
        return text_reader.read_lines(page("RT AXILLA"))

    with ThreadPoolExecutor(4) as pool:
        read = [*pool.map(read_together, range(4))]
    assert len(made) == 2  # one that finds lines, one that reads them
    assert all(lines == read[0] and len(lines) == 1 for lines in read)
