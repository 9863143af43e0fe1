"""Where networks can be cut; and that the parts, one after the other, are the whole."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from thaw.architectures import ARCHITECTURES, build_architecture, preprocess
from thaw.cuts import Cut, find_cuts, find_stages, group_by_stage, resolve_cut, split_model
from thaw.device import list_layers, prepare_keras
from thaw.errors import BadCut

VGG_STAGES = ("block1_pool", "block2_pool", "block3_pool", "block4_pool", "block5_pool")
# As the papers' tables have them, by the names of keras.applications.
STAGES = {
    "vgg16": VGG_STAGES,
    "resnet50": (
        "pool1_pool",
        "conv2_block3_out",
        "conv3_block4_out",
        "conv4_block6_out",
        "conv5_block3_out",
    ),
    "resnet50v2": ("pool1_pool", "conv2_block2_out", "conv3_block3_out", "conv4_block5_out", "post_relu"),
    "xception": ("block1_conv2_act", "add", "add_1", "add_10", "block14_sepconv2_act"),
    "inceptionv3": ("max_pooling2d", "max_pooling2d_1", "mixed2", "mixed7", "mixed10"),
    "mobilenetv2": ("expanded_conv_project_BN", "block_2_add", "block_5_add", "block_12_add", "out_relu"),
    "mobilenetv3small": (
        "activation",
        "expanded_conv_project_bn",
        "expanded_conv_2_add",
        "expanded_conv_7_add",
        "activation_17",
    ),
    "densenet121": ("pool1", "pool2_pool", "pool3_pool", "pool4_pool", "relu"),
    "efficientnetv2b0": (
        "block1a_project_activation",
        "block2b_add",
        "block3b_add",
        "block5e_add",
        "top_activation",
    ),
    "convnexttiny": (
        "convnext_tiny_downsampling_block_0",
        "convnext_tiny_downsampling_block_1",
        "convnext_tiny_downsampling_block_2",
        "layer_normalization",
    ),
    # Its cells take the outputs of two cells before them: nothing between stem and end can be cut.
    "nasnetmobile": ("stem_bn1", "activation_187"),
}
slow = pytest.mark.slow
FAMILIES = [pytest.param(name, marks=() if name == "vgg16" else slow) for name in STAGES]


@cache
def network(name: str) -> Any:
    prepare_keras().utils.set_random_seed(0)
    side = ARCHITECTURES[name].smallest_side_pixels
    return build_architecture(name, (side, side, 3))


def some_input(name: str) -> Any:
    """Preprocessed random pixels of the least size."""
    side = ARCHITECTURES[name].smallest_side_pixels
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.float32)
    return preprocess(pixels, ARCHITECTURES[name].preprocessing)


def names_of(model: Any) -> list[str]:
    return [layer.name for layer in model.layers]


def stages_of(model: Any) -> tuple[str, ...]:
    return find_stages(model, find_cuts(model))


def build_blocks() -> Any:
    """Two convolutions and a shortcut, an inner network, an operation, and a layer that is called twice."""
    keras = prepare_keras()
    layers = keras.layers
    pixels = keras.Input((8, 8, 3), name="pixels")
    entry = layers.Conv2D(4, 3, padding="same", name="entry")(pixels)
    inside = layers.Conv2D(4, 3, padding="same", name="inside")(entry)
    block = layers.Add(name="block")([entry, inside])
    down = keras.Sequential([layers.Conv2D(6, 2, strides=2, name="down_conv")], name="down")(block)
    shared = layers.Conv2D(6, 1, name="shared")
    return keras.Model(pixels, layers.ReLU(name="exit")(shared(shared(down) + 1.0)), name="blocks")


def test_a_chain_of_layers_can_be_cut_after_each():
    cuts = find_cuts(network("vgg16-mini"))
    assert [cut.name for cut in cuts] == names_of(network("vgg16-mini"))[1:]
    assert [cut.index for cut in cuts] == list(range(1, 19))
    assert cuts[2] == Cut(name="block1_pool", index=3, shape=(16, 16, 8))


def test_a_shortcut_past_a_layer_and_a_second_call_rule_out_cuts():
    assert [cut.name for cut in find_cuts(build_blocks())] == ["entry", "block", "down", "exit"]


def test_a_cut_knows_its_place_among_the_layers():
    model = build_blocks()
    assert all(model.layers[cut.index].name == cut.name for cut in find_cuts(model))


def test_a_residual_block_can_be_cut_at_its_end_alone():
    found = {cut.name for cut in find_cuts(network("resnet50"))}
    assert {"conv1_relu", "conv2_block1_out", "conv5_block3_out"} <= found
    assert found.isdisjoint({"conv2_block1_1_conv", "conv2_block1_0_bn", "conv5_block3_2_relu"})


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_end_where_features_are_cheapest_to_keep(name: str):
    assert stages_of(network(name)) == STAGES[name]


@slow
@pytest.mark.parametrize("name", ["mobilenetv2", "convnexttiny"])
def test_stages_are_the_same_at_every_image_size(name: str):
    assert stages_of(build_architecture(name, (180, 180, 3))) == STAGES[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_prefix_and_suffix_are_the_whole_network(name: str):
    model = network(name)
    pixels = some_input(name)
    expected = np.asarray(model(pixels, training=False))
    scale = np.abs(expected).max()
    assert 0 < scale < np.inf
    cuts = [cut.name for cut in find_cuts(model)]
    for cut in (*STAGES[name], cuts[len(cuts) // 2]):
        found = split_model(model, None, cut)(pixels, training=False)
        if cut != cuts[-1]:
            assert np.asarray(found).any()
            found = split_model(model, cut, None)(found, training=False)
        assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * scale, cut


def test_parts_share_the_weights_of_the_whole():
    model = network("vgg16-mini")
    part = split_model(model, "block2_pool", "block3_pool")
    assert names_of(part)[1:] == ["block3_conv1", "block3_conv2", "block3_conv3", "block3_pool"]
    assert part.get_layer("block3_conv2") is model.get_layer("block3_conv2")


def test_networks_inside_a_network_and_parts_of_parts_can_be_split():
    model = build_blocks()
    pixels = np.random.default_rng(0).uniform(0, 1, (2, 8, 8, 3)).astype(np.float32)
    rest = split_model(model, "entry", None)
    assert [cut.name for cut in find_cuts(rest)] == ["block", "down", "exit"]
    features = split_model(model, None, "entry")(pixels)
    features = split_model(rest, None, "down")(features)
    np.testing.assert_array_equal(split_model(rest, "down", None)(features), model(pixels))


def test_no_split_is_made_inside_a_block():
    with pytest.raises(BadCut, match="blocks can't be split at 'inside'.*entry, block, down, exit"):
        split_model(build_blocks(), "inside", None)


@pytest.mark.parametrize(("start", "end"), [("exit", None), ("block", "entry"), ("block", "block")])
def test_a_part_without_layers_is_refused(start: str, end: str | None):
    with pytest.raises(BadCut, match=f"no layers of blocks lie after '{start}'"):
        split_model(build_blocks(), start, end)


def resolve(name: str, cut: str | int) -> str:
    model = network(name)
    cuts = find_cuts(model)
    return resolve_cut(cut, cuts, find_stages(model, cuts), name, names_of(model))


def refuse(name: str, cut: str | int) -> str:
    with pytest.raises(BadCut) as caught:
        resolve(name, cut)
    return str(caught.value)


def test_a_cut_is_named_by_its_layer():
    assert resolve("vgg16-mini", "block4_conv2") == "block4_conv2"


@pytest.mark.parametrize("cut", [56, "56"])
def test_the_published_recipe_thaws_xception_from_layer_56_on(cut: str | int):
    assert resolve("xception", cut) == "add_4"
    assert names_of(network("xception"))[56] == "block7_sepconv1_act"


@pytest.mark.parametrize(("cut", "name"), [(2, "block1_conv1"), (15, "block4_pool"), ("19", "block5_pool")])
def test_a_number_is_that_of_the_first_layer_to_thaw(cut: str | int, name: str):
    assert resolve("vgg16-mini", cut) == name


def test_an_unknown_layer_names_the_nearest_and_the_stages():
    message = refuse("vgg16-mini", "block4_pol")
    assert "vgg16-mini has no layer 'block4_pol'" in message
    assert "Did you mean 'block4_pool'?" in message
    assert ", ".join(VGG_STAGES) in message
    assert "Did you mean" not in refuse("vgg16-mini", "top")


def test_a_layer_inside_a_block_names_the_cuts_around_it():
    message = refuse("resnet50", "conv3_block2_2_relu")
    assert "can't be cut at 'conv3_block2_2_relu'" in message
    assert "nearest cuts are conv3_block1_out and conv3_block2_add." in message
    assert "conv2_block3_out, conv3_block4_out" in message


def test_the_input_is_no_cut():
    assert "'input_layer' is the input of resnet50" in refuse("resnet50", "input_layer")


@pytest.mark.parametrize("number", [-20, 0, 1, "20"])
def test_a_number_out_of_range_names_the_range(number: str | int):
    message = refuse("vgg16-mini", number)
    assert f"number {number} on: numbers run from 2 to 18" in message


def test_a_number_inside_a_block_names_the_numbers_around_it():
    message = refuse("xception", "58")
    assert "from number 58 on: that cuts a block in two" in message
    assert "nearest numbers are 56 (after add_4) and 66 (after add_5)" in message


def test_layers_are_grouped_by_how_far_their_stage_lies_below_the_top():
    depths = group_by_stage(network("vgg16-mini"), "block3_pool", VGG_STAGES)
    assert list(depths) == names_of(network("vgg16-mini"))[11:]
    assert depths["block4_conv1"] == depths["block4_pool"] == 1
    assert depths["block5_conv1"] == depths["block5_pool"] == 0


def test_without_a_cut_every_layer_but_the_input_is_grouped():
    depths = group_by_stage(network("vgg16-mini"), None, VGG_STAGES)
    assert list(depths) == names_of(network("vgg16-mini"))[1:]
    assert depths["block1_conv1"] == 4


def test_layers_of_an_inner_network_are_grouped_with_it():
    model = build_blocks()
    assert group_by_stage(model, "entry", ("down", "exit")) == {
        "inside": 1,
        "block": 1,
        "down": 1,
        "down_conv": 1,
        "shared": 0,
        "exit": 0,
    }


def test_an_unknown_cut_can_not_be_grouped():
    with pytest.raises(BadCut, match="blocks has no layer 'block6'"):
        group_by_stage(build_blocks(), "block6", ("exit",))


@slow
def test_frozen_batch_normalization_keeps_its_statistics_in_a_training_step():
    keras = prepare_keras()
    keras.utils.set_random_seed(0)
    model = build_architecture("mobilenetv2", (32, 32, 3))
    suffix = split_model(model, "block_12_add", None)
    for layer in list_layers(suffix):
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    suffix.trainable_weights[0].assign(suffix.trainable_weights[0] * 10)
    before = [np.asarray(weight) for weight in suffix.weights]
    frozen = [not weight.trainable for weight in suffix.weights]
    suffix.compile("sgd", "mse")
    shapes = ((4, *suffix.input_shape[1:]), (4, *suffix.output_shape[1:]))
    random = np.random.default_rng(0)
    suffix.train_on_batch(*(random.normal(3, 5, shape).astype(np.float32) for shape in shapes))
    moved = [
        not np.array_equal(one, np.asarray(two)) for one, two in zip(before, suffix.weights, strict=True)
    ]
    assert any(moved)
    assert not any(has_moved for has_moved, is_frozen in zip(moved, frozen, strict=True) if is_frozen)
