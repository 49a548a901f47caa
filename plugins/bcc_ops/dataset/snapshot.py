"""A listing of the images' prefix, as of a moment: which images there are, and what changed between two moments.

A key is an image when its first folder under the prefix is a configured class and its name is an image's; every other
key is counted with its reason. On a bucket that keeps versions a past moment is exact; on any other it is what
`LastModified` can tell: the objects that are there now and were written by then.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fnmatch import translate
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from bcc_ops.config import RetrainingConfig, Settings
from bcc_ops.dataset.metadata_table import TABLE_NAMES
from bcc_ops.exceptions import ArtifactError, DatedInTheFuture, NoImages, TooManyRemoved
from bcc_ops.runs.documents import (
    ConfigDocument,
    IgnoredKeys,
    MetadataDocument,
    Reference,
    RunKind,
    SnapshotChange,
    SnapshotDocument,
    digest_of,
)
from bcc_ops.runs.index import find_run, last_that_counts
from bcc_ops.runs.object_store import ObjectStore
from bcc_ops.runs.paths import RunPaths
from bcc_ops.runs.rows import ImageRow

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".dcm")
_UID = re.compile(r"\d+(\.\d+)*")
CLOCKS_DIFFER = timedelta(hours=1)
"""What the store's clock may be ahead of this machine's."""

EXAMPLES = 5
"""How many keys of a kind a document names."""

NO_VERSION = ("", "null")
"""Version ids that do not tell one content from another: no versions, or an object from before they were kept."""


class ImageRules(NamedTuple):
    """Which keys are images, and of which class.

    `prefix` without a slash at its end, `classes` as configured (folders must match exactly), `ignored_names` as
    shell patterns of file names, whatever their case, and `max_bytes` that an image has at most.
    """

    prefix: str
    classes: tuple[str, ...]
    ignored_names: tuple[str, ...]
    max_bytes: int = 64_000_000

    @classmethod
    def of(cls, settings: Settings, config: RetrainingConfig) -> ImageRules:
        """Return the rules of a run."""
        return cls(settings.images_prefix, settings.classes, config.ignored_names, config.max_file_mb * 1_000_000)


@dataclass(frozen=True)
class Listing:
    """What was under the prefix.

    `images` are sorted by key. `newest` is the latest moment at which an image was written (or removed, on a bucket
    that keeps versions); None if there was never any.
    """

    images: list[ImageRow]
    ignored: tuple[IgnoredKeys, ...]
    versioned: bool
    newest: datetime | None
    tables: tuple[ImageRow, ...] = ()
    """The metadata tables beside the images, the one that is read first. They are no news: only images start a run."""

    @cached_property
    def digest(self) -> str:
        """sha256 over (key, etag or version, label), sorted by key."""
        return digest_of_images(self.images)


class ListingBuilder:
    """Takes the store's listing entry by entry, in any order, and keeps only what a snapshot needs.

    The same builder serves the synchronous listing and the trigger's, so that both see the same images.

    Args:
        rules: which keys are images.
        versioned: whether the entries are versions and delete markers.
        as_of: the moment; None for what is there now.
    """

    def __init__(self, rules: ImageRules, versioned: bool, as_of: datetime | None = None) -> None:
        self._root = f"{rules.prefix}/"
        self._classes = {name: name for name in rules.classes}
        self._ignored_name = re.compile("|".join(translate(name.lower()) for name in rules.ignored_names) or r"(?!)")
        self._max_bytes = rules.max_bytes
        self._tables = [f"{self._root}{name}" for name in TABLE_NAMES]
        self._versioned = versioned
        self._as_of = as_of
        self._newest: datetime | None = None
        self._seen: dict[str, tuple[datetime, bool, bool, int, str, str]] = {}
        self._ignored: dict[str, list[Any]] = {}

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take one entry as boto3 gives it: Key, Size, ETag, LastModified, and VersionId, IsLatest, DeleteMarker."""
        moment = entry["LastModified"].astimezone(timezone.utc)
        key = entry["Key"]
        # Without versions the table of that moment may be gone. The one that is there now says who is who as well.
        if self._as_of is not None and moment > self._as_of and (self._versioned or key not in self._tables):
            return
        latest = entry.get("IsLatest", True)
        deleted = entry.get("DeleteMarker", False)
        if self._as_of is None and not latest:
            return
        known = self._seen.get(key)
        # Moments are whole seconds: within one, the latest version is certain, and of the others an image that was
        # there is taken before its removal. Versions of a key come newest first, so the first of equals stays.
        if known is None or (moment, latest, not deleted) > known[:3]:
            size, etag, version = entry.get("Size", 0), entry.get("ETag", "").strip('"'), entry.get("VersionId") or ""
            self._seen[key] = (moment, latest, not deleted, size, etag, version if self._versioned else "")

    def add_page(self, page: Mapping[str, Any]) -> None:
        """Take one page of either listing as boto3 gives it."""
        for entry in (*page.get("Contents", ()), *page.get("Versions", ())):
            self.add(entry)
        for entry in page.get("DeleteMarkers", ()):
            self.add({**entry, "DeleteMarker": True})

    def build(self) -> Listing:
        """Return the listing of everything that was added. The builder is empty afterwards: it would hold it all twice."""
        images: list[ImageRow] = []
        newest: datetime | None = None
        tables: list[ImageRow] = []
        for key in self._tables:
            moment, _, present, size, etag, version = self._seen.pop(key, (None, False, False, 0, "", ""))
            if moment is not None and present:
                tables.append(ImageRow(key, "", size, etag, version, moment))
        for key in sorted(self._seen):
            moment, _, present, size, etag, version = self._seen.pop(key)
            label, reason = self._judge(key, size if present else 1)
            if label is None:
                if present:
                    self._ignore(key, reason)
                continue
            newest = moment if newest is None or moment > newest else newest
            if present:
                images.append(ImageRow(key, label, size, etag, version, moment))
        ignored = tuple(
            IgnoredKeys(reason=reason, count=count, examples=tuple(examples))
            for reason, (count, examples) in sorted(self._ignored.items())
        )
        return Listing(images, ignored, self._versioned, newest, tuple(tables))

    def _judge(self, key: str, size: int) -> tuple[str | None, str]:  # noqa: PLR0911 (one return per reason)
        folder, slash, name = key[len(self._root) :].partition("/")
        if key.endswith("/"):
            return None, "folder marker"
        if not slash:
            return None, "in no class folder"
        label = self._classes.get(folder)
        if label is None:
            return None, "folder of no configured class"
        if "/." in key and any(segment in (".", "..") for segment in name.split("/")):
            return None, "'.' or '..' in its path"
        if "\ufffd" in key:  # A store that cannot spell a control character lists this instead: there is no such object.
            return None, "unreadable characters in its name"
        name = name.rpartition("/")[2].lower()
        if not names_image(name):
            return None, "not a .png, .jpg, .jpeg, .bmp or .dcm"
        if self._ignored_name.match(name):
            return None, "name to ignore (masks)"
        if size == 0:
            return None, "empty"
        if size > self._max_bytes:
            return None, f"larger than {self._max_bytes / 1e6:g} MB"
        return label, ""

    def _ignore(self, key: str, reason: str) -> None:
        counted = self._ignored.setdefault(reason, [0, []])
        counted[0] += 1
        if len(counted[1]) < EXAMPLES:
            counted[1].append(key)


