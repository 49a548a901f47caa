"""The Parquet tables of a run: rows in, bytes out, and back.

A table's columns are the fields of its row class, in that order; a file with other columns is refused. A field with a default
may be missing at the end: older releases did not write it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import FOLDS, OLDER_TRAINING
from bcc_ops.runs.rows import SplitRow
from bcc_ops.runs.upgrade import FOLD_OF_PARTITION, RENAMED_FIELDS

_TYPES: Mapping[Any, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "datetime": pa.timestamp("us", tz="UTC"),
}

Row = TypeVar("Row", bound=NamedTuple)

_ROWS_AT_ONCE = 50_000
"""Rows whose values are Python objects at the same time, while a table is written or read row by row."""

# What a file that anybody may have written may have besides its rows. A reader takes time and memory for each of these.
_LARGEST_FOOTER = 2**20
_MOST_ROW_GROUPS = 1_000
_MOST_PAGES = 50_000
_MOST_FIELDS = 60
"""Of a page's header."""

_DEEPEST = 20
"""Of records in records."""

_BOUNDED_CODECS = frozenset({0, 1})
"""None and Snappy, as the format numbers them."""

_BOUNDED_ENCODINGS = frozenset({0, 2, 3, 5, 8, 9})
"""Those of the format whose values take no more memory than their page has or their rows need: all but BIT_PACKED, and the two
that tell a text by its length or by the one before it, which may stand for gigabytes."""

_WAY_OUT = "restore the file that was written"
_NOT_PARQUET = "is not a Parquet file that can be read"  # without what PyArrow says: it may quote a cell

_MOST_DIGESTS = 2_000_000
_MOST_BYTES_OF_DIGESTS = 256_000_000
"""Before compression, with all else in the file."""


def _schema(row_type: type[Row]) -> pa.Schema:
    return pa.schema([(name, _TYPES[annotation]) for name, annotation in _annotations(row_type).items()])


def _annotations(row_type: type[Row]) -> dict[str, str]:
    return {name: str(getattr(kind, "__forward_arg__", kind)) for name, kind in row_type.__annotations__.items()}


