"""The search for a head: what is tried on which images, who wins, and what the report says of it."""

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from tests.command import PROJECT
from tests.prepared import Prepared
from tests.test_folds import make_split
from thaw.config import HeadConfig, SearchConfig, build_config
from thaw.errors import BadConfig, NotPublished, ShortClass
from thaw.features import cache_features
from thaw.folds import Spread
from thaw.records import Made, Split
from thaw.report.search import describe_search, say_changes, tabulate_search
from thaw.rows import ViewSource
from thaw.search import (
    Candidate,
    HeadSearch,
    choose_head,
    list_changes,
    publish_search,
    publish_search_folds,
    score_candidate,
)
from thaw.store import Store

DUMP = {"dump": {"path": "train.zip"}, "recipe": "demo"}


def make_candidate(loss: float, dropout: float = 0.5, chosen: bool = False) -> Candidate:
    """A made-up candidate."""
    return Candidate(
        changes={"dropout": dropout, "dense_units": [64, 32]},
        accuracy=Spread(mean=0.9731, standard_deviation=0.0042, standard_error=0.0019),
        log_loss=Spread(mean=loss, standard_deviation=0.0158, standard_error=0.0071),
        best_epoch=12.4,
        chosen=chosen,
    )


def make_search() -> HeadSearch:
    """A made-up search whose last candidate won."""
    losses = {0.0: 0.31, 0.3: math.inf, 0.5: 0.27}
    candidates = tuple(make_candidate(loss, dropout, loss == 0.27) for dropout, loss in losses.items())
    return HeadSearch(
        address="00aa11bb22cc33dd", split="5b11d16e5b11d16e", folds=5, images=2000, candidates=candidates
    )


def test_only_training_images_are_dealt_into_folds_and_these_have_no_test_images(store: Store):
    split = make_split(cat=30, dog=24)
    made = publish_search_folds(split, SearchConfig(folds=4), 3, store)
    assert Counter(row for fold in made.value for row in fold.validation) == Counter(split.train)
    for fold in made.value:
        assert {*fold.train, *fold.validation} == set(split.train)
        assert fold.test == ()
        assert store.read("splits", fold.digest, Split) == fold
    assert made.note == f"4 folds of {len(split.train)} training images"


def test_the_folds_of_other_validation_and_test_images_are_the_same(store: Store):
    split = make_split(cat=30, dog=24)
    folds = publish_search_folds(split, SearchConfig(), 0, store)
    again = publish_search_folds(replace(split, validation=(), test=()), SearchConfig(), 0, store)
    assert again.reused
    assert again.value == folds.value


def test_fewer_training_images_of_a_class_than_folds_are_refused(store: Store):
    with pytest.raises(ShortClass, match=r"class 'cat' has 4 training images, the 5 folds .* search.folds"):
        publish_search_folds(make_split(cat=6, dog=30), SearchConfig(), 0, store)


def test_the_candidates_are_every_combination_and_the_first_setting_varies_slowest():
    grid = {"dropout": [0.2, 0.5], "optimizer": {"learning_rate": [0.01, 0.001]}}
    head, search = HeadConfig(epochs=7), SearchConfig(grid=grid)
    tried = search.list_candidates(head)
    combinations = [(0.2, 0.01), (0.2, 0.001), (0.5, 0.01), (0.5, 0.001)]
    assert [(one.dropout, one.optimizer.learning_rate) for one in tried] == combinations
    assert {one.epochs for one in tried} == {7}
    assert list_changes(search, head) == [
        {"optimizer.learning_rate": rate, "dropout": dropout} for dropout, rate in combinations
    ]


def test_the_changes_are_what_the_candidates_and_the_head_do_not_have_alike():
    grid = {
        "dropout": [0.5],
        "l2": [0.001],
        "dense_units": [32, [64, 32]],
        "optimizer": [{"name": "adam"}, {"name": "sgd"}],
    }
    first, *_, last = list_changes(SearchConfig(grid=grid), HeadConfig())
    assert first == {"optimizer.name": "adam", "l2": 0.001, "dense_units": [32]}
    assert last == {"optimizer.name": "sgd", "l2": 0.001, "dense_units": [64, 32]}
    assert say_changes(last) == "optimizer.name sgd, l2 0.001, dense_units [64, 32]"
    assert say_changes({}) == "the head as it is"


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"dropout": 0.5}, r"'search.grid.dropout': takes a list of values to try. Received: 0.5"),
        ({"dropout": []}, r"'search.grid.dropout': takes a list"),
        ({"optimizer": {"name": "adam"}}, r"'search.grid.optimizer.name': takes a list"),
        ({"dropout": [0.5, 1.5]}, r"'search.grid': .*dropout.* 1.5"),
        ({"droput": [0.5]}, r"'search.grid': .*droput.*Did you mean 'dropout'"),
    ],
)
def test_what_no_head_can_have_is_told_in_one_line_before_anything_starts(grid: dict, words: str):
    with pytest.raises(BadConfig, match=words) as caught:
        build_config({**DUMP, "search": {"grid": grid}})
    assert str(caught.value).count("\n") == 0


def test_the_smallest_mean_log_loss_wins_and_the_first_of_equals():
    candidates = [make_candidate(loss) for loss in (0.4, 0.3, 0.3, 0.5)]
    assert choose_head(candidates) is candidates[1]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_wins_only_where_nothing_is(loss: float):
    candidates = [make_candidate(loss), make_candidate(9.0), make_candidate(loss)]
    assert choose_head(candidates) is candidates[1]
    assert choose_head(candidates[::2]) is candidates[0]


