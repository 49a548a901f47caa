"""The sticky, group-safe split into five folds, and the class weights.

A *group* is what must stay in one fold: near-duplicates, or all images of a patient if patients are known. The model of a fold is
trained on the other folds, and asked about its own. What the metadata and the patient pattern call one patient is one: neither
overrules the other, since a fold too few does no harm and a patient in two folds does.

- An image that ever had a fold keeps it, whether or not every run since saw it. It is recognised by its bytes or its pixels, so
  that growth, absence, renaming, a second upload and lossless re-encoding move nothing.
- A group with members in one fold takes its new images to that fold.
- If a group has members in several folds, because a new image, the metadata or a patient pattern joins what was apart, its new
  images are left out and nobody changes folds. Of the members that belong together without the new images, only those of the
  lowest fold are used; the others are left out for as long as they belong together. So no model is asked about what it was
  trained on.
- An image of which the metadata tells no patient any more counts as of the one that it last told.
- A refused image is in no fold tonight and still ties those that belong together with it: a model may have been trained on it.
- An image that a content finding excludes from training has a fold too: its model is asked about it, and none is trained on it.
- Only groups that are new altogether are drawn: the largest first, each into the fold that a salted digest of its perceptual hash
  names, or the next one that has room for its classes. The result depends on the set of images alone, not on a listing's order,
  nor on the lossless format that the images are stored in; one image more, or one with another hash, moves few others.
- What an older release held out is fold 1. What it trained on is drawn into the folds 2 to 5, so that with its model fold 1
  stays held-out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from bcc_ops.dataset.content_findings import action_on
from bcc_ops.exceptions import SplitError
from bcc_ops.runs.documents import FOLDS, OLDER_TRAINING, LeftOutImage, Reference, SplitDocument, digest_of
from bcc_ops.runs.rows import AssignmentRow, ContentRow, SplitRow

if TYPE_CHECKING:
    from bcc_ops.config import RetrainingConfig

GROUPS_NEEDED = 2
"""Groups that a class needs at least: one to train on, and one to be asked about."""

R = TypeVar("R", ContentRow, AssignmentRow)

Tie = tuple[str, str]
"""What two images of a group have in common: a kind ("bytes", "pixels", "near-duplicates", "patient", …) and a name."""


@dataclass(frozen=True)
class Split:
    """Which image is in which fold.

    Attributes:
        rows: one row per image that is in a fold, sorted by key.
        left_out: usable images that are in no fold, each with its reason, sorted by key.
        assignments: one row per content that has a fold, from earlier runs or from this one, sorted by sha256.
        carried_forward: how many images of `rows` kept the fold that an earlier run gave to their content.
        folds: how many of the folds are held out in turn.
        patients: images of `rows` whose patient is known, and those of whom it is not.
    """

    rows: tuple[SplitRow, ...]
    left_out: tuple[LeftOutImage, ...]
    assignments: tuple[AssignmentRow, ...]
    carried_forward: int
    folds: int
    patients: tuple[int, int] = (0, 0)

    @property
    def holdout_reuse(self) -> float:
        """Gate decisions per held-out image, this run's included: how often the held-out images decided, by overlap."""
        decisions = {row.sha256: row.decisions for row in self.assignments}
        held_out = [decisions[row.sha256] for row in self.rows if row.fold <= self.folds]
        return sum(held_out) / len(held_out) if held_out else 0.0


class _Assigned:
    """The images that have a fold, by their bytes and by their pixels."""

    def __init__(self, rows: Iterable[AssignmentRow]) -> None:
        self.by_bytes = {row.sha256: row for row in rows}
        self.by_pixels = {row.pixels: row for row in self.by_bytes.values() if row.pixels}

    def find(self, image: ContentRow) -> AssignmentRow | None:
        return self.by_bytes.get(image.sha256) or self.by_pixels.get(image.pixels)

    def fold(self, image: ContentRow) -> int | None:
        row = self.find(image)
        return row.fold if row else None

    def patient(self, image: ContentRow) -> str:
        """Return whose image the metadata last told that it is: a table that is gone for a night sets nobody apart."""
        row = self.find(image)
        return row.patient if row else ""


