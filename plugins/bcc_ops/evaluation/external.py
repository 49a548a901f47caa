"""The external test sets of a run, as its models are asked about them: checked, grouped, and without what own images show.

Each set has its own images, patients and intervals. An image that a run would refuse is left out. So is one that shows what an
own image shows, with all that belongs with it: it would be no test from outside. An image that is in two sets stays in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bcc_ops.config import ExternalSet, RetrainingConfig
from bcc_ops.dataset.external import lacking, list_external_set
from bcc_ops.dataset.metadata_source import external_metadata
from bcc_ops.dataset.splits import group_images
from bcc_ops.evaluation.comparison import LabelledImages
from bcc_ops.runs.documents import ExternalDuplicate
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.rows import ContentRow, ImageRow, SplitRow

if TYPE_CHECKING:
    from bcc_ops.dataset.dicom import GivesPseudonyms
    from bcc_ops.dataset.fingerprints import Fingerprint
    from bcc_ops.dataset.inspection_cache import InspectionCache
    from bcc_ops.dataset.near_duplicates import ComparedPair
    from bcc_ops.dataset.sync import LocalImage

OWN = "also in this run"
NEAR_OWN = "near-duplicates of own images"
PATIENT_OF_OWN = "of a patient with an own image"
NAMED_AT_MOST = 20
"""Near-duplicates that a document names of each set."""


@dataclass(frozen=True)
class OwnImages:
    """What the run's models, the champion and the anchor were trained on, or may be.

    Attributes:
        keys: digest (of bytes or of pixels) -> the image's key; None if only the champion or the anchor has seen it.
        paths: sha256 -> local file, of the run's own.
    """

    keys: Mapping[str, str | None]
    paths: Mapping[str, Path]

    @classmethod
    def of(cls, split: Sequence[SplitRow], seen: Collection[str], images: Mapping[str, Path]) -> OwnImages:
        """Return those of a run.

        Args:
            split: the run's `split.parquet`.
            seen: digests of the images that the champion or the anchor has seen.
            images: key -> local file.
        """
        keys = dict.fromkeys(seen) | {digest: row.key for row in split for digest in (row.sha256, row.pixels) if digest}
        return cls(keys, {row.sha256: images[row.key] for row in split if row.key in images})

    def digest_of(self, row: ContentRow) -> str | None:
        """Return by which digest an image is known; None if it is not."""
        return next((digest for digest in (row.sha256, row.pixels) if digest in self.keys), None)


@dataclass(frozen=True)
class ExternalImages:
    """An external test set.

    Attributes:
        name, prefix: of the set.
        images: those that can be used.
        note: a sentence about them.
        counts: images by class.
        left_out: why images are left out -> how many.
        near_duplicates: the first of those that are left out for showing what an own image shows.
        compared: pairs of an own image and one of the set whose pixels were compared.
        elsewhere: keys of images that an earlier set has too, or a near-duplicate of them.
    """

    name: str
    prefix: str
    images: LabelledImages
    note: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    near_duplicates: tuple[ExternalDuplicate, ...] = ()
    compared: int = 0
    elsewhere: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ExternalSearch:
    """How external test sets are found.

    Attributes:
        store: the bucket.
        config: the run's parameters.
        classes: of the run.
        grouping: what people read for a group.
        as_of: the run's moment.
        fetch: brings images of the bucket here; leaves out what the store does not give.
        own: what nothing from elsewhere may show.
        pseudonyms: of the patients in metadata tables, and those that DICOM files were fetched with.
    """

    store: ObjectStore
    config: RetrainingConfig
    classes: tuple[str, ...]
    grouping: str
    as_of: datetime
    fetch: Callable[[list[ImageRow]], Sequence[LocalImage]]
    own: OwnImages
    pseudonyms: GivesPseudonyms

    def find(self, memory_path: Path) -> tuple[ExternalImages, ...]:
        """Return the run's sets, in the order of `external_prefixes`; also one without a usable image.

        Args:
            memory_path: where this worker keeps what the image checks have learned of each content.
        """
        from bcc_ops.dataset.inspection_cache import InspectionCache

        if not self.config.external_sets:
            return ()
        with InspectionCache(memory_path) as memory:
            checked = [self._check(external, memory) for external in self.config.external_sets]
            contents = _Contents(self.config, memory)
            contents.add(self.own.paths)
            for one in checked:
                contents.add(one.paths())
            return tuple(self._describe(one, checked[:place], contents) for place, one in enumerate(checked))

    def _check(self, external: ExternalSet, memory: InspectionCache) -> _CheckedSet:
        from bcc_ops.dataset.image_checks import check_contents

        listing = list_external_set(self.store, external, self.classes, self.config, self.as_of)
        images = self.fetch(listing.images) if listing.images else []
        known = external_metadata(self.store, self.config, listing, external.prefix, self.pseudonyms)
        rows = check_contents(images, self.config, memory, known, self.pseudonyms) if images else ()
        files = {image.key: image.path for image in images}
        return _CheckedSet(external, rows, files, unreadable=len(listing.images) - len(images))

    def _describe(self, one: _CheckedSet, earlier: Sequence[_CheckedSet], contents: _Contents) -> ExternalImages:
        pairs = contents.compare(self.own.paths, one.paths())
        group_of = group_images(one.usable, self.config.patient_pattern)
        shown = _shown(one.usable, self.own, pairs)
        touched = {group_of[row.key] for row in one.usable if row.group in shown}
        left_out, kept, duplicates = one.refused(), [], []
        for row in one.usable:
            if self.own.digest_of(row) is not None:
                left_out[OWN] += 1
            elif row.group in shown:
                left_out[NEAR_OWN] += 1
                duplicates.append(ExternalDuplicate(key=row.key, own=shown[row.group]))
            elif group_of[row.key] in touched:
                left_out[PATIENT_OF_OWN] += 1
            else:
                kept.append(row)
        repeated = {row.group for other in earlier for row in _repeated(kept, other, contents)}
        elsewhere = frozenset(row.key for row in kept if row.group in repeated)
        images = LabelledImages.of_rows([row._replace(group=group_of[row.key]) for row in kept], one.files)
        counts = Counter(images.labels)
        found = ExternalImages(
            one.external.name,
            one.external.prefix,
            images,
            counts={name: counts[name] for name in self.classes},
            left_out=dict(sorted(left_out.items())),
            near_duplicates=tuple(duplicates[:NAMED_AT_MOST]),
            compared=len(pairs),
            elsewhere=elsewhere,
        )
        return _with_note(found, "patient" if any(row.patient for row in one.usable) else self.grouping)


@dataclass(frozen=True)
class _CheckedSet:
    external: ExternalSet
    rows: Sequence[ContentRow]
    files: Mapping[str, Path]
    unreadable: int

    @property
    def usable(self) -> list[ContentRow]:
        return [row for row in self.rows if not row.refused]

    def paths(self) -> dict[str, Path]:
        """Return sha256 -> local file, of the usable images."""
        return {row.sha256: self.files[row.key] for row in self.usable}

    def refused(self) -> Counter[str]:
        """Count the images that a run would refuse, by reason."""
        from bcc_ops.dataset.image_checks import CONFLICT, UNREADABLE

        reasons = Counter("under two labels" if row.refused == CONFLICT else row.refused for row in self.rows if row.refused)
        return reasons + Counter({UNREADABLE: self.unreadable})


class _Contents:
    """Fingerprints and files of contents, and the comparison of two sets of them."""

    def __init__(self, config: RetrainingConfig, memory: InspectionCache) -> None:
        self._config, self._memory = config, memory
        self._marks: dict[str, Fingerprint] = {}
        self._paths: dict[str, Path] = {}

    def add(self, paths: Mapping[str, Path]) -> None:
        """Learn the fingerprints of these contents, unless they are known."""
        from bcc_ops.dataset.image_checks import inspect_contents

        facts = inspect_contents(paths, self._config, self._memory)
        self._marks |= {sha256: known.fingerprint for sha256, known in facts.items() if known.fingerprint}
        self._paths |= paths

    def compare(self, one: Collection[str], other: Collection[str]) -> Sequence[ComparedPair]:
        """Return every candidate for a near-duplicate that has one content in each."""
        from bcc_ops.dataset.near_duplicates import Thresholds, compare_sets

        return compare_sets((one, other), self._marks, self._paths, Thresholds.of(self._config), self._memory)


def _shown(rows: Sequence[ContentRow], own: OwnImages, pairs: Sequence[ComparedPair]) -> dict[str, str | None]:
    """Return near-duplicate group of external images -> the own image that it shows."""
    near = {}
    for pair in pairs:
        if pair.accepted:
            ours, theirs = pair.pair if pair.pair[0] in own.paths else reversed(pair.pair)
            near[theirs] = ours
    shown: dict[str, str | None] = {}
    for row in rows:
        digest = own.digest_of(row) or near.get(row.sha256)
        if digest is not None:
            shown.setdefault(row.group, own.keys[digest])
    return shown


def _repeated(rows: Sequence[ContentRow], other: _CheckedSet, contents: _Contents) -> list[ContentRow]:
    """Return the images that another set has too, or a near-duplicate of them."""
    theirs = other.paths()
    pairs = contents.compare({row.sha256 for row in rows}, theirs)
    alike = {sha256 for pair in pairs if pair.accepted for sha256 in pair.pair}
    digests = theirs.keys() | {row.pixels for row in other.usable}
    return [row for row in rows if row.sha256 in alike or row.sha256 in digests or row.pixels in digests]


def _with_note(found: ExternalImages, grouping: str) -> ExternalImages:
    groups = len(set(found.images.groups))
    by_class = ", ".join(f"{count} {name}" for name, count in found.counts.items())
    note = f"{len(found.images.keys)} images in {groups} {grouping}s under {found.prefix}/ ({by_class})"
    if found.left_out:
        note += f"; left out: {', '.join(f'{count} {reason}' for reason, count in found.left_out.items())}"
    note += "."
    if found.compared:
        note += f" Pairs with an own image whose pixels were compared: {found.compared}."
    if found.near_duplicates:
        note += f" The first near-duplicate is {found.near_duplicates[0].key}, of {found.near_duplicates[0].own}."
    if found.elsewhere:
        note += f" {len(found.elsewhere)} images show what an earlier set shows; each set has its own metrics, and uses them."
    missing = lacking(tuple(found.counts), Counter(found.counts)) if found.images.keys else ""
    return replace(found, note=f"{note} It {missing}" if missing else note)
