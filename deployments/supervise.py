"""The process behind `thaw up`: it starts the server and the workers, and starts again what dies.

    THAW_UP=<state folder>:supervisor python -m deployments.supervise

SIGTERM stops all that it started. It reads `setup.json` of the state folder and writes `state.json` there.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deployments.processes import MARK, mark, stop_children
from deployments.setup import Child, Setup, State, find_password, read_setup, write
from thaw.errors import ThawError
from thaw.store import Store

CPU_POOL, GPU_POOL = "thaw-cpu", "thaw-gpu"

# Runs of the CPU pool wait, most of the time, for those of the GPU pool that they started.
_CPU_RUNS, _GPU_RUNS = 4, 1
_NO_DEVICE = "-1"
_GLANCE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_STEADY = timedelta(seconds=60)
# Settings of the shell that would lead a child to another server, or to a profile that its home lacks; and the
# password, which each child gets under the one name that it needs.
_NOT_INHERITED = (
    *("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"),
    *("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"),
)


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A Prefect worker: its pool, how many runs it takes at a time, and which GPU these see."""

    name: str
    pool: str
    runs: int
    devices: str

    @property
    def child(self) -> str:
        return f"worker-{self.name}"


class Kept:
    """A child process that is started again when it dies: after 1, 2, 4 … 60 seconds."""

    def __init__(self, home: Path, name: str, arguments: list[str], environment: Mapping[str, str]):
        self.name = name
        self._home = home
        self._command = [sys.executable, "-m", "prefect", *arguments]
        self._environment = {**environment, **mark(home, name)}
        self._process: subprocess.Popen[bytes] | None = None
        self._since: datetime | None = None
        self._starts = self._failures = 0
        self._due = 0.0

    def tend(self) -> bool:
        """Start it when it is due; True when something changed."""
        now = time.monotonic()
        if self._process is None:
            if now < self._due:
                return False
            self._start()
            return True
        if self._process.poll() is None:
            return False
        steady = self._since is not None and datetime.now(UTC) - self._since > _STEADY
        self._failures = 1 if steady else self._failures + 1
        pause = min(2.0 ** (self._failures - 1), _LONGEST_PAUSE_SECONDS)
        _say(f"{self.name} ended with {self._process.returncode}; again in {pause:.0f} s")
        self._process, self._due = None, now + pause
        return True

    def describe(self) -> Child:
        process = self._process.pid if self._process else None
        since = self._since.isoformat(timespec="seconds") if self._since else None
        return Child(name=self.name, process=process, since=since, restarts=max(self._starts - 1, 0))

    def _start(self) -> None:
        logs = self._home / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._since = datetime.now(UTC)
        self._starts += 1


def list_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, or the index of each GPU that nvidia-smi lists."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    # Its complaints, and the parts of a divided GPU, are lines as well.
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index, _ in enumerate(gpus)] if listed.returncode == 0 else []


def plan_workers() -> list[Worker]:
    """The workers of this machine: one for the CPU pool, and one for each GPU, or one that does without."""
    gpus = [Worker(name=f"gpu{gpu}", pool=GPU_POOL, runs=_GPU_RUNS, devices=gpu) for gpu in list_gpus()]
    without = Worker(name="gpu", pool=GPU_POOL, runs=_GPU_RUNS, devices=_NO_DEVICE)
    return [Worker(name="cpu", pool=CPU_POOL, runs=_CPU_RUNS, devices=_NO_DEVICE), *(gpus or [without])]


def worker_environment(setup: Setup, home: Path) -> dict[str, str]:
    """What a worker of this server needs, as `deployments/README.md` lists it."""
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return {
        **_inherited(),
        **setup.server.environment,
        # A run is started by the command `python`.
        "PATH": os.pathsep.join(paths),
        "PREFECT_HOME": str(home / "workers"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "thaw",
        "THAW_STORE": Store(setup.store).address,
    }


def _inherited() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}


def _server_environment(setup: Setup, home: Path) -> dict[str, str]:
    password = find_password()
    return {
        **_inherited(),
        **({"PREFECT_SERVER_API_AUTH_STRING": password} if password else {}),
        "PREFECT_HOME": str(home / "server"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Where browsers find the API: Prefect would name its default port.
        "PREFECT_UI_API_URL": os.environ.get("PREFECT_UI_API_URL", f"{setup.url}/api"),
    }


def _plan_children(setup: Setup, home: Path) -> Iterator[Kept]:
    server = ["server", "start", "--host", setup.host, "--port", str(setup.port)]
    yield Kept(home, "server", server, _server_environment(setup, home))
    for worker in plan_workers():
        command = [
            "worker",
            "start",
            "--pool",
            worker.pool,
            "--name",
            worker.name,
            "--limit",
            str(worker.runs),
        ]
        environment = {**worker_environment(setup, home), "CUDA_VISIBLE_DEVICES": worker.devices}
        yield Kept(home, worker.child, [*command, "--no-create-pool-if-not-found"], environment)


def supervise(home: Path, stop: threading.Event) -> None:
    """Keep the server running, and the workers once it has their pools, until `stop` is set."""
    setup, began = read_setup(home), datetime.now(UTC).isoformat(timespec="seconds")
    server, *workers = _plan_children(setup, home)
    children, has_pools = [server], False
    try:
        while not stop.is_set():
            if not has_pools and (has_pools := _has_pools(setup)):
                children += workers
            # A list, so that each is tended.
            if any([child.tend() for child in children]):
                described = tuple(child.describe() for child in (server, *workers))
                state = State(supervisor=os.getpid(), since=began, setup=setup, children=described)
                _record(state, home)
            stop.wait(_GLANCE_SECONDS)
    finally:
        stop_children(home)
        (home / "state.json").unlink(missing_ok=True)


def _record(state: State, home: Path) -> None:
    try:
        write(state, home / "state.json")
    except OSError as error:  # such as a full disk, for which nothing has to stop
        _say(f"state.json was not written: {error}")


def _has_pools(setup: Setup) -> bool:
    """Whether the files were applied, at this start or an earlier one: a worker without its pool just ends."""
    try:
        return all(setup.server.get(f"work_pools/{pool}") for pool in (CPU_POOL, GPU_POOL))
    except ThawError:
        return False


def _say(line: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")
    sys.stderr.flush()


def main() -> None:
    """Supervise until SIGTERM or SIGINT."""
    home, _, _ = os.environ[MARK].rpartition(":")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    supervise(Path(home), stop)


if __name__ == "__main__":
    main()
