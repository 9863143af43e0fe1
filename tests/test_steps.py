"""Compiled steps: what Keras's own steps do to the weights, and the figures that histories are made of."""

import hashlib
from typing import Any

import numpy as np
import pytest

from thaw.config import HeadConfig, OptimizerConfig
from thaw.device import list_layers, prepare_keras
from thaw.head import build_head
from thaw.order import group_batches
from thaw.steps import KerasSteps, TensorFlowSteps, compile_network

SHAPE = (4, 4, 64)
OPTIMIZERS = {
    "rmsprop": OptimizerConfig(name="rmsprop", learning_rate=1e-3, momentum=0.5),
    "sgd": OptimizerConfig(name="sgd", learning_rate=0.05, momentum=0.9),
}


def build_dense(classes: int = 2, optimizer: str = "sgd", **settings: Any) -> Any:
    """A compiled head, without dropout unless told otherwise; the same weights every time."""
    head = HeadConfig(**{"dense_units": 16, "dropout": 0, **settings})
    network = build_head(SHAPE, classes, head)
    compile_network(network, OPTIMIZERS[optimizer], classes)
    return network


def build_convolutional(classes: int = 2, optimizer: str = "sgd", **settings: Any) -> Any:
    """A compiled suffix of two convolutions, which are filtered minimally, and a head."""
    keras = prepare_keras()
    head = HeadConfig(**{"dense_units": 16, "dropout": 0, **settings})
    entry = keras.Input(SHAPE)
    keras.utils.set_random_seed(0)
    suffix = keras.Sequential(
        [keras.Input(SHAPE), *(keras.layers.Conv2D(64, 3, padding="same", activation="relu") for _ in "ab")]
    )
    network = keras.Model(entry, build_head(SHAPE, classes, head)(suffix(entry)))
    compile_network(network, OPTIMIZERS[optimizer], classes)
    return network


def draw_batches(
    batches: int, images: int = 8, classes: int = 2, shape: tuple[int, int, int] = SHAPE
) -> tuple[np.ndarray, np.ndarray]:
    """Features as the cache stores them, (batches, images, *shape), and class indices (batches, images)."""
    dice = np.random.default_rng(0)
    features = np.maximum(dice.normal(size=(batches, images, *shape)), 0).astype(np.float16)
    return features, dice.integers(classes, size=(batches, images))


def measure(network: Any, features: np.ndarray, labels: np.ndarray) -> list[float]:
    """The sum of cross-entropy and the number told right of one batch, worked out from the probabilities."""
    outputs = np.asarray(network(features.astype(np.float32)), dtype=np.float64)
    probabilities = np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs
    told = probabilities[np.arange(len(labels)), labels]
    return [-np.log(told).sum(), (probabilities.argmax(axis=1) == labels).sum()]


def dropout_states(network: Any) -> list[np.ndarray]:
    dropouts = (layer for layer in list_layers(network) if isinstance(layer, prepare_keras().layers.Dropout))
    return [np.array(layer.seed_generator.state) for layer in dropouts]


