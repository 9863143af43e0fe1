"""Features in portions, by GPU workers or on a Dask cluster: the same bits as one process makes, whatever dies."""

import hashlib
import io
import json
import os
import signal
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.command import ENDED, Server, find_run
from tests.conftest import small_config
from tests.machine import MINUTE, wait_until
from tests.pools import Pools
from thaw.fill import SHARD_ROWS
from thaw.registry import read_registry
from thaw.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FLOAT32 = {"precision": "float32"}
# 16 views of 80 images take one core some 25 s at 224 px, drawing them included: time enough to die in.
LONG = {
    "split": {"train": 40, "validation": 5, "test": 5},
    "backbone": {"image_size_pixels": 224, **FLOAT32},
    "head": {"views": 16},
}
ROWS = 80 * 16 + 20
STALLED_SECONDS = 20
# A worker reads the images of its next shard while it computes one.
IN_FLIGHT = 2 * SHARD_ROWS
_SEEDS = count(1)


@pytest.fixture(scope="module")
def pools(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pools]:
    pools = Pools(server, tmp_path_factory.mktemp("runners"))
    pools.deploy()
    pools.start_worker("thaw-cpu")
    for name in ("gpu0", "gpu1"):
        pools.start_worker("thaw-gpu", name, limit=1)
    try:
        yield pools
    finally:
        pools.stop()


def read_features(store: Path) -> dict[str, dict[bytes, bytes]]:
    """Every row's bytes by its key, space by space."""
    spaces: dict[str, dict[bytes, bytes]] = {}
    for keys in store.glob("features/*/*/keys.npy"):
        rows = np.load(keys.with_name("features.npy"))
        space = spaces.setdefault(keys.parent.parent.name, {})
        for key, row in zip(np.load(keys), rows, strict=True):
            space[key.tobytes()] = row.tobytes()
    return spaces


def read_weights(file: Path) -> dict[str, str]:
    """The digest of each array of a saved network."""
    weights: dict[str, str] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            weights[name] = hashlib.sha256(item[()].tobytes()).hexdigest()

    with zipfile.ZipFile(file) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as opened:
        opened.visititems(note)
    return weights


def read_artifacts(server: Server, run: str, kind: str) -> list[dict[str, Any]]:
    about = {"flow_run_id": {"any_": [run]}, "type": {"any_": [kind]}}
    return server.ask("artifacts/filter", artifacts=about)


