"""Whatever dies, each run ends in a true state, and the next one goes on from what was published."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from deployments.processes import find_processes
from tests.command import ENDED, find_run
from tests.machine import Machine, wait_until
from tests.test_kill import probabilities, shards
from thaw.config import build_config
from thaw.drawings import draw_dump
from thaw.registry import read_registry
from thaw.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# From the moment of death.
MOST_SECONDS = 180
MADE = ("Promoted", "Kept", "Skipped", *ENDED)


class Watch(threading.Thread):
    """Reads `registry.json` again and again: whenever it is there it must be whole."""

    def __init__(self, file: Path):
        super().__init__(daemon=True)
        self.file, self.ended, self.broken = file, threading.Event(), ""

    def run(self) -> None:
        while not self.ended.wait(0.01):
            if self.file.exists():
                try:
                    json.loads(self.file.read_text())
                except ValueError as error:
                    self.broken = str(error)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("crashes"))
    draw_dump(machine.home.parent / "drawn.zip", per_class=200)
    try:
        machine.up("--dump", machine.home.parent / "drawn.zip", "--recipe", "demo")
        yield machine
    finally:
        machine.thaw("down")
        assert not find_processes(machine.home)


def kill(*processes: int, by: signal.Signals = signal.SIGKILL) -> None:
    for process in processes:
        os.kill(process, by)


def test_a_retraining_that_dies_in_every_way_ends_as_the_undisturbed_one(machine: Machine, tmp_path: Path):
    """Killed while extracting, its worker stopped in the head, both killed in the fine-tune, then the server."""
    server = machine.server
    config = build_config(
        {
            "dump": {"path": machine.home.parent / "drawn.zip"},
            "recipe": "demo",
            "head": {"epochs": 400, "stop": "at_budget"},
            "fine_tune": {"epochs": 120, "patience_epochs": None},
        }
    ).model_dump(mode="json")
    store, undisturbed = Store(tmp_path / "killed"), Store(tmp_path / "undisturbed")

    def start(place: Store) -> str:
        return server.start_run(
            "retrain/weekly", config=config, store=str(place.address), runner={"kind": "local"}
        )

    def die(sign: str, death: Callable[[str], None]) -> str:
        """Start a run, let it die once the store shows the sign, and see how it ended."""
        before = shards(store.folder())
        run = start(store)
        server.wait_for(run, "Running")
        wait_until(lambda: any(store.folder().glob(sign)), 2 * 60)
        death(run)
        died = time.monotonic()
        ended = server.wait_for(run, *MADE, seconds=MOST_SECONDS)
        print(f"{sign}: {ended['state']['name']} after {time.monotonic() - died:.0f} s")
        assert before.items() <= shards(store.folder()).items(), "a published shard was computed again"
        return ended["state"]["name"]

    def kill_run(run: str) -> None:
        kill(*find_run(run))

    def stop_worker(run: str) -> None:
        kill(machine.child("worker-cpu")["process"], by=signal.SIGTERM)

    def kill_both(run: str) -> None:
        kill(machine.child("worker-cpu")["process"], *find_run(run))

    def kill_server(run: str) -> None:
        kill(machine.child("server")["process"])

    watch = Watch(store.folder("registry.json"))
    watch.start()
    assert die("features/*/*/shard.json", kill_run) == "Crashed"
    assert die("journals/*/*", stop_worker) == "Crashed"
    assert die("checkpoints/*/checkpoint.json", kill_both) == "Crashed"
    # It goes on, unless a stage began just then.
    assert die("journals/*/*", kill_server) in ("Promoted", "Failed")
    last = server.wait_for(start(store), *MADE)
    watch.ended.set()
    alone = server.wait_for(start(undisturbed), *MADE)
    assert alone["state"]["name"] == "Promoted"
    assert last["state"]["name"] in ("Promoted", "Skipped")
    assert not watch.broken

    ends = [read_registry(place).champion.run for place in (store, undisturbed)]
    assert ends[0] == ends[1]
    models = [{"model": str(place.folder("runs", ends[0], "model.keras"))} for place in (store, undisturbed)]
    np.testing.assert_array_equal(*map(probabilities, models))
    rows = [len(np.load(file)) for file in store.folder().glob("features/*/*/keys.npy")]
    assert sum(rows) == 400 + 400 + 5 * 240
    assert not store.folder("damaged").exists()
