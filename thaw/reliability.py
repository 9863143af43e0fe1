"""Whether probabilities mean what they say, and one number that mends it where they do not.

Temperature scaling divides the logits by one positive number, which moves no image to another class: C. Guo et al.,
On Calibration of Modern Neural Networks, 2017. Their expected calibration error, in 15 bins, says how much it is
needed.
"""

import math
from typing import Any

import numpy as np

from thaw.device import prepare_keras
from thaw.records import Bin, Reliability

_BINS = 15
# A float32 probability that rounded to 1 leaves none to the others, whose logits would be infinite.
_SMALLEST = 1e-7
TEMPERATURES = (0.05, 50.0)


def measure_reliability(labels: np.ndarray, probabilities: np.ndarray) -> Reliability:
    """Sort images by the probability of the class they were called.

    Args:
        labels: integers (n,), class indices.
        probabilities: floats (n, classes), rows summing to 1.
    """
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, _BINS + 1)
    # The last bin holds its upper edge.
    places = np.minimum(np.digitize(sure, edges) - 1, _BINS - 1)
    bins = tuple(
        Bin(
            low=float(edges[place]),
            high=float(edges[place + 1]),
            images=int(inside.sum()),
            probability=float(sure[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for place in range(_BINS)
        if (inside := places == place).any()
    )
    error = math.fsum(one.images * abs(one.probability - one.accuracy) for one in bins) / len(labels)
    return Reliability(bins=bins, error=error)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature of the smallest log loss, among `TEMPERATURES`, in four digits; above 1 it makes less sure.

    Args:
        labels: integers (n,), class indices of images that were not trained on.
        probabilities: floats (n, classes), rows summing to 1.
    """
    from scipy.optimize import minimize_scalar

    def lose(exponent: float) -> float:
        return float(measure_losses(labels, apply_temperature(probabilities, math.exp(exponent))).mean())

    bounds = tuple(math.log(end) for end in TEMPERATURES)
    found = minimize_scalar(lose, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(f"{math.exp(found.x):.4g}")


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities, float64 (n, classes), whose logits are divided by the temperature.

    Those below 1e-7 are taken for 1e-7, and none changes its rank within its row. Images that lie below it are told
    apart no more, which costs a little of the AUC where many do.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), _SMALLEST)) / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def scale_outputs(outputs: Any, temperature: float) -> Any:
    """`apply_temperature` as Keras's own operations, on the outputs of a network.

    Args:
        outputs: (n, 1), the probability of the second class, or (n, classes).
    """
    ops = prepare_keras().ops

    def find_logits(shares: Any) -> Any:
        return ops.log(ops.maximum(shares, _SMALLEST))

    if outputs.shape[-1] == 1:
        return ops.sigmoid((find_logits(outputs) - find_logits(1 - outputs)) / temperature)
    return ops.softmax(find_logits(outputs) / temperature, axis=-1)


def measure_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Each image's log loss in nats, floats (n,), infinite where its class was given probability 0."""
    with np.errstate(divide="ignore"):
        return -np.log(probabilities[np.arange(len(labels)), labels])
