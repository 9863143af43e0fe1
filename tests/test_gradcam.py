"""Heat maps: exact where they can be worked out by hand, and on what is known to be where."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.prepared import Prepared, head_of, tune
from tests.run_samples import make_evaluation
from thaw import gradcam
from thaw.architectures import build_architecture
from thaw.config import HeadConfig, build_section
from thaw.cuts import split_model
from thaw.device import prepare_keras
from thaw.drawings import draw_animal
from thaw.ensemble import join_members
from thaw.errors import NotPublished
from thaw.evaluate import evaluate
from thaw.features import cache_mirrored
from thaw.fine_tune import thaw_suffix
from thaw.gradcam import choose_images, find_maps, heat_up, map_heat
from thaw.head import build_head
from thaw.mini.network import DRAWINGS_WEIGHTS, build_vgg16_mini
from thaw.networks import NETWORKS
from thaw.rows import Rows
from thaw.trainer import load_network, predict_rows

SIDE, PLACES = 96, 6
CLASSES = ("cat", "dog")


def build_averaging_head(shape: tuple[int, ...], classes: int, **settings: Any) -> Any:
    return build_head(
        shape, classes, build_section(HeadConfig, {"dense_units": [], "pooling": "average", **settings})
    )


def build_heads_alone(kernel: np.ndarray) -> Any:
    """An average over places and one dense layer: Grad-CAM weighs each map by its weight there."""
    head = build_averaging_head((3, 3, kernel.shape[0]), max(2, kernel.shape[1]))
    head.set_weights([kernel.astype(np.float32), np.zeros(kernel.shape[1], np.float32)])
    return head


def scale(heat: np.ndarray) -> np.ndarray:
    kept = np.maximum(heat, 0)
    return kept / kept.max(axis=(1, 2), keepdims=True)


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 3, 3, 5))


def test_each_map_is_weighed_by_what_it_does_for_the_score(features: np.ndarray):
    kernel = np.random.default_rng(1).normal(size=(5, 3))
    classes = [0, 1, 2, 1]
    expected = scale(np.stack([row @ kernel[:, each] for row, each in zip(features, classes, strict=True)]))
    np.testing.assert_allclose(heat_up(build_heads_alone(kernel), features, classes), expected, atol=1e-6)


def test_of_two_classes_the_first_ones_score_is_minus_the_second_ones(features: np.ndarray):
    kernel = np.random.default_rng(1).normal(size=(5, 1))
    head, second = build_heads_alone(kernel), features @ kernel[:, 0]
    np.testing.assert_allclose(heat_up(head, features, [1] * 4), scale(second), atol=1e-6)
    np.testing.assert_allclose(heat_up(head, features, [0] * 4), scale(-second), atol=1e-6)


def test_a_probability_of_one_has_heat_all_the_same(features: np.ndarray):
    kernel = np.random.default_rng(1).normal(size=(5, 1))
    head = build_heads_alone(kernel * 1e4)
    assert set(np.asarray(head(features)).ravel()) <= {0.0, 1.0}
    np.testing.assert_allclose(heat_up(head, features, [1] * 4), scale(features @ kernel[:, 0]), atol=1e-5)


def test_where_all_speaks_against_the_class_nothing_is_hot(features: np.ndarray):
    head, features = build_heads_alone(-np.ones((5, 1))), abs(features)
    np.testing.assert_array_equal(heat_up(head, features, [1] * 4), np.zeros((4, 3, 3)))


def test_the_network_is_left_as_it_was(features: np.ndarray):
    head = build_heads_alone(np.ones((5, 3)))
    before, config = np.asarray(head(features)), head.get_config()
    heat_up(head, features, [0] * 4)
    np.testing.assert_array_equal(head(features), before)
    assert head.get_config() == config


def test_of_a_head_alone_the_maps_are_its_features(features: np.ndarray):
    assert find_maps(build_heads_alone(np.ones((5, 3)))) is None


@pytest.mark.parametrize(
    ("name", "cut", "layer"),
    [
        ("vgg16-mini", "block3_pool", "block5_conv3"),
        ("resnet50", "conv4_block6_out", "conv5_block3_out"),
        ("efficientnetb0", "block5c_add", "top_activation"),
    ],
)
def test_of_a_thawed_backbone_they_are_the_last_ones_before_pooling(name: str, cut: str, layer: str):
    backbone = build_architecture(name, (64, 64, 3))
    shape = backbone.output_shape[1:]
    head = build_averaging_head(shape, 3)
    network = thaw_suffix(backbone, cut, backbone.layers[-1].name, head, "raw")
    assert find_maps(network) == layer
    given = np.random.default_rng(0).random((2, *network.input_shape[1:]))
    heat = heat_up(network, given, [0, 2])
    size = backbone.get_layer(layer).output.shape[1:3]
    assert (heat.shape, heat.dtype) == ((2, *size), np.float32)
    assert heat.min() >= 0
    assert set(heat.max(axis=(1, 2))) <= {0.0, 1.0}
    assert heat.any()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_from_scratch_have_maps_too(name: str):
    settings = build_section(HeadConfig, {"network": name})
    side = 28 if name in ("lenet5", "fashion-convnet") else 96
    network = build_head((side, side, 3), 3, settings, "unit")
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3))
    heat = heat_up(network, pixels, [0, 1])
    assert heat.shape[0] == 2
    assert 1 < heat.shape[1] < side
    assert find_maps(network)


def place_in_a_quadrant(label: str, number: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A drawn animal in one quarter of an image of noise, float32 in 0..1, and which quarter: row and column."""
    dice = np.random.default_rng([number, len(label)])
    half = SIDE // 2
    image = dice.normal(128, 40, (SIDE, SIDE, 3)).clip(0, 255)
    row, column = dice.integers(2, size=2)
    animal = Image.open(io.BytesIO(draw_animal(label, number))).convert("RGB").resize((half, half))
    image[row * half : (row + 1) * half, column * half : (column + 1) * half] = np.asarray(animal)
    return (image / 255).astype(np.float32), (int(row), int(column))