def names_image(name: str) -> bool:
    """Return whether a file of this name may be an image.

    Archives export DICOM under names without a suffix, or under UIDs, which have dots. Their content then tells whether they are.
    """
    return name.lower().endswith(EXTENSIONS) or "." not in name or _UID.fullmatch(name) is not None


def list_images(store: ObjectStore, rules: ImageRules, as_of: datetime | None = None) -> Listing:
    """List the images as of a moment.

    Args:
        store: the bucket.
        rules: which keys are images.
        as_of: aware; None for now.

    Raises:
        StorageError: the store could not be listed.
    """
    versioned = store.is_versioned()
    builder = ListingBuilder(rules, versioned, as_of)
    for entry in (store.list_versions if versioned else store.list_objects)(f"{rules.prefix}/"):
        builder.add(entry)
    return builder.build()


def identity(image: ImageRow) -> str:
    """Return what tells one content of a key from another: its version, or its ETag if there is none."""
    return image.etag if image.version_id in NO_VERSION else image.version_id


def digest_of_images(images: Iterable[ImageRow]) -> str:
    """Return sha256 over (key, etag or version, label) of images that are sorted by key."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.key}\0{identity(image)}\0{image.label}\n".encode())
    return digest.hexdigest()


def compare(before: Iterable[ImageRow], now: Iterable[ImageRow]) -> SnapshotChange:
    """Return what differs between two snapshots: keys that came, keys that went, and keys with another content.

    Args:
        before, now: sorted by key. They are walked through side by side, and not held.
    """
    counts: dict[Literal["added", "changed", "removed"], int] = {"added": 0, "changed": 0, "removed": 0}
    examples: dict[Literal["added", "changed", "removed"], list[str]] = {"added": [], "changed": [], "removed": []}
    for was, image in side_by_side(before, now):
        if was is not None and image is not None and identity(was) == identity(image):
            continue
        kind: Literal["added", "changed", "removed"] = "added" if was is None else "removed" if image is None else "changed"
        counts[kind] += 1
        if len(examples[kind]) < EXAMPLES:
            examples[kind].append((was or image).key)  # type: ignore[union-attr]  # one of them is there
    return SnapshotChange(
        added=counts["added"],
        changed=counts["changed"],
        removed=counts["removed"],
        examples={kind: tuple(keys) for kind, keys in examples.items()},
    )


def side_by_side(before: Iterable[ImageRow], now: Iterable[ImageRow]) -> Iterator[tuple[ImageRow | None, ImageRow | None]]:
    """Yield each key's image in either of two snapshots, None if it is not there. Both are sorted by key."""
    ours, theirs = iter(before), iter(now)
    was, image = next(ours, None), next(theirs, None)
    while was is not None or image is not None:
        if image is None or (was is not None and was.key < image.key):
            yield was, None
            was = next(ours, None)
        elif was is None or image.key < was.key:
            yield None, image
            image = next(theirs, None)
        else:
            yield was, image
            was, image = next(ours, None), next(theirs, None)


