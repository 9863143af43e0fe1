"""The figures that Thaw promises, on real images with the real ImageNet weights."""

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.command import Ended, Server

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(2700)]


@pytest.fixture(scope="module")
def train(server: Server, shared: Path, tmp_path_factory: pytest.TempPathFactory):
    """Run a recipe on the 200 px dump; all runs of this file share a store."""
    store = tmp_path_factory.mktemp("real") / "store"
    weights = shared / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    dump = shared / "data" / "dogs-vs-cats-200px.zip"

    def run(recipe: str) -> Ended:
        ended = server.thaw(
            *("train", "--dump", dump, "--weights", weights, "--recipe", recipe, "--store", store, "--json"),
            timeout_seconds=2700,
        )
        assert ended.code == 0, ended.err
        return ended

    return run


@pytest.fixture(scope="module")
def fine_tuned(train) -> Ended:
    return train("book2-finetune")


def test_book2_finetune_reaches_its_figure_and_is_not_below_its_own_head(fine_tuned: Ended):
    result = fine_tuned.json
    assert result["verdict"] == "plateaued"
    assert result["test_images"] == 1000
    assert result["test_accuracy"] >= 0.975
    assert result["test_accuracy"] >= result["head_test_accuracy"]


def test_the_second_identical_run_decodes_nothing_and_computes_nothing(train, fine_tuned: Ended):
    again = train("book2-finetune")
    assert set(again.json["seconds"]) - set(again.json["cached"]) == {"judge convergence"}
    assert again.json["test_log_loss"] == fine_tuned.json["test_log_loss"]
    for sign in ("verify images", "block5_pool of images", "block5_pool of views", "predict"):
        assert sign in fine_tuned.err
        assert sign not in again.err


def test_the_saved_model_reproduces_from_raw_jpegs_what_it_was_tested_with(
    server: Server, shared: Path, fine_tuned: Ended, tmp_path: Path
):
    evaluation = json.loads((Path(fine_tuned.json["model"]).parent / "evaluation.json").read_text())
    tested = {Path(row["path"]).name: row["probabilities"][1] for row in evaluation["predictions"][::10]}
    with zipfile.ZipFile(shared / "data" / "dogs-vs-cats-200px.zip") as archive:
        for name in tested:
            (tmp_path / name).write_bytes(archive.read(f"train/{name}"))
    table = tmp_path / "answers.csv"
    assert server.thaw("predict", fine_tuned.json["model"], tmp_path, "--file", table).code == 0
    with table.open(newline="") as file:
        again = {Path(row["path"]).name: float(row["p_dog"]) for row in csv.DictReader(file)}
    differences = np.array([abs(again[name] - tested[name]) for name in tested])
    # The cached features may be bfloat16's, the saved model computes in float32.
    assert differences.mean() < 0.01
    assert np.mean([(again[name] > 0.5) == (tested[name] > 0.5) for name in tested]) >= 0.98


def test_an_export_gives_on_200_jpegs_the_probabilities_of_the_model(server: Server, fine_tuned: Ended):
    store = Path(fine_tuned.json["model"]).parents[2]
    ended = server.thaw("export", fine_tuned.json["model"], "--format", "onnx", "--store", store, "--json")
    assert ended.code == 0, ended.err
    made = ended.json["pixels"]
    assert (made["images"], made["same_class"]) == (200, 200)
    assert made["largest"] < 1e-3
    assert made["accuracy"] == made["model_accuracy"] > 0.9


def test_weights_of_eight_bits_cost_no_more_than_a_few_images(server: Server, fine_tuned: Ended):
    store = Path(fine_tuned.json["model"]).parents[2]
    given = ("--format", "tflite", "--quantise", "int8", "--store", store, "--json")
    ended = server.thaw("export", fine_tuned.json["model"], *given)
    assert ended.code == 0, ended.err
    assert ended.json["bytes"] < 0.6 * Path(fine_tuned.json["model"]).stat().st_size
    assert ended.json["pixels"]["same_class"] >= 196


def test_unlabelled_images_of_kaggle_get_an_answer_each(server: Server, shared: Path, fine_tuned: Ended):
    answers = server.thaw(
        "predict", fine_tuned.json["model"], shared / "data" / "dogs-vs-cats-unlabelled.zip", "--json"
    ).json["images"]
    assert len(answers) == 200
    assert all(row["error"] is None and row["label"] in ("cat", "dog") for row in answers)
    shares = np.mean([row["label"] == "dog" for row in answers])
    assert 0.35 < shares < 0.65
