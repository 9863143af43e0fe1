"""Run `thaw` as a user does: in a process of its own, on a real Prefect server."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

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
        return httpx.post(f"{self.url}/{path}", json=body, timeout=30).raise_for_status().json()

    def newest_run(self) -> dict[str, Any]:
        return self.ask("flow_runs/filter", sort="START_TIME_DESC", limit=1)[0]

    def task_states(self, flow_run: str) -> dict[str, str]:
        runs = self.ask("task_runs/filter", flow_runs={"id": {"any_": [flow_run]}})
        return {run["name"]: run["state"]["name"] for run in runs}
