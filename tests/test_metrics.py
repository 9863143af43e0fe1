"""Metrics of predictions, beside computations of another kind."""

import json

import numpy as np
import pytest

from thaw.evaluate import measure
from thaw.records import Metrics


def draw(classes: int, images: int = 400) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(classes)
    labels = dice.integers(0, classes, images)
    probabilities = dice.dirichlet([0.7] * classes, size=images) + 0.5 * np.eye(classes)[labels]
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


def average_precision(found: np.ndarray, scores: np.ndarray) -> float:
    """The mean of the precisions at each image that is looked for, from the highest score down."""
    ranked = found[np.argsort(-scores, kind="stable")]
    return float((ranked.cumsum() / np.arange(1, len(ranked) + 1))[ranked].mean())


def test_average_precision_of_two_classes_looks_for_the_second():
    labels, probabilities = draw(2)
    expected = average_precision(labels == 1, probabilities[:, 1])
    assert measure(labels, probabilities).average_precision == pytest.approx(expected)


def test_average_precision_of_more_classes_is_the_mean_over_them():
    labels, probabilities = draw(4)
    each = [average_precision(labels == number, probabilities[:, number]) for number in range(4)]
    assert measure(labels, probabilities).average_precision == pytest.approx(np.mean(each))


def test_the_brier_score_of_two_classes_is_the_squared_error_of_the_second_ones_probability():
    labels, probabilities = draw(2)
    assert measure(labels, probabilities).brier == pytest.approx(((probabilities[:, 1] - labels) ** 2).mean())


def test_the_brier_score_of_more_classes_is_summed_over_them():
    labels, probabilities = draw(4)
    squares = (probabilities - np.eye(4)[labels]) ** 2
    assert measure(labels, probabilities).brier == pytest.approx(squares.sum(axis=1).mean())


def test_a_class_without_rows_leaves_out_what_ranks_and_keeps_the_rest():
    labels, probabilities = draw(2)
    metrics = measure(labels[labels == 1], probabilities[labels == 1])
    assert (metrics.auc, metrics.average_precision) == (None, None)
    assert metrics.brier == pytest.approx((probabilities[labels == 1, 0] ** 2).mean())
    labels, probabilities = draw(4)
    assert measure(labels[labels != 2], probabilities[labels != 2]).average_precision is None


def test_log_loss_is_clipped_and_what_it_would_be_without_is_kept():
    labels = np.array([0, 1, 1])
    metrics = measure(labels, np.array([[0.8, 0.2], [0.5, 0.5], [1 - 1e-20, 1e-20]]))
    assert metrics.log_loss_unclipped == pytest.approx(-np.log([0.8, 0.5, 1e-20]).mean())
    assert metrics.log_loss == pytest.approx(-np.log([0.8, 0.5, 2.22e-16]).mean(), rel=1e-4)
    plain = measure(labels[:2], np.array([[0.8, 0.2], [0.5, 0.5]]))
    assert plain.log_loss_unclipped == pytest.approx(plain.log_loss)


def test_an_infinite_log_loss_is_none_and_survives_json():
    metrics = measure(np.array([0, 1]), np.array([[0.8, 0.2], [1.0, 0.0]]))
    assert metrics.log_loss_unclipped is None
    assert metrics.log_loss == pytest.approx(18.13, abs=0.01)
    text = metrics.to_json()
    assert "Infinity" not in text
    assert Metrics.from_json(text) == metrics


def test_metrics_of_an_older_version_are_read():
    labels, probabilities = draw(2)
    older = json.loads(measure(labels, probabilities).to_json())
    for name in ("average_precision", "brier", "calibration_error", "log_loss_unclipped"):
        del older[name]
    metrics = Metrics.from_json(json.dumps(older))
    assert metrics.auc == older["auc"]
    assert metrics.brier is None
