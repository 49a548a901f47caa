from __future__ import annotations

import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.decoding import Box, box_in_square, decode_image, decode_rgb, fit_square, read_image_file
from bcc_ops.exceptions import DataError, ImageRefused, OutOfResources
from tests.conftest import REPOSITORY
from tests.factories.hostile_images import hostile_files
from tests.unit.dataset.broken_images import MAX_PIXELS, MIN_SIDE, broken_files, chunk, encoded, picture, png_promising

BROKEN = list(broken_files())


def test_there_are_fifty_different_defects():
    assert len({name for name, _, _ in BROKEN}) == 50


@pytest.mark.parametrize(("content", "reason"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_file_is_refused_for_the_right_reason(tmp_path, content, reason):
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(ImageRefused) as caught:
        decode_image(read_image_file(path), MIN_SIDE, MAX_PIXELS)
    assert caught.value.reason == reason, caught.value
    assert caught.value.detail
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)  # an object's address says nothing to people and differs from run to run
    assert isinstance(caught.value, DataError)


def test_a_bomb_is_refused_by_its_header_without_unpacking(monkeypatch):
    def unpack(*_):
        raise AssertionError("pixels were unpacked")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", unpack)
    with pytest.raises(ImageRefused, match="too large: 1001 x 1000"):
        decode_image(png_promising(1001, 1000), max_pixels=1_000_000)


@pytest.mark.parametrize(("width", "reason"), [(50_000, "damaged"), (50_001, "too large")])
def test_what_a_run_may_admit_is_not_too_large_for_the_steps_after_it(width, reason):
    with pytest.raises(ImageRefused) as refused:
        decode_rgb(png_promising(width, 1000))
    assert refused.value.reason == reason


def test_the_content_decides_not_the_name(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(picture(), "BMP"))
    assert np.array_equal(decode_rgb(path), np.asarray(picture()))


@pytest.mark.parametrize(("mode", "noted"), [("L", "L"), ("P", "P"), ("RGBA", "RGBA"), ("LA", "LA"), ("1", "1"), ("RGB", "RGB")])
def test_other_colour_modes_become_rgb_and_are_noted(mode, noted):
    image = picture(mode=mode)
    decoded = decode_image(encoded(image))
    assert decoded.mode == noted
    assert decoded.rgb.dtype == np.uint8
    assert np.array_equal(decoded.rgb, np.asarray(image.convert("RGB")))


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    decoded = decode_image(encoded(image, "JPEG", quality=100))
    assert decoded.mode == "CMYK"
    red, green, blue = decoded.rgb.mean(axis=(0, 1))
    assert red > 250
    assert max(green, blue) < 5


def test_sixteen_bits_are_scaled_and_not_cut_off():
    values = np.array([[0, 257, 32768, 65535]] * 4, dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values)))
    assert decoded.mode == "L;16"
    assert decoded.rgb[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_colour_is_noted():
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)

    row = b"\0" + struct.pack(">6H", 0, 257 * 7, 65535, 65535, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    decoded = decode_image(content)
    assert decoded.mode == "RGB;16"
    assert decoded.rgb.tolist() == [[[0, 7, 255], [255, 0, 0]]]


def test_transparent_pixels_lie_on_black():
    image = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    image.putpixel((0, 0), (200, 100, 50, 255))
    rgb = decode_rgb(encoded(image))
    assert rgb[0, 0].tolist() == [200, 100, 50]
    assert rgb[1, 1].tolist() == [0, 0, 0]


def test_a_palette_with_transparency_is_read_without_a_warning():
    image = picture(mode="P")
    rgb = decode_rgb(encoded(image, transparency=bytes([255] * 256)))
    assert np.array_equal(rgb, np.asarray(image.convert("RGB")))


def test_an_exif_orientation_is_applied():
    image = picture(size=(40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    turned = decode_rgb(encoded(image, exif=exif))
    assert np.array_equal(turned, np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize(("keep_aspect", "shown"), [(False, slice(0, 10)), (True, slice(2, 7))])
def test_resizing_keeps_the_mean_of_what_it_shrinks(keep_aspect, shown):
    stripes = np.zeros((100, 200, 3), np.uint8)
    stripes[:, ::2] = 255
    small = fit_square(stripes, 10, keep_aspect=keep_aspect)
    assert small.shape == (10, 10, 3)
    assert np.abs(small[shown].astype(int) - 127).max() <= 2  # without antialiasing it would be 0 or 255


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_resizing_to_the_same_size_changes_nothing(keep_aspect):
    rgb = np.asarray(picture(size=(32, 32)))
    assert np.array_equal(fit_square(rgb, 32, keep_aspect=keep_aspect), rgb)


@pytest.mark.parametrize("side", [20, 50])
def test_a_square_image_is_the_same_whether_its_aspect_is_kept_or_not(side):
    rgb = np.asarray(picture(size=(32, 32)))
    assert np.array_equal(fit_square(rgb, side, keep_aspect=True), fit_square(rgb, side, keep_aspect=False))


@pytest.mark.parametrize(
    ("width", "height", "side", "box"),
    [
        (200, 100, 100, Box(25, 75, 0, 100)),  # 50 rows, 25 black ones above and below
        (100, 200, 100, Box(0, 100, 25, 75)),
        (100, 55, 100, Box(22, 77, 0, 100)),  # 45 rows of padding: 22 above, 23 below
        (55, 100, 100, Box(0, 100, 22, 77)),
        (8, 1, 20, Box(8, 11, 0, 20)),  # 2.5 rows are 3
        (1000, 10, 256, Box(126, 129, 0, 256)),  # 2.56 rows are 3
        (10, 1000, 256, Box(0, 256, 126, 129)),
        (1000, 1, 100, Box(49, 50, 0, 100)),  # 0.1 rows are 1
        (1000, 999, 100, Box(0, 100, 0, 100)),
        (2, 1, 100, Box(25, 75, 0, 100)),  # tiny images grow
        (1, 1, 100, Box(0, 100, 0, 100)),
    ],
)
def test_an_image_whose_aspect_is_kept_lies_in_the_middle_of_black(width, height, side, box):
    white = np.full((height, width, 3), 255, np.uint8)
    expected = np.zeros((side, side, 3), np.uint8)
    expected[box.top : box.bottom, box.left : box.right] = 255
    assert np.array_equal(fit_square(white, side, keep_aspect=True), expected)
    assert box_in_square(white.shape, side, keep_aspect=True) == box
    assert fit_square(white, side, keep_aspect=False).min() == 255
    assert box_in_square(white.shape, side, keep_aspect=False) == Box(0, side, 0, side)


def test_the_readme_tells_users_of_the_file_how_to_make_the_same_square(tmp_path):
    (recipe,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    rng = np.random.default_rng(0)
    for width, height, side in [(200, 100, 100), (55, 100, 100), (8, 1, 20), (1000, 10, 256), (471, 562, 256), (3, 3, 7)]:
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / "scan.png")
        for keep_aspect in (True, False):
            named = {"path": tmp_path / "scan.png", "image_size": side, "keep_aspect": keep_aspect}
            exec(recipe, named)
            expected = fit_square(decode_rgb(tmp_path / "scan.png"), side, keep_aspect=keep_aspect)
            assert np.array_equal(named["pixels"], expected[None]), (width, height, side, keep_aspect)


def test_hostile_files_are_refused_at_a_runs_defaults():
    """In one test: as parameters, they would be made by every worker of a test run, which takes seconds."""
    config = RetrainingConfig.resolve({})
    expected, refused = {}, {}
    for name, content, reason in hostile_files():
        expected[name] = reason
        try:
            decode_image(content, config.min_side, config.max_pixels)
        except ImageRefused as error:
            refused[name] = error.reason
    assert refused == expected and len(expected) == 21


def test_a_decoder_without_memory_says_nothing_about_the_image(monkeypatch):
    monkeypatch.setattr("bcc_ops.dataset.decoding._to_rgb", lambda image: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(OutOfResources, match="memory does not suffice"):
        decode_image(encoded(picture()))


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(5 * 10**12)
    with pytest.raises(ImageRefused, match="too large: 5,000,000,000,000 bytes"):
        decode_rgb(path)


@pytest.mark.parametrize(("chunks", "reason"), [(1, None), (2, "damaged")])
def test_text_that_unpacks_to_more_than_a_megabyte_is_refused(chunks, reason):
    """60 such chunks in a file of 74 KB took 0.8 GB, for which nothing was reserved."""
    text = chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"a" * 1_000_000))
    content = encoded(picture())
    content = content[:33] + text * chunks + content[33:]
    if reason is None:
        assert decode_rgb(content).shape == (80, 96, 3)
    else:
        with pytest.raises(ImageRefused) as refused:
            decode_rgb(content)
        assert refused.value.reason == reason