@pytest.fixture(scope="module")
def quadrants() -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """A network with block 5 thawed that tells animals apart wherever they are; rows it did not learn from,
    their labels, and the quarter that each animal is in."""
    keras = prepare_keras()
    keras.utils.set_random_seed(0)
    backbone = build_vgg16_mini((SIDE, SIDE, 3))
    backbone.load_weights(DRAWINGS_WEIGHTS)
    drawn = [place_in_a_quadrant(label, number) for number in range(150) for label in CLASSES]
    labels = np.arange(len(drawn)) % 2
    rows = split_model(backbone, None, "block4_pool").predict(np.stack([one for one, _ in drawn]), verbose=0)
    head = build_averaging_head(backbone.output_shape[1:], 2)
    network = thaw_suffix(backbone, "block4_pool", "block5_pool", head, "unit")
    network.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    network.fit(rows[:240], labels[:240], epochs=12, batch_size=16, verbose=0)
    places = np.array([place for _, place in drawn])
    return network, rows[240:], labels[240:], places[240:]


def measure_share_inside(heat: np.ndarray, places: np.ndarray) -> float:
    """The mean share of an image's heat that lies in its animal's quarter; by chance that is a quarter."""
    half = PLACES // 2
    quarters = heat.reshape(-1, 2, half, 2, half).sum(axis=(2, 4))
    inside = quarters[np.arange(len(heat)), places[:, 0], places[:, 1]]
    return float((inside / np.maximum(quarters.sum(axis=(1, 2)), 1e-9)).mean())


def test_heat_lies_where_the_animal_is(quadrants):
    network, rows, labels, places = quadrants
    called = (network.predict(rows, verbose=0)[:, 0] > 0.5).astype(int)
    assert (called == labels).mean() > 0.6
    heat = heat_up(network, rows, called)
    assert heat.shape == (len(rows), PLACES, PLACES)
    assert measure_share_inside(heat, places) > 0.5
    # Shown in other images' quarters the same heat is where chance has it.
    assert measure_share_inside(heat, 1 - places) < 0.25


def test_random_weights_look_elsewhere(quadrants):
    """J. Adebayo et al., Sanity Checks for Saliency Maps, 2018: a map must depend on what was learned."""
    network, rows, _, _ = quadrants
    asked = [1] * len(rows)
    learned = heat_up(network, rows, asked)
    other = prepare_keras().models.clone_model(network)
    other.set_weights(
        [np.random.default_rng(0).permutation(w.ravel()).reshape(w.shape) for w in network.get_weights()]
    )
    drawn = heat_up(other, rows, asked)
    alike = [
        np.corrcoef(one.ravel(), two.ravel())[0, 1]
        for one, two in zip(learned, drawn, strict=True)
        if one.std() and two.std()
    ]
    assert len(alike) > len(rows) // 4
    assert np.mean(alike) < 0.3


