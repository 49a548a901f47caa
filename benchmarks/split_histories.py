"""Random histories of a bucket: does any image change folds, or a model count as honest about what it was trained on?

Hypothesis draws sequences of nights in which images come, vanish, return, are renamed, relabelled, re-encoded, uploaded twice
and refused, groups merge, patients become known, and backfills run in between; the first nights may be of an older release. After
each run every earlier run's version may be the one in use, and the promises of the split are checked against all of them.

    python -m benchmarks.split_histories        500 histories; one line, exit status 1 if a promise is broken
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.splits import Split, split_images
from bcc_ops.evaluation.comparison import RunImages, honest_answers
from bcc_ops.exceptions import SplitError
from bcc_ops.models.champion import ChampionModel
from bcc_ops.runs.documents import OLDER_TRAINING, digest_of
from bcc_ops.runs.previous import merge_assignments
from bcc_ops.runs.rows import AssignmentRow, ContentRow

CLASSES = ("benign", "malignant", "normal")
HISTORIES = 500
LONGEST = 16
FOLD_COUNTS = (5, 5, 5, 2, 1)
EVENTS = (
    *("grow", "grow", "absent", "return", "refuse", "rename", "relabel", "re-encode", "upload again"),
    *("bridge", "merge groups", "know patients", "backfill"),
)

PATIENT = r"/([^/_]+)_"

Event = tuple[str, int]
"""What happens before a night, and the seed of what it happens to."""


@dataclass(frozen=True)
class Image:
    """An image of the bucket; `pixels` is what it shows."""

    key: str
    pixels: str
    sha256: str
    label: str
    group: str
    present: bool = True
    refused: bool = False

    @property
    def patient(self) -> str:
        """The patient in its key."""
        return _patient(self.key)

    def row(self) -> ContentRow:
        """Return what the image checks say of it."""
        pixels = "" if self.refused else self.pixels
        reason = "truncated" if self.refused else ""
        row = ContentRow(self.key, self.label, self.sha256, 9, 9, "RGB", 90.0, 9.0, False, self.group, reason, pixels)
        # So few hashes that some images share one.
        return row._replace(perceptual_hash=pixels and digest_of(pixels)[:2])


@dataclass(frozen=True)
class Run:
    """An assessed run; the version made of it may be in use at any later time."""

    as_of: int
    split: Split
    ancestors: frozenset[int]
    number: int
    version: ChampionModel

    def pixels_behind(self, fold: int | None) -> set[str]:
        """Return what the model of a fold was trained on, or the version's file if `fold` is None."""
        kept = (1 if self.split.folds == 1 else None) if fold is None else fold
        return {row.pixels for row in self.split.rows if row.fold != kept}