def write_rows(row_type: type[Row], rows: Iterable[Row]) -> bytes:
    """Return the rows as a Parquet file. The same rows give the same bytes."""
    schema, sink, remaining = _schema(row_type), io.BytesIO(), iter(rows)
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        while part := list(islice(remaining, _ROWS_AT_ONCE)):
            arrays = [pa.array(column, type=field.type) for column, field in zip(zip(*part), schema)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return sink.getvalue()


def read_rows(row_type: type[Row], content: bytes) -> list[Row]:
    """Return the rows of a Parquet file that `write_rows` wrote.

    Raises:
        ArtifactError: it is no Parquet file, or has other columns, an empty cell or a fold that never was.
    """
    return list(iterate_rows(row_type, content))


def count_rows(content: bytes) -> int:
    """Return how many rows a Parquet file says that it has, without reading them: a small file may have billions of equal ones.

    Raises:
        ArtifactError: it is no Parquet file.
    """
    try:
        return sum(_footer(content).rows)
    except (ValueError, LookupError) as error:
        raise ArtifactError(f"no Parquet file: {error}") from None


def iterate_rows(row_type: type[Row], content: bytes) -> Iterator[Row]:
    """Yield the rows of a Parquet file that `write_rows` wrote, without holding all of them.

    Raises:
        ArtifactError: as in `read_rows`.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        _check_columns(row_type, file.schema_arrow)
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            table = _folds_of_partitions(pa.Table.from_batches([batch]))
            _check_cells(table)
            yield from (row_type(*values) for values in zip(*_as_python(table)))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ArtifactError(f"no Parquet file: {error}") from None


def _check_columns(row_type: type[Row], schema: pa.Schema) -> None:
    columns = tuple("fold" if name == "partition" else RENAMED_FIELDS.get(name, name) for name in schema.names)
    absent = row_type._fields[len(columns) :]
    if columns + absent != row_type._fields or not set(absent) <= set(row_type._field_defaults):
        raise ArtifactError(f"the table has the columns {list(columns)}, not {list(row_type._fields)}")
    _check_types(schema, _schema(row_type))


def _check_types(found: pa.Schema, wanted: pa.Schema) -> None:
    """Refuse other values than `wanted` names, in a column of the same name: what reads them would fail far from here."""
    for field in wanted:
        place = found.get_field_index(field.name)
        if place >= 0 and found.field(place).type != field.type:
            values = f"{found.field(place).type} in its column {field.name}, not {field.type}"
            raise ArtifactError(f"the table has values of the type {values}: {_WAY_OUT}")


def _check_cells(table: pa.Table) -> None:
    """Refuse an empty cell, or a fold that there is not: `write_rows` writes none."""
    if gaps := [name for name, column in zip(table.column_names, table.columns) if column.null_count]:
        raise ArtifactError(f"the table has no value for some rows in its column {gaps[0]}: {_WAY_OUT}")
    if "fold" in table.column_names and (unknown := set(pc.unique(table.column("fold")).to_pylist()) - {OLDER_TRAINING, *FOLDS}):
        raise ArtifactError(f"the table has the fold {min(unknown)}, which is none of {FOLDS}: {_WAY_OUT}")


def _as_python(table: pa.Table) -> list[list[Any]]:
    """Return the values of each column; refuse text and times that Python cannot represent."""
    columns = []
    for name, column in zip(table.column_names, table.columns):
        try:
            columns.append(column.to_pylist())
        except (ValueError, OverflowError):
            raise ArtifactError(f"the table has a damaged value in its column {name}: {_WAY_OUT}") from None
    return columns


def _folds_of_partitions(table: pa.Table) -> pa.Table:
    """Return a table that an older release wrote with the column that took the place of its partitions."""
    if "partition" not in table.column_names:
        return table
    place = table.column_names.index("partition")
    partitions = table.column(place).to_pylist()
    if unknown := set(partitions) - set(FOLD_OF_PARTITION):
        raise ArtifactError(f"the table has the partition {unknown.pop()!r}, which is none of {', '.join(FOLD_OF_PARTITION)}")
    folds = [FOLD_OF_PARTITION[partition] for partition in partitions]
    return table.set_column(place, "fold", pa.array(folds, pa.int64()))


def _answers_schema(classes: Sequence[str]) -> pa.Schema:
    return pa.schema([*_schema(SplitRow), *(pa.field(f"p_{name}", pa.float64()) for name in classes)])


def write_answers(rows: Sequence[SplitRow], classes: Sequence[str], probabilities: np.ndarray) -> bytes:
    """Return out-of-fold answers as a Parquet file: the columns of `SplitRow`, and one column per class.

    Args:
        rows: the images.
        classes: the names of the columns of `probabilities`.
        probabilities: (n, classes), what the model that did not train on an image's fold answers about it.
    """
    columns = {name: [getattr(row, name) for row in rows] for name in SplitRow._fields}
    columns |= {f"p_{name}": probabilities[:, place].astype(np.float64).tolist() for place, name in enumerate(classes)}
    return _to_bytes(pa.table(columns, schema=_answers_schema(classes)))


def read_answers(content: bytes, classes: Sequence[str]) -> tuple[list[SplitRow], np.ndarray]:
    """Return the images and probabilities (n, classes) of a Parquet file that `write_answers` wrote.

    Raises:
        ArtifactError: it is not such a file, it is about other classes, or it has an empty cell.
    """
    table = _from_bytes(content)
    fields = [name for name in SplitRow._fields if name != "trained_on" or name in table.column_names]  # not in older ones
    wanted = [*fields, *(f"p_{name}" for name in classes)]
    if sorted(table.column_names) != sorted(wanted):
        raise ArtifactError(f"the table of answers has the columns {table.column_names}, not {wanted}")
    _check_types(table.schema, _answers_schema(classes))
    _check_cells(table)
    rows = [SplitRow(*values) for values in zip(*_as_python(table.select(fields)))]
    columns = [table.column(f"p_{name}").to_numpy() for name in classes]
    return rows, np.stack(columns, axis=1) if rows else np.zeros((0, len(classes)))


def write_predictions(
    keys: list[str], labels: list[str], groups: list[str], probabilities: Mapping[str, Mapping[str, Any]]
) -> bytes:
    """predictions.parquet: key, label, group and a column `<model>_<class>` per model and class.

    Args:
        keys, labels, groups: one entry per image.
        probabilities: model ("challenger", "champion") -> class -> a probability an image, or None where the model
            was not asked about that image.
    """
    columns: dict[str, Any] = {"key": pa.array(keys, pa.string()), "label": pa.array(labels, pa.string())}
    columns["group"] = pa.array(groups, pa.string())
    for model, by_class in probabilities.items():
        for name, values in by_class.items():
            columns[f"{model}_{name}"] = pa.array(list(values), pa.float64())
    return _to_bytes(pa.table(columns))


def read_predictions(content: bytes) -> dict[str, list[Any]]:
    """Return the columns of predictions.parquet, by name."""
    columns: dict[str, list[Any]] = _from_bytes(content).to_pydict()
    return columns


def read_foreign_table(
    content: bytes, text: Callable[[Any], str], *, most_rows: int, most_columns: int, most_bytes: int
) -> tuple[list[str], list[str], Iterator[list[str]]]:
    """Read a Parquet file that anybody may have written.

    Args:
        content: of the file.
        text: turns a value into text; asked once for each different text of a column, so that a small file stays small.
        most_rows, most_columns: that it may have.
        most_bytes: that its columns may have before compression.

    Returns:
        The names of the columns with plain values, those of the others, and the rows of the former.

    Raises:
        ArtifactError: the file is not one, or has more; the rows raise it too. The message is the end of a sentence about it.
    """
    try:
        file, footer = _opened(content, most_rows)
        schema = file.schema_arrow
        if len(schema) > most_columns:
            raise ArtifactError(f"has more than {most_columns} columns: leave out those that a run does not use")
        _check_pages(footer, content, most_rows, most_bytes)
        names = [one.name for one in schema if not pa.types.is_nested(one.type)]
        # A text that is in many rows is held once.
        file = pq.ParquetFile(io.BytesIO(content), metadata=file.metadata, read_dictionary=names)
        plain = _bounded_columns(file, names)
        widths = {leaf.path: max(8, leaf.length) for leaf in file.schema if leaf.physical_type != "BYTE_ARRAY"}
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError):
        raise ArtifactError(_NOT_PARQUET) from None
    if sum(footer.rows) * sum(widths.get(name, 0) for name in plain) > most_bytes:
        raise ArtifactError(f"unpacks to more than {most_bytes / 1e6:g} MB")
    return plain, sorted({one.name for one in schema} - set(plain)), _foreign_rows(file, plain, text)


def write_columns(columns: Mapping[str, str], rows: Iterable[Sequence[Any]], stamp: tuple[str, str]) -> bytes:
    """Return rows as a Parquet file that `read_columns` reads. The same rows give the same bytes.

    Args:
        columns: name -> "str", "int", "float", "bool", "bytes", or so many bytes: "bytes 32".
        rows: a value per column, in their order.
        stamp: a name and a value that the file carries.
    """
    schema = pa.schema([(name, _column_type(kind)) for name, kind in columns.items()], metadata=dict([stamp]))
    values = list(zip(*rows)) or [()] * len(schema)
    table = pa.Table.from_arrays([pa.array(column, field.type) for column, field in zip(values, schema)], schema=schema)
    sink = io.BytesIO()
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    pq.write_table(table, sink, compression="snappy", use_dictionary=texts)
    return sink.getvalue()


def read_columns(
    columns: Mapping[str, str], content: bytes, stamp: tuple[str, str], *, most_rows: int, longest: Mapping[str, int]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a file of `write_columns` that anybody may have written, without trusting what it says of its size.

    Args:
        columns: that the file must have.
        content: of the file.
        stamp: that it must carry.
        most_rows: that it may have.
        longest: "str" and "bytes" -> the bytes that such a value may have at most.

    Raises:
        ArtifactError: it is something else. The message is the end of a sentence about it.
    """
    schema = pa.schema([(name, _column_type(kind)) for name, kind in columns.items()])
    # A text or a blob that is in many rows is held once: a small file stays small.
    blobs = [name for name, kind in columns.items() if kind in longest]
    try:
        file, footer = _opened(content, most_rows)
        version = (file.metadata.metadata or {}).get(stamp[0].encode(), b"").decode(errors="replace")
        if version != stamp[1]:
            raise ArtifactError(f"is of another version ({version[:20]!r}, not {stamp[1]!r})")
        if not file.schema_arrow.equals(schema):
            raise ArtifactError("has other columns")
        widths = [
            longest[kind] if kind in longest else field.type.bit_width // 8 for kind, field in zip(columns.values(), schema)
        ]
        # Besides its value, each has a length or a place in the dictionary, and whether it is there.
        most_bytes = sum(footer.rows) * sum(width + 9 for width in widths) + 1_000 * len(widths)
        _check_pages(footer, content, most_rows, most_bytes)
        file = pq.ParquetFile(io.BytesIO(content), metadata=file.metadata, read_dictionary=blobs)
        for batch in file.iter_batches(1_000):
            yield from zip(*(_bounded(column, longest) for column in batch.columns))
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError):
        raise ArtifactError(_NOT_PARQUET) from None


