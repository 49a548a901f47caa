"""How far a run is, as its page tells it: from the states of its tasks, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

PIPELINE = (
    "wait_for_new_images",
    "snapshot_dataset",
    "download_images",
    "inspect_images",
    "check_images",
    "split_dataset",
    "train_model",
    "combine_folds",
    "evaluate_model",
    "gate_model",
    "approve_model",
    "upload_model",
    "publish_plots",
)
"""The tasks in the order that a page shows them; any other comes after these."""

_OVER = {"success", "failed"}
_TELLING = (
    *("failed", "awaiting_input", "running", "restarting", "up_for_retry", "deferred", "up_for_reschedule"),
    *("queued", "scheduled", "upstream_failed", "", "removed", "skipped", "success"),
)
"""States of the instances of a mapped task: the first of these that one of them has is the task's."""
_FAILED = {"failed", "upstream_failed"}
_LOOKS = {
    "success": ("done", "✓", ""),
    "failed": ("failed", "✗", "failed"),
    "upstream_failed": ("waiting", "–", "not reached"),
    "skipped": ("skipped", "–", "skipped"),
    "removed": ("skipped", "–", "removed"),
    "running": ("now", "▸", "running"),
    "restarting": ("now", "▸", "starts again"),
    "deferred": ("now", "▸", "waiting"),
    "awaiting_input": ("now", "▸", "waits for an answer"),
    "up_for_retry": ("now", "↻", "will be tried again"),
    "up_for_reschedule": ("now", "▸", "waiting"),
    "queued": ("now", "▸", "queued"),
    "scheduled": ("now", "▸", "scheduled"),
}


@dataclass(frozen=True)
class TaskProgress:
    """One task of a run; `state` in Airflow's words, None if it has none yet.

    Attributes:
        map_index: of an instance of a mapped task, counted from 0; None of any other task, and of all instances together.
        instances: those of a mapped task, merged into this line.
    """

    task_id: str
    state: str | None
    started: datetime | None = None
    ended: datetime | None = None
    map_index: int | None = None
    instances: tuple[TaskProgress, ...] = ()

    @classmethod
    def merged(cls, instances: Iterable[TaskProgress]) -> TaskProgress:
        """Return the instances of one task as one line."""
        ordered = tuple(sorted(instances, key=lambda one: one.map_index or 0))
        first = ordered[0]
        if first.map_index is None:
            return first
        telling = min(ordered, key=lambda one: _TELLING.index(one.state or "") if (one.state or "") in _TELLING else 0)
        return replace(
            first,
            state=telling.state,
            started=min((one.started for one in ordered if one.started), default=None),
            ended=max((one.ended for one in ordered if one.ended), default=None) if telling.state in _OVER else None,
            map_index=None,
            instances=ordered,
        )

    @property
    def count(self) -> str:
        """How many instances of a mapped task are done: `2 of 5 done`; "" of any other task."""
        done = sum(one.state == "success" for one in self.instances)
        return f"{done} of {len(self.instances)} done" if self.instances else ""

    @property
    def failed(self) -> tuple[TaskProgress, ...]:
        """The instances that failed; the task itself if it is not mapped and failed."""
        return tuple(one for one in self.instances or (self,) if one.state == "failed")

    @property
    def name(self) -> str:
        """Its id; of an instance of the mapped task with the fold that its model holds out."""
        return self.task_id if self.map_index is None else f"{self.task_id} (fold {self.map_index + 1})"

    @property
    def tone(self) -> str:
        """How the page shows it: done, now, failed, skipped or waiting."""
        return _LOOKS.get(self.state or "", ("waiting", "", ""))[0]

    @property
    def mark(self) -> str:
        """A sign for its state, so that colour alone tells nothing."""
        return _LOOKS.get(self.state or "", ("waiting", "·", ""))[1]

    @property
    def word(self) -> str:
        """Its state in a word, "" if the sign says it all; and how many of its instances are done."""
        word = _LOOKS.get(self.state or "", ("", "", ""))[2]
        if not self.instances or self.state == "success":
            return word
        return self.count if self.state == "running" else ", ".join(part for part in (word, self.count) if part)


@dataclass(frozen=True)
class RunProgress:
    """A run and its tasks, in the pipeline's order."""

    dag_id: str
    run_id: str
    state: str
    tasks: tuple[TaskProgress, ...]

    @classmethod
    def of(cls, dag_id: str, run_id: str, state: str, tasks: Iterable[TaskProgress]) -> RunProgress:
        """Put the tasks into the pipeline's order, the instances of a mapped task in one line."""
        order = {name: place for place, name in enumerate(PIPELINE)}
        by_name: dict[str, list[TaskProgress]] = {}
        for task in sorted(tasks, key=lambda task: (order.get(task.task_id, 99), task.task_id)):
            by_name.setdefault(task.task_id, []).append(task)
        return cls(dag_id, run_id, state, tuple(TaskProgress.merged(instances) for instances in by_name.values()))

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in _OVER

    @property
    def culprit(self) -> str | None:
        """The task to look at if the run failed: the first that failed itself."""
        return next((task.task_id for task in self.tasks if task.state == "failed"), None)

    @property
    def to_look_at(self) -> tuple[TaskProgress, ...]:
        """The culprit, or those of its instances that failed."""
        return next((task.failed for task in self.tasks if task.state == "failed"), ())

    @property
    def awaits_answer(self) -> bool:
        """Whether a person is being asked for an approval."""
        return not self.is_over and any(task.state == "awaiting_input" for task in self.tasks)

    @property
    def nothing_new(self) -> bool:
        """Whether the run ended at its first task because no image is new."""
        return self.is_over and any(task.task_id == PIPELINE[0] and task.state == "skipped" for task in self.tasks)

    @property
    def needs_a_look(self) -> bool:
        """Whether a run that is over has something to say that its documents do not."""
        return self.is_over and (self.nothing_new or self.culprit is not None or self.state == "failed")

    @property
    def headline(self) -> str:
        """Where the run is, in one line."""
        if self.nothing_new:
            return "Skipped: nothing new"
        if self.culprit:
            return f"{self.culprit} failed"
        if self.is_over:
            return "Failed" if self.state in _FAILED else "Done"
        now = [task for task in self.tasks if task.tone == "now"]
        if self.awaits_answer:
            return "Waiting for a person's approval"
        busy = [task for task in now if task.state == "running"] or now
        named = (f"{task.task_id} ({task.count})" if task.instances else task.task_id for task in busy)
        return f"Running: {', '.join(named)}" if busy else f"The run is {self.state}"

    @property
    def detail(self) -> str:
        """What to do about it; "" if there is nothing to do."""
        if self.nothing_new:
            return "No image is new, changed or gone since the last assessed run, so there was nothing to train."
        if self.culprit:
            going_on = "" if self.is_over else " The run continues with what does not depend on it."
            return f"Its log says why. What the run had written by then is below.{going_on}"
        if self.awaits_answer:
            return "The gate approved the model. The task approve_model takes the answer, under Required Actions."
        return "" if not self.is_over else "None of its tasks failed by itself; the run's graph shows what ended it."
