"""The metadata table of a snapshot or of a folder: found, fetched, matched with the images, and described.

Nothing here fails a run, unless `require_metadata` is on: a table that cannot be used is a finding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.metadata import PATIENT, Matched, Metadata, TableImage, match_table
from bcc_ops.dataset.metadata_table import MOST_BYTES, TABLE_NAMES, Findings, read_table
from bcc_ops.dataset.pseudonyms import Pseudonyms, passing_pseudonyms, pseudonyms_of
from bcc_ops.dataset.snapshot import NO_VERSION, Listing, PreviousSnapshot
from bcc_ops.dataset.splits import patient_reader
from bcc_ops.exceptions import MetadataProblem, StorageError
from bcc_ops.runs.documents import ChecksDocument, MetadataDocument, Reference
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.rows import MetadataRow

if TYPE_CHECKING:
    from bcc_ops.dataset.sync import LocalImage
    from bcc_ops.runs.rows import ImageRow

METADATA_FILE = "metadata.parquet"
"""In a run's folder: what the table says about each image, with pseudonyms in place of patients' identifiers."""
FILE_METADATA = "file-metadata.parquet"
"""In a run's folder: what DICOM files say about themselves, in the same form."""
_EXAMPLES = 3


def snapshot_metadata(
    store: ObjectStore,
    settings: Settings,
    config: RetrainingConfig,
    listing: Listing,
    *,
    paths: RunPaths,
    previous: PreviousSnapshot,
) -> tuple[MetadataDocument | None, bytes]:
    """Read the table of a snapshot.

    Args:
        store: the bucket.
        settings: the deployment.
        config: `patient_pattern` and `require_metadata` count.
        listing: the images of the snapshot, and the tables beside them.
        paths: of the run.
        previous: to notice that the pseudonyms have changed.

    Returns:
        What snapshot.json says of it, None if there is no table; and the content of the run's metadata.parquet.

    Raises:
        MetadataProblem: `require_metadata` is on, and no table names the patient of each image.
        StorageUnavailable: the store failed, which may pass.
    """
    if not listing.tables:
        _require(config, None, listing.images)
        return None, b""
    table = listing.tables[0]
    root = f"{settings.images_prefix}/"
    images = [TableImage(image.key.removeprefix(root), image.key, image.label) for image in listing.images]
    content, problem = _fetch(store, table)
    findings = _about_tables(listing, paths.as_of)
    document, metadata = _describe(
        table, content, problem, images, config=config, pseudonyms=lambda: pseudonyms_of(settings, store), findings=findings
    )
    before = previous.document.metadata if previous.document else None
    if before and before.salt and document.salt and before.salt != document.salt:
        findings.add("another salt than the previous run's: images that are gone are not recognised as a patient's")
        document = document.model_copy(update={"findings": findings.described()})
    _require(config, document, listing.images, metadata)
    rows = write_metadata(metadata)
    return document.model_copy(update={"table": Reference.of(paths.document(METADATA_FILE), rows)}), rows


def external_metadata(
    store: ObjectStore, config: RetrainingConfig, listing: Listing, prefix: str, pseudonyms: Callable[[], Pseudonyms]
) -> Metadata:
    """Read the table beside images that nothing is trained on; nothing is known of them if it cannot be used.

    Its patients get the pseudonyms that those in DICOM files have, so that a patient whom both name is one.
    """
    if not listing.tables:
        return Metadata()
    table = listing.tables[0]
    images = [TableImage(image.key.removeprefix(f"{prefix}/"), image.key, image.label) for image in listing.images]
    content, problem = _fetch(store, table)
    return _describe(table, content, problem, images, config=config, pseudonyms=pseudonyms, findings=Findings())[1]


def folder_metadata(
    folder: Path, images: Sequence[LocalImage], config: RetrainingConfig, pseudonyms: Callable[[], Pseudonyms]
) -> tuple[MetadataDocument | None, Metadata]:
    """Read the table of a labelled folder.

    Raises:
        MetadataProblem: as `snapshot_metadata` does.
    """
    from bcc_ops.runs.rows import ImageRow

    path = next((folder / name for name in TABLE_NAMES if (folder / name).is_file()), None)
    if path is None:
        _require(config, None, images)
        return None, Metadata()
    state = path.stat()
    row = ImageRow(path.name, "", state.st_size, "", "", datetime.fromtimestamp(state.st_mtime, timezone.utc))
    named = [TableImage(image.key, image.key, image.label) for image in images]
    try:
        with path.open("rb") as file:
            content, problem = file.read(MOST_BYTES + 1), ""
    except OSError as error:
        content, problem = b"", f"{path.name} cannot be read: {error.strerror}"
    document, metadata = _describe(row, content, problem, named, config=config, pseudonyms=pseudonyms, findings=Findings())
    _require(config, document, images, metadata)
    return document, metadata


