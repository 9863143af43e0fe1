"""A machine with `thaw up` on it: real processes, in a state folder and at a port of the test's own."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.command import Ended, Server

MINUTE = 60


class Machine:
    """A machine on which only the test runs `thaw up`."""

    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.home = folder / "state"
        self.store = folder / "store"
        self.server = Server(url=f"http://127.0.0.1:{self.port}/api", home=folder)

    def thaw(self, *arguments: str | Path, **environment: str) -> Ended:
        # As in a shell that knows of no server, and sees no GPU.
        nowhere = {"PREFECT_API_URL": "", "CUDA_VISIBLE_DEVICES": ""}
        return self.server.thaw(*arguments, **{**nowhere, "THAW_HOME": str(self.home), **environment})

    def up(self, *arguments: str | Path, **environment: str) -> Ended:
        ended = self.thaw("up", "--store", self.store, "--port", str(self.port), *arguments, **environment)
        assert ended.code == 0, ended.err
        return ended

    def status(self) -> dict[str, Any]:
        return self.thaw("status", "--json").json

    def child(self, name: str) -> dict[str, Any]:
        return next(child for child in self.status()["children"] if child["name"] == name)

    def is_port_free(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return probe.connect_ex(("127.0.0.1", self.port)) != 0


def wait_until(holds: Callable[[], Any], seconds: float = MINUTE) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)
