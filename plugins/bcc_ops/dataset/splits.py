"""The sticky, group-safe split into train, tuning and validation, and the class weights.

A *group* is what must stay on one side of the split: near-duplicates, or all images of a patient if patients are known.

- An image that ever had a side keeps it, whether or not every run since saw it. It is recognised by its bytes or its pixels, so
  that growth, absence, renaming, a second upload and lossless re-encoding move nothing.
- A group with members on one side takes its new images to that side.
- If a group has members on several sides, because a new image or a patient pattern joins what was apart, its new images are left
  out and nobody changes sides. Of the members that belong together without the new images, only those on the most held-out
  side are used (validation, then tuning); the others are left out for as long as they belong together. So nothing that a
  model was trained on is counted as held-out, and the validation set stays what it was.
- Only groups that are new altogether are drawn, in an order fixed by a salted digest of their content, so that every class comes
  as near to its share as its groups allow. The result depends on the set of images alone, never on the order of a listing.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bcc_ops.exceptions import SplitError
from bcc_ops.runs.documents import PARTITIONS, LeftOutImage, Partition, Reference, SplitDocument, digest_of
from bcc_ops.runs.tables import AssignmentRow, ContentRow, SplitRow

if TYPE_CHECKING:
    from bcc_ops.config import RetrainingConfig

GROUPS_NEEDED = len(PARTITIONS)
"""Groups that a class needs at least: one per partition."""

MOST_HELD_OUT_FIRST: tuple[Partition, ...] = ("validation", "tuning", "train")

Tie = tuple[str, str]
"""What two images of a group have in common: a kind ("bytes", "pixels", "near-duplicates", "patient") and a name."""


@dataclass(frozen=True)
class Split:
    """Which image is in which partition.

    Attributes:
        rows: one row per image that is in a partition, sorted by key.
        left_out: usable images that are in no partition, each with its reason, sorted by key.
        assignments: one row per content that has a side, from earlier runs or from this one, sorted by sha256.
        carried_forward: how many images of `rows` kept the side that an earlier run gave to their content.
    """

    rows: tuple[SplitRow, ...]
    left_out: tuple[LeftOutImage, ...]
    assignments: tuple[AssignmentRow, ...]
    carried_forward: int

    @property
    def holdout_reuse(self) -> float:
        """Gate decisions per validation image, this run's included: how often the held-out images decided, by overlap."""
        decisions = {row.sha256: row.decisions for row in self.assignments}
        held_out = [decisions[row.sha256] for row in self.rows if row.partition == "validation"]
        return sum(held_out) / len(held_out) if held_out else 0.0


class _Assigned:
    """The images that have a side, by their bytes and by their pixels."""

    def __init__(self, rows: Iterable[AssignmentRow]) -> None:
        self.by_bytes = {row.sha256: row for row in rows}
        self.by_pixels = {row.pixels: row for row in self.by_bytes.values() if row.pixels}

    def find(self, image: ContentRow) -> AssignmentRow | None:
        return self.by_bytes.get(image.sha256) or self.by_pixels.get(image.pixels)

    def side(self, image: ContentRow) -> str | None:
        row = self.find(image)
        return row.partition if row else None


@dataclass(frozen=True)
class _Group:
    """Images that belong together. `absent` are those that have a side and are not usable in this run."""

    name: str
    images: tuple[ContentRow, ...]
    absent: tuple[AssignmentRow, ...]
    sides: frozenset[str]

    @property
    def counts(self) -> Counter[str]:
        return Counter(image.label for image in self.images)


