"""A run killed at random moments, and started again each time, ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.command import SMALL, Server
from thaw.drawings import draw_dump

KILLS = 10


def shards(store: Path) -> dict[str, int]:
    """Every published shard, with its last change."""
    return {str(file.parent): file.stat().st_mtime_ns for file in store.glob("features/*/*/shard.json")}


def probabilities(result: dict) -> np.ndarray:
    evaluation = json.loads((Path(result["model"]).parent / "evaluation.json").read_text())
    return np.array([row["probabilities"] for row in evaluation["predictions"]])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_ten_times_ends_with_the_undisturbed_probabilities(server: Server, tmp_path: Path):
    dump = tmp_path / "drawn.zip"
    draw_dump(dump, per_class=100)
    command = ["train", "--dump", str(dump), "--json", *SMALL]
    undisturbed = server.thaw(*command, "--store", tmp_path / "undisturbed")
    assert undisturbed.code == 0, undisturbed.err
    lasted_seconds = sum(undisturbed.json["seconds"].values())

    store, published, dice = tmp_path / "killed", {}, random.Random(0)
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", *command, "--store", str(store)],
            env=server.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
            start_new_session=True,
        )
        try:
            # From before the first stage to after the last.
            process.wait(dice.uniform(2, 1.3 * lasted_seconds + 6))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        now = shards(store)
        assert published.items() <= now.items(), "a published shard was computed again"
        published = now

    ended = server.thaw(*command, "--store", store)
    assert ended.code == 0, ended.err
    np.testing.assert_array_equal(probabilities(ended.json), probabilities(undisturbed.json))
    assert published.items() <= shards(store).items()
    rows = [len(np.load(file)) for file in store.glob("features/*/*/keys.npy")]
    # 200 images at block 4 and at block 5, and one view of the 120 to train on: each row once.
    assert sum(rows) == 200 + 200 + 120
    assert not (store / "damaged").exists()
