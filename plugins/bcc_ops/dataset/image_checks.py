"""Which images may be used, and why the others may not.

Every content is decoded once, by the decoder that training uses; what was learned of it is remembered by its sha256, so
that the next night decodes only what is new. The rest is counting and wording.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from bcc_ops.dataset.content_findings import FINDING, action_on, list_findings, text_was_read, warnings_about
from bcc_ops.dataset.decoding import DecodedImage, decode_image, memory_for, read_image_file
from bcc_ops.dataset.dicom import DicomTags, GivesPseudonyms
from bcc_ops.dataset.drift import compare_distributions
from bcc_ops.dataset.fingerprints import fingerprint, to_gray
from bcc_ops.dataset.image_content import find_in_contents
from bcc_ops.dataset.inspection_cache import ContentFacts, InspectionCache
from bcc_ops.dataset.metadata import ACQUIRED, AGE, LATERALITY, PATIENT, Metadata, decade, quarter, without_rare_values
from bcc_ops.dataset.metadata_table import shown
from bcc_ops.dataset.near_duplicates import NearDuplicates, Thresholds, find_near_duplicates
from bcc_ops.dataset.properties import measure_properties
from bcc_ops.dataset.resources import cores
from bcc_ops.dataset.shortcuts import audit_shortcuts
from bcc_ops.dataset.splits import patient_reader, patient_ties
from bcc_ops.dataset.synthetic import is_synthetic
from bcc_ops.exceptions import ImageRefused, NoImages, OutOfResources, TooManyRefused
from bcc_ops.runs.documents import ChecksDocument, ImageGroup, MetadataDocument, RefusedImage
from bcc_ops.runs.rows import ContentRow

if TYPE_CHECKING:
    from bcc_ops.config import RetrainingConfig
    from bcc_ops.dataset.sync import LocalImage

log = logging.getLogger(__name__)

CONFLICT = "conflict"
"""What `ContentRow.refused` says of an image whose group is under more than one label."""

UNREADABLE = "not readable in the store"
"""The reason for an image that is listed but cannot be fetched: archived, or encrypted with a key that is not ours."""

_NAMED_AT_MOST = 10
_GROUP_TO_LOOK_AT = 10


@dataclass(frozen=True)
class ImageChecks:
    """The document (without the reference to its rows), its rows, and the pairs that the groups were made of.

    `dicom` has, by key, what is kept of the usable DICOM images beside their pixels. `metadata` is what is known of the images
    from anywhere, `by_files` what the files alone tell.
    """

    document: ChecksDocument
    contents: tuple[ContentRow, ...]
    near_duplicates: NearDuplicates
    dicom: Mapping[str, DicomTags]
    by_files: Metadata
    metadata: Metadata


def check_images(
    images: Sequence[LocalImage],
    config: RetrainingConfig,
    *,
    memory_path: Path,
    snapshot_digest: str,
    classes: Sequence[str],
    previous: Sequence[ContentRow] | None,
    unreadable: Mapping[str, str] = MappingProxyType({}),
    metadata: Metadata | None = None,
    table: MetadataDocument | None = None,
    pseudonyms: GivesPseudonyms | None = None,
) -> ImageChecks:
    """Check every image of a snapshot, find near-duplicates and conflicts, and compare what is new with what was there.

    Args:
        images: the snapshot's images and their files.
        config: the parameters of section "Checks".
        memory_path: the file in which what was learned of each content is kept; made if it is not there.
        snapshot_digest: names the snapshot in the document.
        classes: every class is counted, those without an image too.
        previous: contents.parquet of the last assessed earlier run; None without one.
        unreadable: key -> why the store does not give it, of the snapshot's images that are not in `images`. They are refused.
        metadata: what is known of the images; nothing by default.
        table: describes where that is from, for the document.
        pseudonyms: those with which DICOM files were read, or are read now. A patient whom a file names under another salt is not
            known.

    Raises:
        NoImages: there is none at all.
        TooManyRefused: more than `max_refused_fraction` of the images are refused (conflicts do not count as refused).
    """
    if not images:
        raise NoImages("no image was found to check")
    with InspectionCache(memory_path) as memory:
        facts, findings = inspect_images(images, config, memory, previous=previous or (), pseudonyms=pseudonyms)
        copies = _group(images, facts, config, memory)
    checked = len(images) + len(unreadable)
    refused = [
        RefusedImage(key=image.key, reason=facts[image.sha256].reason, detail=facts[image.sha256].detail)
        for image in images
        if facts[image.sha256].reason
    ]
    refused += [RefusedImage(key=key, reason=UNREADABLE, detail=why) for key, why in unreadable.items()]
    refused.sort(key=lambda image: image.key)
    _fail_if_too_many(refused, checked, config.max_refused_fraction)

    dicom = _tags(images, facts)
    by_files = _told_by_files(dicom, pseudonyms)
    known = (metadata or Metadata()).or_else(by_files)
    groups, conflicts, rows = _describe(images, facts, copies, known, findings)
    contents = _exclude(rows, config)
    found = list_findings(contents, config)
    burned_in = sum(tags.burned_in is True for tags in dicom.values())
    usable = Counter(row.label for row in contents if not row.refused)
    audit = audit_shortcuts(contents, classes, config.patient_pattern)
    drift, drift_unavailable = compare_distributions(contents, previous, classes)
    document = ChecksDocument(
        snapshot_digest=snapshot_digest,
        checked=checked,
        usable={name: usable[name] for name in classes},
        synthetic=sum(row.synthetic for row in contents),
        converted=dict(sorted(Counter(row.mode for row in contents if row.mode not in ("", "RGB")).items())),
        dicom=len(dicom),
        burned_in=burned_in,
        refused=tuple(refused),
        groups=tuple(group for group in groups if len(group.labels) == 1),
        conflicts=conflicts,
        thresholds={
            "min_side": config.min_side,
            "max_pixels": config.max_pixels,
            "max_refused_fraction": config.max_refused_fraction,
            **Thresholds.of(config).described(),
        },
        drift=drift,
        drift_unavailable=drift_unavailable,
        shortcuts=audit.findings,
        shortcuts_unavailable=audit.unavailable,
        patients=_count_patients(contents, config.patient_pattern),
        metadata=table,
        findings=found,
        findings_unavailable=_why_not_found(contents, config),
        excluded=_count_excluded(contents, config),
        warnings=(
            *_warnings(contents, groups, conflicts, burned_in),
            *_lost_patients(dicom, by_files),
            *(finding.sentence for finding in drift if finding.warning),
            *audit.warnings(),
            *_metadata_warnings(table),
            *warnings_about(found),
        ),
        contents=None,
    )
    return ImageChecks(document, contents, copies, dicom, by_files, known)


def check_contents(
    images: Sequence[LocalImage],
    config: RetrainingConfig,
    memory: InspectionCache,
    metadata: Metadata | None = None,
    pseudonyms: GivesPseudonyms | None = None,
) -> tuple[ContentRow, ...]:
    """Check images that no run trains on: the same rows as `check_images` has, however many are refused.

    Args:
        images: the images and their files.
        config: the parameters of section "Checks".
        memory: what was learned of each content.
        metadata: what is known of them; nothing by default.
        pseudonyms: as of `check_images`.
    """
    facts = inspect_contents({image.sha256: image.path for image in images}, config, memory, pseudonyms=pseudonyms)
    copies = _group(images, facts, config, memory)
    dicom = _tags(images, facts)
    by_files = _told_by_files(dicom, pseudonyms)
    for warning in _lost_patients(dicom, by_files):
        log.warning("%s", warning)
    return _describe(images, facts, copies, (metadata or Metadata()).or_else(by_files), {})[2]


def inspect_images(
    images: Sequence[LocalImage],
    config: RetrainingConfig,
    memory: InspectionCache,
    *,
    previous: Iterable[ContentRow] = (),
    pseudonyms: GivesPseudonyms | None = None,
) -> tuple[dict[str, ContentFacts], dict[str, str]]:
    """Return what each image tells by itself: sha256 -> its facts, and sha256 -> its findings if it is usable.

    Arguments are those of `check_images`.
    """
    paths = {image.sha256: image.path for image in images}
    facts = inspect_contents(paths, config, memory, pseudonyms=pseudonyms)
    usable = {sha256: path for sha256, path in paths.items() if not facts[sha256].reason}
    return facts, {} if config.ignores_findings else find_in_contents(usable, previous, memory)


def _group(
    images: Iterable[LocalImage], facts: Mapping[str, ContentFacts], config: RetrainingConfig, memory: InspectionCache
) -> NearDuplicates:
    marks = {sha256: known.fingerprint for sha256, known in facts.items() if known.fingerprint}
    return find_near_duplicates(marks, {image.sha256: image.path for image in images}, Thresholds.of(config), memory)


def _describe(
    images: Sequence[LocalImage],
    facts: Mapping[str, ContentFacts],
    copies: NearDuplicates,
    metadata: Metadata,
    findings: Mapping[str, str],
) -> tuple[list[ImageGroup], tuple[ImageGroup, ...], tuple[ContentRow, ...]]:
    """Return the groups of two and more usable images, those under two labels, and the row of each image."""
    groups = _name_groups([image for image in images if not facts[image.sha256].reason], copies)
    conflicts = tuple(group for group in groups if len(group.labels) > 1)
    return groups, conflicts, _rows(images, facts, copies, conflicts, metadata=metadata, findings=findings)


def summary(document: ChecksDocument) -> list[str]:
    """Return the document in a few lines for a log."""
    refused = Counter(image.reason for image in document.refused)
    reasons = f" ({', '.join(f'{count} {reason}' for reason, count in sorted(refused.items()))})" if refused else ""
    usable = ", ".join(f"{count} {name}" for name, count in document.usable.items())
    alike = sum(len(group.keys) for group in document.groups)
    return [
        f"{document.checked} images checked, {len(document.refused)} refused{reasons}; usable: {usable}",
        f"{len(document.groups)} groups of near-duplicates hold {alike} images; {len(document.conflicts)} conflicts",
        *describe_metadata(document.metadata),
        *(f"warning: {warning}" for warning in document.warnings),
    ]


def describe_metadata(table: MetadataDocument | None) -> list[str]:
    """Return what a metadata table says, one line per finding; nothing if there is none or if it is not used."""
    if table is None or table.problem:
        return []
    columns = ", ".join(column.name for column in table.columns) or "no column that is used"
    told = f"the metadata table has {table.rows} rows about {table.images} images of {table.patients} known patients: {columns}"
    return [told, *(f"metadata: {one.count} {one.reason} ({', '.join(one.examples)})" for one in table.findings)]


def inspect_contents(
    paths: Mapping[str, Path],
    config: RetrainingConfig,
    memory: InspectionCache,
    workers: int | None = None,
    pseudonyms: GivesPseudonyms | None = None,
) -> dict[str, ContentFacts]:
    """Return what is known of each content: remembered, or learned now by decoding the file, several at once.

    Args:
        paths: sha256 -> a file with that content.
        config: `min_side` and `max_pixels` count.
        memory: asked first, told afterwards.
        workers: threads; Pillow and OpenCV leave Python's lock while they work. None: one per core.
        pseudonyms: of the patients in DICOM files that have not been read yet; None keeps nothing of who they are.
    """
    facts = memory.recall(paths, config.min_side, config.max_pixels)
    missing = sorted(set(paths) - set(facts))
    if missing:
        log.info("decoding %d of %d contents, the others are known", len(missing), len(paths))
        with ThreadPoolExecutor(workers or cores()) as pool:
            learned = pool.map(
                lambda sha256: inspect_file(paths[sha256], config.min_side, config.max_pixels, pseudonyms), missing
            )
            facts |= memory.remember(zip(missing, learned), config.min_side, config.max_pixels)
    return facts


def inspect_file(path: Path, min_side: int, max_pixels: int, pseudonyms: GivesPseudonyms | None = None) -> ContentFacts:
    """Decode one file and say what is in it; a refusal is a result too.

    Raises:
        OutOfResources: the memory or the disk did not allow it. That is not a property of the image and is not remembered.
    """
    try:
        content = read_image_file(path, pseudonyms)
        with memory_for(content):
            return _inspect(decode_image(content, min_side, max_pixels), len(content))
    except ImageRefused as refusal:
        return ContentFacts(reason=refusal.reason, detail=refusal.detail)
    except MemoryError as error:
        raise OutOfResources("the memory does not suffice to check an image; run fewer tasks on this worker") from error


def _inspect(image: DecodedImage, file_bytes: int) -> ContentFacts:
    height, width = image.rgb.shape[:2]
    gray = to_gray(image.rgb)
    return ContentFacts(
        width=width,
        height=height,
        mode=image.mode,
        mean=float(gray.mean()),
        contrast=float(gray.std()),
        synthetic=is_synthetic(image.info),
        properties=measure_properties(image, gray, file_bytes),
        fingerprint=fingerprint(image.rgb, gray),
        tags=image.tags,
    )


def _fail_if_too_many(refused: Sequence[RefusedImage], checked: int, allowed: float) -> None:
    if len(refused) <= allowed * checked:
        return
    named = "; ".join(f"{image.key}: {image.reason} ({image.detail})" for image in refused[:_NAMED_AT_MOST])
    more = f"; and {len(refused) - _NAMED_AT_MOST} more" if len(refused) > _NAMED_AT_MOST else ""
    raise TooManyRefused(
        f"{len(refused)} of {checked} images are refused, more than max_refused_fraction = {allowed:g} allows: {named}{more}"
    )


def _name_groups(images: Iterable[LocalImage], copies: NearDuplicates) -> list[ImageGroup]:
    """Name the groups of two and more images. Two files with the same bytes are a group as well."""
    members: dict[str, list[LocalImage]] = {}
    for image in images:
        members.setdefault(copies.group_of[image.sha256], []).append(image)
    named = []
    for group, alike in members.items():
        if len(alike) > 1:
            contents = [image.sha256 for image in alike]
            how = set(copies.how.get(group, ())) | ({"bytes"} if len(set(contents)) < len(contents) else set())
            named.append(
                ImageGroup(
                    group=group,
                    keys=tuple(sorted(image.key for image in alike)),
                    labels=tuple(sorted({image.label for image in alike})),
                    how=tuple(sorted(how)),
                )
            )
    return sorted(named, key=lambda group: group.keys)


def _rows(
    images: Iterable[LocalImage],
    facts: Mapping[str, ContentFacts],
    copies: NearDuplicates,
    conflicts: Iterable[ImageGroup],
    *,
    metadata: Metadata,
    findings: Mapping[str, str],
) -> tuple[ContentRow, ...]:
    conflicting = {key for group in conflicts for key in group.keys}
    return tuple(
        ContentRow(
            key=image.key,
            label=image.label,
            sha256=image.sha256,
            width=known.width,
            height=known.height,
            mode=known.mode,
            mean=known.mean,
            contrast=known.contrast,
            synthetic=known.synthetic,
            group=copies.group_of.get(image.sha256, image.sha256),
            refused=known.reason or (CONFLICT if image.key in conflicting else ""),
            pixels=known.fingerprint.pixels if known.fingerprint else "",
            findings=findings.get(image.sha256, ""),
            perceptual_hash=known.fingerprint.hash.hex() if known.fingerprint else "",
            **(known.properties._asdict() if known.properties else {}),
            patient=metadata.patient(image.key),
        )
        for image, known in ((image, facts[image.sha256]) for image in sorted(images, key=lambda image: image.key))
    )


def _told_by_files(dicom: Mapping[str, DicomTags], pseudonyms: GivesPseudonyms | None) -> Metadata:
    """Return what DICOM files say about themselves. A patient whom they name counts only under the present salt."""
    salt = pseudonyms().salt_name if pseudonyms and any(tags.patient for tags in dicom.values()) else ""
    cells = {
        key: {
            PATIENT: tags.patient if salt and tags.salt == salt else "",
            "device": shown(tags.device),
            ACQUIRED: quarter(tags.acquired_at) or "",
            LATERALITY: tags.laterality,
            AGE: decade(str(tags.age)) or "",
        }
        for key, tags in dicom.items()
    }
    return without_rare_values(cells)


def _tags(images: Iterable[LocalImage], facts: Mapping[str, ContentFacts]) -> dict[str, DicomTags]:
    return {image.key: tags for image in images if (tags := facts[image.sha256].tags) is not None}


def _lost_patients(dicom: Mapping[str, DicomTags], by_files: Metadata) -> Iterable[str]:
    lost = sum(bool(tags.patient) and not by_files.patient(key) for key, tags in dicom.items())
    if lost:
        yield (
            f"{lost} DICOM images were read with another salt: their patients are not known. "
            "Empty the workers' caches, including what was learned of the images"
        )


def _count_patients(contents: Iterable[ContentRow], pattern: str) -> int | None:
    """Return how many patients the usable images are of, by the metadata or else by their keys; None if none is known."""
    patient = patient_reader(pattern)
    ties = (patient_ties(row, patient) for row in contents if not row.refused)
    return len({known[0] for known in ties if known}) or None


def _metadata_warnings(table: MetadataDocument | None) -> Iterable[str]:
    if table is not None and table.problem:
        yield f"the metadata table is not used: {table.problem}"


def _exclude(rows: Iterable[ContentRow], config: RetrainingConfig) -> tuple[ContentRow, ...]:
    """Mark the images that a finding excludes altogether. They keep their fold, as conflicts do, for when they are used again."""
    return tuple(
        row._replace(refused=FINDING) if not row.refused and action_on(row.findings, config) == "exclude" else row for row in rows
    )


def _why_not_found(rows: Sequence[ContentRow], config: RetrainingConfig) -> str | None:
    if config.ignores_findings:
        return "content_findings ignores every finding: nobody has looked"
    return None if text_was_read(rows) else "text was not looked for: RapidOCR is not installed on the worker"


def _count_excluded(rows: Iterable[ContentRow], config: RetrainingConfig) -> dict[str, int]:
    actions = Counter(action_on(row.findings, config) for row in rows if row.refused in ("", FINDING))
    return {action: count for action, count in sorted(actions.items()) if action.startswith("exclude")}


def _warnings(
    contents: Sequence[ContentRow], groups: Sequence[ImageGroup], conflicts: Sequence[ImageGroup], burned_in: int
) -> Iterable[str]:
    synthetic = sum(row.synthetic for row in contents)
    if synthetic:
        yield f"{synthetic} of {len(contents)} images are synthetic: no metric of this run says anything about patients"
    if burned_in:
        say = "1 DICOM image says" if burned_in == 1 else f"{burned_in} DICOM images say"
        yield f"{say} that text is burned into the pixels: check whether it names a patient"
    if conflicts:
        images = sum(len(group.keys) for group in conflicts)
        several = "1 group of near-duplicates is" if len(conflicts) == 1 else f"{len(conflicts)} groups of near-duplicates are"
        yield f"{several} under more than one label: {images} images are left out"
    largest = max((len(group.keys) for group in groups), default=0)
    if largest > _GROUP_TO_LOOK_AT:
        yield f"the largest group of near-duplicates has {largest} images: check whether they really are copies"
