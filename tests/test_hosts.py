"""Machines that have nothing in common but a Prefect server and an object store train one model together."""

import json
import os
import shutil
import time
from collections.abc import Iterator
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
    config = config.model_copy(update={"fine_tune": ()})
    store = Store(f"{cloud.bucket}/store")
    t = time.monotonic()
    run = cloud.run("train/gpu", config, store)
    ended = cloud.server.wait_for(run, *ENDED)
    print("took", time.monotonic() - t)
    assert ended["state"]["name"] == "Completed", cloud.server.log(run)

    for name, child in cloud.server.children(run).items():
        print(name, child["infrastructure_pid"], child["labels"], child["start_time"], child["end_time"])
    table = cloud.read_tables(run)
    print(table)
    assert {row["host"] for row in table} == set(GPU_HOSTS)
    assert sum(row["rows computed"] for row in table) == 200

    t = time.monotonic()
    alone = cloud.server.thaw(
        *("train", "--dump", drawn_dump, "--store", tmp_path / "store", "--json", *SMALL),
        *("--weights", weights, "--set", "fine_tune=[]"),
    )
    print("took", time.monotonic() - t)
    assert alone.code == 0, alone.err
    assert read_registry(store).find("v1").run == alone.json["run"]
    assert read_rows(store) == read_rows(Store(tmp_path / "store"))

    for name in GPU_HOSTS:
        host = cloud.network.hosts[name]
        print(name, {path.parts[0] for path in host.list_files()}, host.list_files("features.npy"))


def test_a_machine_that_is_cut_off_costs_little_and_comes_back(cloud: Cloud):
    store = Store(f"{cloud.bucket}/another")
    config = small_config(
        Url(f"{cloud.bucket}/drawn.zip"),
        head={"views": VIEWS},
        augmentation={"seed": 1},
        fine_tune={"views": VIEWS},
    )
    run = cloud.run("prepare/gpu", config, store, portion_images=60, stalled_seconds=STALLED_SECONDS)
    begun: dict[str, Any] = {}
    t0 = time.monotonic()

    def is_half_done() -> bool:
        for child in cloud.server.children(run).values():
            if "images" in child["name"].partition(":")[2] and child["state"]["name"] == "Running":
                slip = store.slip("progress", child["parameters"]["call"])
                if int(slip.read() or 0) > 256:
                    begun.update(child)
                    return True
        return False

    wait_until(is_half_done, 3 * MINUTE)
    (lost,) = [host for host in cloud.hosts if host.runs(begun["id"])]
    cloud.network.cut(lost.name)
    cut = time.monotonic()
    print(
        "cut", lost.name, begun["name"], cut - t0, store.slip("progress", begun["parameters"]["call"]).read()
    )
    held = {space: len(rows) for space, rows in read_rows(store).items()}
    print(held)
    ended = cloud.server.wait_for(run, *ENDED)
    print("took", time.monotonic() - cut, cloud.server.log(run), cloud.read_tables(run))
    assert ended["state"]["name"] == "Completed", cloud.server.log(run)
    print([(child["name"], child["state"]["name"]) for child in cloud.server.children(run).values()])
    published = cloud.read_objects("another")
    print(lost.runs(begun["id"]), lost.do("ps", "ax"))

    cloud.network.mend(lost.name)
    mended = time.monotonic()
    for _ in range(20):
        time.sleep(5)
        runs = lost.runs(begun["id"])
        print(
            round(time.monotonic() - mended), runs, (lost.folder / "worker.log").read_text().splitlines()[-1:]
        )
        if not runs:
            break
    print((lost.folder / "worker.log").read_text())
    print([(child["name"], child["state"]["name"]) for child in cloud.server.children(run).values()])
    after = cloud.read_objects("another")
    assert {key: after.get(key) for key in published} == published
    print("new", after.keys() - published.keys())
    assert 0
