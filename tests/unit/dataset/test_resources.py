"""Processors and memory that a container may use, and the budget that threads share."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from bcc_ops.dataset import resources
from bcc_ops.dataset.resources import MemoryBudget, bytes_for_images, cores, memory_limit


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


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/system.slice/worker.service\n", {"{group}/memory.max": "1000000", "{group}/cpu.max": "50000 100000"}),
        ("0::/system.slice/worker.service\n", {"system.slice/memory.max": "1000000", "system.slice/cpu.max": "50000 100000"}),
        (
            "4:memory:/system.slice/worker.service\n3:cpu,cpuacct:/system.slice/worker.service\n0::/\n",
            {
                "memory/{group}/memory.limit_in_bytes": "1000000",
                "cpu/{group}/cpu.cfs_quota_us": "50000",
                "cpu/{group}/cpu.cfs_period_us": "100000",
            },
        ),
    ],
)
def test_the_smallest_limit_counts_of_a_service_and_of_the_groups_that_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str]
) -> None:
    (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(resources, "_MEMBERSHIP", tmp_path / "membership")
    group = "system.slice/worker.service"
    write(tmp_path, {f"{group}/memory.max": "max", f"{group}/cpu.max": "max 100000", "memory.max": "2000000"})
    write(tmp_path, {name.format(group=group): content for name, content in files.items()})
    assert memory_limit(tmp_path) == 1_000_000
    assert cores(tmp_path) == 1


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


def test_an_image_that_is_larger_than_a_small_budget_goes_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took more than was there to be reserved."""
    asked = Mock()
    monkeypatch.setattr(resources, "_return_freed_memory", asked)
    with MemoryBudget(200_000_000).reserve(300_000_000):
        pass
    assert asked.call_count == 1


@pytest.mark.parametrize("size", [300_000_000, 200_000_000])
def test_what_was_reserved_is_free_again_though_giving_it_back_to_the_system_failed(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Else the other threads would wait for it for ever, and a task that ran out of memory would hang instead of failing."""
    budget = MemoryBudget(size)

    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(resources, "_return_freed_memory", fail)
    with pytest.raises(MemoryError), budget.reserve(10**9):
        pass
    assert budget._free == size


@pytest.mark.parametrize(
    ("processors", "memory", "expected"),
    [
        (1, 16_000_000_000, 600_000_000),  # the largest image, whatever the processors
        (2, 16_000_000_000, 600_000_000),
        (8, 16_000_000_000, 2_400_000_000),
        (64, 16_000_000_000, 4_000_000_000),  # never more than a quarter of the memory
        (8, 1_000_000_000, 250_000_000),
    ],
)
def test_images_may_take_more_memory_with_each_processor_up_to_a_quarter(processors: int, memory: int, expected: int) -> None:
    assert bytes_for_images(processors, memory) == expected


FREE_MANY = """
import re
from bcc_ops.dataset.resources import MemoryBudget
def memory():
    return 1024 * int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = memory()
with MemoryBudget(10**9).reserve(300_000_000):
    parts = [b"x" * 50_000 for _ in range(4_000)]
    last = parts.pop()  # the allocator gives nothing back by itself that is below this one
    assert memory() - before > 180_000_000
    parts.clear()
    assert memory() - before > 180_000_000
assert memory() - before < 40_000_000, memory() - before
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep other things")
def test_freed_memory_goes_back_to_the_system() -> None:
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES"))
    }
    done = subprocess.run([sys.executable, "-c", FREE_MANY], capture_output=True, text=True, check=False, env=plain)
    assert done.returncode == 0, done.stderr[-1000:]


def test_without_an_allocator_that_can_be_asked_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with musl, whose library has no such function, and on Windows, which lacks such a library."""
    for error in (AttributeError, OSError, TypeError):
        monkeypatch.setattr(ctypes, "CDLL", Mock(side_effect=error))
        resources._return_freed_memory()


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


def test_small_images_do_not_overtake_a_large_one_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The large one would else come last, and a killed task would have kept nothing of what came after it."""
    budget, order, queued = MemoryBudget(10), [], threading.Semaphore(0)
    wait_for = budget._changed.wait_for

    def announced(condition: Callable[[], bool]) -> bool:
        queued.release()
        return wait_for(condition)

    def look(name: str, wanted: int) -> None:
        with budget.reserve(wanted):
            order.append(name)

    threads = [threading.Thread(target=look, args=one) for one in (("large", 10), ("small", 1), ("small", 1))]
    with budget.reserve(1):
        monkeypatch.setattr(budget._changed, "wait_for", announced)
        for thread in threads:
            thread.start()
            assert queued.acquire(timeout=60)
        assert order == []
    for thread in threads:
        thread.join(60)
    assert order == ["large", "small", "small"]


def test_who_is_interrupted_while_it_waits_is_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = MemoryBudget(10)
    with budget.reserve(10):
        with monkeypatch.context() as patch:
            patch.setattr(budget._changed, "wait_for", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt), budget.reserve(1):
                pass
    with budget.reserve(10):
        assert budget._free == 0
    assert budget._free == 10
