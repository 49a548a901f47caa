"""From rows to what is known of each image: precedence, bounds, and nothing that tells who somebody is."""

from __future__ import annotations

import json

import pytest

from bcc_ops.dataset import metadata
from bcc_ops.dataset.metadata import Matched, Metadata, TableImage, decade, match_table, periods, quarter
from bcc_ops.dataset.metadata_table import read_table
from bcc_ops.dataset.pseudonyms import Pseudonyms

NAMES = Pseudonyms(b"salt of the tests")


def image(path: str) -> TableImage:
    return TableImage(path, f"images/{path}", path.partition("/")[0])


IMAGES = [image(f"benign/P{number:02d}_{view}.png") for number in range(6) for view in "ab"]


def match(text: str, images: list[TableImage] = IMAGES, by_key: object = None) -> Matched:
    read = by_key if callable(by_key) else lambda key: None
    return match_table(read_table("metadata.csv", text.encode()), images, NAMES, read)


def counted(matched: Matched) -> dict[str, int]:
    return {finding.reason: finding.count for finding in matched.findings.described()}


def examples(matched: Matched, reason: str) -> tuple[str, ...]:
    return next(finding.examples for finding in matched.findings.described() if finding.reason == reason)


def test_a_row_of_the_image_counts_before_patterns_and_patterns_fill_its_gaps() -> None:
    matched = match("key,patient_id,age,laterality\nbenign/P00_*,A,45,L\nbenign/P00_a.png,B,,R\n*_b.png,C,30,R\n")
    first, second, other = (matched.metadata.cells[f"images/benign/{name}.png"] for name in ("P00_a", "P00_b", "P01_b"))
    assert first == {"patient_id": NAMES.of("B"), "age": "40 to 49", "laterality": "right"}
    assert second == {"patient_id": NAMES.of("A"), "age": "40 to 49", "laterality": "left"}
    assert other == {"patient_id": NAMES.of("C"), "age": "30 to 39", "laterality": "right"}
    assert (matched.images, matched.patients) == (7, 3)
    assert counted(matched) == {"images without a row": 5}


def test_a_key_with_brackets_is_a_key_if_there_is_such_an_image() -> None:
    images = [image("benign/x[1].png"), image("benign/x1.png")]
    matched = match("key,age\nbenign/x[1].png,45\n", images)
    assert dict(matched.metadata.cells) == {"images/benign/x[1].png": {"age": "40 to 49"}}


def test_two_rows_for_one_image_are_named_and_tie_it_to_both_patients() -> None:
    matched = match("key,patient_id,age\nbenign/P00_a.png,A,45\nbenign/P00_a.png,B,45\n")
    assert matched.metadata.patient("images/benign/P00_a.png").split() == [NAMES.of("A"), NAMES.of("B")]
    assert matched.patients == 2
    assert examples(matched, "images with two rows or more") == ("images/benign/P00_a.png",)
    assert counted(matched)["patient_id: rows of one image contradict each other"] == 1


def test_rows_without_an_image_are_named_by_their_number_alone() -> None:
    matched = match("key,patient_id\nbenign/Maria Muster.png,A\nmalignant/*,B\n")
    assert examples(matched, "rows without an image") == ("row 2", "row 3")
    assert "Maria" not in str(matched)


def test_a_column_that_contradicts_the_folder_is_counted_and_the_folder_counts() -> None:
    matched = match("key,label,age\nbenign/P00_a.png,Malignant,45\nbenign/P00_b.png,BENIGN,45\n")
    assert examples(matched, "label: another class than the folder, which counts") == ("images/benign/P00_a.png",)
    assert [column.name for column in matched.metadata.columns] == ["age"]


def test_a_patient_under_two_classes_is_fine_and_counted() -> None:
    images = [image("benign/a.png"), image("malignant/b.png")]
    matched = match("key,patient_id\n*,A\n", images)
    assert counted(matched) == {"patients with images of several classes, which is no error": 1}


def test_what_stands_for_not_known_makes_nobody_a_patient() -> None:
    cells = ("unknown", "N/A", "None", "-", "Anonymous", "nan")
    matched = match("key,patient_id\n" + "".join(f"{one.path},{cell}\n" for one, cell in zip(IMAGES, cells)))
    assert matched.patients == 0 and not matched.metadata.cells


def test_an_identifier_that_stands_for_too_many_images_is_told() -> None:
    images = [image(f"benign/{number}.png") for number in range(metadata.MANY_IMAGES + 1)]
    assert any("stand for those not known" in reason for reason in counted(match("key,patient_id\n*,X1\n", images)))


def test_cells_that_cannot_be_read_are_counted_by_column_and_never_repeated() -> None:
    matched = match("key,age,acquired_at,laterality\nbenign/P00_a.png,Maria,17.05.2023,upper\n")
    assert counted(matched) | {"images without a row": 0} == {
        "age: values that cannot be read": 1,
        "acquired_at: values that cannot be read": 1,
        "laterality: values that cannot be read": 1,
        "images without a row": 0,
    }
    assert "Maria" not in str(matched)


def table_of_patients(column: str, values: list[str]) -> str:
    rows = [f"{one.path},{number // 2},{values[number // 2]}" for number, one in enumerate(IMAGES)]
    return "\n".join([f"key,patient_id,{column}", *rows])


