"""Processors and memory that a container may use, and the budget that threads share."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bcc_ops.dataset import resources
from bcc_ops.dataset.resources import MemoryBudget, cores, memory_limit


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.max": "max 100000"}, len(os.sched_getaffinity(0))),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, len(os.sched_getaffinity(0))),
        ({}, len(os.sched_getaffinity(0))),
    ],
)
def test_processors_are_those_of_the_container_and_not_of_the_host(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert cores(write(tmp_path, files)) == expected


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_memory_is_the_containers_limit(tmp_path: Path, name: str) -> None:
    machine = memory_limit(tmp_path)
    assert memory_limit(write(tmp_path, {name: "1000000"})) == 1_000_000
    assert memory_limit(write(tmp_path, {name: "max"})) == memory_limit(write(tmp_path, {name: str(2**63)})) == machine


def test_threads_together_never_hold_more_than_the_budget() -> None:
    budget, held, most, lock = MemoryBudget(100), [0], [0], threading.Lock()

    def work(wanted: int) -> None:
        with budget.reserve(wanted):
            with lock:
                held[0] += min(wanted, 100)
                most[0] = max(most[0], held[0])
            with lock:
                held[0] -= min(wanted, 100)

    threads = [threading.Thread(target=work, args=(wanted,)) for wanted in [30, 70, 500, 1, 0, 99, 100] * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert 0 < most[0] <= 100


@pytest.mark.parametrize(("wanted", "times"), [(249_000_000, 0), (250_000_000, 1), (10**12, 1)])
def test_what_a_large_image_took_goes_back_to_the_system_before_another_thread_may_have_it(
    monkeypatch: pytest.MonkeyPatch, wanted: int, times: int
) -> None:
    budget = MemoryBudget(300_000_000)
    free: list[int] = []
    monkeypatch.setattr(resources, "_return_freed_memory", lambda: free.append(budget._free))
    with budget.reserve(wanted):
        assert free == []
    assert free == [300_000_000 - min(wanted, 300_000_000)] * times
    assert budget._free == 300_000_000


def test_an_image_larger_than_the_budget_waits_for_all_of_it_and_then_runs_alone() -> None:
    budget, inside, done = MemoryBudget(10), threading.Event(), threading.Event()

    def large() -> None:
        inside.set()
        with budget.reserve(1_000):
            done.set()

    with budget.reserve(1):
        thread = threading.Thread(target=large)
        thread.start()
        inside.wait(60)
        assert not done.is_set()
    thread.join(60)
    assert done.is_set()
