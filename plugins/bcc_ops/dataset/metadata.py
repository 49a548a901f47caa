"""What is known of the images beside their pixels: patient, site, device, date, side, age, and whatever else a table tells.

Sources, the first that tells something of an image in a column counts:

1. a row of the metadata table whose `key` is the image's;
2. rows whose `key` is a pattern (`benign/ELCO_*`) that fits the image's, in the table's order;
3. what the image's file says itself. A source of that kind makes a `Metadata` and is joined by `table.or_else(files)`.

Nothing in a `Metadata` tells who a patient is: identifiers are pseudonyms, dates are quarters, ages are decades, and a value that
fewer than `LEAST_PATIENTS` patients share is left out.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import translate
from typing import NamedTuple

from bcc_ops.dataset.metadata_table import Findings, Table, TableRow, shown
from bcc_ops.dataset.pseudonyms import NOT_KNOWN, Pseudonyms
from bcc_ops.runs.documents import MetadataColumn
from bcc_ops.runs.rows import MetadataRow

PATIENT, ACQUIRED, AGE, LATERALITY = "patient_id", "acquired_at", "age", "laterality"
LABELS = ("label", "class")
"""Columns that only repeat what the folder says."""

LEAST_PATIENTS = 5
"""A value that fewer patients share is not used: it says nothing of others, and may tell who they are."""
MANY_IMAGES = 100
"""Of one patient: then the identifier may stand for "not known"."""
MOST_COMPARISONS = 5_000_000
"""Of a pattern with a key that begins as it does."""
_COST_OF_A_PATTERN = 500
"""Comparisons that reading a pattern costs."""
LONGEST_PATTERN = 200
MOST_ROWS_OF_IMAGE = 20


_SIDES = {"l": "left", "left": "left", "r": "right", "right": "right", "b": "both", "both": "both", "bilateral": "both"}
_DATE = re.compile(r"(\d{4})(?:-?(\d{2})(?:-?(\d{2}))?)?(?:[T ].*|\.\d+)?")
_YEARS = range(1970, 2101)
_AGE = re.compile(r"0*(\d{1,3})(?:\.\d+)?\s*[yY]?")
_OLDEST = 90
_PATTERN = re.compile(r"[*?\[]")


class TableImage(NamedTuple):
    """An image as the table names it (`path`, below the prefix), and as the run does."""

    path: str
    key: str
    label: str


@dataclass(frozen=True)
class Metadata:
    """What is known of images: key -> column -> value. Several pseudonyms of one image have a space between them."""

    cells: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def or_else(self, other: Metadata) -> Metadata:
        """Return what is known by both; if they differ in a column of an image, this one counts.

        Of two patients, none does: the image is tied to both, so that neither source can set apart what the other joins.
        """
        keys = self.cells.keys() | other.cells.keys()
        joined = {key: {**other.cells.get(key, {}), **self.cells.get(key, {})} for key in keys}
        for key, cells in joined.items():
            if patients := sorted({*self.patient(key).split(), *other.patient(key).split()}):
                cells[PATIENT] = " ".join(patients)
        return Metadata(joined)

    def value(self, key: str, column: str) -> str:
        """Return what is known of an image in a column; "" if nothing is."""
        return self.cells.get(key, {}).get(column, "")

    def patient(self, key: str) -> str:
        """Return the pseudonym of an image's patient; "" if it is not known."""
        return self.value(key, PATIENT)

    @property
    def columns(self) -> tuple[MetadataColumn, ...]:
        """The columns, by name."""
        images: Counter[str] = Counter()
        values: defaultdict[str, set[str]] = defaultdict(set)
        for of_image in self.cells.values():
            images.update(of_image.keys())
            for column, value in of_image.items():
                values[column].add(value)
        return tuple(MetadataColumn(name=name, images=images[name], values=len(values[name])) for name in sorted(images))

    def rows(self) -> Iterator[MetadataRow]:
        """Yield metadata.parquet's rows, sorted."""
        for key in sorted(self.cells):
            for column, value in sorted(self.cells[key].items()):
                yield MetadataRow(key, column, value)

    @classmethod
    def of_rows(cls, rows: Iterable[MetadataRow]) -> Metadata:
        """Return what `rows` gave."""
        cells: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for row in rows:
            cells[row.key][row.column] = row.value
        return cls(dict(cells))


@dataclass(frozen=True)
class Matched:
    """What a table says of the images, how many it is about, and what is odd in it."""

    metadata: Metadata
    images: int
    patients: int
    findings: Findings