@dataclass
class History:
    """A bucket and its runs."""

    images: list[Image] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    folds: dict[str, int] = field(default_factory=dict)
    """Pixels -> the fold that a run gave them."""
    trained_on_before: set[str] = field(default_factory=set)
    """Pixels that an older release trained on."""
    patients_known: bool = False
    older_nights: int = 0
    """This many nights are of an older release, which had one model and held out a part that is fold 1 now."""
    night: int = 0
    counted: Counter[str] = field(default_factory=Counter)
    past: dict[int, list[Image]] = field(default_factory=dict)
    """Night -> the bucket as it was."""

    def play(self, events: Iterable[Event]) -> None:
        """Play a history, with a run after each event.

        Raises:
            AssertionError: a promise is broken.
        """
        self._grow(random.Random(0), per_class=8)
        self._end_night(5, assessed=True)
        for name, seed in events:
            self.night += 1
            draw = random.Random(seed)
            fold_count = draw.choice(FOLD_COUNTS)
            self.counted[name] += 1
            if name == "backfill":
                # Mostly a night without a run of its own: only there are images that no later night may have seen.
                without = set(self.past) - {run.as_of for run in self.runs}
                self._run(draw.choice(sorted(without or self.past)), fold_count)
                continue
            if name == "grow":
                self._grow(draw, per_class=draw.randint(1, 3))
            elif name == "know patients":
                self.patients_known = not self.patients_known
            elif name in ("bridge", "merge groups"):
                self._merge(draw, by_a_new_image=name == "bridge")
            else:
                self._change(draw, name)
            self._end_night(fold_count, assessed=draw.random() < 0.7)

    def _end_night(self, fold_count: int, *, assessed: bool) -> None:
        """End a night. Some have no run, or one that fails, so that only a backfill sees their images."""
        self.past[self.night] = list(self.images)
        if assessed:
            self._run(self.night, fold_count)

    def _grow(self, draw: random.Random, per_class: int) -> None:
        for label in CLASSES:
            for _ in range(per_class):
                name = f"{self.night}.{len(self.images)}"
                patient = (
                    draw.choice([image.patient for image in self.images] or [f"P{name}"]) if draw.random() < 0.5 else f"P{name}"
                )
                self.images.append(self._new(label, patient, name))

    def _new(self, label: str, patient: str, name: str, group: str | None = None) -> Image:
        sha256 = f"sha {name}"
        return Image(f"images/{label}/{patient}_{name}", f"pixels {name}", sha256, label, group or sha256)

    def _merge(self, draw: random.Random, *, by_a_new_image: bool) -> None:
        """Two near-duplicate groups become one, because of an image that is like both or because the thresholds changed."""
        one, other = draw.sample(sorted({image.group for image in self.images}), 2)
        self.images = [replace(image, group=one) if image.group == other else image for image in self.images]
        if by_a_new_image:
            name = f"{self.night}.bridge"
            self.images.append(self._new(draw.choice(CLASSES), f"P{name}", name, group=one))

    def _change(self, draw: random.Random, what: str) -> None:
        chosen = {image.key for image in draw.sample(self.images, draw.randint(1, max(1, len(self.images) // 2)))}
        self.images = [one for image in self.images for one in (self._changed(image, what) if image.key in chosen else [image])]

    def _changed(self, image: Image, what: str) -> list[Image]:
        folder, _, name = image.key.rpartition("/")
        if what in ("absent", "return"):
            return [replace(image, present=what == "return", refused=False)]
        if what == "refuse":
            return [replace(image, refused=True)]
        if what == "rename":
            return [replace(image, key=f"{folder}/{name}.{self.night}")]
        if what == "relabel":
            label = CLASSES[(CLASSES.index(image.label) + 1) % 3]
            return [replace(image, label=label, key=f"images/{label}/{name}")]
        if what == "re-encode":
            return [replace(image, sha256=f"{image.sha256}'")]
        assert what == "upload again"
        return [image, replace(image, key=f"{folder}/{name}.again{self.night}")]

    def _run(self, as_of: int, fold_count: int) -> None:
        is_older = self.night < self.older_nights
        config = RetrainingConfig(patient_pattern=PATIENT if self.patients_known else "", folds=1 if is_older else fold_count)
        contents = [image.row() for image in self.past[as_of] if image.present]
        assigned, ancestors = self._assigned()
        try:
            split = split_images(contents, assigned, config, CLASSES)
        except SplitError:
            self.counted["too few images"] += 1
            return
        if is_older:
            self.counted["older release"] += 1
            split = _of_older_release(split)
        run = Run(as_of, split, ancestors, len(self.runs), self._version(split, is_older=is_older))
        self.runs.append(run)
        self._check_folds(run)
        for earlier in self.runs:
            self._check_honest(earlier, run, contents)

    def _version(self, split: Split, *, is_older: bool) -> ChampionModel:
        """Return the version as `models.champion` loads it; an older release stored no answers."""
        trained_on = [row for row in split.rows if split.folds > 1 or row.fold != 1]
        answered = [row for row in split.rows if row.fold <= split.folds and not is_older]
        return ChampionModel(
            version=str(len(self.runs)),
            as_of=datetime(2026, 11, 22, tzinfo=timezone.utc),
            synthetic=False,
            seen=frozenset(digest for row in trained_on for digest in (row.sha256, row.pixels)),
            record=split.rows,
            answered=tuple(answered),
        )

    def _assigned(self) -> tuple[Sequence[AssignmentRow], frozenset[int]]:
        """Return the assignments as `runs.previous.assigned_before` finds them."""
        if not self.runs:
            return (), frozenset()
        newest = max(self.runs, key=lambda run: (run.as_of, run.number))
        others = [run for run in self.runs if run.number not in newest.ancestors and run is not newest]
        merged = merge_assignments(newest.split.assignments, [run.split.assignments for run in others])
        return merged, frozenset(run.number for run in self.runs)

    def _check_folds(self, run: Run) -> None:
        of_patient: defaultdict[str, set[int]] = defaultdict(set)
        for row in run.split.rows:
            of_patient[_patient(row.key)].add(row.fold)
            if row.fold == OLDER_TRAINING:
                self.trained_on_before.add(row.pixels)
                continue
            assert self.folds.setdefault(row.pixels, row.fold) == row.fold, f"{row.key} changed folds"
            assert row.fold != 1 or row.pixels not in self.trained_on_before, f"{row.key} was trained on and is now held out"
        crossing = {patient: folds for patient, folds in of_patient.items() if len(folds) > 1}
        assert not self.patients_known or not crossing, f"patients are in two folds: {crossing}"
        self.counted["runs"] += 1

    def _check_honest(self, earlier: Run, run: Run, contents: Sequence[ContentRow]) -> None:
        """Each answer that counts must come from a model trained on nothing that now belongs with the image."""
        rows = run.split.rows
        honest = honest_answers(earlier.version, rows, RunImages(rows, contents, run.split.assignments, {}))
        together = self._together(run, contents)
        of_file = earlier.pixels_behind(None)
        for place in honest.asked:
            assert not together[rows[place].key] & of_file, f"the file is asked about {rows[place].key} and was trained on it"
        of_fold = {fold: earlier.pixels_behind(fold) for fold in {row.fold for row in earlier.version.answered}}
        for place, answer in honest.recorded.items():
            own = earlier.version.answered[answer]
            assert own.pixels == rows[place].pixels, f"{rows[place].key} is taken for {own.key}"
            assert not together[rows[place].key] & of_fold[own.fold], f"the model behind {own.key} was trained on it"
        self.counted["asked"] += len(honest.asked)
        self.counted["recorded"] += len(honest.recorded)

    def _together(self, run: Run, contents: Sequence[ContentRow]) -> dict[str, set[str]]:
        """Key -> pixels of all usable images that belong with it: near-duplicates, its group, its patient if that is known."""
        usable = [row for row in contents if not row.refused]
        group_of = {row.key: row.group for row in run.split.rows}

        def ties(row: ContentRow) -> list[tuple[str, str]]:
            patient = [("patient", _patient(row.key))] if self.patients_known else []
            group = [("group", group_of[row.key])] if row.key in group_of else []
            return [("near", row.group), *patient, *group]

        members: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for row in usable:
            for tie in ties(row):
                members[tie].add(row.pixels)
        return {row.key: {row.pixels}.union(*(members[tie] for tie in ties(row))) for row in usable}


def _patient(key: str) -> str:
    return key.rpartition("/")[2].partition("_")[0]


def _of_older_release(split: Split) -> Split:
    """Return a split as it is read from what an older release wrote: what was not held out has no fold yet."""
    rows = tuple(row if row.fold == 1 else row._replace(fold=OLDER_TRAINING) for row in split.rows)
    assignments = tuple(row if row.fold == 1 else row._replace(fold=OLDER_TRAINING) for row in split.assignments)
    return replace(split, rows=rows, assignments=assignments)


def histories() -> st.SearchStrategy[list[Event]]:
    """Sequences of events."""
    return st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 2**16)), min_size=4, max_size=LONGEST)


def check(examples: int, **more: Any) -> Counter[str]:
    """Play this many histories and return how often each event happened; of a broken promise, raise the shortest history."""
    total: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), **more)
    @given(histories(), st.integers(0, 6))
    def hold(events: list[Event], older_nights: int) -> None:
        history = History(older_nights=older_nights)
        history.play(events)
        total.update(history.counted)
        total["histories"] += 1

    hold()
    return total


def main() -> Literal[0, 1]:
    """Play the histories and print what was checked."""
    try:
        total = check(HISTORIES, derandomize=True, phases=(Phase.generate, Phase.shrink))
    except AssertionError as error:
        print(f"a promise is broken: {error}", file=sys.stderr)
        return 1
    answers = f"{total['recorded']} stored answers and {total['asked']} new questions"
    checked = f"{total['histories']} histories, {total['runs']} runs, {answers}"
    print(f"{checked}: no image changed folds, and no answer that counted came from a model trained on the image")
    return 0


if __name__ == "__main__":
    sys.exit(main())
