"""A run through the compose file's services on many images: does it end with a verdict, in what time and memory?

    python -m benchmarks.celery IMAGES [--count 20000] [--write]

IMAGES is a folder with one folder per class. COUNT small images are made from them (`benchmarks.small_images`) and put into the
stack's own bucket. Then one run is triggered on an Airflow with
PostgreSQL, Redis and two Celery workers, as docker-compose.yaml describes it (`local.compose_stack`). The network is small and
trained for one epoch: what is measured is everything else. Memory is the resident set of the largest process of the service
that a task ran on, looked at each second while it did.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.report import write_section
from benchmarks.small_images import small_images
from local.airflow_api import parse_moment
from local.compose_stack import ComposeStack
from tests.e2e.compose_runs import DAG_ID, TINY, unpause, whole_documents

PARAMETERS: Mapping[str, Any] = {
    **{name: value for name, value in TINY.items() if name != "content_findings"},
    "epochs": 1,
    "batch_size": 32,
}
"""Of the run. Text is looked for in each image, as it is by default. Images that come to look alike are of one group, as
near-duplicates are anywhere else."""

RUN = "many-images"
_WITHIN = 3 * 3600.0


def main() -> None:
    """Start the services, upload the images, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ComposeStack(Path(folder) / "stack") as stack:
        upload(stack, given.images, given.count)
        unpause(stack, DAG_ID)
        with Memory(stack) as memory:
            stack.api.trigger(DAG_ID, dict(PARAMETERS), run_id=RUN)
            state = stack.api.wait_for_run(DAG_ID, RUN, within=_WITHIN)["state"]
        tasks = stack.api.tasks(DAG_ID, RUN)
        documents = whole_documents(stack, RUN, promoted=False) if state == "success" else {}
    report = markdown(given.count, tasks, memory, state, documents)
    print(report)
    if given.write:
        write_section("celery", report)


def upload(stack: ComposeStack, images: Path, count: int) -> None:
    """Make the images and put them where the pipeline looks for them."""

    def put(image: tuple[str, bytes]) -> None:
        key, content = image
        stack.store.put(key, content, content_type="image/png")

    with ThreadPoolExecutor(8) as pool:
        for done, _ in enumerate(pool.map(put, small_images(images, count)), start=1):
            if done % 5000 == 0 or done == count:
                print(f"{done:,} images are in the bucket", flush=True)


@dataclass
class Memory:
    """Looks at each service's largest process each second, for as long as the block lasts.

    Attributes:
        seen: service -> moments, each with the megabytes.
    """

    stack: ComposeStack
    seen: dict[str, list[tuple[datetime, float]]] = field(default_factory=lambda: defaultdict(list))

    def __enter__(self) -> Memory:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(1):
            for service in self.stack.airflow_services:
                largest = 0
                for process in self.stack.supervisor.processes(service):
                    with suppress(psutil.NoSuchProcess):
                        largest = max(largest, process.memory_info().rss)
                self.seen[service].append((datetime.now(timezone.utc), largest / 1e6))

    def peak(self, service: str, begin: datetime, end: datetime) -> float:
        """Return the most that was seen of a service in this time, in MB; 0 if nobody looked."""
        return max((size for moment, size in self.seen[service] if begin <= moment <= end), default=0.0)


class Instance(NamedTuple):
    """When an instance of a task ran and on which service, and the megabytes of the service's largest process meanwhile."""

    began: datetime
    ended: datetime
    service: str
    peak: float


def markdown(count: int, tasks: Mapping[str, Mapping[str, Any]], memory: Memory, state: str, documents: Mapping[str, Any]) -> str:
    """Return the section: a line per task that ran, in their order, and the run's outcome."""
    instances: defaultdict[str, list[Instance]] = defaultdict(list)
    for name, task in tasks.items():
        if task["start_date"] and task["end_date"] and task["hostname"]:
            service = str(task["hostname"]).removesuffix(".compose")
            began, ended = parse_moment(task["start_date"]), parse_moment(task["end_date"])
            instances[name.partition("[")[0]].append(Instance(began, ended, service, memory.peak(service, began, ended)))
    lines = ["| task | instances | on | seconds from first to last | of each | peak MB |", "|---|---|---|---|---|---|"]
    for name, ran in sorted(instances.items(), key=lambda item: min(item[1])):
        each = sorted((one.ended - one.began).total_seconds() for one in ran)
        together = (max(one.ended for one in ran) - min(one.began for one in ran)).total_seconds()
        services = ", ".join(sorted({one.service for one in ran}))
        shortest = f"{each[0]:,.0f} to " if len(ran) > 1 else ""
        peak = max(one.peak for one in ran)
        lines.append(f"| `{name}` | {len(ran)} | {services} | {together:,.0f} | {shortest}{each[-1]:,.0f} | {peak:,.0f} |")
    if documents:
        checks, gate = documents["checks.json"], documents["gate.json"]
        groups = f"{len(checks.groups):,} groups of near-duplicates"
        usable = f"{sum(checks.usable.values()):,} usable images"
        lines += ["", f"{usable}, {groups}; verdict `{gate.verdict}`, folds=1, epochs=1, 64 pixels."]
    else:
        lines += ["", f"The run ended as {state}."]
    return "\n".join(["## A run on many images", "", f"`python -m benchmarks.celery IMAGES --count {count} --write`", "", *lines])


if __name__ == "__main__":
    main()