def match_table(
    table: Table, images: Sequence[TableImage], pseudonyms: Pseudonyms, patient_by_key: Callable[[str], str | None]
) -> Matched:
    """Match a table with the images, and leave out what may tell who somebody is.

    Args:
        table: as `read_table` gives it.
        images: all that the run knows.
        pseudonyms: what becomes of the identifiers.
        patient_by_key: reads a patient from a key if the deployment has a pattern for it; else it returns None.
    """
    findings = table.findings
    rows_of = _match(table, {image.path: image.key for image in images}, findings)
    read = _CellReader(pseudonyms, findings)
    cells = {image.key: _merge(image, rows_of.get(image.key, ()), read, findings) for image in images}
    without = [image.key for image in images if image.key not in rows_of]
    for key in without:
        findings.add("images without a row", key)
    _compare_labels(images, cells, findings)
    _look_at_patients(images, cells, findings)
    kept = _without_rare_values(cells, {image.key: patient_by_key(image.key) for image in images}, findings)
    patients = {patient for of_image in kept.values() for patient in of_image.get(PATIENT, "").split()}
    return Matched(Metadata(kept), len(images) - len(without), len(patients), findings)


def quarter(text: str) -> str | None:
    """Return the quarter (`2023-Q2`) of an ISO date or time, or of DICOM's `20230517`; of a mere year, the year. None if it is
    neither.
    """
    found = _DATE.fullmatch(text)
    if not found or int(found[1]) not in _YEARS:
        return None
    if not found[2]:
        return found[1]
    try:
        moment = datetime(int(found[1]), int(found[2]), int(found[3] or 1))
    except ValueError:
        return None
    return f"{moment.year}-Q{(moment.month + 2) // 3}"


def decade(text: str) -> str | None:
    """Return the decade (`40 to 49`) of an age in years, or of DICOM's `045Y`. None if it is neither."""
    found = _AGE.fullmatch(text)
    if not found or int(found[1]) > 120:
        return None
    age = int(found[1])
    if age >= _OLDEST:
        return f"{_OLDEST} and more"
    return f"{age // 10 * 10} to {age // 10 * 10 + 9}" if age >= 20 else "under 20"


class _CellReader:
    """Turns cells into values that may be kept; each different cell once."""

    def __init__(self, pseudonyms: Pseudonyms, findings: Findings) -> None:
        self._findings = findings
        self._known: dict[tuple[str, str], str] = {}
        self._readers: dict[str, Callable[[str], str | None]] = {
            PATIENT: pseudonyms.of,
            ACQUIRED: quarter,
            AGE: decade,
            LATERALITY: lambda cell: _SIDES.get(cell.casefold()),
        }

    def read(self, row: TableRow) -> dict[str, str]:
        """Return column -> value; an empty cell and one that cannot be read are left out, the latter counted."""
        values = {}
        for column, cell in row.cells.items():
            known = self._known.get((column, cell))
            if known is None:
                known = self._known[column, cell] = self._value(column, cell, row.number)
            if known:
                values[column] = known
        return values

    def _value(self, column: str, cell: str, number: int) -> str:
        if cell.casefold() in NOT_KNOWN:
            return ""
        value = self._readers.get(column, shown)(cell)
        if not value:
            self._findings.add(f"{column}: values that cannot be read", f"row {number}")
        return value or ""


def _match(table: Table, keys: Mapping[str, str], findings: Findings) -> dict[str, list[TableRow]]:
    """Return key -> its rows: those that name it first, then those whose pattern fits."""
    found: defaultdict[str, list[TableRow]] = defaultdict(list)
    patterns: list[TableRow] = []
    for row in table.rows:
        if row.key in keys:
            found[keys[row.key]].append(row)
        elif _PATTERN.search(row.key):
            patterns.append(row)
        else:
            findings.add("rows without an image", f"row {row.number}")
    for key, rows in found.items():
        if len(rows) > 1:
            findings.add("images with two rows or more", key)
        del rows[MOST_ROWS_OF_IMAGE:]
    paths, left = sorted(keys), MOST_COMPARISONS
    for row in patterns:
        begins = _PATTERN.split(row.key, maxsplit=1)[0]
        first, end = bisect_left(paths, begins), bisect_left(paths, begins + chr(0x10FFFF))
        left -= (end - first) + _COST_OF_A_PATTERN
        if left < 0 or len(row.key) > LONGEST_PATTERN:
            findings.add(
                "patterns left out: too many, or too long. Begin patterns with the folder, or name keys", f"row {row.number}"
            )
            continue
        fits = re.compile(translate(row.key)).match
        matched = [path for path in paths[first:end] if fits(path)]
        for path in matched:
            if len(rows := found[keys[path]]) < MOST_ROWS_OF_IMAGE:
                rows.append(row)
        if not matched:
            findings.add("rows without an image", f"row {row.number}")
    return dict(found)