def read_digests(content: bytes) -> set[str]:
    """Return every sha256, in hex, that a file of `write_columns` has in a column of "bytes 32", whatever its other columns.

    Raises:
        ArtifactError: it cannot be read, or has more than a shard may have. The message is the end of a sentence about it.
    """
    digests: set[bytes | None] = set()
    try:
        file, footer = _opened(content, _MOST_DIGESTS)
        _check_pages(footer, content, _MOST_DIGESTS, _MOST_BYTES_OF_DIGESTS)
        columns = [field.name for field in file.schema_arrow if field.type == _column_type("bytes 32")]
        if _bounded_columns(file, columns) != columns:
            raise ArtifactError("has columns of lists")
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
            for column in batch.columns:
                digests.update(column.unique().to_pylist())
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError):
        raise ArtifactError(_NOT_PARQUET) from None
    return {digest.hex() for digest in digests if digest is not None}


def _opened(content: bytes, most_rows: int) -> tuple[pq.ParquetFile, _Footer]:
    """Open a file that anybody may have written; of its columns, nothing is read yet."""
    footer = _footer(content)
    groups = min(most_rows, _MOST_ROW_GROUPS)
    if len(footer.rows) > groups:
        raise ArtifactError(f"has more than {groups:,} row groups: write it with larger ones")
    if sum(footer.rows) > most_rows:
        raise ArtifactError(f"has more than {most_rows:,} rows")
    return pq.ParquetFile(io.BytesIO(content)), footer


