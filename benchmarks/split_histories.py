"""Random histories of a bucket: does any image change sides, or count as held-out for a model that was trained on it?

Hypothesis draws sequences of nights in which images come, vanish, return, are renamed, relabelled, re-encoded, uploaded twice
and refused, groups merge, patients become known, and backfills run in between. After each run every earlier run's model may
be the one in use, and the promises of the split are checked against all of them.

    python -m benchmarks.split_histories        500 histories; one line, exit status 1 if a promise is broken
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bcc_ops.config import RetrainingConfig
from bcc_ops.dataset.splits import Split, split_images
from bcc_ops.evaluation.evaluate import seen_by
from bcc_ops.exceptions import SplitError
from bcc_ops.models.champion import TRAINED_OR_TUNED
from bcc_ops.runs.previous import merge_assignments
from bcc_ops.runs.tables import AssignmentRow, ContentRow

CLASSES = ("benign", "malignant", "normal")
HISTORIES = 500
LONGEST = 16
EVENTS = (
    *("grow", "grow", "absent", "return", "refuse", "rename", "relabel", "re-encode", "upload again"),
    *("bridge", "merge groups", "know patients", "backfill"),
)

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
        return self.key.split("/")[-1].split("_")[0]

    def row(self) -> ContentRow:
        """Return what the image checks say of it."""
        pixels = "" if self.refused else self.pixels
        reason = "truncated" if self.refused else ""
        return ContentRow(self.key, self.label, self.sha256, 9, 9, "RGB", 90.0, 9.0, False, self.group, reason, pixels)


@dataclass(frozen=True)
class Run:
    """An assessed run; a model of it may be in use at any later time."""

    as_of: int
    split: Split
    ancestors: frozenset[int]
    number: int

    @property
    def seen(self) -> frozenset[str]:
        """Digests of what its model was trained on."""
        used = [row for row in self.split.rows if row.partition in TRAINED_OR_TUNED]
        return frozenset(digest for row in used for digest in (row.sha256, row.pixels))


@dataclass
class History:
    """A bucket and its runs."""

    images: list[Image] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    sides: dict[str, str] = field(default_factory=dict)
    patients_known: bool = False
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
        self._end_night(assessed=True)
        for name, seed in events:
            self.night += 1
            draw = random.Random(seed)
            self.counted[name] += 1
            if name == "backfill":
                # Mostly a night without a run of its own: only there are images that no later night may have seen.
                without = set(self.past) - {run.as_of for run in self.runs}
                self._run(draw.choice(sorted(without or self.past)))
                continue
            if name == "grow":
                self._grow(draw, per_class=draw.randint(1, 3))
            elif name == "know patients":
                self.patients_known = not self.patients_known
            elif name in ("bridge", "merge groups"):
                self._merge(draw, by_a_new_image=name == "bridge")
            else:
                self._change(draw, name)
            self._end_night(assessed=draw.random() < 0.7)

    def _end_night(self, *, assessed: bool) -> None:
        """End a night. Some have no run, or one that fails, so that only a backfill sees their images."""
        self.past[self.night] = list(self.images)
        if assessed:
            self._run(self.night)

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

    def _run(self, as_of: int) -> None:
        config = RetrainingConfig(patient_pattern=r"/([^/_]+)_" if self.patients_known else "")
        contents = [image.row() for image in self.past[as_of] if image.present]
        assigned, ancestors = self._assigned()
        try:
            split = split_images(contents, assigned, config, CLASSES)
        except SplitError:
            self.counted["too few images"] += 1
            return
        run = Run(as_of, split, ancestors, len(self.runs))
        self.runs.append(run)
        self._check_sides(run)
        for version in self.runs:
            self._check_held_out(version, run, contents)

    def _assigned(self) -> tuple[Sequence[AssignmentRow], frozenset[int]]:
        """Return the assignments as `runs.previous.assigned_before` finds them."""
        if not self.runs:
            return (), frozenset()
        newest = max(self.runs, key=lambda run: (run.as_of, run.number))
        others = [run for run in self.runs if run.number not in newest.ancestors and run is not newest]
        merged = merge_assignments(newest.split.assignments, [run.split.assignments for run in others])
        return merged, frozenset(run.number for run in self.runs)

    def _check_sides(self, run: Run) -> None:
        on: defaultdict[str, set[str]] = defaultdict(set)
        for row in run.split.rows:
            assert self.sides.setdefault(row.pixels, row.partition) == row.partition, f"{row.key} changed sides"
            on[row.key.split("/")[-1].split("_")[0]].add(row.partition)
        crossing = {patient: sides for patient, sides in on.items() if len(sides) > 1}
        assert not self.patients_known or not crossing, f"patients are on two sides: {crossing}"
        self.counted["runs"] += 1

    def _check_held_out(self, version: Run, run: Run, contents: Sequence[ContentRow]) -> None:
        left_out = seen_by(version.seen, run.split.rows, contents, run.split.assignments)
        trained_on = {row.pixels for row in version.split.rows if row.partition in TRAINED_OR_TUNED}
        for row in run.split.rows:
            if row.partition == "validation" and row.key not in left_out:
                assert row.pixels not in trained_on, f"{row.key} was trained on and counts as held-out"
                self.counted["held out"] += 1


def histories() -> st.SearchStrategy[list[Event]]:
    """Sequences of events."""
    return st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 2**16)), min_size=4, max_size=LONGEST)


def check(examples: int, **more: Any) -> Counter[str]:
    """Play this many histories and return how often each event happened; of a broken promise, raise the shortest history."""
    total: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), **more)
    @given(histories())
    def hold(events: list[Event]) -> None:
        history = History()
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
    checked = f"{total['histories']} histories, {total['runs']} runs, {total['held out']} held-out images"
    print(f"{checked}: no image changed sides, and none that a model was trained on counted as held-out for it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