def draw_epoch(classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Five batches, of which the last is smaller."""
    *whole, (rows, labels) = zip(*draw_batches(5, classes=classes), strict=True)
    return [*whole, (rows[:3], labels[:3])]


@pytest.mark.parametrize(
    ("build", "optimizer", "classes", "l2"),
    [
        (build_dense, "sgd", 2, 0.1),
        (build_dense, "rmsprop", 3, 0.0),
        (build_convolutional, "sgd", 3, 0.1),
        (build_convolutional, "rmsprop", 2, 0.0),
    ],
)
def test_weights_move_as_by_keras_s_own_steps(build, optimizer: str, classes: int, l2: float):
    ours, kerass = (build(classes, optimizer, l2=l2) for _ in range(2))
    start = ours.get_weights()
    steps = TensorFlowSteps(ours)
    for rows, labels in draw_epoch(classes):
        steps.train(rows[None], labels[None])
        kerass.train_on_batch(rows, labels[:, None])
    for seen, expected, before in zip(ours.get_weights(), kerass.get_weights(), start, strict=True):
        assert np.abs(expected - before).max() > 1e-3
        np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("build", "classes"), [(build_dense, 2), (build_convolutional, 3)])
def test_figures_are_sums_over_each_batch_as_it_was_met_without_penalties(build, classes: int):
    network = build(classes, l2=0.1)
    steps = TensorFlowSteps(network)
    for rows, labels in draw_epoch(classes):
        expected = measure(network, rows, labels)
        np.testing.assert_allclose(steps.train(rows[None], labels[None]), expected, rtol=1e-4)


def test_batches_grouped_in_one_call_equal_single_ones():
    grouped, single = (build_dense(3, "rmsprop") for _ in range(2))
    features, labels = draw_batches(4, classes=3)
    many, one = TensorFlowSteps(grouped), TensorFlowSteps(single)
    together = [many.train(features[start : start + 2], labels[start : start + 2]) for start in (0, 2)]
    apart = [one.train(features[[number]], labels[[number]]) for number in range(4)]
    np.testing.assert_allclose(together, [apart[0] + apart[1], apart[2] + apart[3]], rtol=1e-5)
    for seen, expected in zip(grouped.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-5)


def test_only_a_large_dense_network_asks_for_several_batches_at_once():
    assert TensorFlowSteps(build_dense(dense_units=512)).batches == 2
    assert TensorFlowSteps(build_convolutional(dense_units=512)).batches == 1


@pytest.mark.parametrize("batches", [1, 2])
def test_dropout_is_drawn_anew_in_every_call_and_from_its_seed(batches: int):
    network = build_dense(dropout=0.5)
    compile_network(network, OptimizerConfig(name="sgd", learning_rate=1e-30), 2)
    steps = TensorFlowSteps(network)
    (layer,) = (layer for layer in list_layers(network) if isinstance(layer, prepare_keras().layers.Dropout))
    seed = np.array(layer.seed_generator.state)
    losses = [steps.train(*draw_batches(batches))[0] for _ in range(3)]
    assert len(set(losses)) == 3
    layer.seed_generator.state.assign(seed)
    assert steps.train(*draw_batches(batches))[0] == losses[0]


@pytest.mark.slow
def test_a_step_as_large_as_vgg16_s_moves_weights_the_same_way_each_time():
    """Operations of such a step overtake one another; those of smaller ones too seldom to be seen here."""
    keras, shape = prepare_keras(), (11, 11, 512)
    keras.utils.set_random_seed(0)
    convolutions = (keras.layers.Conv2D(512, 3, padding="same", activation="relu") for _ in "abc")
    suffix = keras.Sequential([keras.Input(shape), *convolutions, keras.layers.MaxPooling2D()])
    entry = keras.Input(shape)
    network = keras.Model(entry, build_head(suffix.output_shape[1:], 2, HeadConfig())(suffix(entry)))
    compile_network(network, OPTIMIZERS["rmsprop"], 2)
    steps = TensorFlowSteps(network)
    features, labels = draw_batches(1, images=32, shape=shape)
    variables = [*network.variables, *network.optimizer.variables]
    start = [np.array(variable) for variable in variables]
    ends = set()
    for _ in range(30):
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        steps.train(features, labels)
        ends.add(hashlib.sha256(b"".join(weights.tobytes() for weights in network.get_weights())).digest())
    assert len(ends) == 1


@pytest.mark.parametrize(("build", "classes"), [(build_dense, 2), (build_convolutional, 3)])
def test_scoring_measures_without_dropout_and_changes_nothing(build, classes: int):
    network = build(classes, dropout=0.5, l2=0.1)
    steps = TensorFlowSteps(network)
    features, labels = draw_batches(2, classes=classes)
    steps.train(features[:1], labels[:1])
    variables = [*network.variables, *network.optimizer.variables]
    before = [np.array(variable) for variable in variables]
    seeds = dropout_states(network)
    expected = measure(network, features[1], labels[1])
    np.testing.assert_allclose(steps.score(features[1], labels[1]), expected, rtol=1e-4)
    assert all(np.array_equal(one, two) for one, two in zip(variables, before, strict=True))
    assert len(seeds) == 1
    assert np.array_equal(dropout_states(network), seeds)


def test_keras_s_steps_give_the_same_figures():
    ours, kerass = (build_dense(3, l2=0.1) for _ in range(2))
    features, labels = draw_batches(2, classes=3)
    one, other = TensorFlowSteps(ours), KerasSteps(kerass)
    np.testing.assert_allclose(one.train(features, labels), other.train(features, labels), rtol=1e-4)
    np.testing.assert_allclose(
        one.score(features[0], labels[0]), other.score(features[0], labels[0]), rtol=1e-4
    )


@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("images", [1, 3, 4, 8, 21, 23, 24, 40])
def test_every_image_is_trained_on_once_an_epoch(images: int, batch_size: int, batches: int):
    order = np.random.default_rng(0).permutation(images)
    groups = list(group_batches(order, batch_size, batches))
    met = [batch for group in groups for batch in group]
    drawn = [np.sort(order[start : start + batch_size]) for start in range(0, images, batch_size)]
    assert all(map(np.array_equal, met, drawn))
    assert len(met) == len(drawn)
    full, rest = divmod(images, batch_size * batches)
    assert [len(group) for group in groups] == [batches] * full + [1] * -(-rest // batch_size)
