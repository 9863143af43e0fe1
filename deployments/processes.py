"""The processes that `thaw up` started, and those that these started.

Each carries a mark in its environment, which its children inherit: the state folder, and which child of
the supervisor it is or descends from. A number of a process alone would be somebody else's one day.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from thaw.errors import NotStarted

MARK = "THAW_UP"
GRACE_SECONDS = 20.0

_PROCESSES = Path("/proc")
_RUNS_MARK = b"PREFECT__FLOW_RUN_ID="
_KILL_SECONDS = 5.0
_GLANCE_SECONDS = 0.1
_REMINDER_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Process:
    """A live process of a state folder: which child it is or descends from, and whether it executes a run."""

    id: int
    child: str
    is_run: bool


def mark(home: Path, child: str) -> dict[str, str]:
    """The environment variable that marks a child, and all that descend from it, as this home's."""
    return {MARK: f"{home}:{child}"}


def find_processes(home: Path) -> list[Process]:
    """Every live process of this home, this one left out.

    Raises:
        NotStarted: the system does not show its processes as files.
    """
    if not (_PROCESSES / "self" / "environ").exists():
        raise NotStarted(
            "`thaw up` finds its processes under /proc, which only Linux has. deployments/README.md lists the "
            "commands that start the same by hand."
        )
    start, found = f"{MARK}={home}:".encode(), []
    for folder in _PROCESSES.glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended, or is another user's
            continue
        children = [variable.removeprefix(start) for variable in variables if variable.startswith(start)]
        if children and int(folder.name) != os.getpid():
            is_run = any(variable.startswith(_RUNS_MARK) for variable in variables)
            found.append(Process(id=int(folder.name), child=children[0].decode(), is_run=is_run))
    return found


def has_supervisor(processes: Iterable[Process]) -> bool:
    return any(process.child == "supervisor" for process in processes)


def stop_processes(find: Callable[[], Iterable[Process]], grace_seconds: float = GRACE_SECONDS) -> None:
    """Ask all that `find` finds to end, and kill what is left after the grace."""
    deadline, asked = time.monotonic() + grace_seconds, {}
    while left := list(find()):
        now = time.monotonic()
        if now > deadline + _KILL_SECONDS:
            return
        for process in left:
            # A run in the middle of a callback may swallow the request; a worker takes a second one for a kill.
            again = process.is_run and now - asked.get(process.id, now) > _REMINDER_SECONDS
            if process.id not in asked or again or now > deadline:
                asked[process.id] = now
                with suppress(ProcessLookupError):
                    os.kill(process.id, signal.SIGTERM if now < deadline else signal.SIGKILL)
        time.sleep(_GLANCE_SECONDS)


def stop_children(home: Path) -> None:
    """Stop the runs, then the workers, and then the server, which so hears how each ended."""

    def choose(wanted: Callable[[Process], bool]) -> Callable[[], Iterator[Process]]:
        return lambda: filter(wanted, find_processes(home))

    stop_processes(choose(lambda process: process.is_run))
    stop_processes(choose(lambda process: process.child not in ("server", "supervisor")))
    stop_processes(choose(lambda process: process.child == "server"))
