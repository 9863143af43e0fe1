"""Minimal filtering: the same convolution by other arithmetic, wherever that saves work and nowhere else."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thaw import winograd
from thaw.device import compile_function, differentiate, prepare_keras
from thaw.winograd import choose_transforms, filter_minimally


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def build_layer(inputs: int, **settings: Any) -> Any:
    """A 3 × 3 convolution to 12 channels, with weights, changed by `settings`."""
    keras = prepare_keras()
    keras.utils.set_random_seed(0)
    plain = {"filters": 12, "kernel_size": 3, "padding": "same", "bias_initializer": "normal"}
    layer = keras.layers.Conv2D(**{**plain, **settings})
    layer.build((None, None, None, inputs))
    return layer


def compute(layer: Any, maps: np.ndarray) -> list[np.ndarray]:
    """What a layer makes of maps, and the gradients of that, weighted at random: of maps, kernel and bias."""
    keras = prepare_keras()
    entry = keras.Variable(maps)

    def weigh() -> tuple[Any, Any]:
        outputs = layer(entry)
        return keras.ops.sum(outputs * draw(*outputs.shape, seed=1)), outputs

    trace = compile_function(lambda: differentiate(weigh, [entry, layer.kernel, layer.bias]), fuse=False)
    outputs, gradients = trace()
    return [np.asarray(array) for array in (outputs, *gradients)]


def refuse(*_: Any) -> None:
    raise AssertionError("the plain convolution was computed")


@pytest.fixture
def offer_tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Offer tiles of these sizes only, and have them used whatever they cost."""

    def offer(*tiles_pixels: int) -> None:
        monkeypatch.setattr(winograd, "_TILES_PIXELS", tiles_pixels)
        monkeypatch.setattr(winograd, "_WORTH_IT", np.inf)

    return offer


@pytest.mark.parametrize("tile_pixels", [2, 3, 4])
@pytest.mark.parametrize("size_pixels", [1, 2, 4, 5, 9, 11])
def test_outputs_and_gradients_are_those_of_the_plain_convolution(
    offer_tiles, size_pixels: int, tile_pixels: int
):
    layer, maps = build_layer(10), draw(3, size_pixels, size_pixels, 10)
    expected = compute(layer, maps)
    offer_tiles(tile_pixels)
    layer.convolution_op = refuse
    filter_minimally(layer)
    for seen, plain in zip(compute(layer, maps), expected, strict=True):
        np.testing.assert_allclose(seen, plain, rtol=0, atol=1e-5 * np.abs(plain).max())


def test_as_many_channels_as_vgg16_has_cost_no_more_digits():
    layer, maps = build_layer(512, filters=512), np.maximum(draw(2, 9, 9, 512), 0)
    expected = compute(layer, maps)
    layer.convolution_op = refuse
    filter_minimally(layer)
    for seen, plain in zip(compute(layer, maps), expected, strict=True):
        assert np.linalg.norm(seen - plain) < 1e-5 * np.linalg.norm(plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"strides": 2},
        {"kernel_size": 1},
        {"kernel_size": 5},
        {"padding": "valid"},
        {"dilation_rate": 2},
        {"groups": 2},
    ],
    ids=str,
)
def test_a_layer_of_another_kind_computes_what_it_did(offer_tiles, settings: dict):
    layer, maps = build_layer(8, **settings), draw(2, 9, 9, 8)
    expected = compute(layer, maps)
    offer_tiles(2, 3, 4)
    filter_minimally(layer)
    for seen, plain in zip(compute(layer, maps), expected, strict=True):
        np.testing.assert_array_equal(seen, plain)


def test_maps_that_are_not_square_are_convolved_plainly(offer_tiles):
    layer, maps = build_layer(8), draw(2, 6, 9, 8)
    expected = compute(layer, maps)
    offer_tiles(2, 3, 4)
    filter_minimally(layer)
    for seen, plain in zip(compute(layer, maps), expected, strict=True):
        np.testing.assert_array_equal(seen, plain)


def test_a_layer_that_computes_in_bfloat16_has_no_digits_to_spare_and_computes_what_it_did(offer_tiles):
    layer, maps = build_layer(8, dtype="mixed_bfloat16"), draw(2, 9, 9, 8)
    expected = np.asarray(layer(maps)).astype(np.float32)
    offer_tiles(2, 3, 4)
    filter_minimally(layer)
    np.testing.assert_array_equal(np.asarray(layer(maps)).astype(np.float32), expected)


def test_where_no_transform_saves_work_the_plain_convolution_is_computed():
    assert choose_transforms(9, 16, 16) is None
    layer, maps = build_layer(16, filters=16), draw(2, 9, 9, 16)
    expected = compute(layer, maps)
    filter_minimally(layer)
    for seen, plain in zip(compute(layer, maps), expected, strict=True):
        np.testing.assert_array_equal(seen, plain)
    layer.convolution_op = refuse
    filter_minimally(layer)
    with pytest.raises(AssertionError, match="plain convolution"):
        compute(layer, maps)


@pytest.mark.parametrize(
    ("size_pixels", "tile_pixels", "multiplications"), [(9, 3, 225), (11, 4, 324), (4, 4, 36)]
)
def test_the_tiles_are_those_that_cost_least(size_pixels: int, tile_pixels: int, multiplications: int):
    chosen = choose_transforms(size_pixels, 512, 512)
    assert chosen.frequencies == (tile_pixels + 2) ** 2
    assert chosen.frequencies * chosen.tiles == len(chosen.enter) == multiplications


def test_batches_of_any_size_pass_one_compiled_network():
    keras = prepare_keras()
    network = keras.Sequential([keras.Input((4, 4, 64)), keras.layers.Conv2D(64, 3, padding="same")])
    maps = draw(7, 4, 4, 64)
    expected = np.asarray(network(maps))
    network.layers[0].convolution_op = refuse
    filter_minimally(network.layers[0])
    # Keras compiles for the whole batch of 5 and then for an unknown number of images.
    seen = network.predict(maps, batch_size=5, verbose=0)
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_network_so_sped_up_is_saved_as_plain_keras_and_computes_the_same_there(tmp_path: Path):
    keras = prepare_keras()
    entry = keras.Input((4, 4, 64))
    convolutions = [keras.layers.Conv2D(64, 3, padding="same", activation="relu") for _ in range(2)]
    outputs = entry
    for layer in convolutions:
        outputs = layer(outputs)
    # Nested, as a thawed suffix is.
    nested = keras.Model(entry, outputs)
    network = keras.Sequential([keras.Input((4, 4, 64)), nested, keras.layers.GlobalAveragePooling2D()])
    maps = draw(2, 4, 4, 64)
    for layer in convolutions:
        layer.convolution_op = refuse
        filter_minimally(layer)
    sped_up = np.asarray(network(maps))
    network.save(tmp_path / "network.keras")
    np.save(tmp_path / "maps.npy", maps)
    code = """
        import sys
        sys.modules["thaw"] = None  # nothing of Thaw can be imported
        import keras, numpy
        network = keras.models.load_model("network.keras")
        numpy.save("outputs.npy", network(numpy.load("maps.npy")))
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path, capture_output=True
    )
    plain = np.load(tmp_path / "outputs.npy")
    assert np.abs(plain).max() > 0
    np.testing.assert_allclose(sped_up, plain, rtol=0, atol=1e-5 * np.abs(plain).max())