class _Footer(NamedTuple):
    """What a file says of its groups of rows and of the pages of their columns."""

    rows: list[int]
    chunks: list[dict[_Field, Any]]


def _footer(content: bytes) -> _Footer:
    """Read the end of a file.

    PyArrow's own reader of these numbers ends the process, not with an exception, if one of them cannot be: a damaged byte would
    kill a worker.
    """
    length = int.from_bytes(content[-8:-4], "little")
    if not content.endswith(b"PAR1") or length > len(content) - 12:
        raise ValueError("it does not end as one")
    if length > _LARGEST_FOOTER:
        raise ArtifactError(f"has a footer of more than {_LARGEST_FOOTER // 2**20} MiB")
    groups = _records(_Compact(content[-8 - length : -8]).record()[4, _LIST])
    rows = [group[3, _INT64] for group in groups]
    if any(count < 0 for count in rows):
        raise ValueError("no number of rows")
    return _Footer(rows, [chunk[3, _RECORD] for group in groups for chunk in _records(group[1, _LIST])])


def _records(values: list[Any]) -> list[dict[_Field, Any]]:
    if not all(isinstance(value, dict) for value in values):
        raise ValueError("no records")
    return values


def _check_pages(footer: _Footer, content: bytes, most_rows: int, most_bytes: int) -> None:
    """Refuse a file whose pages unpack to more.

    What the footer says of sizes may be a lie. A page's own header decides: the reader makes so much room,
    and Snappy stops there.

    Args:
        footer: of the file.
        content: of the file.
        most_rows: that a dictionary may have.
        most_bytes: that all pages may have before compression.

    Raises:
        ArtifactError: they have more, or may have.
        LookupError, ValueError: something is damaged.
    """
    if {chunk[4, _INT32] for chunk in footer.chunks} - _BOUNDED_CODECS:
        raise ArtifactError("is compressed otherwise than with Snappy: write it with compression='snappy' or 'none'")
    packed = unpacked = pages = 0
    for chunk in footer.chunks:
        starts = (chunk[9, _INT64], chunk.get((11, _INT64), 0))
        place = min((start for start in starts if start > 0), default=0)
        in_file = chunk[7, _INT64]
        packed += in_file
        if in_file == 0:  # of a group without rows
            continue
        end = place + in_file
        if not 0 < place <= end <= len(content) or packed > len(content):  # groups that share their pages, too
            raise ValueError("no such pages")
        while place < end:
            reader = _Compact(content, place, _MOST_FIELDS)
            header = reader.record()
            size, compressed = header[2, _INT32], header[3, _INT32]
            dictionary = header.get((7, _RECORD), {})
            encodings = {
                header.get((5, _RECORD), {}).get((2, _INT32), 0),
                header.get((8, _RECORD), {}).get((4, _INT32), 0),
                dictionary.get((2, _INT32), 0),
            }
            if min(size, compressed) < 0 or dictionary.get((1, _INT32), 0) > most_rows:
                raise ValueError("no such page")
            if encodings - _BOUNDED_ENCODINGS:
                raise ArtifactError("is encoded otherwise than plainly or with dictionaries")
            place, unpacked, pages = reader.place + compressed, unpacked + max(size, compressed), pages + 1
            if unpacked > most_bytes:
                raise ArtifactError(f"unpacks to more than {most_bytes / 1e6:g} MB")
            if pages > _MOST_PAGES:
                raise ArtifactError(f"has more than {_MOST_PAGES:,} pages: write it with larger ones")


