"""Files that an uploader could use to stop a night: each with the reason for which it must be left out.

`{file name: (content, reason)}`. The names are hostile too: markup, formulas, control characters, writing from right to left.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

BOMB_SIDE = 7_071
"""Side of a square of 50 million pixels: what earlier releases accepted."""


def png_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file, with its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def blank_png(width: int, height: int, colour: int = 0) -> bytes:
    """A blank PNG of any size in a few kilobytes. `colour`: 0 gray, 2 RGB, 6 RGBA."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    compressor = zlib.compressobj(9)
    row = b"\0" + bytes(width * channels)
    data = b"".join([*(compressor.compress(row) for _ in range(height)), compressor.flush()])
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def jpeg_of_many_scans(scans: int = 1_000, side: int = 1_200) -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition costs the decoder a pass over the whole image."""
    sink = io.BytesIO()
    Image.fromarray(np.full((side, side), 90, np.uint8)).save(sink, "JPEG", progressive=True, quality=30)
    content = sink.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


def png_with_a_text_bomb(megabytes: int = 60) -> bytes:
    """A PNG whose compressed comment unpacks to many megabytes."""
    info = PngImagePlugin.PngInfo()
    sink = io.BytesIO()
    Image.fromarray(np.full((96, 96), 90, np.uint8)).save(sink, "PNG", pnginfo=info)
    content = sink.getvalue()
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(megabytes * 1_000_000), 9))
    return content[:33] + bomb + content[33:]


def jpeg_segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG file: `marker` is the second byte of its mark."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_beginning_with(segments: bytes) -> bytes:
    """A small JPEG with these segments before all others."""
    sink = io.BytesIO()
    Image.fromarray(np.full((96, 96), 90, np.uint8)).save(sink, "JPEG")
    content = sink.getvalue()
    return content[:2] + segments + content[2:]


def png_beginning_with(chunks: bytes, pixel_bytes: int = 8_192) -> bytes:
    """A small gray PNG with these chunks before the pixel data, whose own chunks have so many bytes."""
    pixels = zlib.compress(b"".join(b"\0" + np.random.default_rng(row).bytes(200) for row in range(200)))
    data = (png_chunk(b"IDAT", pixels[start : start + pixel_bytes]) for start in range(0, len(pixels), pixel_bytes))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 200, 200, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + b"".join(data) + png_chunk(b"IEND", b"")


def files_of_many_parts() -> Iterator[tuple[str, bytes, str]]:
    """As `hostile_files`: small examples of what takes minutes, or gigabytes, in sixteen megabytes."""
    exif = jpeg_segment(0xE1, b"Exif\0\0" + bytes(100))
    yield "exif.jpg", jpeg_beginning_with(exif * 65), "too many parts"
    yield "comments.jpg", jpeg_beginning_with(jpeg_segment(0xFE, b"") * 1_001), "too many parts"
    yield "fill bytes.jpg", jpeg_beginning_with(b"\xff" * 70_000), "too many parts"
    yield "stray bytes.jpg", jpeg_beginning_with(jpeg_segment(0xFE, b"") + bytes(70_000)), "too many parts"
    # Pillow reads no length after this mark, and so reads what another reader takes for its body.
    yield "hidden.jpg", jpeg_beginning_with(jpeg_segment(0xF0, jpeg_segment(0xFE, b"") * 1_001)), "too many parts"
    frame = jpeg_segment(0xC0, struct.pack(">BHHB", 8, 96, 96, 3) + bytes(60_000))
    yield "frames.jpg", jpeg_beginning_with(frame * 2), "too many parts"
    yield "comments.png", png_beginning_with(png_chunk(b"tEXt", b"k\0v") * 1_001), "too many parts"
    yield "unknown.png", png_beginning_with(png_chunk(b"abCd", b"") * 1_001), "too many parts"
    yield "crumbs.png", png_beginning_with(b"", pixel_bytes=10), "too many parts"


def hostile_files() -> Iterator[tuple[str, bytes, str]]:
    """File name, content, and the reason for which the image checks must refuse it."""
    side = BOMB_SIDE
    for number in range(3):
        yield f"blank-{number}.png", blank_png(side, side - number), "too large"
    yield r"$\x$.png", blank_png(side, side, 2), "too large"
    yield "price $5_$ .png", blank_png(side, side, 6), "too large"
    yield "<script>alert(1)</script>.png", blank_png(16_000_001, 1), "too large"
    yield "thin.png", blank_png(15_000_000, 1), "too small"
    yield "many scans.jpg", jpeg_of_many_scans(), "too many scans"
    yield "two\nlines.png", png_with_a_text_bomb(), "damaged"
    yield "\u202egnp.png", b"\x89PNG\r\n\x1a\n" + bytes(40_000), "truncated"
    yield "a" * 200 + ".png", b"MZ" + bytes(1_000), "not an image"
    yield from files_of_many_parts()
    yield "%00.jpg", b"\xff\xd8\xff" + bytes(1_000), "truncated"


def largest_files() -> Iterator[tuple[str, bytes]]:
    """Images that a run accepts at its defaults and that cost it the most: blank ones are all alike, so each pair is compared."""
    for number, colour in enumerate((0, 2, 6, 6, 6)):
        yield f"largest-{number}.png", blank_png(3_990 - number, 3_990, colour)