def test_a_value_that_few_patients_share_is_not_used() -> None:
    matched = match(table_of_patients("density", ["high"] * 5 + ["low"]))
    assert {cells.get("density") for cells in matched.metadata.cells.values()} == {"high", None}
    assert examples(matched, "values of fewer than 5 known patients, not used") == ("density",)


def test_a_column_of_names_leaves_nothing_behind() -> None:
    matched = match(table_of_patients("patient_name", [f"MARKER{number}" for number in range(6)]))
    assert [column.name for column in matched.metadata.columns] == ["patient_id"]
    assert "MARKER" not in json.dumps([list(matched.metadata.rows()), counted(matched)])


def test_without_known_patients_only_columns_of_a_fixed_meaning_are_used() -> None:
    text = "key,patient_name,site,age\n" + "".join(f"{one.path},MARKER,North,45\n" for one in IMAGES)
    assert [column.name for column in match(text).metadata.columns] == ["age", "site"]
    by_key = match(text, by_key=lambda key: key[14:17])
    assert [column.name for column in by_key.metadata.columns] == ["age", "patient_name", "site"], "six patients share it"


def test_without_known_patients_a_value_of_few_images_is_not_used_since_few_patients_share_it() -> None:
    rows = [f"{one.path},{'North' if number < 5 else 'MARKER'}" for number, one in enumerate(IMAGES[:9])]
    matched = match("\n".join(["key,site", *rows]))
    assert [row.value for row in matched.metadata.rows()] == ["North"] * 5
    assert examples(matched, "values of fewer than 5 known patients, not used") == ("site",)


def test_a_source_fills_the_gaps_of_the_one_before_it() -> None:
    table = Metadata({"a": {"site": "North", "age": "40 to 49"}, "b": {}})
    files = Metadata({"a": {"site": "South", "device": "E9"}, "c": {"device": "E9"}})
    joined = table.or_else(files)
    assert joined.cells == {"a": {"site": "North", "age": "40 to 49", "device": "E9"}, "b": {}, "c": {"device": "E9"}}


def test_whom_two_sources_name_is_tied_to_both_and_neither_sets_apart_what_the_other_joins() -> None:
    joined = Metadata({"a": {"patient_id": "t1"}}).or_else(Metadata({"a": {"patient_id": "d9"}, "b": {"patient_id": "d9"}}))
    assert (joined.patient("a"), joined.patient("b")) == ("d9 t1", "d9")


def test_patterns_that_would_take_minutes_to_read_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(metadata, "translate", lambda pattern: compiled.append(pattern) or r"(?!)")
    match("key,age\n" + "".join(f"benign/{number}*,45\n" for number in range(20_000)) + f"{'*?' * 200},45\n")
    assert len(compiled) <= 10_000 and max(map(len, compiled)) <= 200


def test_rows_hold_all_that_is_known() -> None:
    known = Metadata({"a": {"site": "North", "age": "40 to 49"}, "b": {"site": "South"}})
    assert Metadata.of_rows(known.rows()) == known


def test_a_hundred_thousand_rows_are_looked_up_and_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(metadata, "translate", lambda pattern: compiled.append(pattern) or r"(?!)")
    images = [image(f"benign/{number}.png") for number in range(100_000)]
    matched = match("key,patient_id\n" + "".join(f"{one.path},{number}\n" for number, one in enumerate(images)), images)
    assert (matched.images, matched.patients, compiled) == (100_000, 100_000, [])


def test_patterns_are_compared_with_the_keys_that_begin_alike_and_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "MOST_COMPARISONS", 4)
    monkeypatch.setattr(metadata, "_COST_OF_A_PATTERN", 0)
    matched = match("key,age\nbenign/P00*,45\nbenign/P01*,45\n*,30\n")
    assert {key[14:17] for key in matched.metadata.cells} == {"P00", "P01"}
    (reason,) = (reason for reason in counted(matched) if "patterns left out" in reason)
    assert examples(matched, reason) == ("row 4",)


def test_an_image_has_so_many_rows_at_most() -> None:
    matched = match("key,age\n" + "benign/P00_a.png,\n" * 30 + "benign/P00_a.png,45\n")
    assert not matched.metadata.cells


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("2023-05-17", "2023-Q2"),
        ("20231001", "2023-Q4"),
        ("2023-01-31T23:59:59+02:00", "2023-Q1"),
        ("20230517101500.000", None),
        ("2023-07", "2023-Q3"),
        ("2023", "2023"),
        ("2023-02-30", None),
        ("17.05.2023", None),
        ("0203-05-17", None),
        ("2023-13", None),
    ],
)
def test_dates_are_told_to_the_quarter(cell: str, told: str | None) -> None:
    assert quarter(cell) == told


@pytest.mark.parametrize(
    ("cell", "told"),
    [("45", "40 to 49"), ("045Y", "40 to 49"), ("45.5", "40 to 49"), ("7", "under 20"), ("93", "90 and more"), ("450", None)],
)
def test_ages_are_told_to_the_decade(cell: str, told: str | None) -> None:
    assert decade(cell) == told


def test_many_quarters_become_years() -> None:
    quarters = [f"20{year}-Q{part}" for year in (21, 22, 23) for part in (1, 2, 3, 4)]
    assert periods(["", *quarters[:8]]) == ["", *quarters[:8]]
    assert periods(["", *quarters]) == ["", *(["2021"] * 4), *(["2022"] * 4), *(["2023"] * 4)]