def list_children(server: Server, run: str) -> list[dict[str, Any]]:
    """The runs that a run handed out, of which some may have the same name."""
    return server.ask("flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [run]}})


def count_repeats(store: Path, rows: int) -> int:
    """How many rows were published more than once, of so many that there are."""
    published: Counter[bytes] = Counter()
    for keys in store.glob("features/*/*/keys.npy"):
        published.update(keys.parent.parent.name.encode() + key.tobytes() for key in np.load(keys))
    assert len(published) == rows
    return sum(published.values()) - rows


def prepare(pools: Pools, dump: Path, store: Path, **runner: Any) -> str:
    """Start a long extraction, of views that no other test has."""
    config = small_config(dump, **LONG, augmentation={"seed": next(_SEEDS)})
    config = {**config.model_dump(mode="json"), "fine_tune": []}
    runner = {"portion_images": 48, "stalled_seconds": STALLED_SECONDS, **runner}
    return pools.server.start_run("prepare/gpu", config=config, store=str(store), runner=runner)


def wait_for_shards(store: Path, least: int = 2) -> None:
    wait_until(lambda: len(list(store.glob("features/*/*/shard.json"))) >= least, 3 * MINUTE)


def read_environment(process: int, name: str) -> str:
    with suppress(OSError):
        for entry in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            if entry.startswith(f"{name}=".encode()):
                return entry.partition(b"=")[2].decode()
    return ""


def find_victim(pools: Pools, run: str) -> tuple[dict[str, Any], list[int], str]:
    """A child run in the midst of its portion of views, its processes, and its worker's name."""
    for child in list_children(pools.server, run):
        if child["state"]["name"] == "Running" and "views" in child["name"] and ": images" in child["name"]:
            processes = find_run(child["id"])
            for name in filter(None, (read_environment(each, "PREFECT__WORKER_NAME") for each in processes)):
                return child, processes, name
    raise AssertionError("no child run has a process")


def test_every_runner_makes_the_same_features_and_the_same_model(
    pools: Pools, drawn_dump: Path, tmp_path: Path
):
    sections = {"backbone": FLOAT32}
    config = {**small_config(drawn_dump, **sections).model_dump(mode="json"), "fine_tune": []}
    run = pools.server.start_run(
        "train/gpu",
        config=config,
        store=str(tmp_path / "pools"),
        runner={"kind": "pools", "portion_images": 64},
    )
    changes = {
        **{f"split.{side}": size for side, size in (("train", 60), ("validation", 20), ("test", 20))},
        "backbone.image_size_pixels": 64,
        "backbone.precision": "float32",
        "head.epochs": 20,
        "gate.noise_multiplier": 2,
        "fine_tune": "[]",
    }
    command = ["train", "--recipe=demo", "--dump", drawn_dump, "--json"]
    command += [f"--set={name}={value}" for name, value in changes.items()]
    alone = pools.server.thaw(*command, "--store", tmp_path / "local", "--runner", "local")
    dask = pools.server.thaw(
        *command, "--store", tmp_path / "dask", "--runner", "dask,workers=2,portion_images=64"
    )
    # The newest one that no worker started.
    by_hand = {"deployment_id": {"is_null_": True}}
    (newest,) = pools.server.ask("flow_runs/filter", flow_runs=by_hand, sort="START_TIME_DESC", limit=1)
    ended = pools.server.wait_for(run, *ENDED)
    assert ended["state"]["name"] == "Completed", pools.server.log(run)
    assert (alone.code, dask.code) == (0, 0), alone.err + dask.err

    runs = {
        "local": alone.json["run"],
        "dask": dask.json["run"],
        "pools": read_registry(Store(tmp_path / "pools")).find("v1").run,
    }
    assert len(set(runs.values())) == 1
    features = {kind: read_features(tmp_path / kind) for kind in runs}
    assert features["local"] == features["pools"] == features["dask"]
    assert [len(rows) for rows in features["local"].values()] == [200]
    assert len({file.name for kind in runs for file in (tmp_path / kind / "splits").iterdir()}) == 1
    weights = {
        kind: read_weights(tmp_path / kind / "runs" / name / "model.keras") for kind, name in runs.items()
    }
    assert weights["local"] == weights["pools"] == weights["dask"] != {}

    for each, workers in ((run, {"gpu0", "gpu1"}), (newest["id"], {"0", "1"})):
        (table,) = [
            json.loads(one["data"])
            for one in read_artifacts(pools.server, each, "table")
            if "Who did what" in (one["description"] or "")
        ]
        assert {row["worker"].split()[0] for row in table} == workers
        assert sum(row["rows computed"] for row in table) == 200
    (progress,) = [
        one
        for one in read_artifacts(pools.server, run, "progress")
        if one["description"].startswith("features at")
    ]
    assert progress["data"] == 100
    assert "200 of 200" in progress["description"]
    # What passed between them is not kept.
    for kind in runs:
        assert not any((tmp_path / kind).glob("progress/*"))
        assert not any((tmp_path / kind).glob("calls/*"))


def test_a_portion_whose_gpu_worker_is_killed_goes_to_the_other_one(
    pools: Pools, drawn_dump: Path, tmp_path: Path
):
    run = prepare(pools, drawn_dump, tmp_path, kind="pools")
    wait_for_shards(tmp_path)
    victim, processes, name = find_victim(pools, run)
    worker = pools.workers[name]
    for process in (worker.pid, *processes):
        os.kill(process, signal.SIGKILL)
    try:
        ended = pools.server.wait_for(run, *ENDED)
        assert ended["state"]["name"] == "Completed", pools.server.log(run)
        assert count_repeats(tmp_path, ROWS) <= IN_FLIGHT
        assert ": another worker gets it as well" in pools.server.log(run)
        # Nobody was there to cancel it, and it does not run for ever.
        assert pools.server.read_run(victim["id"])["state"]["name"] == "Cancelled"
        assert all(child["state"]["name"] in (*ENDED, "Cached") for child in list_children(pools.server, run))
    finally:
        pools.workers.pop(name).wait()
        pools.start_worker("thaw-gpu", name, limit=1)


def test_a_run_that_is_killed_leaves_no_orphans_and_goes_on_when_it_is_started_again(
    pools: Pools, drawn_dump: Path, tmp_path: Path
):
    """Its running portions are done to their end, and those that wait find that nobody asks any more."""
    run = prepare(pools, drawn_dump, tmp_path, kind="pools", portion_images=32)
    wait_for_shards(tmp_path, least=1)
    parameters = pools.server.read_run(run)["parameters"]
    for process in find_run(run):
        os.kill(process, signal.SIGKILL)
    assert pools.server.wait_for(run, *ENDED)["state"]["name"] == "Crashed"
    again = pools.server.start_run("prepare/gpu", **parameters)
    ended = pools.server.wait_for(again, *ENDED)
    assert ended["state"]["name"] == "Completed", pools.server.log(again)
    assert count_repeats(tmp_path, ROWS) <= 2 * IN_FLIGHT
    wait_until(lambda: _have_ended(list_children(pools.server, run)))
    states = Counter(child["state"]["name"] for child in list_children(pools.server, run))
    assert states["Cancelled"] >= 1


def test_a_cancelled_run_cancels_its_portions_and_what_they_published_stays(
    pools: Pools, drawn_dump: Path, tmp_path: Path
):
    run = prepare(pools, drawn_dump, tmp_path, kind="pools")
    wait_for_shards(tmp_path, least=1)
    pools.server.prefect("flow-run", "cancel", run)
    assert pools.server.wait_for(run, *ENDED)["state"]["name"] == "Cancelled"
    wait_until(lambda: _have_ended(list_children(pools.server, run)))
    assert any(tmp_path.glob("features/*/*/shard.json"))


def find_dask_workers(run: str) -> list[int]:
    """Processes of a run that Dask started to work."""
    found = []
    for process in find_run(run):
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_portion_whose_dask_worker_is_lost_goes_to_another_one(
    sign: signal.Signals, pools: Pools, drawn_dump: Path, tmp_path: Path
):
    run = prepare(pools, drawn_dump, tmp_path, kind="dask", workers=2)
    wait_for_shards(tmp_path)
    process = find_dask_workers(run)[0]
    os.kill(process, sign)
    ended = pools.server.wait_for(run, *ENDED)
    assert ended["state"]["name"] == "Completed", pools.server.log(run)
    assert count_repeats(tmp_path, ROWS) <= IN_FLIGHT
    if sign is signal.SIGSTOP:
        assert ": another worker gets it as well" in pools.server.log(run)
    wait_until(lambda: not find_run(run))


def _have_ended(children: list[dict[str, Any]]) -> bool:
    return all(
        child["state"]["type"] in ("COMPLETED", "CANCELLED", "CRASHED", "FAILED") for child in children
    )