@dataclass(frozen=True)
class _Group:
    """Images that belong together. `absent` are those that have a fold and are not usable in this run, `refused` those that this
    run sees and does not use."""

    name: str
    images: tuple[ContentRow, ...]
    absent: tuple[AssignmentRow, ...]
    refused: tuple[ContentRow, ...]
    folds: frozenset[int]

    @property
    def counts(self) -> Counter[str]:
        return Counter(image.label for image in self.images)

    @property
    def drawn_by(self) -> tuple[str, str]:
        """Return what decides on the group's fold: its smallest perceptual hash, and among groups with the same hash the smallest
        digest of its pixels (of its bytes, if it is of an older release)."""
        return min(image.perceptual_hash for image in self.images), min(image.pixels or image.sha256 for image in self.images)


def split_images(
    images: Iterable[ContentRow],
    assigned: Iterable[AssignmentRow],
    config: RetrainingConfig,
    classes: Sequence[str],
) -> Split:
    """Put every usable image into a fold, or say why not.

    Args:
        images: the results of the image checks. Refused images, conflicts among them, are in no fold.
        assigned: the images to which earlier runs gave a fold.
        config: `folds`, `split_salt`, `patient_pattern` and `content_findings` count.
        classes: the classes that every model must be trained on and asked about.

    Raises:
        SplitError: a model would have no image of a class; the message says how many are needed.
    """
    ordered = sorted(images, key=lambda image: image.key)
    usable, refused = ([image for image in ordered if bool(image.refused) is wanted] for wanted in (False, True))
    known = _Assigned(_with_patients(fold_older(assigned), refused))
    usable = [image if image.patient else image._replace(patient=known.patient(image)) for image in usable]
    patient = patient_reader(config.patient_pattern)
    groups = _group_images(usable, refused, known, patient)
    placed: dict[str, int] = {}
    for group in groups:
        placed |= _folds_of_known_group(group, known, patient) if group.folds else {}
    placed |= _draw_folds(groups, placed, config.split_salt)

    rows: list[SplitRow] = []
    left_out: list[LeftOutImage] = []
    for group in groups:
        for image in group.images:
            fold = placed.get(image.key)
            if fold:
                trained_on = not _untrained(image, config)
                rows.append(SplitRow(image.key, image.sha256, image.label, group.name, fold, image.pixels, trained_on))
            else:
                left_out.append(LeftOutImage(key=image.key, reason=_bridge_reason(group)))
    split = Split(
        tuple(sorted(rows)),
        tuple(sorted(left_out, key=lambda image: image.key)),
        _assignments(groups, placed, known, config.folds),
        sum(known.find(image) is not None for image in usable if image.key in placed),
        config.folds,
        _count_patients(usable, placed, patient),
    )
    _check(split, groups, classes)
    return split


def fold_older(assigned: Iterable[AssignmentRow]) -> list[AssignmentRow]:
    """Draw the images that an older release trained on into the folds 2 to 5, by their groups and balanced by class.

    Fold 1 is what that release held out, so that nothing its model was trained on comes to be held-out for it.
    """
    rows = list(assigned)
    members: defaultdict[str, list[AssignmentRow]] = defaultdict(list)
    for row in rows:
        if row.fold == OLDER_TRAINING:
            members[row.group].append(row)
    held = {fold: Counter(row.label for row in rows if row.fold == fold) for fold in FOLDS[1:]}
    settled = {row.group: row.fold for row in rows if row.fold in held}
    counts = {name: Counter(row.label for row in group) for name, group in members.items()}
    order = {name: (_draw("", name),) for name in counts}
    drawn = _fill({name: count for name, count in counts.items() if name not in settled}, held, order) | settled
    return [row._replace(fold=drawn[row.group]) if row.fold == OLDER_TRAINING else row for row in rows]


def count_folds(rows: Iterable[SplitRow], classes: Sequence[str]) -> dict[int, dict[str, int]]:
    """Return the images per fold and class, zeros included."""
    counted = Counter((row.fold, row.label) for row in rows)
    return {fold: {name: counted[fold, name] for name in classes} for fold in FOLDS}


def class_weights(counts: Mapping[str, int]) -> dict[str, float]:
    """Balanced weights: n / (classes x count), so that every class weighs the same in the loss.

    The formula is that of scikit-learn's `class_weight="balanced"` (King & Zeng 2001, "Logistic regression in rare
    events data").

    Args:
        counts: class -> images, each at least 1.
    """
    total = sum(counts.values())
    return {name: total / (len(counts) * count) for name, count in counts.items()}


