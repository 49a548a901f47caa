from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bcc_ops.exceptions import ArtifactError
from bcc_ops.runs.documents import OLDER_TRAINING
from bcc_ops.runs.rows import AssignmentRow, ContentRow, ImageRow, SplitRow
from bcc_ops.runs.tables import (
    iterate_rows,
    read_answers,
    read_columns,
    read_digests,
    read_foreign_table,
    read_predictions,
    read_rows,
    write_answers,
    write_columns,
    write_predictions,
    write_rows,
)

IMAGE = ImageRow("images/benign/ä (1).png", "benign", 12, "etag", "", datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=timezone.utc))
CONTENT = ContentRow("k", "benign", "0" * 64, 500, 400, "L", 81.5, 40.25, False, "g", "")
SPLIT = SplitRow("k", "0" * 64, "benign", "g", 3, "pixels")
CLASSES = ("benign", "malignant", "normal")
ANSWERED = [
    SplitRow("images/benign/ä (1).png", "a" * 64, "benign", "g", 1, "p"),
    SplitRow("images/normal/b.png", "b" * 64, "normal", "h", 5),
]
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])


@pytest.mark.parametrize("row", [IMAGE, CONTENT, SPLIT])
def test_rows_come_back_as_they_were(row: ImageRow | ContentRow | SplitRow) -> None:
    assert read_rows(type(row), write_rows(type(row), [row, row])) == [row, row]
    assert read_rows(type(row), write_rows(type(row), [])) == []


@pytest.mark.parametrize(("row", "name"), [(CONTENT, "perceptual_hash"), (CONTENT, "width"), (SPLIT, "fold")])
def test_a_table_with_an_empty_cell_is_refused_by_the_name_of_its_column(row: ContentRow | SplitRow, name: str) -> None:
    empty: dict[str, Any] = {name: None}
    content = write_rows(type(row), [row, row._replace(**empty)])
    with pytest.raises(ArtifactError, match=f"no value for some rows in its column {name}: restore"):
        read_rows(type(row), content)


def damaged(content: bytes, name: str, values: pa.Array) -> bytes:
    """A table with other values in one of its columns."""
    table = pq.read_table(io.BytesIO(content))
    file = io.BytesIO()
    pq.write_table(table.set_column(table.column_names.index(name), name, values), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("fold", pa.array([3, 9]), r"has the fold 9, which is none of \(1, 2, 3, 4, 5\): restore the file"),
        ("fold", pa.array(["3", "4"]), "has values of the type string in its column fold, not int64: restore the file"),
        ("sha256", pa.array([1, 2]), "has values of the type int64 in its column sha256, not string: restore the file"),
        ("label", pa.array(["benign", None]), "has no value for some rows in its column label: restore the file"),
    ],
)
def test_a_damaged_table_is_refused_by_the_name_of_its_column(name: str, values: pa.Array, said: str) -> None:
    """Carried over, such a fold ended the split in a KeyError."""
    with pytest.raises(ArtifactError, match=said):
        read_rows(SplitRow, damaged(write_rows(SplitRow, ANSWERED), name, values))
    with pytest.raises(ArtifactError, match=said):
        read_answers(damaged(write_answers(ANSWERED, CLASSES, PROBABILITIES), name, values), CLASSES)


def test_a_text_or_a_time_that_python_does_not_know_is_refused_by_the_name_of_its_column() -> None:
    text = pa.array([b"\xff", b"a"]).view(pa.string())
    said = "has a damaged value in its column key: restore the file"
    with pytest.raises(ArtifactError, match=said):
        read_rows(SplitRow, damaged(write_rows(SplitRow, ANSWERED), "key", text))
    with pytest.raises(ArtifactError, match=said):
        read_answers(damaged(write_answers(ANSWERED, CLASSES, PROBABILITIES), "key", text), CLASSES)
    time = pa.array([2**62], pa.timestamp("us", tz="UTC"))  # of the year 148,108
    with pytest.raises(ArtifactError, match="has a damaged value in its column last_modified: restore the file"):
        read_rows(ImageRow, damaged(write_rows(ImageRow, [IMAGE]), "last_modified", time))


def test_rows_are_written_and_read_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcc_ops.runs.tables._ROWS_AT_ONCE", 2)
    rows = [SPLIT._replace(key=str(number)) for number in range(5)]
    content = write_rows(SplitRow, iter(rows))
    assert pq.ParquetFile(io.BytesIO(content)).num_row_groups == 3
    reading = iterate_rows(SplitRow, content)
    assert [next(reading), *reading] == rows


def test_the_same_rows_give_the_same_bytes() -> None:
    assert write_rows(SplitRow, [SPLIT]) == write_rows(SplitRow, [SPLIT])


