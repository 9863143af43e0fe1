"""`thaw up` and `thaw down`: a server and its workers on this machine, behind one supervising process."""

import dataclasses
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from deployments.apply import Changes, apply_files
from deployments.processes import (
    GRACE_SECONDS,
    find_processes,
    has_supervisor,
    mark,
    stop_children,
    stop_processes,
)
from deployments.server import Server
from deployments.setup import (
    Setup,
    check_setup,
    deploy_defaults,
    find_project,
    read_state,
    write,
)
from deployments.supervise import plan_workers
from thaw.errors import BadPassword, NoServer, NotStarted

_SERVER_SECONDS = 120
_WORKERS_SECONDS = 120
_GLANCE_SECONDS = 0.5
_LOG_LINES = 15
_SIGNATURE = (
    "# Written by `thaw up`, removed by `thaw down`: commands typed in this folder find the server.\n"
)

Tell = Callable[[str], None]


def bring_up(given: Setup, effective: Setup, home: Path, tell: Tell) -> Changes:
    """Start what is not up yet, put the project's files on the server, and wait until all of it runs.

    Args:
        given: to be remembered for the next time.
        effective: with what stands for everything that was not given.
        tell: called with a line for each step.

    Raises:
        BadConfig, BadDump, BadWeights, NotStarted: before anything is started.
        NotStarted: something does not come up in time; what was started is stopped again.
        NotApplied, BadPassword: what runs goes on running as it is.
    """
    defaults = deploy_defaults(check_setup(effective))
    with _alone(home, tell):
        reason = _find_reason_to_start(given, home)
        if reason:
            _check_port(given, home)
            tell(reason)
            _stop(home)
        write(given, home / "setup.json")
        if reason:
            _start_supervisor(home)
            _wait_for_server(effective, home)
        effective.server.check()
        tell("deploying …")
        changes = apply_files(find_project(), effective.server, defaults)
        tell("waiting for the workers …")
        _wait_for_workers(effective, home)
        _point_commands(effective, home, tell)
    return changes


def bring_down(home: Path, tell: Tell) -> bool:
    """Stop all that `thaw up` started, also where its supervisor was killed; False when nothing was up."""
    with _alone(home, tell):
        return _stop(home)


def pointer(home: Path) -> Path:
    """The prefect.toml that leads commands to the server: of the project, or of another state folder itself."""
    return (home if os.environ.get("THAW_HOME") else find_project()) / "prefect.toml"


def is_ours(file: Path) -> bool:
    return file.is_file() and file.read_text(encoding="utf-8").startswith(_SIGNATURE)


@contextmanager
def _alone(home: Path, tell: Tell) -> Iterator[None]:
    """One `thaw up` or `thaw down` at a time; the lock ends with the process that holds it."""
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another `thaw up` or `thaw down` to end …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _find_reason_to_start(given: Setup, home: Path) -> str | None:
    """Why the supervisor and its children have to be started, or None where they are up as asked for."""
    processes, state = find_processes(home), read_state(home)
    if not processes:
        return f"starting the server, log in {home / 'logs' / 'server.log'} …"
    if state is None or not has_supervisor(processes):
        return "the supervisor was killed; what it left is stopped and all is started anew …"
    if _lasting(state.setup) != _lasting(given):
        return "host, port or store changed; all is started anew …"
    if [child.name for child in state.children[1:]] != [worker.child for worker in plan_workers()]:
        return "this machine's GPUs changed; all is started anew …"
    if os.environ.get("PREFECT_SERVER_API_AUTH_STRING") and not _asks_for_password(given):
        return "there is a password now; all is started anew …"
    return None


def _asks_for_password(setup: Setup) -> bool:
    try:
        Server(url=setup.server.url).check()
    except (BadPassword, NoServer):  # a server that does not answer is started again with the old password
        return True
    return False


def _lasting(setup: Setup) -> Setup:
    """What of a setup the processes have in their environments; the rest is only deployed."""
    return dataclasses.replace(setup, dump=None, recipe=None, weights=None)


def _check_port(setup: Setup, home: Path) -> None:
    """See that the port is free, unless it is our own server that has it, before that is stopped."""
    state = read_state(home) if find_processes(home) else None
    if state is not None and state.setup.port == setup.port:
        return
    family = socket.AF_INET6 if ":" in setup.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((setup.host, setup.port))
        except (OSError, OverflowError) as error:
            raise NotStarted(
                f"the server can't listen at {setup.host} port {setup.port}: {error}. Stop what uses the port, "
                "or choose another one with --port."
            ) from None


def _start_supervisor(home: Path) -> None:
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    with (logs / "supervisor.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "deployments.supervise"],
            env={**os.environ, **mark(home, "supervisor")},
            cwd=find_project(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait_for_server(setup: Setup, home: Path) -> None:
    deadline = time.monotonic() + _SERVER_SECONDS
    while not setup.server.is_healthy():
        if time.monotonic() > deadline or not has_supervisor(find_processes(home)):
            _stop(home)
            raise NotStarted(
                f"the server did not come up within {_SERVER_SECONDS} s. {_last_lines(home, 'server', 'supervisor')}"
            )
        time.sleep(_GLANCE_SECONDS)


def _wait_for_workers(setup: Setup, home: Path) -> None:
    """Wait until the server has heard from every worker since it was last started."""
    deadline = time.monotonic() + _WORKERS_SECONDS
    while silent := _find_silent(setup, home):
        if time.monotonic() > deadline:
            raise NotStarted(
                f"{', '.join(silent)} did not come up within {_WORKERS_SECONDS} s; the server is up, and they are "
                f"started again and again. {_last_lines(home, *silent)}"
            )
        time.sleep(_GLANCE_SECONDS)


def _find_silent(setup: Setup, home: Path) -> list[str]:
    """The children that the server has not heard from since they were last started."""
    state = read_state(home)
    if state is None:
        return ["supervisor"]
    heard = {
        f"worker-{worker['name']}": datetime.fromisoformat(worker["last_heartbeat_time"])
        for pool in {worker.pool for worker in plan_workers()}
        for worker in setup.server.post(f"work_pools/{pool}/workers/filter")
    }
    return [
        child.name
        for child in state.children[1:]
        if child.since is None
        or child.name not in heard
        or heard[child.name] < datetime.fromisoformat(child.since)
    ]


def _point_commands(setup: Setup, home: Path, tell: Tell) -> None:
    file = pointer(home)
    if file.exists() and not is_ours(file):
        tell(f"{file} is not ours and stays as it is; commands follow what it says.")
        return
    file.write_text(f'{_SIGNATURE}[api]\nurl = "{setup.server.url}"\n', encoding="utf-8")


def _stop(home: Path) -> bool:
    """Stop the supervisor, which stops the rest, and then whatever it left."""
    was_up = bool(find_processes(home))
    # It takes one grace for the runs, one for the workers, and one for the server.
    stop_processes(
        lambda: [process for process in find_processes(home) if process.child == "supervisor"],
        grace_seconds=4 * GRACE_SECONDS,
    )
    stop_children(home)
    (home / "state.json").unlink(missing_ok=True)
    if is_ours(pointer(home)):
        pointer(home).unlink()
    return was_up


def _last_lines(home: Path, *names: str) -> str:
    parts = []
    for name in names:
        file = home / "logs" / f"{name}.log"
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        if lines:
            parts.append("\n".join([f"The last lines of {file}:", *lines[-_LOG_LINES:]]))
    return "\n".join(parts)