def _with_patients(assigned: Iterable[AssignmentRow], refused: Iterable[ContentRow]) -> list[AssignmentRow]:
    """Return the rows with the patients that tonight's metadata tells of refused images: they are in no other row."""
    told = {image.sha256: image.patient for image in refused if image.patient}
    return [row._replace(patient=told.get(row.sha256, row.patient)) for row in assigned]


def _untrained(image: ContentRow, config: RetrainingConfig) -> tuple[str, ...]:
    action = action_on(image.findings, config)
    return (action,) if action == "exclude_from_training" else ()


def _count_trained_on(rows: Iterable[SplitRow], classes: Sequence[str]) -> dict[str, int]:
    counted = Counter(row.label for row in rows if row.trained_on)
    return {name: counted[name] for name in classes}


def held_out_digest(rows: Iterable[SplitRow], folds: int) -> str:
    """Name of the evidence: sha256 over the sorted content digests of the images that are held out in turn.

    Renaming does not change it.
    """
    return digest_of(sorted(row.sha256 for row in rows if row.fold <= folds))


def split_is_made_of(images: Iterable[ContentRow], config: RetrainingConfig) -> str:
    """Return a digest of everything that decides about a split besides the assignments of earlier runs."""
    images = list(images)
    rows = sorted((image.key, image.sha256, image.group, image.refused, *_untrained(image, config)) for image in images)
    patients = sorted((image.key, image.patient) for image in images if image.patient)
    parts = [rows, (config.folds, config.split_salt, config.patient_pattern)]
    return digest_of([*parts, patients] if patients else parts)


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
    counts = count_folds(split.rows, classes)
    return SplitDocument(
        classes=tuple(classes),
        counts=counts,
        weights=class_weights(_count_trained_on(split.rows, classes)),
        grouping="patient" if config.patient_pattern or split.patients[0] else "near-duplicate group",
        salt=config.split_salt,
        carried_forward=split.carried_forward,
        previous_run=previous_run,
        left_out=split.left_out,
        held_out_digest=held_out_digest(split.rows, split.folds),
        table=table,
        assignments=assignments,
        ancestors=tuple(ancestors),
        holdout_reuse=round(split.holdout_reuse, 2),
        made_of=made_of,
        patients_unknown=split.patients[1] if split.patients[0] else 0,
    )


def group_images(images: Sequence[ContentRow], patient_pattern: str) -> dict[str, str]:
    """Return key -> group, of images that no run has split: near-duplicates, and a patient's images, are one piece of evidence.

    Args:
        images: usable ones, as the image checks saw them.
        patient_pattern: the run's parameter.
    """
    groups = _group_images(images, (), _Assigned(()), patient_reader(patient_pattern))
    return {image.key: group.name for group in groups for image in group.images}


def patient_reader(pattern: str) -> Callable[[str], str | None]:
    """Return a function from a key to the patient whose image it is; None if the pattern does not tell."""
    compiled = re.compile(pattern) if pattern else None

    def read(key: str) -> str | None:
        match = compiled.search(key) if compiled else None
        return match.group(1) or None if match else None

    return read


def patient_ties(row: ContentRow | AssignmentRow, patient: Callable[[str], str | None]) -> list[Tie]:
    """Return what an image has in common with the others of its patient: by the metadata, and by its key.

    Args:
        row: the image.
        patient: as `patient_reader` returns it.
    """
    ties = [("patient", name) for name in row.patient.split()]
    if name := patient(row.key):
        ties.append(("patient by key", name))
    return ties


def _ties(row: ContentRow | AssignmentRow, patient: Callable[[str], str | None]) -> list[Tie]:
    pixels = [("pixels", row.pixels)] if row.pixels else []
    return [("bytes", row.sha256), *pixels, *patient_ties(row, patient)]


def _count_patients(
    images: Iterable[ContentRow], placed: Mapping[str, int], patient: Callable[[str], str | None]
) -> tuple[int, int]:
    known = [bool(patient_ties(image, patient)) for image in images if image.key in placed]
    return sum(known), len(known) - sum(known)


def _join(ties_of: Iterable[Sequence[Tie]]) -> Callable[[Tie], Tie]:
    """Join what has a tie in common, and return a function from a tie to the name of its set."""
    from scipy.cluster.hierarchy import DisjointSet

    joined: DisjointSet = DisjointSet()
    for ties in ties_of:
        for tie in ties:
            joined.add(tie)
            joined.merge(ties[0], tie)
    return lambda tie: joined[tie]