@pytest.mark.parametrize("content", [b"", b"no parquet", write_rows(SplitRow, [SPLIT])])
def test_another_table_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError):
        read_rows(ImageRow, content)


def test_predictions_keep_a_gap_where_the_champion_was_not_asked() -> None:
    table = write_predictions(
        ["a", "b"],
        ["benign", "normal"],
        ["g", "h"],
        {"challenger": {"benign": [0.75, 0.25]}, "champion": {"benign": [None, 0.5]}},
    )
    assert read_predictions(table) == {
        "key": ["a", "b"],
        "label": ["benign", "normal"],
        "group": ["g", "h"],
        "challenger_benign": [0.75, 0.25],
        "champion_benign": [None, 0.5],
    }


def test_answers_come_back_with_their_images_folds_and_probabilities() -> None:
    rows, probabilities = read_answers(write_answers(ANSWERED, CLASSES, PROBABILITIES), CLASSES)
    assert rows == ANSWERED
    np.testing.assert_array_equal(probabilities, PROBABILITIES)
    assert write_answers(ANSWERED, CLASSES, PROBABILITIES) == write_answers(ANSWERED, CLASSES, PROBABILITIES)


def test_the_probabilities_of_a_network_in_single_precision_come_back_exactly() -> None:
    single = PROBABILITIES.astype(np.float32)
    _, probabilities = read_answers(write_answers(ANSWERED, CLASSES, single), CLASSES)
    np.testing.assert_array_equal(probabilities.astype(np.float32), single)


def test_answers_are_read_in_the_order_of_classes_that_is_asked_for() -> None:
    content = write_answers(ANSWERED, CLASSES, PROBABILITIES)
    _, probabilities = read_answers(content, ("normal", "benign", "malignant"))
    np.testing.assert_array_equal(probabilities, PROBABILITIES[:, [2, 0, 1]])


def test_a_fold_without_images_has_a_table_of_no_answers() -> None:
    rows, probabilities = read_answers(write_answers([], CLASSES, np.zeros((0, 3), np.float32)), CLASSES)
    assert (rows, probabilities.shape) == ([], (0, 3))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no parquet", "no Parquet file"),
        (write_rows(SplitRow, ANSWERED), "the table of answers has the columns"),
        (write_answers(ANSWERED, CLASSES[:2], PROBABILITIES), "the table of answers has the columns"),
    ],
    ids=["no table", "no answers", "other classes"],
)
def test_a_table_without_an_answer_for_each_class_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        read_answers(content, CLASSES)


def older(row_type: type[SplitRow] | type[AssignmentRow], *partitions: str) -> bytes:
    """A table as it was when images were in partitions and not in folds."""
    columns = {"key": "k", "sha256": "s", "label": "benign", "group": "g", "pixels": "p"}
    fields = [name for name in row_type._fields if name not in ("patient", "trained_on")]
    rows = {name: [columns.get(name, 7)] * len(partitions) for name in fields}
    table = pa.table({"partition" if name == "fold" else name: rows[name] for name in fields})
    table = table.set_column(row_type._fields.index("fold"), "partition", pa.array(partitions, pa.string()))
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


@pytest.mark.parametrize("row_type", [SplitRow, AssignmentRow])
def test_of_a_table_of_before_what_was_held_out_is_fold_1_and_the_rest_has_no_fold_yet(
    row_type: type[SplitRow] | type[AssignmentRow],
) -> None:
    rows = read_rows(row_type, older(row_type, "train", "tuning", "validation"))
    assert [row.fold for row in rows] == [OLDER_TRAINING, OLDER_TRAINING, 1]
    assert [row.pixels for row in rows] == ["p", "p", "p"]


def test_a_table_with_a_partition_that_never_was_is_refused() -> None:
    with pytest.raises(ArtifactError, match="partition"):
        read_rows(SplitRow, older(SplitRow, "train", "elsewhere"))


def foreign(table: pa.Table, **how: str) -> list[list[str]]:
    sink = io.BytesIO()
    pq.write_table(table, sink, **how)
    return list(read_foreign_table(sink.getvalue(), str, most_rows=10, most_columns=3, most_bytes=10_000)[2])


def test_a_table_of_somebody_else_is_read_as_text() -> None:
    assert foreign(pa.table({"key": ["a", "b"], "age": [45, 46]})) == [["a", "45"], ["b", "46"]]


def test_a_compression_that_may_grow_without_bound_is_refused() -> None:
    with pytest.raises(ArtifactError, match="compressed otherwise than with Snappy"):
        foreign(pa.table({"key": ["a" * 1000]}), compression="zstd")