_Field = tuple[int, int]
_INT32, _INT64, _BYTES, _LIST, _RECORD = 5, 6, 8, 9, 12


class _Compact:
    """Reads Thrift's compact protocol, which a footer and the header of a page are written in: PyArrow does not tell the latter.

    Args:
        content: where the record is.
        place: where it begins; afterwards, where it ends.
        most: fields that it may have.
    """

    def __init__(self, content: bytes, place: int = 0, most: int = _LARGEST_FOOTER) -> None:
        self.content, self.place, self._left = content, place, most

    def record(self, depth: int = 0) -> dict[_Field, Any]:
        """Return its fields, by number and type. What has another type than it should is not read by others either.

        Raises:
            ValueError: it is none, or has a field twice, which readers may understand otherwise.
            IndexError: it does not end.
        """
        fields: dict[_Field, Any] = {}
        seen = set()
        number = 0
        while kind := (head := self._byte()) & 15:
            number = number + (head >> 4) if head >> 4 else self._number(16)
            self._left -= 1
            if number in seen or self._left < 0 or depth > _DEEPEST:
                raise ValueError("no record of a Parquet file")
            seen.add(number)
            fields[number, kind] = kind == 1 if kind <= 2 else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind <= 3:
            return self._byte()
        if kind <= _INT64:
            return self._number({4: 16, _INT32: 32, _INT64: 64}[kind])
        if kind == _RECORD:
            return self.record(depth)
        if kind == _LIST:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            if count > len(self.content) - self.place or depth > _DEEPEST:
                raise ValueError("no list of a Parquet file")
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind not in (7, _BYTES):
            raise ValueError("no value of a Parquet file")
        length = 8 if kind == 7 else self._varint()
        self.place += length
        return None

    def _byte(self) -> int:
        self.place += 1
        return self.content[self.place - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("no number of a Parquet file")

    def _number(self, bits: int) -> int:
        """Return a zigzag number, cut to so many bits as a reader in C does."""
        value = self._varint() & ((1 << max(bits, 32)) - 1)
        half = 1 << (bits - 1)
        return (((value >> 1) ^ -(value & 1)) + half) % (2 * half) - half


def _bounded_columns(file: pq.ParquetFile, names: Sequence[str]) -> list[str]:
    """Return the columns of these names whose rows cannot have more than one value, or a long one that is not held once."""
    types = {field.name: field.type for field in file.schema_arrow}
    unbounded = {
        leaf.path
        for leaf in file.schema
        if leaf.max_repetition_level > 0
        or (leaf.physical_type == "BYTE_ARRAY" and not pa.types.is_dictionary(types.get(leaf.path, pa.null())))
    }
    return [name for name in names if not any(path == name or path.startswith(f"{name}.") for path in unbounded)]


def _column_type(kind: str) -> pa.DataType:
    name, _, size = kind.partition(" ")
    if name == "bytes":
        return pa.binary(int(size)) if size else pa.binary()
    return _TYPES[name]


def _bounded(column: pa.Array, longest: Mapping[str, int]) -> list[Any]:
    if not pa.types.is_dictionary(column.type):
        values: list[Any] = column.to_pylist()
        return values
    most = longest["str" if pa.types.is_string(column.type.value_type) else "bytes"]
    if (pc.max(pc.binary_length(column.dictionary)).as_py() or 0) > most:
        raise ArtifactError(f"has a value of more than {most:,} bytes")
    return _each_once(column, lambda value: value)


def _foreign_rows(file: pq.ParquetFile, columns: list[str], text: Callable[[Any], str]) -> Iterator[list[str]]:
    try:
        for batch in file.iter_batches(batch_size=10_000, columns=columns):
            yield from (list(row) for row in zip(*(_texts(column, text) for column in batch.columns)))
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError, TypeError):  # times beyond Python's
        raise ArtifactError(_NOT_PARQUET) from None


def _texts(column: pa.Array, text: Callable[[Any], str]) -> list[str]:
    if not pa.types.is_dictionary(column.type):
        texts: dict[str, str] = {}
        return [texts.setdefault(told, told) for told in map(text, column.to_pylist())]
    return _each_once(column, text)


def _each_once(column: pa.DictionaryArray, told: Callable[[Any], Any]) -> list[Any]:
    """Return what is told of each value. Only those that are in a row are looked at: each batch has the whole dictionary."""
    used = column.indices.unique()
    known = dict(zip(used.to_pylist(), map(told, column.dictionary.take(used).to_pylist())))
    return [known[place] for place in column.indices.to_pylist()]


def _to_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _from_bytes(content: bytes) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ArtifactError(f"no Parquet file: {error}") from None
