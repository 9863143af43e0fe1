"""Score a checkpoint on test rows that it has not learned from, once, image by image."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from thaw.claims import claim
from thaw.errors import UnlikeSplits
from thaw.pieces import clear_pieces, fetch_pieces, is_made, plan_pieces, publish_piece
from thaw.portions import Portion, PortionPlan, PortionReport, PortionSize, report_portion
from thaw.records import (
    Checkpoint,
    Evaluation,
    FeatureSet,
    Made,
    Metrics,
    Prediction,
    Record,
    Split,
    digest_of,
)
from thaw.reliability import apply_temperature, measure_losses, measure_reliability
from thaw.rows import Rows
from thaw.store import Store
from thaw.trainer import PREDICTED_ROWS, load_network, predict_rows

_PIECE = "probabilities.npy"


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest(Record):
    """What `evaluate` is asked for, for many to work on."""

    checkpoint: Checkpoint
    test: FeatureSet
    mirrored: FeatureSet | None = None
    temperature: float = 1.0

    @property
    def title(self) -> str:
        """What it is for people."""
        return f"evaluate {self.checkpoint.stage}"

    @property
    def sides(self) -> tuple[FeatureSet, ...]:
        """The handles whose predictions the model's are the mean of."""
        return list_sides(self.checkpoint, self.test, self.mirrored)


def evaluate(
    checkpoint: Checkpoint,
    test: FeatureSet,
    store: Store,
    mirrored: FeatureSet | None = None,
    temperature: float = 1.0,
) -> Made[Evaluation]:
    """Predict every test row from its cached features, and measure.

    The rows may be of another split than the checkpoint's, as long as it learned from none of them.

    Args:
        mirrored: the mirror images of the test rows, for a checkpoint that averages over those as well.
        temperature: divides the logits of the averaged probabilities; 1 leaves them as they are.

    Raises:
        UnlikeSplits: the checkpoint was trained or validated on some of the rows.
        NotPublished: they were not predicted yet, and the store is only looked at.
    """
    if checkpoint.split != test.split:
        _check_unseen(checkpoint, test, store)
    sides = list_sides(checkpoint, test, mirrored)
    address = _find_address(checkpoint, sides, temperature)
    found = store.read("evaluations", address, Evaluation)
    if found is None:
        with claim(store, "evaluations", address):
            found = store.read("evaluations", address, Evaluation)
            if found is None:
                evaluation = _score(checkpoint, sides, temperature, store)
                store.publish("evaluations", address, evaluation)
                clear_pieces(_find_address(checkpoint, sides), store)
                return Made(value=evaluation, reused=False, note=_note(evaluation))
    found = _complete(found)
    return Made(value=found, reused=True, note=_note(found))


def begin_evaluation(
    request: EvaluationRequest, size: PortionSize, store: Store
) -> Made[PortionPlan[EvaluationRequest]]:
    """Share out the test rows that are to be predicted, or evaluate where there is no more than one portion.

    Raises:
        As `evaluate` does.
    """
    sides, rows = request.sides, len(store.read("splits", request.test.split, Split).rows(request.test.side))
    address = _find_address(request.checkpoint, sides)
    portions = plan_pieces(address, rows, size, PREDICTED_ROWS, store)
    plan = PortionPlan(request=request, portions=portions, rows=rows)
    if portions:
        return Made(value=plan, reused=False, note=f"{rows:,} rows in {len(portions):,} portions")
    made = evaluate_request(request, store)
    return Made(value=replace(plan, computed=0 if made.reused else rows), reused=made.reused, note=made.note)


def score_portion(
    request: EvaluationRequest, portion: Portion, store: Store, backwards: bool = False
) -> Made[PortionReport]:
    """Predict a portion of the test rows, unless another worker has. It is too little to be begun at the other end."""
    started, sides = time.monotonic(), request.sides
    address = _find_address(request.checkpoint, sides)
    reused = is_made(address, portion, store)
    if not reused:
        network = load_network(store, request.checkpoint.address)
        probabilities = predict_sides(network, sides, store, portion.start, portion.end)
        with publish_piece(address, portion, store) as folder:
            np.save(folder / _PIECE, probabilities, allow_pickle=False)
    report = report_portion(0 if reused else portion.rows, portion, started)
    return Made(value=report, reused=reused, note=f"{report.computed:,} of {portion.rows:,} rows predicted")


def evaluate_request(request: EvaluationRequest, store: Store) -> Made[Evaluation]:
    """Evaluate what is asked for, with what others have predicted of it.

    Raises:
        As `evaluate` does.
    """
    return evaluate(request.checkpoint, request.test, store, request.mirrored, request.temperature)


def _find_address(checkpoint: Checkpoint, sides: Sequence[FeatureSet], temperature: float = 1.0) -> str:
    return digest_of("evaluation", checkpoint.address, *sides, *([] if temperature == 1 else [temperature]))


def _predict(checkpoint: Checkpoint, sides: Sequence[FeatureSet], rows: int, store: Store) -> np.ndarray:
    """Class probabilities of all rows, as far as others have not predicted them."""
    pieces = fetch_pieces(_find_address(checkpoint, sides), rows, store)
    if pieces:
        return np.concatenate([np.load(folder / _PIECE, allow_pickle=False) for folder in pieces])
    return predict_sides(load_network(store, checkpoint.address), sides, store)


