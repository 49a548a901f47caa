"""Fifty files that no network should see, each broken in its own way, with the reason for which it must be refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

MIN_SIDE = 64
MAX_PIXELS = 1_000_000


def picture(seed: int = 0, size: tuple[int, int] = (96, 80), mode: str = "RGB") -> Image.Image:
    """A speckled picture, `size` as (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    """The image as a file's bytes."""
    sink = io.BytesIO()
    image.save(sink, file_format, **options)
    return sink.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_promising(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A tiny PNG whose header promises far more pixels than it holds: what a decompression bomb looks like."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def _animated(file_format: str, frames: int) -> bytes:
    first, *others = [picture(seed) for seed in range(frames)]
    return encoded(first, file_format, save_all=True, append_images=others, duration=100)


def _bmp_promising(width: int, height: int) -> bytes:
    content = bytearray(encoded(picture(), "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def _jpeg_promising(width: int, height: int) -> bytes:
    content = bytearray(encoded(picture(), "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def broken_files() -> Iterator[tuple[str, bytes, str]]:
    """Yield (file name, content, the reason that must be given), fifty of them."""
    png, jpeg, bmp = (encoded(picture(), kind) for kind in ("PNG", "JPEG", "BMP"))
    progressive = encoded(picture(1), "JPEG", progressive=True)
    gray = encoded(picture(2, mode="L"))
    pixels = png.index(b"IDAT") + 4

    yield "empty.png", b"", "empty"
    yield "empty.jpg", b"", "empty"
    yield "empty.bmp", b"", "empty"

    yield "text.png", b"this is not an image\n", "not an image"
    yield "page.jpg", b"<!doctype html><html><body>404 Not Found</body></html>", "not an image"
    yield "error.png", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "not an image"
    yield "zeros.png", bytes(4096), "not an image"
    yield "ones.jpg", b"\xff" * 4096, "not an image"
    yield "noise.bmp", b"\x01" + np.random.default_rng(3).bytes(4000), "not an image"
    yield "archive.png", b"PK\x03\x04" + bytes(500), "not an image"
    yield "one_byte.jpg", b"\x89", "not an image"
    yield "without_start.png", png[1:], "not an image"
    yield "line_ends_converted.png", png.replace(b"\r\n", b"\n", 1), "not an image"
    yield "dicom.png", bytes(128) + b"DICM" + bytes(500), "damaged"

    yield "still.gif.png", encoded(picture(), "GIF"), "unsupported format"
    yield "tiff.jpg", encoded(picture(), "TIFF"), "unsupported format"
    yield "webp.png", encoded(picture(), "WEBP"), "unsupported format"
    yield "ppm.bmp", encoded(picture(), "PPM"), "unsupported format"
    yield "icon.png", encoded(picture(), "ICO"), "unsupported format"
    yield "jpeg2000.jpg", encoded(picture(), "JPEG2000"), "unsupported format"

    yield "animated.png", _animated("PNG", 3), "animated"
    yield "two_frames.png", _animated("PNG", 2), "animated"
    yield "animated.gif.png", _animated("GIF", 4), "animated"
    yield "animated.webp.jpg", _animated("WEBP", 2), "animated"

    yield "narrow.png", encoded(picture(size=(63, 400))), "too small"
    yield "flat.jpg", encoded(picture(size=(400, 63)), "JPEG"), "too small"
    yield "dot.png", encoded(picture(size=(1, 1))), "too small"
    yield "thumbnail.bmp", encoded(picture(size=(16, 16)), "BMP"), "too small"

    yield "million_by_million.png", png_promising(1_000_000, 1_000_000), "too large"
    yield "just_over.png", png_promising(1001, 1000), "too large"
    yield "past_pillows_warning.png", png_promising(12_000, 10_000), "too large"
    yield "past_pillows_limit.png", png_promising(30_000, 30_000), "too large"
    yield "large_gray.png", png_promising(50_000, 50_000, 1, 0), "too large"
    yield "large.jpg", _jpeg_promising(60_000, 60_000), "too large"
    yield "large.bmp", _bmp_promising(20_000, 20_000), "too large"

    yield "half.png", png[: len(png) // 2], "truncated"
    yield "last_bytes_missing.png", png[:-20], "truncated"
    yield "header_only.png", png[:33], "truncated"
    yield "signature_only.png", png[:8], "truncated"
    yield "half_gray.png", gray[: len(gray) // 2], "truncated"
    yield "half.jpg", jpeg[: len(jpeg) // 2], "truncated"
    yield "half_progressive.jpg", progressive[: len(progressive) // 4], "truncated"
    yield "header_only.jpg", jpeg[:20], "truncated"
    yield "half.bmp", bmp[: len(bmp) // 2], "truncated"
    yield "header_only.bmp", bmp[:20], "truncated"

    yield "flipped_byte_in_pixels.png", _flipped(png, pixels + 2000), "damaged"
    yield "flipped_byte_in_header.png", _flipped(png, 20), "damaged"
    yield "flipped_crc.png", _flipped(png, pixels - 12), "damaged"
    yield "fewer_rows_than_promised.png", png_promising(96, 80), "damaged"
    yield "without_tables.jpg", jpeg[:2] + jpeg[jpeg.index(b"\xff\xc0") :], "damaged"