def write_metadata(metadata: Metadata) -> bytes:
    """metadata.parquet."""
    from bcc_ops.runs.tables import write_rows

    return write_rows(MetadataRow, metadata.rows())


def read_metadata(store: ObjectStore, document: MetadataDocument | None) -> Metadata:
    """Return what the table of a run's snapshot says about its images; nothing if there is no table."""
    return _read_rows(store, document.table if document else None)


def read_file_metadata(store: ObjectStore, checks: ChecksDocument) -> Metadata:
    """Return what a run's DICOM files say about themselves; nothing if there are none."""
    return _read_rows(store, checks.file_metadata)


def _read_rows(store: ObjectStore, table: Reference | None) -> Metadata:
    from bcc_ops.runs.tables import read_rows

    return Metadata.of_rows(read_rows(MetadataRow, store.get_referenced(table))) if table else Metadata()


def _fetch(store: ObjectStore, table: ImageRow) -> tuple[bytes, str]:
    """Return the content of the table, or the problem that the store has with it."""
    try:
        return store.get_with_etag(table.key, table.version_id if table.version_id not in NO_VERSION else None, MOST_BYTES + 1)[
            0
        ], ""
    except StorageError as error:
        if error.retryable:
            raise
        return b"", f"the store does not give it: {error}"


def _about_tables(listing: Listing, as_of: datetime) -> Findings:
    findings = Findings()
    for other in listing.tables[1:]:
        findings.add("a second table, which is not read", other.key)
    if listing.tables[0].last_modified > as_of:
        findings.add("newer than the images: the bucket keeps no versions, so that the table of that moment is gone")
    return findings


def _describe(
    table: ImageRow,
    content: bytes,
    problem: str,
    images: Sequence[TableImage],
    *,
    config: RetrainingConfig,
    pseudonyms: Callable[[], Pseudonyms],
    findings: Findings,
) -> tuple[MetadataDocument, Metadata]:
    document = MetadataDocument(
        key=table.key,
        etag=table.etag,
        version_id=table.version_id,
        last_modified=table.last_modified,
        size=table.size,
        findings=findings.described(),
    )
    if problem:
        return document.model_copy(update={"problem": problem}), Metadata()
    document = document.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    try:
        rows = read_table(table.key.rpartition("/")[2], content)
    except MetadataProblem as error:
        return document.model_copy(update={"problem": str(error)}), Metadata()
    names = pseudonyms() if PATIENT in rows.columns else None
    matched: Matched = match_table(rows, images, names or passing_pseudonyms(), patient_reader(config.patient_pattern))
    findings.extend(matched.findings.described())
    found = {
        "rows": len(rows.rows),
        "images": matched.images,
        "patients": matched.patients,
        "columns": matched.metadata.columns,
        "findings": findings.described(),
        "salt": names.salt_name if names else "",
    }
    return document.model_copy(update=found), matched.metadata


def _require(
    config: RetrainingConfig,
    document: MetadataDocument | None,
    images: Sequence[ImageRow] | Sequence[LocalImage],
    metadata: Metadata | None = None,
) -> None:
    if not config.require_metadata:
        return
    way_out = "Correct the table, or switch require_metadata off"
    if document is None:
        raise MetadataProblem(f"there is no {' or '.join(TABLE_NAMES)} beside the images, and require_metadata is on. {way_out}")
    if document.problem:
        raise MetadataProblem(f"{document.problem}, and require_metadata is on. {way_out}")
    patient_by_key = patient_reader(config.patient_pattern)
    unknown = [
        image.key for image in images if not (metadata and metadata.patient(image.key)) and patient_by_key(image.key) is None
    ]
    if unknown:
        raise MetadataProblem(
            f"{document.key} does not name the patient of {len(unknown)} of {len(images)} images "
            f"({', '.join(unknown[:_EXAMPLES])}, …), and require_metadata is on. {way_out}"
        )