def split_images(
    images: Iterable[ContentRow],
    assigned: Iterable[AssignmentRow],
    config: RetrainingConfig,
    classes: Sequence[str],
) -> Split:
    """Put every usable image into a partition, or say why not.

    Args:
        images: the results of the image checks. Refused images, conflicts among them, are skipped.
        assigned: the images to which earlier runs gave a side.
        config: `validation_fraction`, `tuning_fraction`, `split_salt` and `patient_pattern` count.
        classes: the classes that every partition must contain.

    Raises:
        SplitError: a class would have no image in a partition; the message says how many are needed.
    """
    usable = sorted((image for image in images if not image.refused), key=lambda image: image.key)
    known = _Assigned(assigned)
    patient = _patient_reader(config.patient_pattern)
    groups = _group_images(usable, known, patient)
    placed: dict[str, str] = {}
    for group in groups:
        placed |= _sides_of_known_group(group, known, patient) if group.sides else {}
    placed |= _draw_sides(groups, placed, config)

    rows: list[SplitRow] = []
    left_out: list[LeftOutImage] = []
    for group in groups:
        for image in group.images:
            side = placed.get(image.key)
            if side:
                rows.append(SplitRow(image.key, image.sha256, image.label, group.name, side, image.pixels))
            else:
                left_out.append(LeftOutImage(key=image.key, reason=_bridge_reason(group)))
    split = Split(
        tuple(sorted(rows)),
        tuple(sorted(left_out, key=lambda image: image.key)),
        _assignments(groups, placed, known),
        sum(known.find(image) is not None for image in usable if image.key in placed),
    )
    _check(split, groups, classes)
    return split


def count_partitions(rows: Iterable[SplitRow], classes: Sequence[str]) -> dict[Partition, dict[str, int]]:
    """Return the images per partition and class, zeros included."""
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


def split_is_made_of(images: Iterable[ContentRow], config: RetrainingConfig) -> str:
    """Return a digest of everything that decides about a split besides the assignments of earlier runs."""
    rows = sorted((image.key, image.sha256, image.group, image.refused) for image in images)
    parameters = (config.validation_fraction, config.tuning_fraction, config.split_salt, config.patient_pattern)
    return digest_of([rows, parameters])


