"""Machines that have nothing in common but a Prefect server and an object store train one model together."""

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.command import ENDED, SMALL, Server
from tests.conftest import small_config
from tests.hosts import Host, Network, NoHosts, wait_for_port
from tests.machine import MINUTE, wait_until
from tests.s3 import ObjectServer, list_environment
from thaw.config import TrainConfig
from thaw.fill import SHARD_ROWS
from thaw.location import Url
from thaw.mini import DRAWINGS_WEIGHTS
from thaw.objects import Objects
from thaw.registry import read_registry
from thaw.store import Store

pytestmark = pytest.mark.slow

GPU_HOSTS = ("one", "two")
STALLED_SECONDS = 20
VIEWS = 40
# What deployments/README.md says: a worker that can't reach its server for a while ends, and is started again.
WORKER = "until prefect worker start --pool {pool} --name {name} --limit {limit}; do sleep 5; done"


class Cloud:
    """A head with the Prefect server, the object store and a worker for parents, and hosts with a GPU worker each."""

    def __init__(self, network: Network, home: Path):
        self.network, self.head = network, network.head
        self.server = Server(url=f"http://{self.head.address}:4200/api", home=home)
        self.objects = ObjectServer(f"http://{self.head.address}:9000")
        # As a user sets it, on each machine.
        self.environment = {
            **list_environment(self.objects.endpoint, nowhere="/nowhere"),
            "PREFECT_API_URL": self.server.url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
        }

    def start(self) -> None:
        at = ("--host", "0.0.0.0", "--port", "4200")  # noqa: S104
        self.head.start("server.log", "prefect", "server", "start", *at)
        self.head.start("objects.log", "python", "-m", "tests.s3", "9000", self.head.address)
        wait_for_port(self.head, 9000)
        self.bucket = self.objects.make_bucket("bucket")
        wait_until(self._answers, 2 * MINUTE)
        for pool in ("cpu", "gpu"):
            template = ("--base-job-template", f"deployments/pools/{pool}.json")
            self.server.prefect("work-pool", "create", f"thaw-{pool}", "--type", "process", *template)
        self.server.prefect("deploy", "--all")
        self.start_worker(self.head, "thaw-cpu", limit=2)
        for name in GPU_HOSTS:
            self.start_worker(self.network.hosts[name], "thaw-gpu", limit=1)

    def start_worker(self, host: Host, pool: str, limit: int) -> None:
        command = WORKER.format(pool=pool, name=host.name, limit=limit)
        host.start("worker.log", "bash", "-c", command, **self.environment)

    @property
    def hosts(self) -> list[Host]:
        """Those with a GPU worker."""
        return [self.network.hosts[name] for name in GPU_HOSTS]

    def run(self, deployment: str, config: TrainConfig, store: Store, **runner: int) -> str:
        given = {"config": config.model_dump(mode="json"), "store": store.address}
        return self.server.start_run(
            deployment, **given, runner={"kind": "pools", "portion_images": 100, **runner}
        )

    def read_objects(self, folder: str) -> dict[str, bytes]:
        """All that lies in a folder of the bucket."""
        objects = Objects(Url(f"{self.bucket}/{folder}"))
        return objects.read_many(list(objects.list()))

    def wait_for(self, run: str) -> None:
        ended = self.server.wait_for(run, *ENDED, seconds=8 * MINUTE)
        assert ended["state"]["name"] == "Completed", self.server.log(run)

    def find_half_done(self, run: str, store: Store) -> list[tuple[dict[str, Any], int]]:
        """A portion with shards done and more to do, and how many of its rows were."""
        for child in self.server.children(run).values():
            if child["state"]["name"] == "Running":
                done = int(store.slip("progress", child["parameters"]["call"]).read() or 0)
                if SHARD_ROWS < done < 60 * VIEWS - 2 * SHARD_ROWS:
                    return [(child, done)]
        return []

    def heard_from(self, worker: str) -> datetime:
        """When a worker last told the server that it lives."""
        found = self.server.ask("work_pools/thaw-gpu/workers/filter")
        return datetime.fromisoformat(
            next(one["last_heartbeat_time"] for one in found if one["name"] == worker)
        )

    def read_tables(self, run: str) -> list[dict[str, Any]]:
        """What workers did, as the UI shows it."""
        found = self.server.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
        tables = [one for one in found if (one["description"] or "").startswith("Who did what")]
        return [row for one in tables for row in json.loads(one["data"])]

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.server.url}/health", timeout=2).is_success
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def cloud(
    tmp_path_factory: pytest.TempPathFactory, drawn_dump: Path, patch: pytest.MonkeyPatch
) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("hosts")
    try:
        network = Network(folder, ("head", *GPU_HOSTS))
    except NoHosts as reason:
        pytest.skip(str(reason))
    with network:
        cloud = Cloud(network, tmp_path_factory.mktemp("home"))
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        environment = {**cloud.environment, "THAW_CACHE": str(folder / "cache")}
        defaults = {"THAW_RECIPE": "demo", "THAW_DUMP": "train.zip", "THAW_WEIGHTS": "drawings"}
        for name, value in {**environment, **defaults}.items():
            patch.setenv(name, value)
        cloud.start()
        Objects(Url(cloud.bucket)).upload(drawn_dump, "drawn.zip")
        yield cloud


