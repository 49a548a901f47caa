"""Read the metadata table beside the images: the bytes of metadata.csv or metadata.parquet -> rows of cells.

Whoever may upload images may write it, so bytes, rows, columns and cells are bounded. What is odd in a row is counted and named
by the row's number; a message never repeats a cell, which may hold a name.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

from bcc_ops.exceptions import ArtifactError, MetadataProblem
from bcc_ops.runs.documents import MetadataFinding

TABLE_NAMES = ("metadata.parquet", "metadata.csv")
"""Names of the table right under the images' prefix. If both are there, the first is read."""
MOST_BYTES = 32_000_000
MOST_UNPACKED = 256_000_000
"""Bytes of a Parquet file's columns before compression, as the file states them."""
MOST_ROWS = 200_000
MOST_COLUMNS = 40
LONGEST_CELL = 1024
"""Characters: as long as a key. What is longer is cut."""
EXAMPLES = 5

KEY = "key"
_UNEVEN = "rows with more or fewer cells than there are columns, not used: put cells that hold the separator in quotes"
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_DELIMITERS = (",", ";", "\t")
_SHOWN = frozenset(" .,:;/()+-_%&'")
"""What a value may hold besides letters and digits: nothing that means something to HTML, Markdown or a spreadsheet."""
LONGEST_VALUE = 60


class TableRow(NamedTuple):
    """One row. `number` is the row's in a spreadsheet: that of the column names is 1. Empty cells are left out."""

    number: int
    key: str
    cells: Mapping[str, str]


class Findings:
    """Counts what is odd, by reason, and keeps some examples of each."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, reason: str, example: str = "", count: int = 1) -> None:
        """Count one more, or `count` more."""
        before, examples = self._found.get(reason, (0, []))
        self._found[reason] = (before + count, examples)
        if example and len(examples) < EXAMPLES:
            examples.append(example)

    def extend(self, others: Iterable[MetadataFinding]) -> None:
        """Take what others counted."""
        for other in others:
            self.add(other.reason, count=other.count)
            self._found[other.reason][1].extend(other.examples)

    def described(self) -> tuple[MetadataFinding, ...]:
        """Return what was found, by reason."""
        return tuple(
            MetadataFinding(reason=reason, count=count, examples=tuple(examples[:EXAMPLES]))
            for reason, (count, examples) in sorted(self._found.items())
        )


@dataclass(frozen=True)
class Table:
    """The rows of a table that are about an image, the names of its other columns, and what is odd in it."""

    rows: Sequence[TableRow]
    columns: tuple[str, ...]
    findings: Findings = field(default_factory=Findings)


def read_table(name: str, content: bytes) -> Table:
    """Read a table.

    Args:
        name: of the file; its ending says what it is.
        content: of the file.

    Raises:
        MetadataProblem: it is too large, not such a file, or has no column `key`.
    """
    if len(content) > MOST_BYTES:
        raise MetadataProblem(f"{name} is larger than {MOST_BYTES / 1e6:g} MB")
    findings = Findings()
    records = _parquet_records(name, content, findings) if name.endswith(".parquet") else _csv_records(name, content, findings)
    columns = _columns(name, next(records, []), findings)
    place = columns.index(KEY)
    rows: list[TableRow] = []
    texts: dict[str, str] = {}  # each different one is held once: a small Parquet file may have a long one millions of times
    for number, record in enumerate(records, start=2):
        if number > MOST_ROWS + 1:
            raise MetadataProblem(f"{name} has more than {MOST_ROWS:,} rows")
        if not any(record):
            continue
        if len(record) != len(columns):
            findings.add(_UNEVEN, f"row {number}")
            continue
        key = record[place].strip()
        if not key:
            findings.add("rows without a key", f"row {number}")
            continue
        stripped = (texts.setdefault(cell, cell) for cell in map(str.strip, record))
        cells = {column: cell for column, cell in zip(columns, stripped) if column and cell and column != KEY}
        rows.append(TableRow(number, key, cells))
    return Table(rows, tuple(column for column in columns if column and column != KEY), findings)


def shown(text: str) -> str:
    """Return a value as it may be shown anywhere: letters, digits and plain punctuation, at most `LONGEST_VALUE` characters.

    Nothing in it is markup on a page or a formula in a spreadsheet.
    """
    plain = "".join(sign if sign.isalnum() or sign in _SHOWN else " " for sign in unicodedata.normalize("NFC", text))
    return " ".join(plain.split()).lstrip("+-' ")[:LONGEST_VALUE].rstrip()


def printable(name: str) -> str:
    """Return a file's name as a terminal may show it, in one line: what would control the terminal becomes a question mark."""
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else "?" for sign in name)


def _columns(name: str, header: Sequence[str], findings: Findings) -> list[str]:
    """Return the columns' names; "" for one that is not used. The header is never repeated: it may be a row of data."""
    if len(header) > MOST_COLUMNS:
        raise MetadataProblem(f"{name} has more than {MOST_COLUMNS} columns: leave out those that a run does not use")
    columns: list[str] = []
    for place, cell in enumerate(header, start=1):
        column = re.sub(r"[\s-]+", "_", shown(cell).casefold())
        if not column or column in columns:
            findings.add("columns without a name of their own", f"column {place}")
            column = ""
        columns.append(column)
    if KEY not in columns:
        raise MetadataProblem(f"{name} has no column named `{KEY}` in its first line: name the column of the images' paths so")
    return columns


def _csv_records(name: str, content: bytes, findings: Findings) -> Iterator[list[str]]:
    text = _decode(name, content, findings)
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        for record in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            yield [cell[:LONGEST_CELL] for cell in record]
    except csv.Error as error:
        raise MetadataProblem(f"{name} is not a CSV file: {error}") from None


def _decode(name: str, content: bytes, findings: Findings) -> str:
    """Return the text of a CSV file: UTF-8, UTF-16 with a byte order mark, or what Excel writes in Western Europe."""
    encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8":
            raise MetadataProblem(f"{name} is not text, although it begins as {encoding}: save it as CSV in UTF-8") from None
        text = content.decode("cp1252", errors="replace")
        findings.add("not in UTF-8, read as Windows-1252: letters with accents may be wrong")
    if "\0" in text:
        raise MetadataProblem(f"{name} is not text: save it as CSV in UTF-8")
    return text


def _parquet_records(name: str, content: bytes, findings: Findings) -> Iterator[list[str]]:
    from bcc_ops.runs.tables import read_foreign_table

    try:
        columns, others, records = read_foreign_table(
            content, _text, most_rows=MOST_ROWS, most_columns=MOST_COLUMNS, most_bytes=MOST_UNPACKED
        )
        for other in others:
            findings.add("columns of lists or records", shown(other))
        yield columns
        yield from records
    except ArtifactError as error:
        raise MetadataProblem(f"{name} {error}") from None


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value[:LONGEST_CELL].decode("utf-8", errors="replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, date):
        return value.isoformat()
    return str(value)[:LONGEST_CELL]
