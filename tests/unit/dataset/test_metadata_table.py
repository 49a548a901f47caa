"""From the bytes of a metadata table to rows: whatever is uploaded is read, or refused in one line that repeats nothing of it."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bcc_ops.dataset import metadata_table
from bcc_ops.dataset.metadata_table import Table, printable, read_table, shown
from bcc_ops.exceptions import MetadataProblem


def read(text: str | bytes) -> Table:
    return read_table("metadata.csv", text.encode() if isinstance(text, str) else text)


def found(table: Table) -> dict[str, int]:
    return {finding.reason: finding.count for finding in table.findings.described()}


def parquet(columns: dict[str, object]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_rows_are_numbered_as_in_a_spreadsheet_and_empty_cells_are_left_out() -> None:
    table = read("Key, Patient-ID ,site\nbenign/a.png, 7 ,\n\nbenign/b.png,8,North\n")
    assert [(row.number, row.key, dict(row.cells)) for row in table.rows] == [
        (2, "benign/a.png", {"patient_id": "7"}),
        (4, "benign/b.png", {"patient_id": "8", "site": "North"}),
    ]
    assert table.columns == ("patient_id", "site")
    assert found(table) == {}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiters_and_encodings_of_spreadsheets_are_read(delimiter: str, encoding: str) -> None:
    table = read(f"key{delimiter}site\r\na.png{delimiter}Köln\r\n".encode(encoding))
    assert table.rows[0].cells == {"site": "Köln"}
    assert found(table) == {}


def test_what_excel_writes_in_western_europe_is_read_and_told() -> None:
    table = read("key,site\na.png,Köln\n".encode("latin-1"))
    assert table.rows[0].cells == {"site": "Köln"}
    assert list(found(table)) == ["not in UTF-8, read as Windows-1252: letters with accents may be wrong"]


def test_a_row_of_another_length_and_one_without_a_key_are_left_out_and_named() -> None:
    table = read("key,site\na.png,North,moved\n,South\nb.png,North\n")
    assert [row.key for row in table.rows] == ["b.png"]
    findings = {finding.reason: finding.examples for finding in table.findings.described()}
    assert findings == {
        "rows with more or fewer cells than there are columns, not used: put cells that hold the separator in quotes": ("row 2",),
        "rows without a key": ("row 3",),
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("Maria Muster,1970\n", "no column named `key` in its first line: name the column of the images' paths so"),
        ("", "no column named `key`"),
        (b"key,site\na\0b,c\n", "is not text"),
        (b"\xff\xfea", "begins as utf-16"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is not text"),
        ('key,site\na,"' + "x" * 200_000, "is not a CSV file"),
        (",".join(["key", *map(str, range(40))]), "more than 40 columns: leave out those that a run does not use"),
    ],
)
def test_what_is_not_a_table_is_one_clear_line_that_repeats_nothing(content: str | bytes, problem: str) -> None:
    with pytest.raises(MetadataProblem, match=problem) as caught:
        read(content)
    assert "Maria" not in str(caught.value)


def test_bytes_and_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_table, "MOST_ROWS", 3)
    assert len(read("key\na\nb\nc\n").rows) == 3
    with pytest.raises(MetadataProblem, match="more than 3 rows"):
        read("key\na\nb\nc\nd\n")
    with pytest.raises(MetadataProblem, match="more than 3 rows"):
        read_table("metadata.parquet", parquet({"key": list("abcd")}))
    monkeypatch.setattr(metadata_table, "MOST_BYTES", 10)
    with pytest.raises(MetadataProblem, match="larger than"):
        read("key\n" + "a" * 10)


def test_a_parquet_table_says_what_its_types_say() -> None:
    from datetime import date, datetime

    content = parquet(
        {
            "key": ["a.png", "b.png"],
            "patient_id": pa.array([7.0, None]),
            "acquired_at": [date(2023, 5, 17), date(2023, 5, 18)],
            "seen": [datetime(2023, 5, 17, 8), None],
            "site": pa.array(["North", "North"]).dictionary_encode(),
            "lesions": [[1, 2], [3]],
        }
    )
    table = read_table("metadata.parquet", content)
    assert table.rows[0].cells == {
        "patient_id": "7",
        "acquired_at": "2023-05-17",
        "seen": "2023-05-17T08:00:00",
        "site": "North",
    }
    assert table.rows[1].cells == {"acquired_at": "2023-05-18", "site": "North"}
    assert found(table) == {"columns of lists or records": 1}


def test_a_damaged_parquet_table_is_one_clear_line() -> None:
    content = parquet({"key": ["a.png"] * 100})
    for damaged in (content[:-20], b"PAR1", b"", content[:40] + bytes(40) + content[80:]):
        with pytest.raises(MetadataProblem, match=r"not a Parquet file|has no column"):
            read_table("metadata.parquet", damaged)


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(1024)], ids=["text", "bytes"])
def test_a_long_cell_that_a_small_parquet_table_has_in_each_row_is_held_once(kind: pa.DataType) -> None:
    """40,000 rows of 39 such columns are half a megabyte of a file, and took 1.8 GB."""
    cells = pa.array([b"x" * 1023 + b" "] * 3, pa.binary(1024) if kind == pa.binary(1024) else pa.binary()).cast(kind)
    table = read_table("metadata.parquet", parquet({"key": list("abc"), "site": cells, "device": cells}))
    held = [cell for row in table.rows for cell in row.cells.values()]
    assert set(held) == {"x" * 1023}
    assert len({id(cell) for cell in held}) == 1


def test_a_small_parquet_table_that_unpacks_to_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = parquet({"key": ["x" * 100_000 + str(number) for number in range(20)]})
    monkeypatch.setattr(metadata_table, "MOST_UNPACKED", 1_000_000)
    assert len(content) < 200_000
    with pytest.raises(MetadataProblem, match="unpacks to more than 1 MB"):
        read_table("metadata.parquet", content)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("=cmd|' /C calc'!A0", "cmd ' /C calc' A0"),
        ("+1-2", "1-2"),
        ("@SUM(A1)", "SUM(A1)"),
        ("<script>alert(1)</script>", "script alert(1) /script"),
        ("[a](javascript:x) | `b` *c*", "a (javascript:x) b c"),
        ("GE LOGIQ E9", "GE LOGIQ E9"),
        ("Krankenhaus Köln-Süd / 2", "Krankenhaus Köln-Süd / 2"),
        ("東京\n病院", "東京 病院"),
        ("x" * 100, "x" * 60),
    ],
)
def test_a_value_is_plain_text_wherever_it_is_shown(cell: str, value: str) -> None:
    assert shown(cell) == value


def test_a_name_is_printed_in_one_line_and_controls_no_terminal() -> None:
    assert printable("Köln (1)/a\x1b]0;b\x07\n\u202egnp.\udcff") == "Köln (1)/a?]0;b? ?gnp.?"