def _group_images(
    images: Sequence[ContentRow], refused: Sequence[ContentRow], known: _Assigned, patient: Callable[[str], str | None]
) -> list[_Group]:
    """Join images that share bytes, pixels, a near-duplicate group or a patient; a group is named by its smallest digest."""
    present = {image.sha256 for image in images}
    absent = [row for row in known.by_bytes.values() if row.sha256 not in present]
    ties = [[*_ties(image, patient), ("near-duplicates", image.group)] for image in (*images, *refused)]
    set_of = _join([*ties, *(_ties(row, patient) for row in absent)])

    def by_set(rows: Iterable[R]) -> defaultdict[Tie, list[R]]:
        found: defaultdict[Tie, list[R]] = defaultdict(list)
        for row in rows:
            found[set_of(("bytes", row.sha256))].append(row)
        return found

    members, gone, unused = by_set(images), by_set(absent), by_set(refused)
    return [
        _Group(
            name=min(image.sha256 for image in group),
            images=tuple(group),
            absent=tuple(gone[which]),
            refused=tuple(unused[which]),
            folds=frozenset([fold for image in group if (fold := known.fold(image))] + [row.fold for row in gone[which]]),
        )
        for which, group in members.items()
    ]


def _folds_of_known_group(group: _Group, known: _Assigned, patient: Callable[[str], str | None]) -> dict[str, int]:
    """Return key -> fold of the images in a group with known members; images that are left out are absent."""
    if len(group.folds) == 1:
        return dict.fromkeys((image.key for image in group.images), next(iter(group.folds)))
    settled = {image.key: fold for image in group.images if (fold := known.fold(image))}
    # A near-duplicate group with a new image may exist because of that image alone, which is left out: it ties nobody then.
    seen = [*group.images, *group.refused]
    joined_by_new = {image.group for image in seen if not known.find(image)}
    ties = {
        image.key: [*_ties(image, patient), *([("near-duplicates", image.group)] if image.group not in joined_by_new else [])]
        for image in seen
        if known.find(image)
    }
    set_of = _join([*ties.values(), *(_ties(row, patient) for row in group.absent)])
    found: defaultdict[Tie, set[int]] = defaultdict(set)
    for key, fold in settled.items():
        found[set_of(ties[key][0])].add(fold)
    return {key: fold for key, fold in settled.items() if fold == min(found[set_of(ties[key][0])])}


def _draw_folds(groups: Sequence[_Group], placed: Mapping[str, int], salt: str) -> dict[str, int]:
    """Return key -> fold of the images in groups that are new altogether."""
    held: dict[int, Counter[str]] = {fold: Counter() for fold in FOLDS}
    for group in groups:
        for image in group.images:
            if image.key in placed:
                held[placed[image.key]][image.label] += 1
    new = {group.name: group for group in groups if not group.folds}
    order = {name: tuple(_draw(salt, part) for part in group.drawn_by) for name, group in new.items()}
    drawn = _fill({name: group.counts for name, group in new.items()}, held, order)
    return {image.key: drawn[name] for name, group in new.items() for image in group.images}


def _fill(
    groups: Mapping[str, Counter[str]], held: Mapping[int, Counter[str]], order: Mapping[str, tuple[str, ...]]
) -> dict[str, int]:
    """Return group -> fold. A group goes to the fold that its own digest names, or to the next one that has room for its classes.

    So an image more or less moves no more than a few others. Dealt in turn, all groups after it would move.

    The largest groups come first, since later ones can even them out. If no fold has room for a group, it goes to the fold that
    has the smallest part of its classes so far, and of equal ones to the lowest.

    Args:
        groups: name -> images per class.
        held: fold -> images per class that it has already.
        order: name -> salted digests that groups of one size are sorted by. The first names the fold.
    """
    held = {fold: Counter(counts) for fold, counts in held.items()}
    left = sum(groups.values(), Counter())
    totals = sum(held.values(), Counter()) + left
    room = _share_out(left, held)
    folds, alike = sorted(held), Counter[str]()
    chosen: dict[str, int] = {}
    for name in sorted(groups, key=lambda name: (-groups[name].total(), order[name])):
        counts, digest = groups[name], order[name][0]
        start = (int(digest, 16) + alike[digest]) % len(folds)  # groups with one digest, as of blank images, are spread
        alike[digest] += 1
        left.subtract(counts)
        for fold in folds[start:] + folds[:start]:
            if all(room[fold][label] >= count for label, count in counts.items()):
                chosen[name] = fold
                held[fold].update(counts)
                room[fold].subtract(counts)
                break
        else:
            parts = {fold: sum(counts[label] * own[label] / totals[label] for label in counts) for fold, own in held.items()}
            chosen[name] = min(folds, key=lambda fold: (round(parts[fold], 9), fold))
            held[chosen[name]].update(counts)
            room = _share_out(left, held)
    return chosen