def _merge(image: TableImage, rows: Sequence[TableRow], read: _CellReader, findings: Findings) -> dict[str, str]:
    """Return what the rows of an image say together.

    The first counts, and the next ones fill its gaps. Of two rows that name the image, one that contradicts the other is
    counted. If they name two patients, the image is tied to both: then neither can be in another fold.
    """
    merged: dict[str, str] = {}
    for row in rows:
        for column, value in read.read(row).items():
            before = merged.setdefault(column, value)
            if before != value and row.key == image.path:
                findings.add(f"{column}: rows of one image contradict each other", image.key)
                if column == PATIENT and value not in before.split():
                    merged[column] = f"{before} {value}"
    return merged


def _compare_labels(images: Iterable[TableImage], cells: Mapping[str, dict[str, str]], findings: Findings) -> None:
    """Count where a column names another class than the folder, and drop the column: the folder is the label."""
    for image in images:
        for column in LABELS:
            told = cells[image.key].pop(column, None)
            if told is not None and told.casefold() != shown(image.label).casefold():
                findings.add(f"{column}: another class than the folder, which counts", image.key)


def _look_at_patients(images: Iterable[TableImage], cells: Mapping[str, Mapping[str, str]], findings: Findings) -> None:
    labels: defaultdict[str, set[str]] = defaultdict(set)
    of_patient: defaultdict[str, list[str]] = defaultdict(list)
    for image in images:
        for patient in cells[image.key].get(PATIENT, "").split():
            labels[patient].add(image.label)
            of_patient[patient].append(image.key)
    for patient, keys in of_patient.items():
        if len(labels[patient]) > 1:
            findings.add("patients with images of several classes, which is no error", keys[0])
        if len(keys) > MANY_IMAGES:
            findings.add(f"patients with more than {MANY_IMAGES} images: does the identifier stand for those not known?", keys[0])


def _without_rare_values(
    cells: Mapping[str, Mapping[str, str]], by_key: Mapping[str, str | None], findings: Findings
) -> dict[str, dict[str, str]]:
    """Leave out the values that may tell who a patient is: those that few patients share.

    If no patient is known, nobody can count them: then only the columns whose meaning is fixed are used, and of these only
    values of as many images or more, since fewer images are of fewer patients. Decades, quarters and sides are told as they are.
    """
    images = Counter(told for of_image in cells.values() for told in of_image.items())
    patients: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for key, of_image in cells.items():
        names = of_image.get(PATIENT, "").split() or ([by_key[key] or ""] if by_key.get(key) else [])
        for column, value in of_image.items():
            patients[column, value].update(names)
    safe = {PATIENT, ACQUIRED, AGE, LATERALITY}
    fixed = set() if any(patients.values()) else {"site", "device", "label_source"}
    shared_by = {told: images[told] if told[0] in fixed else len(names) for told, names in patients.items()}
    rare = {told for told, count in shared_by.items() if told[0] not in safe and count < LEAST_PATIENTS}
    for column, count in sorted(Counter(column for column, _ in rare).items()):
        findings.add(f"values of fewer than {LEAST_PATIENTS} known patients, not used", column, count)
    kept = (
        (key, {column: value for column, value in of_image.items() if (column, value) not in rare})
        for key, of_image in cells.items()
    )
    return {key: of_image for key, of_image in kept if of_image}


def without_rare_values(cells: Mapping[str, Mapping[str, str]]) -> Metadata:
    """Return what is known of images, without empty cells and without values that few patients share.

    Args:
        cells: key -> column -> value, with pseudonyms, quarters and decades already.
    """
    told = {key: {column: value for column, value in of_image.items() if value} for key, of_image in cells.items()}
    return Metadata(_without_rare_values(told, {}, Findings()))


def periods(quarters: Sequence[str], most: int = 8) -> list[str]:
    """Return quarters as they are, or as years if there would be more than so many different ones."""
    if len({told for told in quarters if told}) <= most:
        return list(quarters)
    return [told[:4] for told in quarters]
