"""Settings: what is refused, and what the message says."""

import re
from pathlib import Path

import pytest

from thaw.config import TrainConfig, build_config
from thaw.errors import BadConfig
from thaw.recipe import RECIPES, list_recipes

DUMP = {"path": "train.zip"}


def refuse(settings: dict) -> str:
    with pytest.raises(BadConfig) as caught:
        build_config(settings)
    return str(caught.value)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_valid(name: str):
    config = build_config({"dump": DUMP, "recipe": name})
    assert config.recipe == name
    assert config.head.epochs >= 1


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_says_how_to_run_it_what_to_expect_and_mostly_whose_it_is(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("#   thaw ") for line in header)
    assert any("Expected" in line for line in header)
    assert path.stem == "demo" or any("Source:" in line for line in header)


def test_what_the_user_gives_wins_over_the_recipe_key_by_key():
    config = build_config({"dump": DUMP, "recipe": "blog-bottleneck", "head": {"epochs": 7}})
    assert config.head.epochs == 7
    assert config.head.batch_size == 16


def test_an_empty_section_is_the_recipe_itself():
    plain = build_config({"dump": DUMP, "recipe": "blog-finetune"})
    assert build_config({"dump": DUMP, "recipe": "blog-finetune", "fine_tune": None}) == plain


def test_a_form_offers_every_recipe_and_leaves_to_it_what_is_not_filled_in():
    schema = TrainConfig.model_json_schema()
    assert schema["properties"]["recipe"]["enum"] == list_recipes()
    sections = schema["$defs"].keys() - {"DumpConfig"}
    assert len(sections) == 12
    for section in sections:
        assert all("default" not in field for field in schema["$defs"][section]["properties"].values()), (
            section
        )


def test_a_config_survives_json():
    config = build_config({"dump": DUMP, "recipe": "book1-finetune", "gate": {"max_extensions": 7}})
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_an_unknown_recipe_names_the_nearest():
    assert "Did you mean 'book2-finetune'?" in refuse({"dump": DUMP, "recipe": "book2-finetun"})


def test_an_unknown_key_names_the_nearest():
    message = refuse({"dump": DUMP, "head": {"dropuot": 0.2}})
    assert "unknown setting 'head.dropuot'" in message
    assert "'dropout'" in message


def test_an_unknown_nested_key_names_the_nearest():
    assert "'learning_rate'" in refuse({"dump": DUMP, "head": {"optimizer": {"learning_rat": 0.2}}})


@pytest.mark.parametrize(
    ("section", "key", "value", "nearest"),
    [
        ("head", "epochs", 0, "1"),
        ("head", "dropout", 1.0, "just below 1.0"),
        ("backbone", "image_size_pixels", 8, "16"),
        ("gate", "patience_epochs", 1, "2"),
    ],
)
def test_a_value_out_of_bounds_names_the_nearest_valid_one(section, key, value, nearest):
    message = refuse({"dump": DUMP, section: {key: value}})
    assert f"'{section}.{key}'" in message
    assert f"The nearest valid value is {nearest}." in message


def test_an_unknown_choice_names_the_nearest():
    assert "Did you mean 'vgg16-mini'?" in refuse({"dump": DUMP, "backbone": {"name": "vgg16mini"}})


def test_phases_are_changed_together_and_by_their_number():
    changes = {"epochs": 5, "1": {"cut": "block3_pool"}}
    first, second = build_config({"dump": DUMP, "recipe": "book2-finetune", "fine_tune": changes}).fine_tune
    assert (first.cut, first.epochs, first.views) == ("block4_pool", 5, 3)
    assert (second.cut, second.epochs, second.views) == ("block3_pool", 5, 0)
    assert "a list of 1" in refuse({"dump": DUMP, "recipe": "book2-finetune", "fine_tune": {"5": {}}})
    assert "'fine_tune.0.epcohs'" in refuse({"dump": DUMP, "fine_tune": {"epcohs": 5, "0": {}}})


def test_a_phase_moves_gently_also_where_its_optimizer_is_another():
    config = build_config(
        {"dump": DUMP, "recipe": "book2-bottleneck", "fine_tune": {"optimizer": {"name": "sgd"}}}
    )
    assert config.fine_tune[0].optimizer.learning_rate == 1e-5


def test_a_number_alone_stands_for_one_hidden_layer():
    assert build_config({"dump": DUMP, "head": {"dense_units": 32}}).head.dense_units == (32,)
    changed = build_config({"dump": DUMP, "recipe": "fashion-convnet", "head": {"dense_units": {"0": 16}}})
    assert changed.head.dense_units == (16, 64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"recipe": "alexnet", "backbone": {"image_size_pixels": 32}}, "'alexnet' needs .* 67 or more"),
        ({"backbone": {"image_size_pixels": 20}}, "vgg16 needs image_size_pixels of 32 or more"),
        ({"recipe": "lenet5", "backbone": {"preprocessing": "caffe"}}, "one of unit, signed, raw"),
        ({"backbone": {"colour": "grey"}}, "vgg16 takes three channels"),
        ({"head": {"network": "lenet5"}}, "set backbone.name to 'none'"),
        ({"head": {"views": "frsh"}}, "^setting 'head.views': .* Did you mean 'fresh'[?]$"),
    ],
)
def test_parts_that_do_not_go_together_are_told_before_anything_starts(settings: dict, words: str):
    assert re.search(words, refuse({"dump": DUMP, **settings}))


def test_every_fault_is_listed_at_once():
    message = refuse({"dump": {**DUMP, "laiout": "flat"}, "head": {"epochs": -1}})
    assert "'layout'" in message
    assert "'head.epochs'" in message


def test_a_missing_dump_says_what_it_is():
    assert "labelled images" in refuse({})


@pytest.mark.parametrize(
    "split",
    [
        {"train": 0.7, "validation": 100},
        {"train": 0.7, "validation": 0.3, "test": 0.2},
        {"strategy": "hash", "train": 100},
        {"train": 100.5},
    ],
)
def test_shares_that_make_no_split_are_refused(split: dict):
    assert "Received" in refuse({"dump": DUMP, "recipe": "book2-bottleneck", "split": split})


def test_a_file_of_weights_is_the_same_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settings = {"dump": {"path": "train.zip"}, "backbone": {"weights": "vgg16.h5"}}
    config = build_config(settings)
    assert config.backbone.weights == str(tmp_path / "vgg16.h5")
    assert config.dump.path == tmp_path / "train.zip"
    named = build_config({**settings, "backbone": {"weights": "imagenet"}})
    assert named.backbone.weights == "imagenet"