def _share_out(left: Mapping[str, int], held: Mapping[int, Counter[str]]) -> dict[int, Counter[str]]:
    """Return fold -> images per class that there is room for, so that the folds come to hold equally many.

    What is over goes to the lowest folds, so that a class of few groups is in those: a run with fewer fold models is asked about
    them.

    Args:
        left: class -> images that have no fold yet.
        held: fold -> images per class that it has already.
    """
    room: dict[int, Counter[str]] = {fold: Counter() for fold in held}
    for label, count in left.items():
        filled = sorted(held, key=lambda fold: (held[fold][label], fold))
        while True:
            level, over = divmod(count + sum(held[fold][label] for fold in filled), len(filled))
            if held[filled[-1]][label] <= level:
                break
            filled.pop()
        for place, fold in enumerate(sorted(filled)):
            room[fold][label] = level - held[fold][label] + (place < over)
    return room


def _draw(salt: str, digest: str) -> str:
    return hashlib.sha256(f"{salt}\0{digest}".encode()).hexdigest()


def _assignments(groups: Sequence[_Group], placed: Mapping[str, int], known: _Assigned, folds: int) -> tuple[AssignmentRow, ...]:
    """Return every content that has a fold now: those of earlier runs stay, whatever became of their images."""
    rows = dict(known.by_bytes)
    seen: set[str] = set()
    # What is absent stays with those that it belonged together with, whatever their group is called by now.
    called = {before.group: group.name for group in groups for image in group.images if (before := known.find(image))}
    rows = {sha256: row._replace(group=called.get(row.group, row.group)) for sha256, row in rows.items()}
    for group in groups:
        rows |= {row.sha256: row._replace(group=group.name) for row in group.absent}
        for image in group.images:
            before = known.find(image)
            fold = placed.get(image.key) or (before.fold if before else None)
            if fold is None or image.sha256 in seen:
                continue
            seen.add(image.sha256)
            decided = fold <= folds and image.key in placed
            decisions = (before.decisions if before else 0) + decided
            named = (image.key, image.sha256, image.pixels, image.label, group.name)
            rows[image.sha256] = AssignmentRow(*named, fold, decisions, image.patient)
    return tuple(rows[sha256] for sha256 in sorted(rows))


def _bridge_reason(group: _Group) -> str:
    return f"belongs together with images in the folds {' and '.join(map(str, sorted(group.folds)))}"


def _check(split: Split, groups: Sequence[_Group], classes: Sequence[str]) -> None:
    """Refuse a split with which some model would not see a class, in training or when it is asked."""
    counts = count_folds(split.rows, classes)
    asked = FOLDS[: split.folds]
    for name in classes:
        trained_on = Counter(row.fold for row in split.rows if row.label == name and row.trained_on)
        alone = [fold for fold in FOLDS if trained_on.total() == trained_on[fold]]  # with nothing to train on outside of it
        untrained = [fold for fold in asked if fold in alone]
        unasked = not any(counts[fold][name] for fold in asked)
        if not untrained and not unasked:
            continue
        independent = [group for group in groups if group.counts[name]]
        images = sum(group.counts[name] for group in independent)
        where = _named(asked)
        problem = (
            f"no image outside of fold {untrained[0]} to train on" if untrained else f"no image in {where} to be asked about"
        )
        settled = any(group.folds for group in independent)
        more = "; what is there keeps its fold, so that new groups must come" if settled else ""
        # Not if such a run would fail as well, for want of images to train on.
        if unasked and (others := [fold for fold in FOLDS if counts[fold][name] and not set(alone) & set(FOLDS[:fold])]):
            more += f"; some are in fold {others[0]}, which a run with folds={others[0]} asks about"
        raise SplitError(
            f"class {name} has {problem}: it has {_counted(images, 'usable image')} in {_counted(len(independent), 'group')} "
            f"that may not be torn apart, and at least {GROUPS_NEEDED} groups are needed{more}"
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _named(folds: Sequence[int]) -> str:
    return f"fold {folds[0]}" if len(folds) == 1 else f"the folds {folds[0]} to {folds[-1]}"
