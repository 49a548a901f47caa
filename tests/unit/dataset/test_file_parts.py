"""How many parts an image file may have, counted before it is opened."""

from __future__ import annotations

import pytest
from PIL import JpegImagePlugin

from bcc_ops.dataset.decoding import decode_rgb
from bcc_ops.dataset.file_parts import refuse_many_parts
from bcc_ops.exceptions import ImageRefused
from tests.factories.hostile_images import jpeg_beginning_with, jpeg_segment, png_beginning_with, png_chunk


def test_a_file_of_many_parts_is_not_even_opened(monkeypatch):
    def opened(*_):
        raise AssertionError("Pillow read its segments")

    content = jpeg_beginning_with(jpeg_segment(0xE1, b"Exif\0\0") * 65)
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "_open", opened)
    with pytest.raises(ImageRefused, match="too many parts: more than 64 Exif segments"):
        decode_rgb(content)


def test_files_of_as_many_parts_as_encoders_write_are_read():
    profile = b"".join(jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 255]) + bytes(60_000)) for n in range(1, 256))
    for segments in (profile, jpeg_segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(60_000)) * 200):
        assert decode_rgb(jpeg_beginning_with(segments)).shape == (96, 96, 3)
    assert decode_rgb(png_beginning_with(png_chunk(b"tEXt", b"k\0v") * 900)).shape == (200, 200, 3)


def test_a_png_as_large_as_any_with_pixel_data_in_chunks_of_8_kb_is_not_refused_for_its_parts():
    """libpng's own buffer has 8 KB, and `max_file_mb` goes up to 1024."""
    chunk_of_pixels = png_chunk(b"IDAT", bytes(8_192))
    signature = b"\x89PNG\r\n\x1a\n"
    refuse_many_parts(signature + chunk_of_pixels * (64_000_000 // len(chunk_of_pixels)))
    refuse_many_parts(signature + chunk_of_pixels * 4 + png_chunk(b"IEND", b""))


def test_a_file_of_many_bytes_beside_its_pixels_is_refused():
    """A PNG of 60 MB took 240 MB besides itself and a JPEG 116 MB, and only the file was reserved."""
    for content in (
        png_beginning_with(png_chunk(b"abCd", bytes(16_777_217))),
        png_beginning_with(png_chunk(b"abCd", bytes(9_000_000)) + png_chunk(b"eXIf", bytes(9_000_000))),
        jpeg_beginning_with(jpeg_segment(0xED, bytes(60_000)) * 280),
    ):
        with pytest.raises(ImageRefused, match="too many parts: more than 16,777,216 bytes beside the pixel data"):
            refuse_many_parts(content)


def test_a_chunk_that_is_cut_short_is_as_large_as_what_is_there():
    refuse_many_parts(png_beginning_with(b"\xff\xff\xff\xffabCd"))
