"""The sticky, group-safe split into train, tuning and validation, and the class weights.

A *unit* is what may not be torn apart: a group of near copies, or all images of a patient where patients are known.
What the last assessed run put on a side stays there, recognised by content, so that neither growth nor renaming nor a
second upload moves an image. A unit with a known member takes that member's side; one with known members on two sides
is a bridge: its new images are left out. Only units that are new altogether are drawn, in an order that a salted digest
of their content fixes, so that every class comes as near to its share as its units allow. The answer depends on the set of
images alone, never on the order of a listing.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bcc_ops.artifacts import PARTITIONS, ClassWeightsDocument, LeftOutImage, Partition, Reference, digest_of
from bcc_ops.exceptions import SplitError
from bcc_ops.tables import ContentRow, SplitRow

if TYPE_CHECKING:
    from bcc_ops.config import RetrainingConfig

UNITS_NEEDED = len(PARTITIONS)
"""Units that a class needs at least: one a partition."""


@dataclass(frozen=True)
class Split:
    """Who is where.

    Attributes:
        rows: a row an image that is in a partition, sorted by key.
        left_out: usable images that are in none, each with its reason, sorted by key.
        carried_forward: images whose side was taken over from the previous run by their content.
    """

    rows: tuple[SplitRow, ...]
    left_out: tuple[LeftOutImage, ...]
    carried_forward: int


@dataclass(frozen=True)
class _Unit:
    name: str
    images: tuple[ContentRow, ...]
    sides: frozenset[str]
    """Partitions of its known members."""

    @property
    def counts(self) -> Counter[str]:
        return Counter(image.label for image in self.images)


def split_images(
    images: Iterable[ContentRow],
    previous: Iterable[SplitRow],
    config: RetrainingConfig,
    classes: Sequence[str],
) -> Split:
    """Put every usable image into a partition, or say why not.

    Args:
        images: what validation saw. Refused images, conflicts among them, are passed over.
        previous: split.parquet of the last assessed earlier run; empty without one.
        config: `validation_fraction`, `tuning_fraction`, `split_salt` and `patient_pattern` count.
        classes: the classes that must be in every partition.

    Raises:
        SplitError: a class would have no image in a partition; the message says how many are needed.
    """
    usable = sorted((image for image in images if not image.refused), key=lambda image: image.key)
    known = {row.sha256: row.partition for row in previous}
    units = _units(usable, known, config.patient_pattern)

    side_of: dict[str, str] = {unit.name: next(iter(unit.sides)) for unit in units if len(unit.sides) == 1}
    bridges = [unit for unit in units if len(unit.sides) > 1]
    new = sorted((unit for unit in units if not unit.sides), key=lambda unit: _draw(config.split_salt, unit.name))

    total = Counter(image.label for unit in units if len(unit.sides) < 2 for image in unit.images)
    total.update(image.label for unit in bridges for image in unit.images if image.sha256 in known)
    held: dict[str, Counter[str]] = {partition: Counter() for partition in PARTITIONS}
    for unit in units:
        for image in unit.images:
            side = side_of.get(unit.name) or known.get(image.sha256)
            if side:
                held[side][image.label] += 1

    wanted = {name: config.validation_fraction * total[name] for name in total}
    validation = _fill(new, held["validation"], wanted, others=[held["tuning"], held["train"]])
    rest = [unit for unit in new if unit.name not in validation]
    held["validation"].update(image.label for unit in new if unit.name in validation for image in unit.images)
    wanted = {name: config.tuning_fraction * (total[name] - held["validation"][name]) for name in total}
    tuning = _fill(rest, held["tuning"], wanted, others=[held["train"]])
    for unit in new:
        side_of[unit.name] = "validation" if unit.name in validation else "tuning" if unit.name in tuning else "train"

    rows: list[SplitRow] = []
    left_out: list[LeftOutImage] = []
    for unit in units:
        settled = (
            _settle_bridge(unit, known)
            if len(unit.sides) > 1
            else dict.fromkeys((image.key for image in unit.images), side_of[unit.name])
        )
        for image in unit.images:
            side = settled.get(image.key)
            if side:
                rows.append(SplitRow(image.key, image.sha256, image.label, unit.name, side))
            else:
                left_out.append(LeftOutImage(key=image.key, reason=_bridge_reason(unit)))
    split = Split(
        tuple(sorted(rows)),
        tuple(sorted(left_out, key=lambda image: image.key)),
        sum(row.sha256 in known for row in rows),
    )
    _check(split, units, classes)
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
) -> ClassWeightsDocument:
    """`class_weights.json`: counts, weights and how the split came about.

    Args:
        previous_run: folder of the run whose split was carried forward.
        reference: where the split's rows lie.
    """
    counts = count_partitions(split.rows, classes)
    return ClassWeightsDocument(
        classes=tuple(classes),
        counts=counts,
        weights=class_weights(counts["train"]),
        split_unit="patient" if config.patient_pattern else "near-copy group",
        validation_fraction=config.validation_fraction,
        tuning_fraction=config.tuning_fraction,
        salt=config.split_salt,
        carried_forward=split.carried_forward,
        previous_run=previous_run,
        left_out=split.left_out,
        validation_digest=validation_digest(split.rows),
        split=reference,
    )


def _units(images: Sequence[ContentRow], known: Mapping[str, str], patient_pattern: str) -> list[_Unit]:
    """Join what a group, a content or a patient holds together; named by the smallest digest in it."""
    parent: dict[str, str] = {}

    def find(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    pattern = re.compile(patient_pattern) if patient_pattern else None
    for image in images:
        ties = [f"sha256 {image.sha256}", f"group {image.group}"]
        if pattern and (match := pattern.search(image.key)) and match.group(1):
            ties.append(f"patient {match.group(1)}")
        root = find(ties[0])
        for tie in ties[1:]:
            parent[find(tie)] = root
    members: defaultdict[str, list[ContentRow]] = defaultdict(list)
    for image in images:
        members[find(f"sha256 {image.sha256}")].append(image)
    return [
        _Unit(
            name=min(image.sha256 for image in unit),
            images=tuple(unit),
            sides=frozenset(known[image.sha256] for image in unit if image.sha256 in known),
        )
        for unit in members.values()
    ]


def _draw(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}\0{name}".encode()).hexdigest()


def _fill(units: Sequence[_Unit], held: Counter[str], wanted: Mapping[str, float], others: Sequence[Counter[str]]) -> set[str]:
    """Names of the units that bring a partition nearest to what it should hold of each class.

    Args:
        units: candidates, in the order in which they were drawn.
        held: images per class that the partition has already.
        wanted: images per class that it should have.
        others: images per class that the partitions to be filled later have already. For each of them that has none of a
            class, a unit of that class is left over.
    """
    held = Counter(held)
    left = Counter(name for unit in units for name in unit.counts)
    chosen: set[str] = set()

    def owed(name: str) -> int:
        return sum(other[name] == 0 for other in others)

    def fits(counts: Counter[str]) -> bool:
        return all(held[name] + count <= wanted[name] + 0.5 for name, count in counts.items())

    def helps(counts: Counter[str]) -> bool:
        after = sum(abs(held[name] + count - wanted[name]) for name, count in counts.items())
        before = sum(abs(held[name] - wanted[name]) for name in counts)
        return after < before or any(held[name] == 0 for name in counts)

    for takes in (fits, helps):  # what fits goes first: a large unit taken early could overshoot where small ones are left
        for unit in units:
            counts = unit.counts
            if unit.name not in chosen and takes(counts) and all(left[name] > owed(name) for name in counts):
                chosen.add(unit.name)
                held.update(counts)
                left.subtract(dict.fromkeys(counts, 1))
    return chosen


def _settle_bridge(unit: _Unit, known: Mapping[str, str]) -> dict[str, str]:
    """Sides of a unit whose known members lie on several: each keeps its own, what is new gets none.

    Where nothing is new in it, the known members are near copies of one another by themselves (the thresholds were
    changed, say): then only the validation side keeps its images, so that nothing leaks and the validation set stays
    what it was.
    """
    settled = {image.key: known[image.sha256] for image in unit.images if image.sha256 in known}
    if len(settled) < len(unit.images):
        return settled
    kept = next(side for side in ("validation", "tuning", "train") if side in unit.sides)
    return {key: side for key, side in settled.items() if side == kept}


def _bridge_reason(unit: _Unit) -> str:
    sides = [side for side in PARTITIONS if side in unit.sides]
    return f"belongs together with images in {' and '.join(sides)}"


def _check(split: Split, units: Sequence[_Unit], classes: Sequence[str]) -> None:
    counts = count_partitions(split.rows, classes)
    for name in classes:
        empty = [partition for partition in PARTITIONS if counts[partition][name] == 0]
        if not empty:
            continue
        independent = [unit for unit in units if unit.counts[name]]
        images = sum(unit.counts[name] for unit in independent)
        settled = any(unit.sides for unit in independent)
        missing = f"{len(empty)} new group{'s' if len(empty) > 1 else ''}"
        more = f"; what is there keeps its side, so that {missing} must come" if settled else ""
        raise SplitError(
            f"class {name} has no image for {' and '.join(empty)}: it has {images} usable images in {len(independent)} groups "
            f"that may not be torn apart, and at least {UNITS_NEEDED} groups are needed, one a partition{more}"
        )
