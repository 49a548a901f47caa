"""Processes that end when their supervisor does, and that a later start finds and ends if it was killed.

Each component runs in a session of its own, so that a Ctrl-C on the terminal reaches only the supervisor, and whatever a
component forks (Airflow's tasks, each in a process group of its own) can be found by its session. Who runs is written to
`processes.json`: process ids with their start times, since the ids alone are used again by the system.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

PRIVATE = 0o077
"""The umask of every component: what it writes, images of patients among it, is for this user alone."""

_SAME_START = 2.0
"""Seconds that two readings of one process' start time may differ by: it is derived from the boot time."""

_WATCH_EVERY = 1.0
_DEATHS_TOLERATED = 5
_DEATHS_WITHIN = 300.0


class ProcessError(RuntimeError):
    """A component cannot be started, or does not stay up. The first line says which; the end of its log follows."""


class StackError(RuntimeError):
    """A stack cannot be started. One line that names the thing and the way out."""


class AlreadyRunning(ProcessError):
    """Another supervisor holds this folder."""


@dataclass(frozen=True)
class ProcessMark:
    """A process, told from any later one with the same id by when it started."""

    name: str
    pid: int
    started: float

    @classmethod
    def of(cls, name: str, pid: int) -> ProcessMark:
        """Return the mark of a process that is running now."""
        try:
            return cls(name, pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return cls(name, pid, time.time())

    def alive(self) -> bool:
        """Return whether this very process is still running."""
        try:
            return self._same_process() and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def session_members(self) -> list[psutil.Process]:
        """Return the processes of the session that it leads or led.

        The kernel gives out no id that still names a session, so that members are found even if the leader has died.
        If the id is another process' by now, or the machine was restarted, there are none.
        """
        if self.started < psutil.boot_time() - _SAME_START or (psutil.pid_exists(self.pid) and not self._same_process()):
            return []
        members = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == self.pid and process.create_time() > self.started - _SAME_START:
                    members.append(process)
        return members

    def _same_process(self) -> bool:
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) < _SAME_START)
        except psutil.NoSuchProcess:
            return False


def end_sessions(marks: Sequence[ProcessMark], patience: float) -> None:
    """End the leaders with SIGTERM, and after `patience` seconds whatever is left of their sessions with SIGKILL.

    Members are looked for again after each kill, since a process that is being killed may have forked.
    """
    for mark in marks:
        if mark.alive():
            with suppress(ProcessLookupError):
                os.kill(mark.pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(mark.alive() for mark in marks):
        time.sleep(0.1)
    for _ in range(10):
        members = [process for mark in marks for process in mark.session_members()]
        members = [process for process in members if _running(process)]
        if not members:
            return
        for process in members:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(members, timeout=2)


def _running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@dataclass
class _Component:
    name: str
    launch: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes]
    mark: ProcessMark
    deaths: list[float] = field(default_factory=list)


