"""The temperature of a model, fitted on the validation rows, which it was not trained on.

They chose its best epoch, so that it does a little better on them than on images that nobody looked at; the test
rows, which play no part here, show what is left of the gain. The temperature is fitted to what the model is released
with, behind the averages over members and mirror images, and only kept where the validation rows are enough to tell
that it is better than none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thaw.claims import claim
from thaw.evaluate import list_sides, measure, predict_sides
from thaw.records import Checkpoint, FeatureSet, Made, Record, digest_of
from thaw.reliability import TEMPERATURES, apply_temperature, fit_temperature, measure_losses
from thaw.rows import Rows
from thaw.store import Store
from thaw.trainer import load_network

_FEWEST_IMAGES = 50
# What one more parameter has to gain, in nats over all images, to be told from none by the likelihood-ratio test at
# 5 %: half of chi-squared's 3.84. S. S. Wilks, The Large-Sample Distribution of the Likelihood Ratio, 1938.
_LEAST_GAIN = 1.92


@dataclass(frozen=True, kw_only=True)
class Calibration(Record):
    """The temperature of a checkpoint, 1 where none was kept, and why; with figures of the validation rows.

    Log losses are in nats; the errors are expected calibration errors.
    """

    checkpoint: str
    temperature: float
    reason: str
    images: int
    log_loss_before: float
    log_loss_after: float
    error_before: float
    error_after: float


def calibrate(
    checkpoint: Checkpoint, validation: FeatureSet, store: Store, mirrored: FeatureSet | None = None
) -> Made[Calibration]:
    """Fit a temperature to what a checkpoint makes of the validation rows.

    Args:
        mirrored: the mirror images of the rows, for a checkpoint that averages over those as well.

    Raises:
        NotPublished: it was not fitted yet, and the store is only looked at.
    """
    sides = list_sides(checkpoint, validation, mirrored)
    address = digest_of("temperature", checkpoint.address, *sides)
    found = store.read("temperatures", address, Calibration)
    if found is None:
        with claim(store, "temperatures", address):
            found = store.read("temperatures", address, Calibration)
            if found is None:
                calibration = _fit(checkpoint, sides, store)
                store.publish("temperatures", address, calibration)
                return Made(value=calibration, reused=False, note=_note(calibration))
    return Made(value=found, reused=True, note=_note(found))


def choose_temperature(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, str]:
    """The temperature to use, and why; 1 where the rows can't tell that another one is better.

    That is so where they are fewer than 50 or of one class; where the smallest log loss lies at an end of the range
    that is looked at, as it does where every image is called right; and where it is better by less than 1.92 nats
    over all rows, which a parameter that is free to move gains by chance in more than 5 of 100 cases.

    Args:
        labels: integers (n,), class indices.
        probabilities: floats (n, classes), rows summing to 1.
    """
    images = len(labels)
    if images < _FEWEST_IMAGES:
        return 1.0, f"{images} validation images are too few, {_FEWEST_IMAGES} are needed"
    if len(np.unique(labels)) < 2:
        return 1.0, "all validation images are of one class"
    if (probabilities.argmax(axis=1) == labels).all():
        return 1.0, "every validation image is called right, so that nothing tells how sure is too sure"
    temperature = fit_temperature(labels, probabilities)
    low, high = TEMPERATURES
    if not low * 1.01 < temperature < high / 1.01:
        return (
            1.0,
            f"the best temperature on the validation images, {temperature:g}, is at the end of its range",
        )
    # Beside the unscaled probabilities kept as far from 0 as the scaled ones are: what that brings is not a gain.
    plain, scaled = (apply_temperature(probabilities, each) for each in (1.0, temperature))
    gain = float((measure_losses(labels, plain) - measure_losses(labels, scaled)).sum())
    if gain < _LEAST_GAIN:
        return 1.0, (
            f"the best temperature on the validation images, {temperature:g}, gains {max(gain, 0):.2g} nats over all "
            f"of them, less than the {_LEAST_GAIN:g} that chance gives"
        )
    return temperature, "the smallest log loss on the validation images"


def _fit(checkpoint: Checkpoint, sides: Sequence[FeatureSet], store: Store) -> Calibration:
    labels = Rows(sides[0], store).labels
    probabilities = predict_sides(load_network(store, checkpoint.address), sides, store)
    temperature, reason = choose_temperature(labels, probabilities)
    before = after = measure(labels, probabilities)
    if temperature != 1:
        after = measure(labels, apply_temperature(probabilities, temperature))
    return Calibration(
        checkpoint=checkpoint.address,
        temperature=temperature,
        reason=reason,
        images=len(labels),
        log_loss_before=before.log_loss,
        log_loss_after=after.log_loss,
        error_before=before.calibration_error,
        error_after=after.calibration_error,
    )


def _note(calibration: Calibration) -> str:
    if calibration.temperature == 1:
        return f"no temperature: {calibration.reason}"
    return (
        f"temperature {calibration.temperature:g}, validation log loss {calibration.log_loss_before:.4f} "
        f"to {calibration.log_loss_after:.4f}"
    )