@pytest.mark.parametrize("column", [pa.array([2**40], pa.timestamp("s")), pa.array([0], pa.timestamp("s", tz="Foo/Bar"))])
def test_times_that_python_does_not_know_are_a_table_that_cannot_be_read(column: pa.Array) -> None:
    with pytest.raises(ArtifactError, match="is not a Parquet file that can be read"):
        foreign(pa.table({"key": ["a"], "acquired_at": column}))


COLUMNS = {"sha256": "bytes 32", "name": "str", "size": "int", "part": "float", "good": "bool", "blob": "bytes"}
ROWS = [(bytes(32), "a", 1, 0.5, True, b"xyz"), (None, None, None, None, None, b"")]


def test_columns_come_back_with_their_gaps_and_only_with_their_stamp() -> None:
    """What one of them may not hold is tested where it is used, in test_inspection_shards.py."""
    content = write_columns(COLUMNS, ROWS, ("kind", "1"))
    bounds = {"most_rows": 2, "longest": {"str": 1, "bytes": 3}}
    assert list(read_columns(COLUMNS, content, ("kind", "1"), **bounds)) == ROWS  # type: ignore[arg-type]
    assert content == write_columns(COLUMNS, ROWS, ("kind", "1"))
    with pytest.raises(ArtifactError, match="is of another version"):
        list(read_columns(COLUMNS, content, ("kind", "2"), **bounds))  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="has other columns"):
        list(read_columns({**COLUMNS, "size": "float"}, content, ("kind", "1"), **bounds))  # type: ignore[arg-type]
    for too_small, said in (({"most_rows": 1}, "more than 1 rows"), ({"longest": {"str": 1, "bytes": 2}}, "more than 2 bytes")):
        with pytest.raises(ArtifactError, match=said):
            list(read_columns(COLUMNS, content, ("kind", "1"), **{**bounds, **too_small}))  # type: ignore[arg-type]


def test_the_digests_in_a_file_are_told_whatever_else_it_has() -> None:
    columns = {"one": "bytes 32", "more": "bytes 8", "other": "bytes 32"}
    content = write_columns(columns, [(bytes(32), bytes(8), b"1" * 32), (b"1" * 32, bytes(8), None)], ("kind", "1"))
    assert read_digests(content) == {"0" * 64, "31" * 32}
    with pytest.raises(ArtifactError, match="not a Parquet file"):
        read_digests(content[:-9])


BOUNDS = {"most_rows": 3, "longest": {"str": 10, "bytes": 10}}


def shard(table: pa.Table, **how: Any) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, store_schema=False, **{"compression": "snappy", **how}) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"kind": "1"})
    return sink.getvalue()


def read_names(content: bytes, **bounds: Any) -> list[tuple[Any, ...]]:
    return list(read_columns({"name": "str"}, content, ("kind", "1"), **{**BOUNDS, **bounds}))


def hidden(empty_groups: int) -> bytes:
    """A group of zstd behind groups of Snappy that have no rows."""
    schema = pa.schema([("name", pa.string())], metadata={"kind": "1"})
    groups, last = io.BytesIO(), io.BytesIO()
    with pq.ParquetWriter(groups, schema, compression="snappy") as writer:
        for _ in range(empty_groups):
            writer.write_table(pa.table({"name": pa.array([], pa.string())}, schema=schema))
    pq.write_table(pa.table({"name": ["a" * 5_000]}, schema=schema), last, compression="zstd", use_dictionary=False)
    metadata = pq.read_metadata(io.BytesIO(groups.getvalue()))
    metadata.append_row_groups(pq.read_metadata(io.BytesIO(last.getvalue())))
    footer = io.BytesIO()
    metadata.write_metadata_file(footer)
    return last.getvalue() + footer.getvalue()[4:]


def read_somebodys(content: bytes) -> list[list[str]]:
    return list(read_foreign_table(content, str, most_rows=3, most_columns=3, most_bytes=10_000)[2])


