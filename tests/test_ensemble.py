"""Several networks as one model: who takes part, what their average is, and that plain Keras gives the same."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.command import SMALL, Ended, Server
from tests.conftest import small_config
from tests.prepared import Prepared, head_of
from tests.run_samples import (
    IMPROVING,
    PLATEAUED,
    make_checkpoint,
    make_evaluation,
    make_history,
    make_member,
    make_run,
)
from thaw.archive import open_dump
from thaw.augment import MIRROR, draw_view
from thaw.ensemble import choose_members, join_members, list_members
from thaw.evaluate import evaluate, measure
from thaw.extract import read_pixels
from thaw.features import cache_mirrored
from thaw.model import assemble_model
from thaw.records import Features
from thaw.report import render_markdown
from thaw.rows import Rows
from thaw.trainer import load_network, predict_rows


@pytest.fixture(scope="module")
def mirrored(prepared: Prepared) -> Features:
    config = prepared.config
    given = (prepared.split, config.dump, prepared.backbone, config.backbone, "block5_pool")
    return cache_mirrored(*given, prepared.store).value


def test_members_have_seeds_that_count_up_in_the_head_and_in_each_phase():
    config = small_config(Path("drawn.zip"), head={"seed": 7}, ensemble={"members": 3})
    assert [(own.head.seed, own.fine_tune[0].seed) for own in list_members(config)] == [
        (7, 0),
        (8, 1),
        (9, 2),
    ]


def test_only_those_take_part_that_thawed_as_far_as_any():
    shut = make_member(1, IMPROVING, ())
    one_phase, two_phases = make_member(2), make_member(3, phase_verdicts=(PLATEAUED, PLATEAUED))
    assert choose_members([shut, one_phase, two_phases], fine_tunes=True) == (two_phases,)
    assert choose_members([shut, one_phase], fine_tunes=True) == (one_phase,)
    assert choose_members([shut], fine_tunes=True) == ()


def test_a_head_that_still_improves_takes_part_where_nothing_is_to_thaw():
    improving, hopeless = (
        make_member(0, dataclasses.replace(IMPROVING, state=state), ()) for state in ("improving", "diverged")
    )
    assert choose_members([improving, hopeless], fine_tunes=False) == (improving,)


def test_the_average_is_the_mean_of_the_members_probabilities(prepared: Prepared):
    members = [head_of(prepared, epochs=1, seed=seed).value for seed in (0, 1)]
    joined = join_members(members, prepared.bottlenecks, None, prepared.store).value
    rows = Rows(prepared.bottlenecks.test, prepared.store)
    alone = [predict_rows(load_network(prepared.store, one.address), rows) for one in members]
    scored = evaluate(joined, prepared.bottlenecks.test, prepared.store).value
    seen = np.array([row.probabilities for row in scored.predictions])
    assert not np.allclose(*alone, atol=1e-3)
    np.testing.assert_allclose(seen, np.mean(alone, axis=0), atol=1e-6)


def test_its_validation_figures_are_of_the_average(prepared: Prepared, mirrored: Features):
    head = head_of(prepared, epochs=1).value
    joined = join_members([head], prepared.bottlenecks, mirrored, prepared.store).value
    rows = [Rows(side.validation, prepared.store) for side in (prepared.bottlenecks, mirrored)]
    network = load_network(prepared.store, head.address)
    expected = measure(rows[0].labels, np.mean([predict_rows(network, each) for each in rows], axis=0))
    assert joined.history.best.val_loss == pytest.approx(expected.log_loss)
    assert joined.history.best.val_accuracy == expected.accuracy
    assert joined.mirrored


def test_it_is_joined_once(prepared: Prepared):
    head = head_of(prepared, epochs=1).value
    given = ([head, head_of(prepared, epochs=1, seed=1).value], prepared.bottlenecks, None, prepared.store)
    join_members(*given)
    assert join_members(*given).reused


def test_a_mirrored_checkpoint_is_not_scored_without_mirror_images(prepared: Prepared, mirrored: Features):
    head = head_of(prepared, epochs=1).value
    joined = join_members([head], prepared.bottlenecks, mirrored, prepared.store).value
    with pytest.raises(ValueError, match="mirrored=True"):
        evaluate(joined, prepared.bottlenecks.test, prepared.store)


def test_the_mirror_image_is_the_image_turned_left_to_right():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_view(pixels, "ab" * 32, 1, MIRROR), pixels[:, ::-1])


def test_the_model_averages_over_image_and_mirror_image_as_it_was_tested(
    prepared: Prepared, mirrored: Features
):
    config, store = prepared.config, prepared.store
    members = [head_of(prepared, epochs=1, seed=seed).value for seed in (0, 1)]
    joined = join_members(members, prepared.bottlenecks, mirrored, store).value
    tested = evaluate(joined, prepared.bottlenecks.test, store, mirrored.test).value
    model = assemble_model(joined, prepared.backbone, config.backbone, store)
    with open_dump(config.dump.path) as dump:
        pixels = np.stack([read_pixels(dump, row, config.backbone) for row in prepared.split.test])
    seen = model.predict(pixels.astype(np.float32), verbose=0)
    expected = np.array([row.probabilities[1] for row in tested.predictions])
    np.testing.assert_allclose(seen[:, 0], expected, atol=5e-4)
    unmirrored = dataclasses.replace(joined, mirrored=False)
    alone = assemble_model(unmirrored, prepared.backbone, config.backbone, store)
    assert np.abs(alone.predict(pixels.astype(np.float32), verbose=0)[:, 0] - expected).max() > 2e-3


def test_the_report_lists_who_was_averaged_and_who_was_left_out():
    history = make_history(0, start=make_history().best)
    joined = dataclasses.replace(make_checkpoint("ensemble", history), mirrored=True)
    members, left_out = (make_member(0), make_member(1)), (make_member(2, IMPROVING, ()),)
    evaluation = make_evaluation("ensemble", wrong=15)
    text = render_markdown(
        make_run(members=members, left_out=left_out, ensemble=joined, evaluation=evaluation, pictures={})
    )
    assert "2 networks averaged, over each image and its mirror image, fine-tuned: 98.5 %" in text.replace(
        "\u00a0", " "
    )
    assert "first head alone 96.9" in text
    assert "1 of 3 members is left out of the model: seed 2 stopped at its head, improving." in text
    assert "Fine-tuning and averaging mended 16 of the first head's mistakes" in text
    assert "This is the verdict on seed 0; there are 2 more." in text


def test_the_report_of_heads_that_are_averaged_speaks_of_no_fine_tune():
    heads = tuple(make_member(seed, phase_verdicts=()) for seed in (0, 1))
    joined = make_checkpoint("ensemble", make_history(0, start=make_history().best))
    evaluation = make_evaluation("ensemble", wrong=15)
    run = make_run(members=heads, ensemble=joined, evaluation=evaluation, pictures={})
    text = render_markdown(run).replace("\u00a0", " ")
    assert "2 networks averaged, backbone kept frozen: 98.5 %" in text
    assert "Averaging mended 16 of the first head's mistakes" in text
    assert "| seed | loss | accuracy |" in text


def test_a_member_whose_gate_was_overridden_is_not_passed_over():
    overridden = dataclasses.replace(IMPROVING, overridden=True)
    members = (make_member(0), make_member(1, overridden))
    joined = make_checkpoint("ensemble", make_history(0, start=make_history().best))
    evaluation = make_evaluation("ensemble", wrong=15)
    text = render_markdown(make_run(members=members, ensemble=joined, evaluation=evaluation, pictures={}))
    assert "Its verdict was improving" in text


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("averaged") / "store"


BEST = [
    "--set=search.grid={dropout: [0.2, 0.5]}",
    "--set=search.folds=2",
    "--set=ensemble={members: 2, mirrored: true}",
]


@pytest.fixture(scope="module")
def averaged(server: Server, drawn_dump: Path, store: Path) -> Ended:
    """A run that searches for a head, and averages two networks over images and mirror images."""
    return server.thaw("train", "--dump", drawn_dump, "--store", store, "--json", *SMALL, *BEST)


@pytest.mark.slow
def test_a_run_searches_for_a_head_and_averages_what_it_trained(averaged: Ended):
    assert averaged.code == 0, averaged.err
    stages = averaged.json["seconds"]
    assert [name.partition(":")[0] for name in stages if "candidate" in name] == [
        "candidate 1 of 2",
        "candidate 2 of 2",
    ]
    assert {f"fine-tune after block4_pool, seed {seed}" for seed in (0, 1)} <= stages.keys()
    assert {"choose the head", "mirror images at block4_pool", "average what was trained"} <= stages.keys()
    report = Path(averaged.json["report"]).with_suffix(".md").read_text(encoding="utf-8")
    assert "Search for a head" in report
    assert "2 networks averaged, over each image and its mirror image" in report


@pytest.mark.slow
def test_plain_keras_loads_it_and_it_takes_an_image_for_what_it_takes_its_mirror_image(
    averaged: Ended, tmp_path: Path
):
    script = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1])
images = np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype("float32")
np.testing.assert_allclose(model.predict(images), model.predict(images[:, :, ::-1]), atol=1e-6)
assert "thaw" not in sys.modules
"""
    given = [sys.executable, "-c", script, averaged.json["model"]]
    ended = subprocess.run(given, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_the_same_run_again_makes_nothing(averaged: Ended, server: Server, drawn_dump: Path, store: Path):
    again = server.thaw("train", "--dump", drawn_dump, "--store", store, "--json", *SMALL, *BEST)
    assert again.code == 0, again.err
    assert again.json["test_log_loss"] == averaged.json["test_log_loss"]
    assert set(again.json["seconds"]) - set(again.json["cached"]) == {"judge convergence"}


@pytest.mark.slow
def test_an_averaging_champion_is_judged_and_predicts_as_any_other(
    averaged: Ended, server: Server, drawn_dump: Path, store: Path
):
    named = server.thaw("promote", "v1", "--store", store)
    assert named.code == 0, named.err
    retrained = server.thaw("retrain", "--dump", drawn_dump, "--store", store, "--json", *SMALL)
    assert retrained.code == 0, retrained.err
    comparison = retrained.json["decision"]["comparison"]
    assert comparison["champion_accuracy"] == averaged.json["test_accuracy"]
    answered = store / "answers.csv"
    predicted = server.thaw(
        "predict", averaged.json["model"], drawn_dump, "--file", answered, "--store", store
    )
    assert predicted.code == 0, predicted.err
    tested = json.loads((Path(averaged.json["model"]).parent / "evaluation.json").read_text())["predictions"]
    rows = csv.DictReader(answered.read_text(encoding="utf-8").splitlines())
    answers = {row["path"].rpartition("/")[2]: float(row["p_dog"]) for row in rows}
    for row in tested:
        assert answers[row["path"].rpartition("/")[2]] == pytest.approx(row["probabilities"][1], abs=2e-3)
