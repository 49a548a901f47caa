"""What this process may use of its machine: processors, and memory for decoded images.

A container or a service sees the host's processors and memory; what it may use is in its control group. Images are decoded by
several threads at once, so each reserves what its image takes before it decodes: many small ones side by side, a large one alone.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_PART_FOR_IMAGES = 0.25
_MOST_PER_CORE = 300_000_000
"""Bytes. Two processors have room for the largest image that a run accepts at its default, and the checks stay below 1.5 GB."""

_RETURNED_FROM = 250_000_000
"""Bytes that an image took, from which the allocator is asked to give them back. Asking each time costs a fifth more."""


def cores(root: Path = _CGROUP) -> int:
    """Processors that this process may use: at least 1."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(own, _quota(root))))


def memory_limit(root: Path = _CGROUP) -> int:
    """Return the bytes of memory that this process may use: the limit of its container or service, or the machine's memory."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    files = [group / "memory.max" for group in _groups(root)]
    for file in (*files, *(group / "memory.limit_in_bytes" for group in _groups(root, "memory"))):
        with suppress(OSError, ValueError):
            limits.append(int(file.read_text()))
    return min(limits)


def _quota(root: Path) -> float:
    quotas = [math.inf]
    for group in _groups(root):
        with suppress(OSError, ValueError):
            allowed, period = (group / "cpu.max").read_text().split()
            quotas.append(int(allowed) / int(period))
    for group in _groups(root, "cpu"):
        with suppress(OSError, ValueError):
            allowed_v1 = int((group / "cpu.cfs_quota_us").read_text())
            if allowed_v1 > 0:
                quotas.append(allowed_v1 / int((group / "cpu.cfs_period_us").read_text()))
    return min(quotas)


def _groups(root: Path, controller: str = "") -> list[Path]:
    """Return this process's control group and those that it is in, of version 2, or of a controller of version 1.

    A container sees its own group as the root. A service of systemd is in a group of a group: each may have a limit.
    """
    own = PurePosixPath()
    with suppress(OSError):
        for line in _MEMBERSHIP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                own = PurePosixPath(path.lstrip("/"))
    return [root / controller / group for group in (own, *own.parents)]


def _return_freed_memory() -> None:
    """Have the allocator give back what is free: glibc keeps it for each thread, so that a budget alone bounds nothing."""
    with suppress(AttributeError, OSError, TypeError):  # other allocators do it by themselves
        ctypes.CDLL(None).malloc_trim(0)


class MemoryBudget:
    """Bytes that threads share. Who asks for more than is free waits; who asks for more than there is takes all of it.

    Nobody overtakes: a large image would else wait for as long as there are small ones, and what was learned of those is kept in
    their order, so that a killed task would lose it.

    Args:
        size: bytes in all.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def reserve(self, wanted: int) -> Iterator[None]:
        """Hold `wanted` bytes for the block. Do not nest: two threads could then wait for each other."""
        taken, turn = min(max(wanted, 0), self.size), object()
        with self._changed:
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._free >= taken)
                self._free -= taken
            finally:  # of who was interrupted, too
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            try:
                if wanted >= _RETURNED_FROM:
                    _return_freed_memory()
            finally:  # whatever happens, or the other threads would wait for ever
                with self._changed:
                    self._free += taken
                    self._changed.notify_all()


def bytes_for_images(processors: int, memory: int) -> int:
    """Return the bytes that decoded images may take together.

    Args:
        processors: that this process may use; so many images are looked at side by side.
        memory: bytes that this process may use.
    """
    return min(_MOST_PER_CORE * max(2, processors), round(_PART_FOR_IMAGES * memory))


IMAGES = MemoryBudget(bytes_for_images(cores(), memory_limit()))
"""The budget that everything which decodes images shares."""
