"""GPU stages on the GPU pool: two workers that share nothing but the store run one training together."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.command import ENDED, SMALL, Server, find_run
from tests.conftest import small_config
from tests.machine import MINUTE, wait_until
from tests.pools import Pools
from tests.test_kill import probabilities
from thaw.registry import read_registry
from thaw.store import Store

pytestmark = pytest.mark.slow

GPU_STAGES = [
    "1 views at block4_pool",
    "calibrate fine_tuned",
    "evaluate fine_tuned",
    "evaluate head",
    "features at block5_pool",
    "fine-tune after block4_pool, seed 0",
    "train head, seed 0, budget 1",
]


@pytest.fixture(scope="module")
def pools(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pools]:
    pools = Pools(server, tmp_path_factory.mktemp("pools"))
    pools.deploy()
    for pool in ("thaw-cpu", "thaw-gpu"):
        pools.start_worker(pool)
    try:
        yield pools
    finally:
        pools.stop()


def start(pools: Pools, config: dict) -> str:
    return pools.server.start_run("train/gpu", config=config, store=str(pools.store))


@pytest.fixture(scope="module")
def trained(pools: Pools, config: dict) -> str:
    """The id of a run of `train/gpu` that is done."""
    run = start(pools, config)
    assert pools.server.wait_for(run, *ENDED)["state"]["name"] == "Completed", pools.server.log(run)
    return run


@pytest.fixture(scope="module")
def config(drawn_dump: Path) -> dict:
    return small_config(drawn_dump).model_dump(mode="json")


def test_gpu_stages_are_runs_of_the_gpu_pool_and_the_others_stay_with_the_parent(pools: Pools, trained: str):
    children = pools.server.children(trained)
    assert sorted(children) == GPU_STAGES
    assert {child["work_pool_name"] for child in children.values()} == {"thaw-gpu"}
    assert {child["work_queue_name"] for child in children.values()} == {"interactive"}
    assert pools.server.read_run(trained)["work_pool_name"] == "thaw-cpu"
    assert {"scan dump", "split", "release", *GPU_STAGES} <= set(pools.server.task_states(trained))
    pools.server.wait_for_log(children["train head, seed 0, budget 1"]["id"], "epoch 2 of")


def test_the_model_is_the_one_that_a_single_process_makes(
    pools: Pools, trained: str, drawn_dump: Path, tmp_path: Path
):
    alone = pools.server.thaw("train", "--dump", drawn_dump, "--store", tmp_path, "--json", *SMALL)
    assert alone.code == 0, alone.err
    version = read_registry(Store(pools.store)).find("v1")
    assert version.run == alone.json["run"]
    together = {"model": str(pools.store / "runs" / version.run / "model.keras")}
    np.testing.assert_array_equal(probabilities(together), probabilities(alone.json))


def test_a_second_run_finds_everything_and_asks_no_gpu_worker(pools: Pools, trained: str, config: dict):
    pools.stop_worker("thaw-gpu")
    try:
        again = start(pools, config)
        assert pools.server.wait_for(again, *ENDED)["state"]["name"] == "Completed"
    finally:
        pools.start_worker("thaw-gpu")
    assert pools.server.children(again) == {}
    states = pools.server.task_states(again)
    assert all(states[stage] == "Cached" for stage in GPU_STAGES)


def test_a_stage_that_fails_on_its_worker_fails_the_run_with_its_reason(pools: Pools, config: dict):
    # The dump goes away once the parent has scanned it.
    other = {
        **config,
        "augmentation": {**config["augmentation"], "seed": 7},
        "backbone": {**config["backbone"], "image_size_pixels": 72},
    }
    away = Path(config["dump"]["path"])
    hidden = away.with_suffix(".hidden")
    run = start(pools, other)
    wait_until(lambda: pools.server.children(run), 2 * MINUTE)
    away.rename(hidden)
    try:
        failed = pools.server.wait_for(run, *ENDED)
    finally:
        hidden.rename(away)
    assert failed["state"]["name"] == "Failed"
    assert "no dump at" in failed["state"]["message"]
    assert "on pool thaw-gpu ended as Failed" in failed["state"]["message"]


def test_a_cancelled_run_cancels_what_it_handed_out(pools: Pools, config: dict):
    pools.stop_worker("thaw-gpu")
    try:
        run = start(pools, {**config, "augmentation": {**config["augmentation"], "seed": 8}})
        wait_until(lambda: pools.server.children(run), 2 * MINUTE)
        pools.server.prefect("flow-run", "cancel", run)
        assert pools.server.wait_for(run, "Cancelled", "Crashed")["state"]["name"] == "Cancelled"
        (child,) = pools.server.children(run).values()
        assert pools.server.wait_for(child["id"], "Cancelled", "Cancelling")
    finally:
        pools.start_worker("thaw-gpu")


def test_a_run_crashed_on_its_gpu_worker_is_handed_out_again(pools: Pools, config: dict):
    longer = {**config["fine_tune"][0], "epochs": 40, "seed": 3}
    run = start(pools, {**config, "fine_tune": [longer]})
    wait_until(lambda: "fine-tune after block4_pool, seed 3" in pools.server.children(run), 3 * MINUTE)
    child = pools.server.children(run)["fine-tune after block4_pool, seed 3"]
    pools.server.wait_for(child["id"], "Running")
    for process in find_run(child["id"]):
        os.kill(process, signal.SIGKILL)
    assert pools.server.wait_for(run, *ENDED)["state"]["name"] == "Completed"
    pools.server.wait_for_log(run, "crashed on its worker")


def test_a_persons_answer_holds_for_the_model_that_was_offered_whatever_became_of_the_dump(
    pools: Pools, config: dict, drawn_dump: Path, tmp_path: Path
):
    dump = Path(shutil.copy(drawn_dump, tmp_path / "dump.zip"))
    run = pools.server.start_run(
        "retrain/weekly",
        config={**config, "dump": {"path": str(dump)}},
        promotion={"approval": "ask"},
        store=str(tmp_path / "store"),
        runner={"kind": "local"},
    )
    waiting = pools.server.wait_for(run, "Suspended", *ENDED)
    assert waiting["state"]["name"] == "Suspended", pools.server.log(run)
    assert waiting["name"].endswith(": v1 waits for approval")
    assert read_registry(Store(tmp_path / "store")).champion is None
    dump.unlink()
    before = len(pools.server.task_states(run))
    # Prefect's worker falls over a run that comes back before it has let it go; people take longer.
    time.sleep(10)
    pools.server.answer(run, promote=True, remark="looked at it")
    ended = pools.server.wait_for(run, "Promoted", *ENDED)
    assert ended["state"]["message"].startswith("v1 approved by a person (looked at it); accepted")
    assert read_registry(Store(tmp_path / "store")).champion.number == 1
    # Nothing but the decision was still to do.
    assert len(pools.server.task_states(run)) == before + 1


def test_a_search_and_several_networks_go_to_gpu_workers_as_well(pools: Pools, trained: str, config: dict):
    search = {"grid": {"dropout": [0.2, 0.5]}, "folds": 2}
    run = start(pools, {**config, "search": search, "ensemble": {"members": 2, "mirrored": True}})
    ended = pools.server.wait_for(run, *ENDED, seconds=8 * MINUTE)
    assert ended["state"]["name"] == "Completed", pools.server.log(run)
    handed_out = {title.partition(":")[0] for title in pools.server.children(run)}
    assert {"candidate 1 of 2", "candidate 2 of 2", "mirror images at block4_pool"} <= handed_out
    assert {"average what was trained", "evaluate ensemble"} <= handed_out


def test_compared_recipes_share_the_gpu_workers(pools: Pools, trained: str, config: dict):
    settings = {name: part for name, part in config.items() if name not in ("dump", "recipe")}
    recipes = [{"recipe": "demo", "settings": {"head": {"dropout": dropout}}} for dropout in (0.5, 0.3)]
    run = pools.server.start_run(
        "compare/cpu",
        config={"dump": config["dump"], "recipes": recipes, "settings": settings},
        store=str(pools.store),
        runner={"kind": "pools"},
    )
    ended = pools.server.wait_for(run, *ENDED, seconds=8 * MINUTE)
    assert ended["state"]["name"] == "Completed", pools.server.log(run)
    trainings = pools.server.children(run).values()
    assert len(trainings) == 2
    handed_out = [title for each in trainings for title in pools.server.children(each["id"])]
    assert "train head, seed 0, budget 1" in handed_out
