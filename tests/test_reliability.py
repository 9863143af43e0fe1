"""Calibration: how far probabilities can be taken at their word, and what one temperature mends."""

import numpy as np
import pytest

from thaw.device import prepare_keras
from thaw.reliability import apply_temperature, fit_temperature, measure_reliability, scale_outputs
from thaw.trainer import spread_classes


def draw(images: int = 20_000, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the very probabilities that come with them."""
    dice = np.random.default_rng(seed)
    probabilities = dice.dirichlet([1.0] * classes, size=images)
    labels = (dice.uniform(size=(images, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    return labels, probabilities


@pytest.mark.parametrize("classes", [2, 5])
def test_probabilities_that_labels_were_drawn_from_are_calibrated(classes: int):
    labels, probabilities = draw(classes=classes)
    assert measure_reliability(labels, probabilities).error < 0.02
    assert fit_temperature(labels, probabilities) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.25, 3.0])
def test_a_temperature_that_was_wrong_on_purpose_is_found_and_undone(classes: int, temperature: float):
    labels, probabilities = draw(classes=classes)
    spoilt = apply_temperature(probabilities, temperature)
    found = fit_temperature(labels[:10_000], spoilt[:10_000])
    assert found == pytest.approx(1 / temperature, rel=0.1)
    mended = apply_temperature(spoilt, found)
    errors = [measure_reliability(labels[10_000:], each[10_000:]).error for each in (spoilt, mended)]
    assert errors[1] < errors[0] / 2
    np.testing.assert_array_equal(mended.argmax(axis=1), spoilt.argmax(axis=1))


def test_probabilities_that_rounded_to_0_or_1_stay_finite():
    spoilt = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.4, 0.6]])
    temperature = fit_temperature(np.array([1, 0, 0, 1]), spoilt)
    assert temperature > 1
    assert np.isfinite(np.log(apply_temperature(spoilt, temperature))).all()


def test_the_bins_hold_every_image_once():
    labels, probabilities = draw(images=500)
    probabilities[0] = (0.0, 1.0)
    reliability = measure_reliability(labels, probabilities)
    assert sum(one.images for one in reliability.bins) == 500
    assert all(one.low <= one.probability <= one.high for one in reliability.bins)


def test_the_error_is_the_mean_distance_of_probability_and_share_right():
    labels = np.array([0] * 8 + [1] * 2)
    probabilities = np.tile([0.9, 0.1], (10, 1))
    assert measure_reliability(labels, probabilities).error == pytest.approx(0.1)


def test_the_error_is_that_of_images_sorted_by_hand():
    labels, probabilities = draw(images=3000, classes=3, seed=4)
    spoilt = apply_temperature(probabilities, 0.3)
    total = 0.0
    for number in range(15):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(spoilt, labels, strict=True)
            if number / 15 <= row.max() < (number + 1) / 15 or (number == 14 and row.max() == 1)
        ]
        if inside:
            sure, right = np.array(inside, dtype=float).T
            total += len(inside) / len(labels) * abs(sure.mean() - right.mean())
    assert measure_reliability(labels, spoilt).error == pytest.approx(total)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.3, 1.7, 8.0])
def test_a_network_scales_its_outputs_as_numpy_does(classes: int, temperature: float):
    keras = prepare_keras()
    _, probabilities = draw(images=200, classes=classes)
    given = probabilities.astype(np.float32)
    given[0], given[1] = np.eye(classes)[0], np.eye(classes)[1]
    outputs = given[:, 1:] if classes == 2 else given
    entry = keras.Input(outputs.shape[1:])
    model = keras.Model(entry, scale_outputs(entry, temperature))
    scaled = spread_classes(model.predict(outputs, verbose=0))
    expected = apply_temperature(spread_classes(outputs), temperature)
    np.testing.assert_allclose(scaled, expected, atol=2e-6)
