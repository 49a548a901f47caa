"""The sticky, group-safe split into train, tuning and validation, and the class weights.

A *group* is what must stay on one side of the split: near-duplicates, or all images of a patient if patients are known.
An image that the last assessed run put on a side stays there. It is recognised by its content, so that neither growth nor
renaming nor a second upload moves it. A group with a known member takes that member's side. A group with known members
on two sides is a bridge, and its new images are left out. Only groups that are new altogether are drawn, in an order fixed
by a salted digest of their content, so that every class comes as near to its share as its groups allow. The result depends
on the set of images alone, never on the order of a listing.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bcc_ops.exceptions import SplitError
from bcc_ops.runs.documents import PARTITIONS, LeftOutImage, Partition, Reference, SplitDocument, digest_of
from bcc_ops.runs.tables import ContentRow, SplitRow

if TYPE_CHECKING:
    from bcc_ops.config import RetrainingConfig

GROUPS_NEEDED = len(PARTITIONS)
"""Groups that a class needs at least: one per partition."""


@dataclass(frozen=True)
class Split:
    """Which image is in which partition.

    Attributes:
        rows: one row per image that is in a partition, sorted by key.
        left_out: usable images that are in no partition, each with its reason, sorted by key.
        carried_forward: how many images kept the side that the previous run gave to their content.
    """

    rows: tuple[SplitRow, ...]
    left_out: tuple[LeftOutImage, ...]
    carried_forward: int


@dataclass(frozen=True)
class _Group:
    name: str
    images: tuple[ContentRow, ...]
    sides: frozenset[str]
    """Partitions of its known members."""

    @property
    def counts(self) -> Counter[str]:
        return Counter(image.label for image in self.images)

    @property
    def is_bridge(self) -> bool:
        return len(self.sides) > 1


def split_images(
    images: Iterable[ContentRow],
    previous: Iterable[SplitRow],
    config: RetrainingConfig,
    classes: Sequence[str],
) -> Split:
    """Put every usable image into a partition, or say why not.

    Args:
        images: the results of the image checks. Refused images, conflicts among them, are skipped.
        previous: split.parquet of the last assessed earlier run; empty if there is none.
        config: `validation_fraction`, `tuning_fraction`, `split_salt` and `patient_pattern` count.
        classes: the classes that every partition must contain.

    Raises:
        SplitError: a class would have no image in a partition; the message says how many are needed.
    """
    usable = sorted((image for image in images if not image.refused), key=lambda image: image.key)
    known = {row.sha256: row.partition for row in previous}
    groups = _group_images(usable, known, config.patient_pattern)
    side_of = {group.name: next(iter(group.sides)) for group in groups if len(group.sides) == 1}
    side_of |= _draw_sides(groups, side_of, known, config)

    rows: list[SplitRow] = []
    left_out: list[LeftOutImage] = []
    for group in groups:
        sides = _sides_in_bridge(group, known) if group.is_bridge else {}
        for image in group.images:
            side = sides.get(image.key) if group.is_bridge else side_of[group.name]
            if side:
                rows.append(SplitRow(image.key, image.sha256, image.label, group.name, side))
            else:
                left_out.append(LeftOutImage(key=image.key, reason=_bridge_reason(group)))
    split = Split(
        tuple(sorted(rows)),
        tuple(sorted(left_out, key=lambda image: image.key)),
        sum(row.sha256 in known for row in rows),
    )
    _check(split, groups, classes)
    return split


def count_partitions(rows: Iterable[SplitRow], classes: Sequence[str]) -> dict[Partition, dict[str, int]]:
    """Images per partition and class, zeros included."""
    counted = Counter((row.partition, row.label) for row in rows)
    return {partition: {name: counted[partition, name] for name in classes} for partition in PARTITIONS}


def class_weights(counts: Mapping[str, int]) -> dict[str, float]:
    """Balanced weights: n / (classes x count), so that every class weighs the same in the loss.

    The formula is that of scikit-learn's `class_weight="balanced"` (King & Zeng 2001, "Logistic regression in rare
    events data").

    Args:
        counts: class -> images in the train partition, each at least 1.
    """
    total = sum(counts.values())
    return {name: total / (len(counts) * count) for name, count in counts.items()}


def validation_digest(rows: Iterable[SplitRow]) -> str:
    """Name of the validation set: sha256 over the sorted content digests of its images. Renaming does not change it."""
    return digest_of(sorted(row.sha256 for row in rows if row.partition == "validation"))


def describe_split(
    split: Split,
    config: RetrainingConfig,
    classes: Sequence[str],
    previous_run: str | None,
    reference: Reference | None,
) -> SplitDocument:
    """Return `split.json`: counts, weights and how the split came about.

    Args:
        previous_run: folder of the run whose split was carried forward.
        reference: to the split's rows.
    """
    counts = count_partitions(split.rows, classes)
    return SplitDocument(
        classes=tuple(classes),
        counts=counts,
        weights=class_weights(counts["train"]),
        grouping="patient" if config.patient_pattern else "near-duplicate group",
        validation_fraction=config.validation_fraction,
        tuning_fraction=config.tuning_fraction,
        salt=config.split_salt,
        carried_forward=split.carried_forward,
        previous_run=previous_run,
        left_out=split.left_out,
        validation_digest=validation_digest(split.rows),
        table=reference,
    )


def _group_images(images: Sequence[ContentRow], known: Mapping[str, str], patient_pattern: str) -> list[_Group]:
    """Join images that share a content, a near-duplicate group or a patient; a group is named by its smallest digest."""
    from scipy.cluster.hierarchy import DisjointSet

    pattern = re.compile(patient_pattern) if patient_pattern else None
    joined: DisjointSet = DisjointSet()
    for image in images:
        ties = [("content", image.sha256), ("near-duplicates", image.group)]
        if pattern and (match := pattern.search(image.key)) and match.group(1):
            ties.append(("patient", match.group(1)))
        for tie in ties:
            joined.add(tie)
            joined.merge(ties[0], tie)
    members: defaultdict[tuple[str, str], list[ContentRow]] = defaultdict(list)
    for image in images:
        members[joined["content", image.sha256]].append(image)
    return [
        _Group(
            name=min(image.sha256 for image in group),
            images=tuple(group),
            sides=frozenset(known[image.sha256] for image in group if image.sha256 in known),
        )
        for group in members.values()
    ]


def _draw_sides(
    groups: Sequence[_Group], side_of: Mapping[str, str], known: Mapping[str, str], config: RetrainingConfig
) -> dict[str, str]:
    """Sides of the groups that are new altogether: validation is filled first, then tuning; the rest is for training."""
    new = sorted((group for group in groups if not group.sides), key=lambda group: _draw(config.split_salt, group.name))
    total: Counter[str] = Counter()
    held: dict[str, Counter[str]] = {partition: Counter() for partition in PARTITIONS}
    for group in groups:
        for image in group.images:
            side = side_of.get(group.name) or known.get(image.sha256)
            if side:
                held[side][image.label] += 1
            if side or not group.is_bridge:
                total[image.label] += 1

    wanted = {name: config.validation_fraction * total[name] for name in total}
    validation = _fill(new, held["validation"], wanted, others=[held["tuning"], held["train"]])
    held["validation"].update(image.label for group in new if group.name in validation for image in group.images)
    rest = [group for group in new if group.name not in validation]
    wanted = {name: config.tuning_fraction * (total[name] - held["validation"][name]) for name in total}
    tuning = _fill(rest, held["tuning"], wanted, others=[held["train"]])
    return {
        group.name: "validation" if group.name in validation else "tuning" if group.name in tuning else "train" for group in new
    }


def _draw(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}\0{name}".encode()).hexdigest()


def _fill(groups: Sequence[_Group], held: Counter[str], wanted: Mapping[str, float], others: Sequence[Counter[str]]) -> set[str]:
    """Names of the groups that bring a partition nearest to what it should hold of each class.

    Args:
        groups: candidates, in the order in which they were drawn.
        held: images per class that the partition has already.
        wanted: images per class that it should have.
        others: images per class that the partitions to be filled later have already. For each of them that has none of a
            class, a group of that class is left over.
    """
    held = Counter(held)
    left = Counter(name for group in groups for name in group.counts)
    chosen: set[str] = set()

    def owed(name: str) -> int:
        return sum(other[name] == 0 for other in others)

    def fits(counts: Counter[str]) -> bool:
        return all(held[name] + count <= wanted[name] + 0.5 for name, count in counts.items())

    def helps(counts: Counter[str]) -> bool:
        after = sum(abs(held[name] + count - wanted[name]) for name, count in counts.items())
        before = sum(abs(held[name] - wanted[name]) for name in counts)
        return after < before or any(held[name] == 0 for name in counts)

    for takes in (fits, helps):  # what fits goes first: a large group taken early could overshoot where small ones are left
        for group in groups:
            counts = group.counts
            if group.name not in chosen and takes(counts) and all(left[name] > owed(name) for name in counts):
                chosen.add(group.name)
                held.update(counts)
                left.subtract(dict.fromkeys(counts, 1))
    return chosen


def _sides_in_bridge(group: _Group, known: Mapping[str, str]) -> dict[str, str]:
    """Sides in a group whose known members are on several sides: each member keeps its own, new images get none.

    If nothing in it is new, the known members are near-duplicates of one another (because the thresholds changed, say). Then
    only the validation side keeps its images, so that nothing leaks and the validation set stays the same.
    """
    settled = {image.key: known[image.sha256] for image in group.images if image.sha256 in known}
    if len(settled) < len(group.images):
        return settled
    kept = next(side for side in ("validation", "tuning", "train") if side in group.sides)
    return {key: side for key, side in settled.items() if side == kept}


def _bridge_reason(group: _Group) -> str:
    sides = [side for side in PARTITIONS if side in group.sides]
    return f"belongs together with images in {' and '.join(sides)}"


def _check(split: Split, groups: Sequence[_Group], classes: Sequence[str]) -> None:
    counts = count_partitions(split.rows, classes)
    for name in classes:
        empty = [partition for partition in PARTITIONS if counts[partition][name] == 0]
        if not empty:
            continue
        independent = [group for group in groups if group.counts[name]]
        images = sum(group.counts[name] for group in independent)
        settled = any(group.sides for group in independent)
        missing = f"{len(empty)} new group{'s' if len(empty) > 1 else ''}"
        more = f"; what is there keeps its side, so that {missing} must come" if settled else ""
        raise SplitError(
            f"class {name} has no image for {' and '.join(empty)}: it has {images} usable images in {len(independent)} groups "
            f"that may not be torn apart, and at least {GROUPS_NEEDED} groups are needed, one per partition{more}"
        )