def test_a_search_goes_through_json_and_the_chosen_settings_take_the_place_of_the_heads_own():
    made = make_search()
    assert HeadSearch.from_json(made.to_json()) == made
    head = HeadConfig(dropout=0.1, dense_units=(8, 8, 8), epochs=7)
    assert made.apply(head) == HeadConfig(dropout=0.5, dense_units=(64, 32), epochs=7)


def test_settings_of_the_optimizer_are_taken_over_one_by_one():
    winner = replace(make_candidate(0.1, chosen=True), changes={"optimizer.learning_rate": 0.01})
    search = replace(make_search(), candidates=(winner,))
    head = HeadConfig(optimizer={"name": "sgd", "momentum": 0.9})
    changed = search.apply(head).optimizer
    assert (changed.name, changed.momentum, changed.learning_rate) == ("sgd", 0.9, 0.01)


def test_the_report_has_a_column_for_each_setting_and_lists_the_chosen_candidate_first():
    table = tabulate_search(make_search())
    assert table.columns == ("dropout", "dense_units", "accuracy", "log loss", "best epoch")
    assert table.rows[0] == ("0.5", "[64, 32]", "97.3 ± 0.4\u00a0%", "0.2700 ± 0.0158", "12.4")
    assert [row[0] for row in table.rows] == ["0.5", "0.0", "0.3"]
    assert table.rows[2][3].startswith("not finite")


def test_the_report_says_how_the_head_was_chosen_and_that_its_figures_flatter_it():
    section = describe_search(make_search())
    said = " ".join(section.text)
    assert (section.name, section.title) == ("search", "Search for a head")
    assert "the 2,000 training images were divided into 5 folds" in said
    assert "Validation and test images took no part" in said
    assert "The smallest mean log loss was that of dropout 0.5" in said
    assert "flatter it a little" in said
    assert section.tables == [tabulate_search(make_search())]


@pytest.mark.parametrize("first", ["thaw.search", "thaw.folds", "thaw.report", "thaw.report.search"])
def test_each_module_can_be_the_first_that_is_imported(first: str):
    order = [first, "thaw.search", "thaw.folds", "thaw.report", "thaw.report.search"]
    command = [sys.executable, "-c", "\n".join(f"import {name}" for name in order)]
    subprocess.run(command, check=True, cwd=PROJECT)


GRID = {"optimizer": {"learning_rate": [1e-5, 3e-3]}}


def search(prepared: Prepared, store: Store, grid: dict, views: int | str = 0) -> Made[HeadSearch]:
    """A search on the small run's own drawings, as the flow chains it."""
    config = prepared.config.model_copy(
        update={
            "search": SearchConfig(grid=grid, folds=2),
            "head": prepared.config.head.model_copy(update={"epochs": 5, "views": views}),
        }
    )
    source = ViewSource(
        dump=config.dump,
        backbone=prepared.backbone,
        settings=config.backbone,
        augmentation=config.augmentation,
    )
    folds = publish_search_folds(prepared.split, config.search, config.split.seed, store).value
    images = (config.dump, prepared.backbone, config.backbone, prepared.backbone.end, store)
    given = (views, config.augmentation if views else None)
    features = [cache_features(fold, *images, *given, sides=("train", "validation")).value for fold in folds]
    scored = [
        score_candidate(features, head, config.gate, store, source).value
        for head in config.search.list_candidates(config.head)
    ]
    return publish_search(scored, prepared.split, config, store)


@pytest.mark.slow
def test_the_head_that_learns_wins_over_one_that_hardly_moves_and_is_found_the_second_time(
    prepared: Prepared,
):
    made, again = (search(prepared, store, GRID) for store in (prepared.store, prepared.store.looking()))
    assert (made.reused, again.reused) == (False, True)
    assert again.value == made.value
    slow, fast = made.value.candidates
    assert made.value.chosen == fast
    assert fast.log_loss.mean < slow.log_loss.mean
    assert fast.accuracy.mean > 0.7
    assert (made.value.folds, made.value.images) == (2, 120)
    assert made.value.apply(prepared.config.head).optimizer.learning_rate == 3e-3
    assert prepared.store.read("searches", made.value.address, HeadSearch) == made.value


@pytest.mark.slow
def test_a_store_that_is_only_looked_at_holds_no_search_that_was_not_made(prepared: Prepared):
    with pytest.raises(NotPublished):
        search(prepared, prepared.store.looking(), {"dropout": [0.123]})


@pytest.mark.slow
def test_candidates_learn_from_fresh_views_as_well(prepared: Prepared):
    made = search(prepared, prepared.store, {"epochs": [2]}, views="fresh").value
    (only,) = made.candidates
    assert only.chosen
    assert only.changes == {"epochs": 2}
    assert 1 <= only.best_epoch <= 2


def test_a_grid_replaces_the_recipes_and_an_empty_one_searches_for_nothing():
    searching = {"dump": {"path": "train.zip"}, "recipe": "best"}
    assert len(build_config(searching).search.list_candidates(HeadConfig())) == 8
    own = build_config({**searching, "search": {"grid": {"dropout": [0.1, 0.2]}}})
    assert dict(own.search.grid) == {"dropout": [0.1, 0.2]}
    assert not build_config({**searching, "search": {"grid": {}}}).search.grid
    assert build_config({**searching, "search": {"folds": 3}}).search.grid


def test_a_seed_is_not_searched_for():
    with pytest.raises(BadConfig, match=r"search.grid.seed.*ensemble.members"):
        build_config({**DUMP, "search": {"grid": {"seed": [0, 1]}}})
