"""The table of a snapshot: fetched, described without a patient's identifier, and fatal only to who requires it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.metadata import Metadata
from bcc_ops.dataset.metadata_source import external_metadata, read_metadata, snapshot_metadata
from bcc_ops.dataset.pseudonyms import passing_pseudonyms
from bcc_ops.dataset.snapshot import Listing, PreviousSnapshot
from bcc_ops.exceptions import AccessDenied, MetadataProblem, StorageUnavailable
from bcc_ops.runs.documents import MetadataDocument, Reference
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.rows import ImageRow
from tests.unit.dataset.test_pseudonyms import Shelf
from tests.unit.report.samples import snapshot_document

AS_OF = datetime(2026, 11, 22, 2, tzinfo=timezone.utc)
PATHS = RunPaths.of("artifacts", AS_OF, "manual__1")
TABLE = b"key,patient_id,age\nbenign/*,MARKER,45\n"


class Bucket(Shelf):
    """A bucket in memory with a table. `refusal` is what the store answers instead."""

    bucket = "breast-images"

    def __init__(self, table: bytes = TABLE, refusal: Exception | None = None) -> None:
        super().__init__()
        self.objects["images/metadata.csv"] = table
        self.refusal = refusal

    def get_with_etag(self, key: str, version_id: str | None = None, at_most: int | None = None) -> tuple[bytes, str]:
        if self.refusal:
            raise self.refusal
        return self.objects[key][:at_most], "e"

    def get_referenced(self, reference: Reference) -> bytes:
        assert Reference.of(reference.key, self.objects[reference.key]) == reference
        return self.objects[reference.key]


def listed(*tables: str, later: timedelta = timedelta()) -> Listing:
    images = [ImageRow(f"images/benign/{number}.png", "benign", 1, "e", "", AS_OF) for number in range(3)]
    rows = tuple(ImageRow(f"images/{name}", "", 9, "e", "", AS_OF + later) for name in tables)
    return Listing(images, (), False, AS_OF, rows)


def taken(
    bucket: Bucket, listing: Listing | None = None, before: MetadataDocument | None = None, **parameters: object
) -> MetadataDocument | None:
    """Take the table of a snapshot, and store its rows as the operator does."""
    previous = (
        PreviousSnapshot(bucket, PATHS, snapshot_document(metadata=before)) if before else PreviousSnapshot(bucket, None, None)
    )
    document, rows = snapshot_metadata(
        bucket,
        Settings(),
        RetrainingConfig.resolve(parameters),
        listing or listed("metadata.csv"),
        paths=PATHS,
        previous=previous,
    )
    if document is not None and document.table is not None:
        bucket.objects[document.table.key] = rows
    return document


def reasons(document: MetadataDocument | None) -> list[str]:
    assert document is not None
    return [finding.reason for finding in document.findings]


def test_a_run_keeps_what_the_table_said_with_a_pseudonym_for_the_patient() -> None:
    bucket = Bucket()
    document = taken(bucket, require_metadata=True)
    assert document is not None
    assert (document.rows, document.images, document.patients, document.problem) == (1, 3, 1, None)
    assert document.sha256 == Reference.of("", TABLE).sha256
    bucket.objects["images/metadata.csv"] = b"another"
    metadata = read_metadata(bucket, document)
    assert len({metadata.patient(f"images/benign/{number}.png") for number in range(3)}) == 1
    assert "MARKER" not in f"{document} {metadata}"


def test_two_nights_have_the_same_pseudonyms_and_another_salt_is_told() -> None:
    bucket = Bucket()
    first = taken(bucket)
    assert first is not None
    second = taken(bucket, before=first)
    assert second is not None and (second.salt, second.table) == (first.salt, first.table)
    assert not any("another salt" in reason for reason in reasons(second))
    del bucket.objects["artifacts/metadata-salt"]
    assert any("another salt than the previous run's" in reason for reason in reasons(taken(bucket, before=first)))


def test_no_salt_is_made_for_a_table_without_patients() -> None:
    bucket = Bucket(b"key,age\nbenign/*,45\n")
    taken(bucket)
    assert "artifacts/metadata-salt" not in bucket.objects


def test_a_second_table_and_one_that_is_newer_than_the_images_are_told() -> None:
    bucket = Bucket()
    bucket.objects["images/metadata.parquet"] = TABLE
    both = taken(bucket, listed("metadata.csv", "metadata.parquet", later=timedelta(days=1)))
    assert [reason.partition(",")[0].partition(":")[0] for reason in reasons(both)] == ["a second table", "newer than the images"]


def test_a_table_that_the_store_does_not_give_is_a_problem_and_one_that_it_cannot_give_now_is_retried() -> None:
    document = taken(Bucket(refusal=AccessDenied("reading it: no")))
    assert document is not None and document.problem == "the store does not give it: reading it: no"
    assert read_metadata(Bucket(), None) == Metadata()
    with pytest.raises(StorageUnavailable):
        taken(Bucket(refusal=StorageUnavailable("SlowDown")))


@pytest.mark.parametrize(
    ("bucket", "listing", "problem"),
    [
        (Bucket(), listed(), "there is no metadata.parquet or metadata.csv beside the images"),
        (Bucket(b"no key\n"), listed("metadata.csv"), "no column named `key`"),
        (Bucket(b"key,patient_id\nbenign/0.png,A\n"), listed("metadata.csv"), "not name the patient of 2 of 3 images"),
    ],
)
def test_who_requires_metadata_gets_a_run_that_fails(bucket: Bucket, listing: Listing, problem: str) -> None:
    taken(bucket, listing)
    with pytest.raises(MetadataProblem, match=problem):
        taken(bucket, listing, require_metadata=True)


def test_images_whose_key_names_the_patient_need_no_row() -> None:
    taken(Bucket(b"key,age\nbenign/0.png,45\n"), require_metadata=True, patient_pattern=r"/(\d)\.png")


def test_images_from_elsewhere_have_a_table_of_their_own() -> None:
    bucket = Bucket()
    metadata = external_metadata(bucket, RetrainingConfig.resolve({}), listed("metadata.csv"), "images", passing_pseudonyms)
    assert {metadata.value(key, "age") for key in metadata.cells} == {"40 to 49"}
    assert "artifacts/metadata-salt" not in bucket.objects
    assert external_metadata(bucket, RetrainingConfig.resolve({}), listed(), "images", passing_pseudonyms) == Metadata()
