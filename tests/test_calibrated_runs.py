"""A calibrated model from training to the contest with the next one, as commands make it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import SMALL, Ended, Server
from thaw.records import Evaluation
from thaw.registry import read_registry
from thaw.store import Store

pytestmark = pytest.mark.slow

# Enough validation images to fit a temperature on, and a head that has learned too little to be as sure as it is.
TOO_SURE = [
    *SMALL,
    "--set=split.train=40",
    "--set=split.validation=40",
    "--set=head.epochs=2",
    "--set=head.stop=at_budget",
    "--set=fine_tune.epochs=0",
]


class Home:
    """One store, and the runs that share it."""

    def __init__(self, server: Server, dump: Path, root: Path):
        self.server, self.dump, self.store = server, dump, Store(root)

    def run(self, command: str, *options: str) -> Ended:
        given = ["--dump", self.dump, "--store", self.store.address, "--json", *TOO_SURE]
        ended = self.server.thaw(command, *given, *options)
        assert ended.code == 0, ended.err
        return ended


@pytest.fixture(scope="module")
def home(server: Server, drawn_dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(server, drawn_dump, tmp_path_factory.mktemp("calibrated") / "store")


@pytest.fixture(scope="module")
def trained(home: Home) -> dict:
    return home.run("train").json


def read_evaluation(trained: dict) -> Evaluation:
    return Evaluation.from_json(Path(trained["model"]).with_name("evaluation.json").read_bytes())


def test_a_run_fits_a_temperature_before_it_looks_at_test_images(trained: dict):
    stages = list(trained["seconds"])
    assert stages.index("calibrate head") < stages.index("evaluate head")
    assert trained["temperature"] != 1
    evaluation = read_evaluation(trained)
    assert evaluation.temperature == trained["temperature"]
    assert evaluation.metrics.log_loss == trained["test_log_loss"]
    assert evaluation.metrics.accuracy == evaluation.uncalibrated.accuracy
    report = Path(trained["report"]).with_suffix(".md").read_text(encoding="utf-8")
    assert "Head alone, calibrated" in report
    assert "![reliability]" in report


def test_the_model_answers_with_the_tested_probabilities(trained: dict, home: Home, drawn_dump: Path):
    answered = home.store.folder() / "answers.csv"
    ended = home.server.thaw("predict", trained["model"], drawn_dump, "--file", answered)
    assert ended.code == 0, ended.err
    rows = csv.DictReader(answered.read_text(encoding="utf-8").splitlines())
    answers = {row["path"].rpartition("/")[2]: float(row["p_dog"]) for row in rows}
    for row in read_evaluation(trained).predictions:
        assert answers[row.path.rpartition("/")[2]] == pytest.approx(row.probabilities[1], abs=2e-3)


def test_plain_keras_loads_the_model(trained: dict, tmp_path: Path):
    script = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1])
given = model.predict(np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype("float32"))
assert given.shape == (4, 1) and (given > 0).all() and (given < 1).all()
assert "thaw" not in sys.modules
"""
    given = [sys.executable, "-c", script, trained["model"]]
    ended = subprocess.run(given, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_the_same_run_again_makes_nothing(trained: dict, home: Home):
    again = home.run("train").json
    assert again["model"] == trained["model"]
    assert set(again["seconds"]) - set(again["cached"]) == {"judge convergence"}


def test_no_temperature_is_applied_where_none_is_asked_for(trained: dict, home: Home):
    plain = home.run("train", "--set=calibration.temperature=none").json
    assert "calibrate head" not in plain["seconds"]
    assert plain["temperature"] == 1
    assert plain["model"] != trained["model"]
    assert read_evaluation(plain).metrics == read_evaluation(trained).uncalibrated


def test_the_champion_is_scored_with_its_own_temperature(trained: dict, home: Home):
    named = home.server.thaw("promote", "v1", "--store", home.store.address)
    assert named.code == 0, named.err
    champion = read_registry(home.store).champion
    assert champion.temperature == trained["temperature"]
    ended = home.run("retrain", "--set=head.seed=3")
    comparison = ended.json["decision"]["comparison"]
    assert comparison["champion_log_loss"] == pytest.approx(trained["test_log_loss"], abs=1e-9)
    challenger = read_registry(home.store).find(ended.json["decision"]["challenger"])
    assert comparison["challenger_log_loss"] == pytest.approx(challenger.log_loss, abs=1e-9)
    assert json.loads((home.store.folder() / "registry.json").read_text())["versions"][0]["temperature"] != 1
