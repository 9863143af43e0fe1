"""A server with both work pools, and workers that share nothing but the store."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import Server


class Pools:
    """Workers of a server's pools, each a process with a home and a folder of its own."""

    def __init__(self, server: Server, folder: Path):
        self.server, self.folder, self.store = server, folder, folder / "store"
        self.workers: dict[str, subprocess.Popen] = {}

    def deploy(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"RECIPE": "demo", "DUMP": "train.zip", "WEIGHTS": "drawings"}.items():
                patch.setenv(f"THAW_{name}", value)
            for pool in ("cpu", "gpu"):
                template = f"deployments/pools/{pool}.json"
                self.server.prefect(
                    *("work-pool", "create", f"thaw-{pool}", "--type", "process"),
                    *("--base-job-template", template, "--overwrite"),
                )
            self.server.prefect("deploy", "--all")

    def start_worker(self, pool: str, name: str = "", limit: int = 2) -> None:
        name = name or pool
        place = self.folder / name
        place.mkdir(exist_ok=True)
        environment = {
            **self.server.environment,
            "HOME": str(place),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(place / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", name]
        with (place / "worker.log").open("a") as log:
            self.workers[name] = subprocess.Popen(
                [*command, "--limit", str(limit)],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=place,
                start_new_session=True,
            )

    def stop_worker(self, name: str) -> None:
        worker = self.workers.pop(name)
        worker.terminate()
        worker.wait(30)

    def stop(self) -> None:
        for name in list(self.workers):
            self.stop_worker(name)
