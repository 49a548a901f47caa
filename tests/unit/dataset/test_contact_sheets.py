"""Sheets of images side by side. Which images they show is tested with `folder_check`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from bcc_ops.dataset.contact_sheets import draw_sheet


def test_a_sheet_has_a_row_per_caption_and_each_image_whole_in_its_cell(tmp_path: Path) -> None:
    files = {}
    for name, colour, size in (
        ("wide", (255, 0, 0), (900, 300)),
        ("small", (0, 255, 0), (40, 30)),
        ("tall", (0, 0, 255), (99, 900)),
    ):
        files[name] = tmp_path / f"{name}.png"
        Image.new("RGB", size, colour).save(files[name])
    rows = [("two", [("wide", files["wide"]), ("small", files["small"])]), ("one", [("tall", files["tall"])])]
    with Image.open(draw_sheet(rows, tmp_path / "sheet.png")) as sheet:
        assert sheet.size == (2 * 420, 2 * (340 + 36))
        assert sheet.getpixel((3, 36)) == (255, 0, 0) and sheet.getpixel((416, 36 + 137)) == (255, 0, 0)
        assert sheet.getpixel((417, 40)) == (255, 255, 255), "414 of 420 pixels are an image's"
        assert sheet.getpixel((420 + 42, 36 + 29)) == (0, 255, 0), "a small image is not enlarged"
        assert sheet.getpixel((420 + 43, 36 + 29)) == (255, 255, 255)
        assert sheet.getpixel((3, 376 + 36)) == (0, 0, 255) and sheet.getpixel((3, 376 + 36 + 335)) == (0, 0, 255)