class Supervisor:
    """Starts components, restarts those that die, and ends them all.

    Args:
        folder: holds `processes.json`, `lock` and `logs/<component>.log`; one supervisor per folder.
        say: takes a line for people.
        umask: of the components.

    Raises:
        AlreadyRunning: a live supervisor holds the folder. What a killed one left running is ended.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print, umask: int = PRIVATE) -> None:
        self.folder = folder
        self.say = say
        self.umask = umask
        self.broken: str | None = None
        """Why a component is given up; None while all is well."""
        self._components: dict[str, _Component] = {}
        self._changing = threading.RLock()
        self._stopping = threading.Event()
        make_private(folder)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._lock = hold(folder)
        left = end_stale(folder)
        if left:
            say(f"An earlier run was killed; ended what it had left running: {', '.join(left)}.")
        self._owner = ProcessMark.of("supervisor", os.getpid())
        self._record()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._watcher.start()

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a component; its output goes to its log file, the previous start's is kept as `.log.1`."""
        log = self.log_path(name)
        if log.exists():
            log.replace(log.with_suffix(".log.1"))

        def launch() -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                return subprocess.Popen(
                    list(arguments),
                    env=dict(environment),
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    umask=self.umask,
                )

        self.adopt(name, launch)

    def adopt(self, name: str, launch: Callable[[], subprocess.Popen[bytes]]) -> None:
        """Start a component by a function, which must start it in a session of its own."""
        with self._changing:
            process = launch()
            self._components[name] = _Component(name, launch, process, ProcessMark.of(name, process.pid))
            self._record()

    def log_path(self, name: str) -> Path:
        """Return where a component's output goes."""
        return self.folder / "logs" / f"{name}.log"

    def pid(self, name: str) -> int:
        """Return the process id of a component as it runs now."""
        with self._changing:
            return self._components[name].process.pid

    def processes(self, name: str) -> list[psutil.Process]:
        """Return the component's process and everything that it forked."""
        with self._changing:
            return self._components[name].mark.session_members()

    def names(self) -> list[str]:
        """Return the components, in the order of their start."""
        return list(self._components)

    def check(self) -> None:
        """Raise ProcessError if a component was given up."""
        if self.broken:
            raise ProcessError(self.broken)

    def stop(self, last: Sequence[str] = (), patience: float = 8.0) -> None:
        """End every component: all at once but those in `last`, which others may still write to."""
        self._stopping.set()
        with self._changing:
            components = list(self._components.values())
            first = [component for component in components if component.name not in last]
            rest = [component for component in components if component.name in last]
            for batch in (first, rest):
                end_sessions([component.mark for component in batch], patience)
                for component in batch:
                    component.process.wait()
            self._components.clear()
            (self.folder / "processes.json").unlink(missing_ok=True)
            self._lock.close()

    def _record(self) -> None:
        marks = [asdict(component.mark) for component in self._components.values()]
        partial = self.folder / "processes.json.partial"
        partial.write_text(json.dumps({"owner": asdict(self._owner), "components": marks}))
        partial.replace(self.folder / "processes.json")

    def _watch(self) -> None:
        while not self._stopping.wait(_WATCH_EVERY):
            with self._changing:
                if self._stopping.is_set():
                    return
                for component in self._components.values():
                    if component.process.poll() is not None and not self.broken:
                        self._start_again(component)

    def _start_again(self, component: _Component) -> None:
        now = time.monotonic()
        component.deaths = [death for death in component.deaths if now - death < _DEATHS_WITHIN] + [now]
        log = self.log_path(component.name)
        if len(component.deaths) > _DEATHS_TOLERATED:
            status = f"{component.name} does not stay up (exit status {component.process.returncode})"
            self.broken = "\n".join([f"{status}: see {log}, which ends with", *_last_lines(log)])
            self.say(self.broken)
            return
        # what it forked would go on beside its successor: two schedulers' worth of tasks
        end_sessions([component.mark], patience=0)
        self.say(f"{component.name} died (exit status {component.process.returncode}) and is restarted; its log: {log}")
        try:
            component.process = component.launch()
        except (OSError, RuntimeError) as error:
            self.say(f"{component.name} cannot be started: {error}")
            return
        component.mark = ProcessMark.of(component.name, component.process.pid)
        self._record()


def _last_lines(log: Path, count: int = 10) -> list[str]:
    with suppress(OSError):
        return log.read_text(errors="replace").splitlines()[-count:]
    return []


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter, or close one that an earlier release left open."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def hold(folder: Path) -> IO[str]:
    """Take the folder for this process; the lock is gone when the process is, however it ended.

    Raises:
        AlreadyRunning: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        owner = _recorded(folder)[0]
        raise AlreadyRunning(
            f"it is running already (process {owner.pid if owner else 'unknown'}, {folder}): end it with `make stop`"
        ) from None
    return lock


def end_stale(folder: Path) -> list[str]:
    """End what an earlier supervisor of this folder left running, and return the components' names."""
    left = [mark for mark in _recorded(folder)[1] if mark.session_members()]
    end_sessions(left, patience=8.0)
    return [mark.name for mark in left]


def stop_owner(folder: Path, patience: float = 60.0) -> list[str]:
    """Ask a live supervisor to end, or end what a killed one left; names what was ended.

    Raises:
        ProcessError: the supervisor is there and does not end.
    """
    owner, _ = _recorded(folder)
    if owner is None or not owner.alive():
        return end_stale(folder)
    os.kill(owner.pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while owner.alive():
        if time.monotonic() > deadline:
            raise ProcessError(f"process {owner.pid} does not end within {patience:.0f} s; kill it, then `make stop` again")
        time.sleep(0.2)
    return [owner.name, *end_stale(folder)]


def _recorded(folder: Path) -> tuple[ProcessMark | None, list[ProcessMark]]:
    try:
        record: dict[str, Any] = json.loads((folder / "processes.json").read_text())
        return ProcessMark(**record["owner"]), [ProcessMark(**mark) for mark in record["components"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None, []
