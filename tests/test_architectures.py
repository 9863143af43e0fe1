"""Every backbone of keras.applications: known by name, preprocessed as published, named as in a fresh process."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from thaw.architectures import ARCHITECTURES, Preprocessing, build_architecture, preprocess
from thaw.device import prepare_keras
from thaw.errors import BadConfig

PUBLISHED = [name for name, architecture in ARCHITECTURES.items() if architecture.builder]
# Keras names most of their layers by itself: layers, plain operations, and those of inner networks.
NAMED_BY_KERAS = ["xception", "inceptionv3", "mobilenetv3small", "efficientnetb0", "convnexttiny"]


def some_pixels(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, channels)).astype(np.float32)


def builder_of(name: str) -> Any:
    return getattr(prepare_keras().applications, ARCHITECTURES[name].builder)


def smallest_shape(name: str) -> tuple[int, int, int]:
    side = ARCHITECTURES[name].smallest_side_pixels
    return (side, side, 3)


def names_of(model: Any) -> list[str]:
    return [layer.name for layer in model.layers]


def advance_keras_counters() -> None:
    """Build what networks are made of, as a process does that has built other networks before."""
    layers = prepare_keras().layers
    for make in (layers.Add, layers.BatchNormalization, layers.Concatenate, layers.ReLU, layers.Multiply):
        make()
    layers.Conv2D(1, 1)
    layers.Activation("relu")
    layers.Rescaling(1.0)
    _ = prepare_keras().Input((1,)) * 2 + 1


def test_every_backbone_of_keras_applications_is_known():
    applications = prepare_keras().applications
    functions = {name for name, _ in inspect.getmembers(applications, inspect.isfunction)}
    assert {ARCHITECTURES[name].builder for name in PUBLISHED} == functions
    assert all(ARCHITECTURES[name].name == name == builder_of(name).__name__.lower() for name in PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_native_preprocessing_is_what_the_published_weights_expect(name: str):
    family = builder_of(name).__module__.rpartition(".")[2]
    expected = getattr(prepare_keras().applications, family).preprocess_input(some_pixels())
    found = np.asarray(preprocess(some_pixels(), ARCHITECTURES[name].preprocessing))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_unit_and_caffe_preprocessing_are_exact():
    np.testing.assert_array_equal(preprocess(some_pixels(), "unit"), some_pixels() * np.float32(1 / 255))
    means = np.array([103.939, 116.779, 123.68], np.float32)
    np.testing.assert_array_equal(preprocess(some_pixels(), "caffe"), some_pixels()[..., ::-1] - means)


def test_preprocessing_is_part_of_a_saved_model(tmp_path: Path):
    keras = prepare_keras()
    pixels = keras.Input((8, 8, 3))
    kinds = get_args(Preprocessing)
    model = keras.Model(pixels, [keras.layers.Identity()(preprocess(pixels, kind)) for kind in kinds])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for kind, found in zip(kinds, loaded(some_pixels()), strict=True):
        np.testing.assert_array_equal(found, preprocess(some_pixels(), kind), err_msg=kind)


@pytest.mark.parametrize("kind", ["unit", "signed", "raw"])
def test_grey_images_can_be_scaled(kind: Preprocessing):
    assert preprocess(some_pixels(channels=1), kind).shape == (2, 8, 8, 1)


@pytest.mark.parametrize("kind", ["caffe", "torch"])
def test_grey_images_have_no_colours_to_centre(kind: Preprocessing):
    with pytest.raises(
        BadConfig, match=rf"'{kind}' needs red, green and blue.* 1 channel.*unit, signed, raw"
    ):
        preprocess(some_pixels(channels=1), kind)


def test_an_unknown_preprocessing_names_the_known_ones():
    with pytest.raises(BadConfig, match="no preprocessing 'tf'.*unit, caffe, signed, torch, raw"):
        preprocess(some_pixels(), "tf")


def test_an_unknown_backbone_names_the_known_ones():
    with pytest.raises(BadConfig, match="no backbone 'resnet18'.*resnet50, resnet50v2"):
        build_architecture("resnet18", (64, 64, 3))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_images_too_small_are_refused_by_the_least_side(name: str):
    side = ARCHITECTURES[name].smallest_side_pixels
    with pytest.raises(
        BadConfig, match=rf"{name} needs images of at least {side} x {side}.* to {side} or more"
    ):
        build_architecture(name, (side + 8, side - 1, 3))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_least_side_is_the_least_that_keras_takes(name: str):
    side = ARCHITECTURES[name].smallest_side_pixels
    with pytest.raises(ValueError, match=f"at least {side}x{side}"):
        builder_of(name)(weights=None, include_top=False, input_shape=(side, side - 1, 3))


def test_the_small_backbone_is_built_too():
    assert build_architecture("vgg16-mini", (32, 32, 1)).output_shape == (None, 1, 1, 64)


@pytest.fixture(scope="module")
def fresh() -> dict[str, str]:
    """Networks as JSON, each built as if by a process that had built nothing before."""
    shapes = {ARCHITECTURES[name].builder: smallest_shape(name) for name in NAMED_BY_KERAS}
    code = f"""