def moment_of(now: datetime, newest: datetime | None) -> datetime:
    """Return the as_of of a listing that was made `now`: whole seconds, and late enough to hold everything that it saw.

    The store's clock may be ahead of this machine's: an image must not fall out of the run that it started.

    Raises:
        DatedInTheFuture: it is ahead by more than `CLOCKS_DIFFER`.
    """
    if newest is not None and newest - now > CLOCKS_DIFFER:
        raise DatedInTheFuture(
            f"an image is dated {newest:%Y-%m-%d %H:%M:%S} UTC and it is {now:%Y-%m-%d %H:%M:%S} UTC here: a model as of then "
            "would block every later one. Correct the clock of this machine or of the store, or upload the image again"
        )
    latest = now if newest is None else max(now, newest)
    return latest.replace(microsecond=0) + (timedelta(seconds=1) if latest.microsecond else timedelta())


@dataclass(frozen=True)
class PreviousSnapshot:
    """The snapshot of the last run before a moment whose outcome counts, if there is such a run."""

    store: ObjectStore
    paths: RunPaths | None
    document: SnapshotDocument | None

    @classmethod
    def before(cls, store: ObjectStore, artifacts_prefix: str, moment: datetime) -> PreviousSnapshot:
        """Find the last run with an as_of earlier than `moment` whose outcome counts."""
        paths = last_that_counts(store, artifacts_prefix, moment)
        return cls(store, paths, store.load_key(SnapshotDocument, paths.document("snapshot.json")) if paths else None)

    @property
    def digest(self) -> str | None:
        """The digest of its images; None if there is none."""
        return self.document.digest if self.document else None

    def images(self) -> Iterator[ImageRow]:
        """Yield its images, sorted by key; read when asked for, since most nights need only the digest."""
        return iterate_images(self.store, self.document) if self.document else iter(())

    def change_to(self, listing: Listing) -> SnapshotChange | None:
        """Return what differs in `listing`; None if there is no previous snapshot."""
        return compare(self.images(), listing.images) if self.document else None


def write_images(images: Iterable[ImageRow]) -> bytes:
    """images.parquet."""
    from bcc_ops.runs.tables import write_rows

    return write_rows(ImageRow, images)


def read_images(store: ObjectStore, document: SnapshotDocument) -> list[ImageRow]:
    """Return the rows of a snapshot's images.parquet."""
    from bcc_ops.runs.tables import read_rows

    return read_rows(ImageRow, store.get_referenced(document.images))


