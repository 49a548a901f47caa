"""Search everything that a run leaves behind for markers that were planted in what it reads."""

from __future__ import annotations

import base64
import gzip
import io
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from bcc_ops.runs.object_store import ObjectStore

_PICTURE = re.compile(rb"data:image/png;base64,([A-Za-z0-9+/=]+)")


def everything_stored(store: ObjectStore, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield key and content of every object."""
    for entry in store.list_objects(prefix):
        yield entry["Key"], store.get(entry["Key"])


def everything_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path), path.read_bytes()


def places_of(marker: str, contents: Iterable[tuple[str, bytes]]) -> list[str]:
    """Return where a marker is: in a name, in bytes of any case, in UTF-16, or in what is compressed within.

    Parquet's columns, gzip, ZIP (NumPy's too), PNG's text, SQLite's cells and pictures within a page are unpacked.
    """
    needles = [marker.casefold().encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")]
    return [
        where
        for name, content in contents
        for where, part in [(name, name.encode()), *_parts(name, content)]
        if any(needle in part.lower() for needle in needles)
    ]


def _parts(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, content
    for place, (what, inner) in enumerate(_unpacked(content)):
        yield from _parts(f"{name} > {what} {place}", inner)


def _unpacked(content: bytes) -> Iterator[tuple[str, bytes]]:
    if content.startswith(b"PAR1"):
        table = pq.read_table(io.BytesIO(content))
        yield "table", str((table.schema.metadata, table.to_pydict())).encode()
    elif content.startswith(b"\x1f\x8b"):
        yield "gzip", gzip.decompress(content)
    elif content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                yield member, archive.read(member)
    elif content.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            yield "text", str(image.info).encode()
    elif content.startswith(b"SQLite format 3\0"):
        yield from _cells(content)
    elif content.startswith((b"x\x01", b"x\x9c", b"x\xda")):
        yield "deflated", zlib.decompress(content)
    for picture in _PICTURE.findall(content):
        yield "picture", base64.b64decode(picture)


def _cells(content: bytes) -> Iterator[tuple[str, bytes]]:
    database: Any = sqlite3.connect(":memory:")
    try:
        # A database in memory has no write-ahead log: the two bytes in the header say that this one needs none.
        database.deserialize(content[:18] + b"\1\1" + content[20:])
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in database.execute(f'SELECT * FROM "{table}"'):
                for cell in row:
                    if isinstance(cell, (bytes, str)):
                        yield table, cell if isinstance(cell, bytes) else cell.encode()
    finally:
        database.close()