import json, os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras
found = {{}}
for builder, shape in {shapes!r}.items():
    model = getattr(keras.applications, builder)(weights=None, include_top=False, input_shape=shape)
    found[builder.lower()] = model.to_json(sort_keys=True)
    keras.utils.clear_session()
print(json.dumps(found))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED_BY_KERAS)
def test_layers_are_named_as_in_a_fresh_process(fresh: dict[str, str], name: str):
    advance_keras_counters()
    model = build_architecture(name, smallest_shape(name))
    expected = [layer["config"]["name"] for layer in json.loads(fresh[name])["config"]["layers"]]
    if name == "efficientnetb0":
        # Keras builds it with one layer less, unless it loads the published weights.
        assert [
            operation.name for operation in model.operations if operation.name != "rescaling_1"
        ] == expected
    else:
        assert [operation.name for operation in model.operations] == expected
        assert model.to_json(sort_keys=True) == fresh[name]


@pytest.mark.slow
def test_a_second_network_of_a_process_has_the_names_of_the_first():
    first, second = (names_of(build_architecture("xception", (71, 71, 3))) for _ in range(2))
    assert first == second
    assert first[55] == "add_4"


def test_renamed_layers_are_found_and_saved_and_loaded(tmp_path: Path):
    keras = prepare_keras()
    advance_keras_counters()
    model = build_architecture("mobilenetv3small", (32, 32, 3))
    assert model.get_layer("activation_17") is model.layers[-1]
    assert model.output_names == ["activation_17"]
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    expected = np.asarray(model(pixels))
    assert expected.any()

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert names_of(loaded) == names_of(model)
    np.testing.assert_array_equal(loaded(pixels), expected)

    # The published files are of the old format, written under the names that another process gave.
    model.save_weights(tmp_path / "new.weights.h5")
    model.save(tmp_path / "old.h5")
    for file in ("new.weights.h5", "old.h5"):
        other = build_architecture("mobilenetv3small", (32, 32, 3))
        other.load_weights(tmp_path / file)
        np.testing.assert_array_equal(other(pixels), expected, err_msg=file)


def test_efficientnet_sees_colours_as_its_published_weights_do():
    keras = prepare_keras()
    keras.utils.set_random_seed(0)
    model = build_architecture("efficientnetb0", (32, 32, 3))
    assert names_of(model)[:4] == ["input_layer", "rescaling", "normalization", "rescaling_1"]
    # As in the published file: it holds deviations where the layer expects variances.
    normalization = model.get_layer("normalization")
    normalization.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.array(0)])
    normalization.finalize_state()
    stem = keras.Model(model.input, model.get_layer("rescaling_1").output)
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(stem(pixels), preprocess(pixels, "torch"), atol=1e-5)


@pytest.mark.slow
def test_random_weights_follow_the_seed():
    keras = prepare_keras()

    def build() -> list[np.ndarray]:
        keras.utils.set_random_seed(3)
        return build_architecture("efficientnetb0", (32, 32, 3)).get_weights()

    assert all(np.array_equal(one, other) for one, other in zip(build(), build(), strict=True))