def iterate_images(store: ObjectStore, document: SnapshotDocument) -> Iterator[ImageRow]:
    """Yield the rows of a snapshot's images.parquet without holding all of them."""
    from bcc_ops.runs.tables import iterate_rows

    return iterate_rows(ImageRow, store.get_referenced(document.images))


def saved_snapshot(store: ObjectStore, artifacts_prefix: str, run_id: str) -> tuple[RunPaths, SnapshotDocument] | None:
    """Find the snapshot that a run took before; None if it took none.

    Raises:
        ArtifactError: it is of another run.
    """
    paths = find_run(store, artifacts_prefix, run_id)
    saved = store.find(SnapshotDocument, paths.document("snapshot.json")) if paths else None
    if paths is None or saved is None:
        return None
    if saved.run_id != run_id:
        raise ArtifactError(f"{paths.folder}/snapshot.json is of the run {saved.run_id!r}, not of {run_id!r}: move it away")
    return paths, saved


def describe_snapshot(
    listing: Listing,
    settings: Settings,
    paths: RunPaths,
    previous: PreviousSnapshot,
    *,
    run_id: str,
    run_kind: RunKind,
    max_removed_fraction: float,
    metadata: MetadataDocument | None = None,
) -> tuple[SnapshotDocument, bytes]:
    """Return a run's snapshot.json and images.parquet.

    Args:
        listing: the images as of the run's moment.
        settings: the deployment.
        paths: of the run.
        previous: what the images are compared with.
        run_id, run_kind: of the run.
        max_removed_fraction: part of the previous run's images that may be gone.
        metadata: what the table beside the images says; None if there is none.

    Raises:
        NoImages: there are none; the message counts what is there instead.
        TooManyRemoved: more of the previous run's images are gone.
    """
    if not listing.images:
        raise NoImages(_what_is_there_instead(settings, listing, paths.as_of))
    _check_removed(listing, previous, max_removed_fraction)
    counts = dict.fromkeys(settings.classes, 0)
    for image in listing.images:
        counts[image.label] += 1
    images = write_images(listing.images)
    document = SnapshotDocument(
        title=settings.title,
        bucket=settings.bucket,
        prefix=settings.images_prefix,
        as_of=paths.as_of,
        run_id=run_id,
        run_kind=run_kind,
        versioned=listing.versioned,
        as_of_source="versions" if listing.versioned else "last_modified",
        classes=settings.classes,
        positive_class=settings.positive_class,
        counts=counts,
        digest=listing.digest,
        previous_run=previous.paths.folder_name if previous.paths else None,
        change=previous.change_to(listing),
        ignored=listing.ignored,
        images=Reference.of(paths.document("images.parquet"), images),
        metadata=metadata,
    )
    return document, images


def _check_removed(listing: Listing, previous: PreviousSnapshot, allowed: float) -> None:
    """Compare by key and by content (ETag): an image that was renamed is not gone."""
    missing = [was for was, image in side_by_side(previous.images(), listing.images) if was is not None and image is None]
    contents = {image.etag for image in listing.images} if missing else set()
    gone = [image.key for image in missing if image.etag not in contents]
    before = previous.document.total if previous.document else 0
    if len(gone) <= allowed * before:
        return
    raise TooManyRemoved(
        f"{len(gone)} of the {before} images of the previous run are gone ({', '.join(gone[:EXAMPLES])}, …), more "
        f"than max_removed_fraction = {allowed:g} allows. Restore them, or if they were removed on purpose, trigger a run with a "
        "higher max_removed_fraction"
    )


def describe_config(
    config: RetrainingConfig, run_id: str, run_kind: RunKind, deployment: Mapping[str, Any] = MappingProxyType({})
) -> ConfigDocument:
    """Return the run's config.json: its parameters, and where each came from."""
    return ConfigDocument(
        run_id=run_id,
        run_kind=run_kind,
        config=config,
        origins=config.origins(deployment),
        digest=digest_of(config.training_parameters()),
    )


def _what_is_there_instead(settings: Settings, listing: Listing, as_of: datetime) -> str:
    place = f"s3://{settings.bucket}/{settings.images_prefix}/"
    wanted = ", ".join(f"{place}{name}/" for name in settings.classes)
    others = ", ".join(f"{ignored.count} {ignored.reason}" for ignored in listing.ignored) or "nothing at all"
    return f"no image as of {as_of:%Y-%m-%d %H:%M:%S} UTC in {wanted} (there: {others})"