def read_rows(store: Store) -> dict[str, dict[bytes, bytes]]:
    """Every cached row as bytes, by its space and key."""
    rows: dict[str, dict[bytes, bytes]] = {}
    for space in store.list("features"):
        for shard in store.list("features", space):
            if store.is_published("features", space, shard):
                keys, features = (
                    np.load(store.fetch("features", space, shard, f"{name}.npy"))
                    for name in ("keys", "features")
                )
                pairs = zip(keys, features, strict=True)
                rows.setdefault(space, {}).update({key.tobytes(): row.tobytes() for key, row in pairs})
    return rows


def test_one_model_is_trained_by_machines_that_share_no_disk(cloud: Cloud, drawn_dump: Path, tmp_path: Path):
    # Only the head has the file.
    weights = str(shutil.copy(DRAWINGS_WEIGHTS, cloud.head.folder / "mine.weights.h5"))
    config = small_config(Url(f"{cloud.bucket}/drawn.zip"), backbone={"weights": weights})
    store = Store(f"{cloud.bucket}/store")
    run = cloud.run("train/gpu", config.model_copy(update={"fine_tune": ()}), store)
    cloud.wait_for(run)
    table = cloud.read_tables(run)
    assert {row["host"] for row in table} == {row["worker"] for row in table} == set(GPU_HOSTS)
    assert sum(row["rows computed"] for row in table) == 200
    for host in cloud.hosts:
        assert {path.parts[0] for path in host.list_files("features.npy")} == {"cache"}
        assert not host.list_files("*.zip")

    alone = cloud.server.thaw(
        *("train", "--dump", drawn_dump, "--store", tmp_path / "store", "--json", *SMALL),
        *("--weights", weights, "--set", "fine_tune=[]"),
    )
    assert alone.code == 0, alone.err
    here = Store(tmp_path / "store")
    assert read_rows(store) == read_rows(here)
    assert store.list("splits") == here.list("splits")
    assert read_registry(store).find("v1").run == alone.json["run"]


def test_a_machine_that_is_cut_off_costs_little_does_no_harm_and_works_again(cloud: Cloud):
    store = Store(f"{cloud.bucket}/another")
    views = {"head": {"views": VIEWS}, "fine_tune": {"views": VIEWS}}
    config = small_config(Url(f"{cloud.bucket}/drawn.zip"), **views)
    run = cloud.run("prepare/gpu", config, store, portion_images=60, stalled_seconds=STALLED_SECONDS)
    seen: list[tuple[dict[str, Any], int]] = []
    wait_until(lambda: seen or seen.extend(cloud.find_half_done(run, store)), 5 * MINUTE)
    ((begun, done),) = seen
    (lost,) = [host for host in cloud.hosts if host.runs(begun["id"])]
    cloud.network.cut(lost.name)
    cloud.wait_for(run)
    table = cloud.read_tables(run)
    computed, found = (sum(row[f"rows {what}"] for row in table) for what in ("computed", "found"))
    assert computed + found == 120 * VIEWS + 80
    # What it had published is found, and the shard that it had in hand is computed again.
    assert found >= done - SHARD_ROWS
    assert cloud.server.children(run)[begun["name"]]["state"]["type"] != "RUNNING"

    published = cloud.read_objects("another")
    cloud.network.mend(lost.name)
    mended = datetime.now(UTC)
    wait_until(lambda: not lost.runs(begun["id"]), 3 * MINUTE)
    wait_until(lambda: cloud.heard_from(lost.name) > mended, 3 * MINUTE)
    assert cloud.read_objects("another") == published

    views = {"head": {"views": 5}, "fine_tune": {"views": 5}}
    config = small_config(Url(f"{cloud.bucket}/drawn.zip"), augmentation={"seed": 1}, **views)
    run = cloud.run("prepare/gpu", config, store, portion_images=102)
    cloud.wait_for(run)
    assert {row["host"] for row in cloud.read_tables(run)} == set(GPU_HOSTS)