def describe_split(
    split: Split,
    config: RetrainingConfig,
    classes: Sequence[str],
    *,
    previous_run: str | None = None,
    ancestors: Sequence[str] = (),
    made_of: str = "",
    table: Reference | None = None,
    assignments: Reference | None = None,
) -> SplitDocument:
    """Return `split.json`: counts, weights and how the split came about.

    Args:
        previous_run: folder of the newest run whose assignments were carried forward.
        ancestors: folders of all runs whose assignments were carried forward.
        made_of: digest of what the split was made of.
        table: reference to `split.parquet`.
        assignments: reference to `assignments.parquet`.
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
        table=table,
        assignments=assignments,
        ancestors=tuple(ancestors),
        holdout_reuse=round(split.holdout_reuse, 2),
        made_of=made_of,
    )


def _patient_reader(pattern: str) -> Callable[[str], str | None]:
    """Return a function from a key to the patient whose image it is; None if the pattern does not tell."""
    compiled = re.compile(pattern) if pattern else None

    def read(key: str) -> str | None:
        match = compiled.search(key) if compiled else None
        return match.group(1) or None if match else None

    return read


def _ties(row: ContentRow | AssignmentRow, patient: Callable[[str], str | None]) -> list[Tie]:
    ties = [("bytes", row.sha256)]
    if row.pixels:
        ties.append(("pixels", row.pixels))
    if name := patient(row.key):
        ties.append(("patient", name))
    return ties


def _join(ties_of: Iterable[Sequence[Tie]]) -> Callable[[Tie], Tie]:
    """Join what has a tie in common, and return a function from a tie to the name of its set."""
    from scipy.cluster.hierarchy import DisjointSet

    joined: DisjointSet = DisjointSet()
    for ties in ties_of:
        for tie in ties:
            joined.add(tie)
            joined.merge(ties[0], tie)
    return lambda tie: joined[tie]


def _group_images(images: Sequence[ContentRow], known: _Assigned, patient: Callable[[str], str | None]) -> list[_Group]:
    """Join images that share bytes, pixels, a near-duplicate group or a patient; a group is named by its smallest digest."""
    present = {image.sha256 for image in images}
    absent = [row for row in known.by_bytes.values() if row.sha256 not in present]
    ties = {image.key: [*_ties(image, patient), ("near-duplicates", image.group)] for image in images}
    set_of = _join([*ties.values(), *(_ties(row, patient) for row in absent)])
    members: defaultdict[Tie, list[ContentRow]] = defaultdict(list)
    for image in images:
        members[set_of(("bytes", image.sha256))].append(image)
    gone: defaultdict[Tie, list[AssignmentRow]] = defaultdict(list)
    for row in absent:
        gone[set_of(("bytes", row.sha256))].append(row)
    return [
        _Group(
            name=min(image.sha256 for image in group),
            images=tuple(group),
            absent=tuple(gone[which]),
            sides=frozenset(
                [side for image in group if (side := known.side(image))] + [row.partition for row in gone[which]],
            ),
        )
        for which, group in members.items()
    ]


def _sides_of_known_group(group: _Group, known: _Assigned, patient: Callable[[str], str | None]) -> dict[str, str]:
    """Return key -> side of the images in a group with known members; images that are left out are absent."""
    if len(group.sides) == 1:
        return dict.fromkeys((image.key for image in group.images), next(iter(group.sides)))
    settled = {image.key: side for image in group.images if (side := known.side(image))}
    # A near-duplicate group with a new image may exist because of that image alone, which is left out: it ties nobody then.
    joined_by_new = {image.group for image in group.images if image.key not in settled}
    ties = {
        image.key: [*_ties(image, patient), *([("near-duplicates", image.group)] if image.group not in joined_by_new else [])]
        for image in group.images
        if image.key in settled
    }
    set_of = _join([*ties.values(), *(_ties(row, patient) for row in group.absent)])
    sides: defaultdict[Tie, set[str]] = defaultdict(set)
    for key, side in settled.items():
        sides[set_of(ties[key][0])].add(side)
    used = {which: next(side for side in MOST_HELD_OUT_FIRST if side in found) for which, found in sides.items()}
    return {key: side for key, side in settled.items() if side == used[set_of(ties[key][0])]}


def _draw_sides(groups: Sequence[_Group], placed: Mapping[str, str], config: RetrainingConfig) -> dict[str, str]:
    """Return key -> side of the groups that are new altogether: validation is filled first, then tuning, then train."""
    new = sorted((group for group in groups if not group.sides), key=lambda group: _draw(config.split_salt, group.name))
    held: dict[str, Counter[str]] = {partition: Counter() for partition in PARTITIONS}
    for group in groups:
        for image in group.images:
            if image.key in placed:
                held[placed[image.key]][image.label] += 1
    total = sum(held.values(), Counter()) + sum((group.counts for group in new), Counter())

    wanted = {name: config.validation_fraction * total[name] for name in total}
    validation = _fill(new, held["validation"], wanted, others=[held["tuning"], held["train"]])
    held["validation"].update(image.label for group in new if group.name in validation for image in group.images)
    rest = [group for group in new if group.name not in validation]
    wanted = {name: config.tuning_fraction * (total[name] - held["validation"][name]) for name in total}
    tuning = _fill(rest, held["tuning"], wanted, others=[held["train"]])
    return {
        image.key: "validation" if group.name in validation else "tuning" if group.name in tuning else "train"
        for group in new
        for image in group.images
    }


def _draw(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}\0{name}".encode()).hexdigest()


def _fill(groups: Sequence[_Group], held: Counter[str], wanted: Mapping[str, float], others: Sequence[Counter[str]]) -> set[str]:
    """Return the names of the groups that bring a partition nearest to what it should hold of each class.

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


def _assignments(groups: Sequence[_Group], placed: Mapping[str, str], known: _Assigned) -> tuple[AssignmentRow, ...]:
    """Return every content that has a side now: those of earlier runs stay, whatever became of their images."""
    rows = dict(known.by_bytes)
    seen: set[str] = set()
    for group in groups:
        rows |= {row.sha256: row._replace(group=group.name) for row in group.absent}
        for image in group.images:
            before = known.find(image)
            side = placed.get(image.key) or (before.partition if before else None)
            if side is None or image.sha256 in seen:
                continue
            seen.add(image.sha256)
            decided = side == "validation" and image.key in placed
            decisions = (before.decisions if before else 0) + decided
            rows[image.sha256] = AssignmentRow(image.key, image.sha256, image.pixels, image.label, group.name, side, decisions)
    return tuple(rows[sha256] for sha256 in sorted(rows))


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