def test_the_most_confident_right_and_wrong_calls_of_each_class_are_chosen():
    scored = make_evaluation("head", wrong=3)
    chosen = [row.path for row in choose_images(scored)]
    assert chosen == [
        *("test/3.jpg", "test/4.jpg"),
        *("test/0.jpg", "test/1.jpg"),
        *("test/500.jpg", "test/501.jpg"),
    ]


def test_of_many_classes_the_first_six_are_chosen():
    classes = tuple(f"class {number}" for number in range(20))
    chosen = choose_images(make_evaluation("head", wrong=1, classes=classes))
    assert list(dict.fromkeys(row.label for row in chosen)) == list(classes[:6])
    assert len(chosen) == 6 * 2 + 1


@pytest.fixture(scope="module")
def mapped(prepared: Prepared):
    head = head_of(prepared, epochs=3).value
    tuned = tune(prepared, head).value
    return tuned, evaluate(tuned, prepared.block4.test, prepared.store).value


def test_maps_are_published_and_found_again(prepared: Prepared, mapped):
    tuned, scored = mapped
    given = (scored, tuned, prepared.block4.test, prepared.store)
    first, again = map_heat(*given), map_heat(*given)
    assert (first.reused, again.reused) == (False, True)
    assert again.value == first.value
    assert (first.value.layer, first.value.size) == ("block5_conv3", (4, 4))
    chosen = choose_images(scored)
    assert [one.path for one in first.value.maps] == [row.path for row in chosen]
    assert [one.probability for one in first.value.maps] == [max(row.probabilities) for row in chosen]


def test_they_are_of_the_class_that_was_called(prepared: Prepared, mapped):
    tuned, scored = mapped
    made = map_heat(scored, tuned, prepared.block4.test, prepared.store).value
    rows = Rows(prepared.block4.test, prepared.store)
    numbers = [[image.path for image in rows.images].index(one.path) for one in made.maps]
    called = predict_rows(load_network(prepared.store, tuned.address), rows)[numbers].argmax(axis=1)
    assert [one.called for one in made.maps] == [CLASSES[index] for index in called]
    expected = heat_up(load_network(prepared.store, tuned.address), rows.read(np.array(numbers)), called)
    np.testing.assert_allclose([one.heat for one in made.maps], expected, atol=6e-4)


def test_a_run_killed_while_it_maps_leaves_nothing_that_is_read(
    prepared: Prepared, mapped, monkeypatch: pytest.MonkeyPatch
):
    tuned, scored = mapped
    tuned = dataclasses.replace(tuned, members=(tuned.address,), address="ab" * 8)
    given = (scored, tuned, prepared.block4.test)
    with pytest.raises(NotPublished):
        map_heat(*given, prepared.store.looking())
    with monkeypatch.context() as patch:
        patch.setattr(gradcam, "heat_up", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            map_heat(*given, prepared.store)
    with pytest.raises(NotPublished):
        map_heat(*given, prepared.store.looking())
    assert not map_heat(*given, prepared.store).reused
    assert map_heat(*given, prepared.store.looking()).reused


def test_an_average_of_networks_and_mirror_images_has_the_average_of_their_maps(prepared: Prepared):
    members = [head_of(prepared, epochs=2, seed=seed).value for seed in (0, 1)]
    given = (prepared.split, prepared.config.dump, prepared.backbone, prepared.config.backbone)
    mirrored = cache_mirrored(*given, "block5_pool", prepared.store).value
    joined = join_members(members, prepared.bottlenecks, mirrored, prepared.store).value
    sides = (prepared.bottlenecks.test, mirrored.test)
    scored = evaluate(joined, sides[0], prepared.store, sides[1]).value
    made = map_heat(scored, joined, sides[0], prepared.store, sides[1]).value
    assert (made.layer, made.networks, made.mirrored) == ("block5_pool", 2, True)
    places = [[row.path for row in scored.predictions].index(one.path) for one in made.maps]
    called = [CLASSES.index(one.called) for one in made.maps]
    plain, turned = (
        [
            heat_up(
                load_network(prepared.store, one.address),
                Rows(side, prepared.store).read(np.array(places)),
                called,
            )
            for one in members
        ]
        for side in sides
    )
    expected = (sum(plain) + sum(turned)[:, :, ::-1]) / 4
    np.testing.assert_allclose([one.heat for one in made.maps], expected, atol=6e-4)
