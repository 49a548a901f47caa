from __future__ import annotations

import subprocess
import sys
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


READ_ONE = """
import re, sys, numpy as np
from bcc_ops.dataset.text_reader import memory_to_read, read_lines
def memory(kind):
    return 1024 * int(re.search(kind + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
height, width, least = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
image = np.random.default_rng(3).integers(0, 255, (height, width, 3), np.uint8)
if len(sys.argv) > 4:
    from PIL import Image, ImageDraw, ImageFont
    page = Image.new("RGB", (width, height))
    for top in range(2, height - 20, 32):
        ImageDraw.Draw(page).text((4, top), 20 * sys.argv[4], (255, 255, 255), ImageFont.load_default(20))
    image = np.array(page)
read_lines(np.zeros((64, 64, 3), np.uint8))
before = memory("VmRSS")
read_lines(image)
taken = memory("VmHWM") - before
assert taken < memory_to_read(height, width), taken
assert taken >= least * memory_to_read(height, width), taken
"""


@pytest.mark.parametrize(
    "given",
    [
        ("2048", "2048", "0.5"),
        ("64", "1024", "0"),  # padded to four times its height
        ("100", "100000", "0"),  # scaled down to one row of pixels, which RapidOCR would enlarge to hundreds of megabytes
        ("200", "1024", "0", "LEFT BREAST UPPER "),  # reading long lines takes more than finding them
    ],
)
def test_reading_takes_no_more_memory_than_it_says(given):
    done = subprocess.run([sys.executable, "-c", READ_ONE, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]


def test_as_much_memory_is_reserved_for_an_image_that_is_stored_lying_on_its_side():
    assert text_reader.memory_to_read(1024, 100) == text_reader.memory_to_read(100, 1024)


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