def list_sides(
    checkpoint: Checkpoint, rows: FeatureSet, mirrored: FeatureSet | None
) -> tuple[FeatureSet, ...]:
    """The handles whose predictions a checkpoint's are the mean of."""
    if checkpoint.mirrored != (mirrored is not None):
        raise ValueError(
            f"checkpoint {checkpoint.address} has mirrored={checkpoint.mirrored}. Received: mirrored={mirrored}"
        )
    return (rows, *([mirrored] if mirrored else []))


def _check_unseen(checkpoint: Checkpoint, test: FeatureSet, store: Store) -> None:
    learned, asked = (store.read("splits", digest, Split) for digest in (checkpoint.split, test.split))
    if learned is None or asked is None:
        raise UnlikeSplits(
            f"checkpoint of split {checkpoint.split}, test rows of split {test.split}: the store holds not both."
        )
    seen = {row.sha256 for row in (*learned.train, *learned.validation)}
    known = sum(row.sha256 in seen for row in asked.test)
    if known:
        raise UnlikeSplits(
            f"checkpoint {checkpoint.address} of split {checkpoint.split} learned from {known:,} of the "
            f"{len(asked.test):,} test images of split {test.split}: they can't test it."
        )


def _score(
    checkpoint: Checkpoint, sides: Sequence[FeatureSet], temperature: float, store: Store
) -> Evaluation:
    classes = store.read("splits", sides[0].split, Split).classes
    rows = Rows(sides[0], store)
    plain = probabilities = _predict(checkpoint, sides, len(rows), store)
    if temperature != 1:
        probabilities = apply_temperature(plain, temperature)
    predictions = tuple(
        Prediction(path=image.path, label=image.label, probabilities=tuple(row))
        for image, row in zip(rows.images, probabilities.tolist(), strict=True)
    )
    return Evaluation(
        checkpoint=checkpoint.address,
        stage=checkpoint.stage,
        split=sides[0].split,
        classes=classes,
        metrics=measure(rows.labels, probabilities),
        predictions=predictions,
        temperature=temperature,
        reliability=measure_reliability(rows.labels, probabilities),
        uncalibrated=measure(rows.labels, plain) if temperature != 1 else None,
        uncalibrated_reliability=measure_reliability(rows.labels, plain) if temperature != 1 else None,
    )


def _complete(found: Evaluation) -> Evaluation:
    """An evaluation of an older version, with what is measured by now."""
    if found.reliability:
        return found
    index = {label: number for number, label in enumerate(found.classes)}
    labels = np.array([index[row.label] for row in found.predictions])
    probabilities = np.array([row.probabilities for row in found.predictions])
    return replace(
        found,
        metrics=measure(labels, probabilities),
        reliability=measure_reliability(labels, probabilities),
    )


def predict_sides(
    network: Any, sides: Sequence[FeatureSet], store: Store, start: int = 0, end: int | None = None
) -> np.ndarray:
    """Class probabilities, float64 (n, classes), averaged over handles to the same images in other spaces."""
    return np.mean([predict_rows(network, Rows(side, store), start, end) for side in sides], axis=0)


def _note(evaluation: Evaluation) -> str:
    scaled = "" if evaluation.temperature == 1 else f" at temperature {evaluation.temperature:g}"
    return f"accuracy {evaluation.metrics.accuracy:.4f}{scaled}"


def measure(labels: np.ndarray, probabilities: np.ndarray) -> Metrics:
    """Metrics of predictions.

    Args:
        labels: integers (n,), class indices.
        probabilities: floats (n, classes), rows summing to 1.
    """
    from scipy.stats import binomtest
    from sklearn.metrics import (
        average_precision_score,
        brier_score_loss,
        confusion_matrix,
        log_loss,
        roc_auc_score,
    )

    classes = probabilities.shape[1]
    called = probabilities.argmax(axis=1)
    right = int((called == labels).sum())
    interval = binomtest(right, len(labels)).proportion_ci(0.95, method="wilson")
    auc = average_precision = None
    if len(np.unique(labels)) == classes:
        scores = probabilities[:, 1] if classes == 2 else probabilities
        auc = float(roc_auc_score(labels, scores, multi_class="ovr"))
        average_precision = float(average_precision_score(labels, scores, average="macro"))
    unclipped = float(measure_losses(labels, probabilities).mean())
    confusion = confusion_matrix(labels, called, labels=range(classes))
    return Metrics(
        images=len(labels),
        accuracy=right / len(labels),
        accuracy_interval=(float(interval.low), float(interval.high)),
        log_loss=float(log_loss(labels, probabilities, labels=range(classes))),
        auc=auc,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        average_precision=average_precision,
        brier=float(
            brier_score_loss(labels, probabilities, labels=range(classes), scale_by_half=classes == 2)
        ),
        calibration_error=measure_reliability(labels, probabilities).error,
        log_loss_unclipped=unclipped if math.isfinite(unclipped) else None,
    )
