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
    yield "%00.jpg", b"\xff\xd8\xff" + bytes(1_000), "truncated"


def largest_files() -> Iterator[tuple[str, bytes]]:
    """Images that a run accepts at its defaults and that cost it the most: blank ones are all alike, so each pair is compared."""
    for number, colour in enumerate((0, 2, 6, 6, 6)):
        yield f"largest-{number}.png", blank_png(3_990 - number, 3_990, colour)
