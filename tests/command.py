"""Run `thaw` as a user does: in a process of its own, on a real Prefect server."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ENDED = ("Completed", "Failed", "Crashed", "Cancelled")
ENDED_TYPES = tuple(name.upper() for name in ENDED)
PROJECT = Path(__file__).resolve().parent.parent

# The demo's recipe on few small images: a run of seconds that passes every stage.
SMALL = [
    "--recipe=demo",
    "--set=split.train=60",
    "--set=split.validation=20",
    "--set=split.test=20",
    "--set=backbone.image_size_pixels=64",
    "--set=head.epochs=20",
    "--set=gate.noise_multiplier=2",
    "--set=fine_tune.epochs=2",
    "--set=fine_tune.views=1",
]


def find_run(flow_run: str) -> list[int]:
    """Ids of the processes that a worker started for a flow run: it is in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"FLOW_RUN_ID={flow_run}".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@dataclass(frozen=True)
class Server:
    """A Prefect server of the tests' own."""

    url: str
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PREFECT_API_URL": self.url,
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }

    def thaw(self, *arguments: str | Path, timeout_seconds: float = 300, **environment: str) -> Ended:
        command = [sys.executable, "-m", "flows", *map(str, arguments)]
        ended = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_seconds,
            env={**self.environment, **environment},
            cwd=self.home,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def prefect(self, *arguments: str | Path) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *map(str, arguments)]
        ended = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=PROJECT,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def ask(self, path: str, **body: Any) -> Any:
        """What the server answers. Where its database is busy, which it says by a 503, it is asked again."""
        deadline = time.monotonic() + 30
        while True:
            answered = httpx.post(f"{self.url}/{path}", json=body, timeout=30)
            if not answered.is_server_error or time.monotonic() > deadline:
                assert not answered.is_client_error, answered.text
                return answered.raise_for_status().json()
            time.sleep(1)

    def newest_run(self) -> dict[str, Any]:
        return self.ask("flow_runs/filter", sort="START_TIME_DESC", limit=1)[0]

    def task_states(self, flow_run: str) -> dict[str, str]:
        """States of the stages of a run that has ended, by name.

        The server records them, like events, from a stream: a moment after they happened.
        """

        def read() -> dict[str, dict[str, Any] | None]:
            runs = self.ask("task_runs/filter", flow_runs={"id": {"any_": [flow_run]}})
            return {run["name"]: run["state"] for run in runs}

        before, states = None, read()
        deadline = time.monotonic() + 30
        while before != states or not all(
            state and state["type"] in ENDED_TYPES for state in states.values()
        ):
            assert time.monotonic() < deadline, states
            time.sleep(1)
            before, states = states, read()
        return {name: state["name"] for name, state in states.items()}

    def wait_for_log(self, run: str, words: str, seconds: float = 30) -> None:
        """Until a run's log says so: its lines come in batches."""
        deadline = time.monotonic() + seconds
        while words not in self.log(run):
            assert time.monotonic() < deadline, self.log(run)
            time.sleep(0.5)

    def wait_for_event(self, name: str, resource: str, seconds: float = 30) -> None:
        """Until an event about a resource is kept: the server writes them every few seconds."""
        about = {"event": {"name": [name]}, "resource": {"id": [resource]}}
        deadline = time.monotonic() + seconds
        while not self.ask("events/filter", filter=about)["events"]:
            assert time.monotonic() < deadline, f"no {name} about {resource}"
            time.sleep(0.5)

    def start_run(self, deployment: str, **parameters: Any) -> str:
        """Ask for a run, as `prefect deployment run` does; returns its id."""
        given = [f"--param={name}={json.dumps(value)}" for name, value in parameters.items()]
        printed = self.prefect("deployment", "run", deployment, *given)
        return next(line.split()[-1] for line in printed.splitlines() if "UUID" in line)

    def read_run(self, run: str) -> dict[str, Any]:
        return self.ask("flow_runs/filter", flow_runs={"id": {"any_": [run]}})[0]

    def wait_for(self, run: str, *states: str, seconds: float = 240) -> dict[str, Any]:
        """The run, once its state has one of these names."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(httpx.HTTPError):  # while a server starts again
                found = self.read_run(run)
                if found["state"]["name"] in states:
                    return found
                assert time.monotonic() < deadline, f"{found['state']}\n{self.log(run)}"
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def answer(self, run: str, **given: Any) -> None:
        """Resume a run that waits for a person, as its form in the UI does."""
        resumed = self.ask(f"flow_runs/{run}/resume", run_input=given)
        assert resumed["status"] == "ACCEPT", resumed

    def children(self, run: str) -> dict[str, dict[str, Any]]:
        """The runs that a run handed out, by name."""
        found = self.ask("flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [run]}})
        return {child["name"]: child for child in found}

    def log(self, run: str) -> str:
        lines = self.ask("logs/filter", logs={"flow_run_id": {"any_": [run]}}, limit=200)
        return "\n".join(line["message"] for line in lines)
