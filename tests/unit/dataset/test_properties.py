from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bcc_ops.dataset.decoding import decode_image
from bcc_ops.dataset.fingerprints import to_gray
from bcc_ops.dataset.properties import Properties, measure_properties
from bcc_ops.runs.rows import ContentRow


def measured(image: Image.Image, kind: str = "PNG", **options) -> Properties:
    content = io.BytesIO()
    image.save(content, kind, **options)
    decoded = decode_image(content.getvalue())
    return measure_properties(decoded, to_gray(decoded.rgb), len(content.getvalue()))


def gray(width: int = 200, height: int = 100) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 90, 90))


def test_the_rows_of_a_run_have_the_same_fields():
    assert set(Properties._fields) <= set(ContentRow._fields)


def test_a_blank_border_is_measured_on_each_side():
    image = gray()
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 49, 99), fill=(0, 0, 0))
    draw.rectangle((0, 90, 199, 99), fill=(255, 255, 255))
    found = measured(image)
    assert (found.border_left, found.border_right, found.border_top, found.border_bottom) == pytest.approx((0.25, 0, 0, 0.1))
    assert (found.rim_left, found.rim_top) == pytest.approx((25.5, 67.5))


def test_the_corners_of_a_sector_are_blank():
    image = Image.new("RGB", (200, 100))
    ImageDraw.Draw(image).polygon([(100, 0), (0, 99), (199, 99)], fill=(90, 90, 90))
    found = measured(image)
    assert found.corners_top == 1.0
    assert found.corners_bottom < 0.7
    assert measured(gray()).corners_top == 0.0


def test_coloured_pixels_are_counted():
    image = gray()
    ImageDraw.Draw(image).rectangle((0, 0, 199, 9), fill=(200, 100, 50))
    found = measured(image)
    assert (found.coloured, found.saturation) == pytest.approx((0.1, 15.0))
    assert measured(gray()).coloured == 0.0


def test_text_near_the_edge_is_told_from_a_scan_without_it():
    image = gray(400, 300)
    speckled = Image.fromarray(np.random.default_rng(1).integers(60, 140, (300, 400), dtype=np.uint8)).convert("RGB")
    assert measured(image).strokes == measured(speckled).strokes == 0.0
    ImageDraw.Draw(speckled).text((10, 10), "Breast L 12:30", fill=(255, 255, 255))
    assert measured(speckled).strokes > 0.001
    ImageDraw.Draw(image).text((150, 150), "in the middle", fill=(255, 255, 255))
    assert measured(image).strokes == 0.0


def test_an_image_of_one_row_is_measured():
    assert measured(Image.new("L", (300, 1))).border_left == 1.0


def test_the_file_is_described():
    assert measured(gray()).file_format == "PNG"
    assert measured(gray()).quantization == 0.0
    fine, coarse = (measured(gray(), "JPEG", quality=quality) for quality in (95, 40))
    assert fine.file_format == "JPEG"
    assert coarse.quantization > 3 * fine.quantization > 0
    assert measured(gray(), "BMP").file_bytes == 200 * 100 * 3 + 54