@pytest.mark.parametrize("read", [read_names, read_somebodys, read_digests])
@pytest.mark.parametrize(("groups", "said"), [(1, "than with Snappy"), (3, "more than 3 row groups|than with Snappy")])
def test_no_group_of_rows_hides_another_compression(read: Callable[[bytes], object], groups: int, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        read(hidden(groups))


def test_more_row_groups_than_a_reader_should_open_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcc_ops.runs.tables._MOST_ROW_GROUPS", 1)
    for read in (read_names, read_somebodys, read_digests):
        with pytest.raises(ArtifactError, match="has more than 1 row groups"):
            read(hidden(2))


def test_text_that_snappy_packs_small_is_refused_before_it_is_unpacked() -> None:
    """29 MB of a file took 2 GB."""
    content = shard(pa.table({"name": ["a" * 2_000_000] * 3}), use_dictionary=False, write_statistics=False)
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(ArtifactError, match="unpacks to more than"):
        read_names(content)
    assert pa.default_memory_pool().max_memory() - before < 2_000_000


def test_what_the_footer_says_of_the_size_is_not_believed() -> None:
    content = shard(pa.table({"name": ["a" * 5_000]}), use_dictionary=False, write_statistics=False)
    said = pq.read_metadata(io.BytesIO(content)).row_group(0).column(0).total_uncompressed_size
    assert said < 2**13 and content.count(_varint(said)) >= 1
    with pytest.raises(ArtifactError, match="unpacks to more than"):
        read_names(content.replace(_varint(said), _varint(200)))


def _varint(number: int) -> bytes:
    """Two bytes, as Thrift writes it."""
    return bytes([(2 * number & 127) | 128, 2 * number >> 7])


def test_a_dictionary_of_more_values_than_rows_are_allowed_is_refused() -> None:
    unused = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(["a", "b", "c", "d"]))
    with pytest.raises(ArtifactError, match="not a Parquet file that can be read"):
        read_names(shard(pa.table({"name": unused})))
    assert read_names(shard(pa.table({"name": unused})), most_rows=4) == [("a",)]


def test_of_a_large_dictionary_each_batch_looks_at_its_own_values_only() -> None:
    """A file of 2 MB took 37 s: the whole dictionary was looked at for each batch."""
    asked: list[str] = []
    content = shard(pa.table({"key": [str(number) for number in range(20_001)]}))

    def text(value: str) -> str:
        asked.append(value)
        return value

    _, _, rows = read_foreign_table(content, text, most_rows=20_001, most_columns=1, most_bytes=10**6)
    assert [key for (key,) in rows] == asked


def test_texts_that_are_told_by_the_one_before_are_refused() -> None:
    content = shard(pa.table({"key": ["a"]}), use_dictionary=False, column_encoding={"key": "DELTA_BYTE_ARRAY"})
    with pytest.raises(ArtifactError, match="is encoded otherwise"):
        read_somebodys(content)


def test_numbers_of_a_fixed_size_that_unpack_to_much_are_refused() -> None:
    content = shard(pa.table({"key": pa.array([bytes(5_000)] * 3, pa.binary(5_000))}))
    assert len(content) < 10_000
    with pytest.raises(ArtifactError, match="unpacks to more than"):
        read_somebodys(content)


def test_digests_are_read_from_as_many_rows_as_a_shard_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 180 kB with 100 million equal rows was read for minutes."""
    content = write_columns({"one": "bytes 32"}, [(bytes(32),)] * 3, ("kind", "1"))
    assert read_digests(content) == {"0" * 64}
    monkeypatch.setattr("bcc_ops.runs.tables._MOST_DIGESTS", 2)
    with pytest.raises(ArtifactError, match="has more than 2 rows"):
        read_digests(content)


def test_a_footer_beyond_the_limit_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcc_ops.runs.tables._LARGEST_FOOTER", 50)
    for read in (read_names, read_somebodys, read_digests):
        with pytest.raises(ArtifactError, match="has a footer of more than"):
            read(shard(pa.table({"name": ["a"]})))


@pytest.mark.parametrize("read", [read_names, read_somebodys, read_digests])
def test_a_damaged_footer_is_an_error_and_not_the_end_of_the_process(read: Callable[[bytes], object]) -> None:
    """PyArrow aborts when it is asked for the compression of such a column."""
    content = shard(pa.table({"name": ["a"]}))
    length = int.from_bytes(content[-8:-4], "little")
    for place in range(len(content) - 8 - length, len(content) - 8):
        for byte in (0, content[place] ^ 1, content[place] ^ 32, 255):
            with suppress(ArtifactError):
                read(content[:place] + bytes([byte]) + content[place + 1 :])


def test_a_record_that_readers_may_understand_in_two_ways_is_refused() -> None:
    """The number of rows, twice."""
    content = shard(pa.table({"name": ["a"]}))
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8]
    twice = footer[:-1] + bytes([6, 6, 2, 0])  # field 3 again, by its full number: an integer of 64 bits, 1
    changed = content[: -8 - length] + twice + len(twice).to_bytes(4, "little") + b"PAR1"
    assert pq.ParquetFile(io.BytesIO(changed)).metadata.num_rows == 1
    with pytest.raises(ArtifactError, match="not a Parquet file that can be read"):
        read_names(changed)
