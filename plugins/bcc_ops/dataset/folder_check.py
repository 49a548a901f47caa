"""Check a labelled folder as a run checks its snapshot, without Airflow or S3: `python -m bcc_ops check`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from bcc_ops.config import FINDINGS
from bcc_ops.dataset.image_cache import sha256_of_file
from bcc_ops.dataset.image_checks import ImageChecks, check_images
from bcc_ops.dataset.metadata_source import folder_metadata
from bcc_ops.dataset.metadata_table import printable
from bcc_ops.dataset.pseudonyms import passing_pseudonyms
from bcc_ops.dataset.snapshot import ImageRules, ListingBuilder, digest_of_images
from bcc_ops.dataset.splits import Split, describe_split, split_images
from bcc_ops.dataset.sync import LocalImage
from bcc_ops.exceptions import DataError, NoImages, SplitError
from bcc_ops.runs.documents import FOLDS, CheckDocument, ChecksDocument, IgnoredKeys, MetadataDocument, name_fold

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bcc_ops.config import RetrainingConfig

_ROOT = "folder"
_LISTED_AT_MOST = 12


def check_folder(
    folder: Path,
    config: RetrainingConfig,
    *,
    classes: Sequence[str] | None = None,
    memory_path: Path | None = None,
    sheets: Path | None = None,
) -> CheckDocument:
    """Check and split a folder that holds one folder per class.

    Args:
        folder: the labelled folder. Keys are paths below it.
        config: the parameters of the sections "Checks" and "Split", and `ignore_patterns`.
        classes: the classes' names; None takes every folder in it, by name.
        memory_path: where what was learned of each content is kept for the next time; None forgets it.
        sheets: a folder for contact sheets (PNG) of every conflict and of the pairs nearest the thresholds; None draws
            none. They show the images: keep them where the images may be kept.

    Raises:
        NoImages: it holds no image, or is not a folder.
        TooManyRefused: more than `max_refused_fraction` of the images are refused.
    """
    classes, images, ignored, checks = check_labelled_folder(folder, config, classes=classes, memory_path=memory_path)
    if sheets is not None:
        from bcc_ops.dataset.contact_sheets import draw_contact_sheets

        draw_contact_sheets(checks, {image.key: image.path for image in images}, sheets)
    return _describe(checks, ignored, config, classes)


def check_labelled_folder(
    folder: Path, config: RetrainingConfig, *, classes: Sequence[str] | None = None, memory_path: Path | None = None
) -> tuple[tuple[str, ...], list[LocalImage], tuple[IgnoredKeys, ...], ImageChecks]:
    """Check a folder that holds one folder per class, without splitting it.

    Patients whom a metadata table or a DICOM file names get pseudonyms for this check only.

        Takes and raises what `check_folder` does.

        Returns:
            The classes, the images and what was ignored, as listed; and the checks.
    """
    classes, images, ignored, digest = list_labelled_folder(folder, config, classes=classes)
    names = passing_pseudonyms()
    table, metadata = folder_metadata(folder, images, config, lambda: names)
    with tempfile.TemporaryDirectory(prefix="bcc-check-") as scratch:
        checks = check_images(
            images,
            config,
            memory_path=memory_path or Path(scratch) / "contents.sqlite3",
            snapshot_digest=digest,
            classes=classes,
            previous=None,
            metadata=metadata,
            table=table,
            pseudonyms=lambda: names,
        )
    return classes, images, ignored, checks


def list_labelled_folder(
    folder: Path, config: RetrainingConfig, *, classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], list[LocalImage], tuple[IgnoredKeys, ...], str]:
    """List a folder that holds one folder per class.

    Returns:
        The classes, the images, what was ignored, and a digest of the images.

    Raises:
        NoImages: it holds no image, or is not a folder.
    """
    if not folder.is_dir():
        raise NoImages(f"{folder} is not a folder")
    classes = tuple(classes) if classes else tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    images, ignored, digest = _list_folder(folder, classes, config)
    if not images:
        raise NoImages(f"{folder} holds no image in a folder named after a class ({', '.join(classes) or 'there is none'})")
    return classes, images, ignored, digest


def check_tables(document: CheckDocument) -> list[RenderableType]:
    """Return the document for a terminal: pass them to a rich console one after the other."""
    from rich.table import Table
    from rich.text import Text  # plain text: brackets in a name are not markup

    checks = document.checks
    counts = Table(title="Images", title_justify="left")
    for column in ("class", "usable", *map(name_fold, FOLDS), "weight"):
        counts.add_column(column, justify="left" if column == "class" else "right")
    for name, usable in checks.usable.items():
        split = document.split
        cells = [str(split.counts[fold][name]) for fold in FOLDS] if split else ["-"] * len(FOLDS)
        counts.add_row(name, str(usable), *cells, f"{split.weights[name]:.3f}" if split else "-")

    found = Table(title="Findings", title_justify="left", show_header=False)
    found.add_row("checked", str(checks.checked))
    for passed in document.ignored:
        found.add_row(f"ignored: {passed.reason}", str(passed.count))
    for mode, count in checks.converted.items():
        found.add_row(f"converted from {mode}", str(count))
    found.add_row("refused", str(len(checks.refused)))
    found.add_row("groups of near-duplicates", f"{len(checks.groups)} ({sum(len(one.keys) for one in checks.groups)} images)")
    found.add_row("groups under two labels", f"{len(checks.conflicts)} ({sum(len(one.keys) for one in checks.conflicts)} images)")
    tables: list[RenderableType] = [counts, found]

    if checks.refused:
        refused = Table("image", "reason", "detail", title="Refused", title_justify="left")
        for image in checks.refused[:_LISTED_AT_MOST]:
            refused.add_row(Text(printable(image.key)), image.reason, Text(printable(image.detail)))
        tables.append(_cut(refused, len(checks.refused)))
    if checks.conflicts:
        conflicts = Table("images", "labels", title="Near-duplicates under two labels (left out)", title_justify="left")
        for group in checks.conflicts[:_LISTED_AT_MOST]:
            conflicts.add_row(Text("\n".join(map(printable, group.keys))), Text(", ".join(group.labels)))
        tables.append(_cut(conflicts, len(checks.conflicts)))
    tables += _finding_tables(checks)
    if checks.shortcuts:
        tables.append(_shortcut_table(checks))
    if checks.metadata:
        tables.extend(metadata_tables(checks.metadata))
    tables.extend(warning_lines(checks))
    if checks.shortcuts_unavailable:
        tables.append(Text(f"shortcuts were not checked: {checks.shortcuts_unavailable}"))
    if document.split_problem:
        tables.append(Text(f"no split: {document.split_problem}"))
    return tables


def warning_lines(checks: ChecksDocument) -> list[RenderableType]:
    """Return the warnings of the image checks for a terminal."""
    from rich.text import Text

    return [Text(printable(f"warning: {warning}")) for warning in checks.warnings]


def metadata_tables(document: MetadataDocument) -> list[RenderableType]:
    """Return what a metadata table told and what is odd in it, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    told = Table(title=Text(f"Metadata: {document.key}"), title_justify="left", show_header=False)
    told.add_row("rows", str(document.rows))
    told.add_row("images with a row", str(document.images))
    told.add_row("patients", str(document.patients))
    for column in document.columns:
        told.add_row(Text(column.name), f"{column.images} images, {column.values} value{'s' * (column.values != 1)}")
    if not document.findings:
        return [told]
    odd = Table("count", "finding", "such as", title="Odd in the metadata", title_justify="left")
    for finding in document.findings:
        odd.add_row(str(finding.count), Text(finding.reason), Text(printable(", ".join(finding.examples))))
    return [told, odd]


