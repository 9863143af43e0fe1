"""Every recipe: its networks are built as it says and take one step, with random weights and random pixels."""

import numpy as np
import pytest

from thaw.architectures import preprocess
from thaw.backbone import build_backbone, find_cut, load_backbone
from thaw.config import NO_BACKBONE, TrainConfig, build_config
from thaw.cuts import split_model
from thaw.device import prepare_keras
from thaw.fine_tune import thaw_suffix
from thaw.head import build_head
from thaw.recipe import list_recipes
from thaw.records import PIXELS
from thaw.steps import compile_network, compile_steps
from thaw.store import Store

IMAGES = 2


def read_config(recipe: str) -> TrainConfig:
    """The recipe as it is, but for pretrained weights, which take a download."""
    config = build_config({"dump": {"path": "train.zip"}, "recipe": recipe})
    if config.backbone.weights != "imagenet" or config.backbone.name == NO_BACKBONE:
        return config
    return build_config({"dump": {"path": "train.zip"}, "recipe": recipe, "backbone": {"weights": "random"}})


def take_a_step(network, features: np.ndarray) -> None:
    labels = np.arange(IMAGES)[None]
    loss, _ = compile_steps(network).train(features[None], labels)
    assert np.isfinite(loss)
    assert all(np.isfinite(weights).all() for weights in network.get_weights())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", list_recipes())
def test_a_recipe_builds_and_takes_a_step_in_each_of_its_phases(recipe: str, store: Store):
    config = read_config(recipe)
    settings, size = config.backbone, config.backbone.image_size_pixels
    backbone = load_backbone(settings, store).value
    dice = np.random.default_rng(0)
    pixels = dice.integers(0, 256, (IMAGES, size, size, settings.channels)).astype(np.uint8)

    def reach(cut: str) -> np.ndarray:
        if cut == PIXELS:
            return pixels
        prefix = split_model(build_backbone(backbone, size), None, cut)
        scaled = preprocess(pixels.astype(np.float32), backbone.preprocessing)
        return np.asarray(prefix(scaled))

    bottleneck = reach(backbone.end)
    kind = backbone.preprocessing if backbone.end == PIXELS else None
    network = build_head(bottleneck.shape[1:], 2, config.head, kind)
    compile_network(network, config.head.optimizer, 2)
    take_a_step(network, bottleneck)
    before = backbone.end
    for phase in config.fine_tune:
        cut = find_cut(backbone, phase.cut)
        network = thaw_suffix(build_backbone(backbone, size), cut, before, network, backbone.preprocessing)
        compile_network(network, phase.optimizer, 2)
        take_a_step(network, reach(cut))
        before = cut
    prepare_keras().backend.clear_session()
