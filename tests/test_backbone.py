"""The backbone: found, checked and cut; prefix and suffix together are the uncut model."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from thaw.architectures import preprocess
from thaw.backbone import build_backbone, cut_points, find_cut, load_backbone
from thaw.config import BackboneConfig
from thaw.cuts import split_model
from thaw.device import prepare_keras
from thaw.errors import BadCut, BadWeights
from thaw.mini import DRAWINGS_WEIGHTS
from thaw.records import Backbone
from thaw.store import Store

MINI = BackboneConfig(name="vgg16-mini", weights="drawings", image_size_pixels=48)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(MINI, Store(tmp_path_factory.mktemp("backbone") / "store")).value


def some_pixels(size: int = 48) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (2, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("cut", ["block1_pool", "block3_conv2", "block4_pool", "block5_conv1", "block5_pool"])
def test_prefix_and_suffix_reproduce_the_uncut_model_exactly(mini: Backbone, cut: str):
    model = build_backbone(mini, 48)
    features = np.asarray(split_model(model, None, cut)(some_pixels()))
    whole = np.asarray(model(some_pixels()))
    if cut == mini.end:
        np.testing.assert_array_equal(features, whole)
    else:
        np.testing.assert_array_equal(np.asarray(split_model(model, cut, None)(features)), whole)


@pytest.mark.parametrize("size", [32, 48, 75])
def test_any_image_size_from_32_pixels_can_be_used(mini: Backbone, size: int):
    assert build_backbone(mini, size)(some_pixels(size)).shape == (2, size // 32, size // 32, 64)


def test_a_cut_at_no_layer_names_the_valid_ones(mini: Backbone):
    with pytest.raises(BadCut, match=r"block6_pool.*block4_pool, block5_pool"):
        find_cut(mini, "block6_pool")


def test_cut_points_run_from_shallow_to_deep(mini: Backbone):
    assert cut_points(mini, "block3_pool") == ("pixels", "block1_pool", "block2_pool", "block3_pool")
    assert cut_points(mini, "block2_conv1") == ("pixels", "block1_pool", "block2_conv1")


def test_caffe_preprocessing_is_what_keras_applications_does():
    keras = prepare_keras()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.float32)
    expected = keras.applications.vgg16.preprocess_input(pixels.copy())
    np.testing.assert_allclose(np.asarray(preprocess(pixels, "caffe")), expected, atol=1e-4)


def test_unit_preprocessing_brings_pixels_to_0_to_1():
    np.testing.assert_allclose(np.asarray(preprocess(np.full((1, 2, 2, 3), 255.0), "unit")), 1.0)


def test_a_backbone_seen_before_is_not_built_again(tmp_path: Path):
    store = Store(tmp_path / "store")
    assert not load_backbone(MINI, store).reused
    assert load_backbone(MINI, store).reused


def test_random_weights_are_the_same_every_time(tmp_path: Path):
    random = load_backbone(MINI.model_copy(update={"weights": "random"}), Store(tmp_path / "store")).value
    one, other = build_backbone(random, 32).get_weights(), build_backbone(random, 32).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def refuse(settings: BackboneConfig, tmp_path: Path) -> str:
    with pytest.raises(BadWeights) as caught:
        load_backbone(settings, Store(tmp_path / "store"))
    return str(caught.value)


def test_missing_weights_name_the_ways_to_supply_them(tmp_path: Path):
    message = refuse(BackboneConfig(weights=str(tmp_path / "none.h5")), tmp_path)
    assert "none.h5" in message
    assert "imagenet" in message


def test_weights_of_another_architecture_are_refused(tmp_path: Path):
    message = refuse(BackboneConfig(weights=str(DRAWINGS_WEIGHTS)), tmp_path)
    assert "does not hold weights of vgg16" in message


def test_a_file_of_weights_goes_with_a_store_that_other_machines_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    store = Store(f"memory://{tmp_path.name}")
    file = Path(shutil.copy(DRAWINGS_WEIGHTS, tmp_path / "mine.weights.h5"))
    config = MINI.model_copy(update={"weights": str(file)})
    first, again = load_backbone(config, store).value, load_backbone(config, store).value
    file.unlink()
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "another"))
    elsewhere, here = (
        build_backbone(one, 48)(some_pixels()) for one in (first, load_backbone(MINI, store).value)
    )
    np.testing.assert_array_equal(np.asarray(elsewhere), np.asarray(here))
    assert first == again
    assert first.weights.startswith(f"{store.address}/weights/")
    store.discard("weights")
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "third"))
    with pytest.raises(BadWeights, match="no weights at memory://.* any more"):
        build_backbone(first, 48)


def test_a_corrupt_weights_file_is_refused(tmp_path: Path):
    path = tmp_path / "corrupt.weights.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 1000)
    assert "does not hold weights" in refuse(BackboneConfig(weights=str(path)), tmp_path)


def test_weights_with_missing_layers_are_refused(tmp_path: Path):
    path = tmp_path / "empty.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = []
    assert "does not hold weights" in refuse(BackboneConfig(weights=str(path)), tmp_path)


def test_the_small_backbone_is_never_passed_off_as_imagenet(tmp_path: Path):
    assert "'drawings'" in refuse(MINI.model_copy(update={"weights": "imagenet"}), tmp_path)
    assert "'imagenet'" in refuse(BackboneConfig(weights="drawings"), tmp_path)


@pytest.mark.real
def test_the_real_imagenet_weights_load_and_cut_exactly(shared: Path, tmp_path: Path):
    weights = shared / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    backbone = load_backbone(BackboneConfig(weights=str(weights)), Store(tmp_path / "store")).value
    assert backbone.preprocessing == "caffe"
    model = build_backbone(backbone, 64)
    features = split_model(model, None, "block4_pool")(some_pixels(64))
    np.testing.assert_array_equal(
        np.asarray(split_model(model, "block4_pool", None)(features)), np.asarray(model(some_pixels(64)))
    )