def _finding_tables(checks: ChecksDocument) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    found = Table("finding", "images", "action", *checks.usable, title="Content findings", title_justify="left")
    for one in checks.findings:
        by_class = (str(one.labels.get(name, 0)) for name in checks.usable)
        found.add_row(FINDINGS[one.finding], str(one.images), one.action, *by_class)
    armpit = [key for one in checks.findings if one.finding == "axilla" for key in one.keys]
    keys = Table("image", title="Marked as axilla", title_justify="left")
    for key in armpit:
        keys.add_row(Text(printable(key)))
    unavailable = [Text(f"content findings: {checks.findings_unavailable}")] if checks.findings_unavailable else []
    return [*([found] if checks.findings else []), *([keys] if armpit else []), *unavailable]


def _shortcut_table(checks: ChecksDocument) -> RenderableType:
    from rich.table import Table

    table = Table("alone", *checks.usable, title="Shortcuts: AUC of each class by properties of the files", title_justify="left")
    cells: dict[str, list[str]] = {}
    for finding in checks.shortcuts:
        told = f"{finding.auc:.2f}{' !' if finding.warning else ''}" if finding.auc.value is not None else "-"
        cells.setdefault(finding.properties, []).append(told)
    for properties, told_by_class in cells.items():
        table.add_row(properties, *told_by_class)
    return table


def _list_folder(
    folder: Path, classes: tuple[str, ...], config: RetrainingConfig
) -> tuple[list[LocalImage], tuple[IgnoredKeys, ...], str]:
    """Return the folder's images by the rules that a bucket's are listed by; an empty file is an image to refuse here.

    Raises:
        DataError: a file's name is not UTF-8, as names in a bucket are.
    """
    builder = ListingBuilder(ImageRules(_ROOT, classes, config.ignored_names, config.max_file_mb * 1_000_000), versioned=False)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _refuse_foreign_name(path.relative_to(folder))
        state = path.stat()
        builder.add(
            {
                "Key": f"{_ROOT}/{path.relative_to(folder).as_posix()}",
                "Size": max(1, state.st_size),
                "ETag": "",
                "LastModified": datetime.fromtimestamp(state.st_mtime, timezone.utc),
            }
        )
    listing = builder.build()
    images = []
    for row in listing.images:
        key = row.key.removeprefix(f"{_ROOT}/")
        images.append(LocalImage(key, row.label, sha256_of_file(folder / key), folder / key))
    digest = digest_of_images(row._replace(key=image.key, etag=image.sha256) for row, image in zip(listing.images, images))
    return images, listing.ignored, digest


def _refuse_foreign_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of {os.fsencode(path)!r} is not UTF-8, as names in a bucket are: rename it") from None


def _describe(
    checks: ImageChecks, ignored: tuple[IgnoredKeys, ...], config: RetrainingConfig, classes: tuple[str, ...]
) -> CheckDocument:
    problem: str | None = None
    split = Split((), (), (), 0, config.folds)
    try:
        split = split_images(checks.contents, (), config, classes)
    except SplitError as error:
        problem = str(error)
    return CheckDocument(
        classes=classes,
        ignored=ignored,
        checks=checks.document,
        split=None if problem else describe_split(split, config, classes),
        folds={row.key: row.fold for row in split.rows},
        split_problem=problem,
    )


def _cut(table: RenderableType, rows: int) -> RenderableType:
    from rich.table import Table

    if rows > _LISTED_AT_MOST and isinstance(table, Table):
        table.caption = f"and {rows - _LISTED_AT_MOST} more (--json lists them all)"
    return table
