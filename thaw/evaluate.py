"""Score a checkpoint on test rows that it has not learned from, once, image by image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from thaw.claims import claim
from thaw.errors import UnlikeSplits
from thaw.records import Checkpoint, Evaluation, FeatureSet, Made, Metrics, Prediction, Split, digest_of
from thaw.rows import Rows
from thaw.store import Store
from thaw.trainer import load_network, predict_rows


def evaluate(
    checkpoint: Checkpoint, test: FeatureSet, store: Store, mirrored: FeatureSet | None = None
) -> Made[Evaluation]:
    """Predict every test row from its cached features, and measure.

    The rows may be of another split than the checkpoint's, as long as it learned from none of them.

    Args:
        mirrored: the mirror images of the test rows, for a checkpoint that averages over those as well.

    Raises:
        UnlikeSplits: the checkpoint was trained or validated on some of the rows.
        NotPublished: they were not predicted yet, and the store is only looked at.
    """
    if checkpoint.split != test.split:
        _check_unseen(checkpoint, test, store)
    if checkpoint.mirrored != (mirrored is not None):
        raise ValueError(
            f"checkpoint {checkpoint.address} has mirrored={checkpoint.mirrored}. Received: mirrored={mirrored}"
        )
    sides = (test, *([mirrored] if mirrored else []))
    address = digest_of("evaluation", checkpoint.address, *sides)
    found = store.read("evaluations", address, Evaluation)
    if found is None:
        with claim(store, "evaluations", address):
            found = store.read("evaluations", address, Evaluation)
            if found is None:
                evaluation = _score(checkpoint, sides, store)
                store.publish("evaluations", address, evaluation)
                return Made(value=evaluation, reused=False, note=_note(evaluation))
    return Made(value=found, reused=True, note=_note(found))


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


def _score(checkpoint: Checkpoint, sides: Sequence[FeatureSet], store: Store) -> Evaluation:
    classes = store.read("splits", sides[0].split, Split).classes
    rows = Rows(sides[0], store)
    probabilities = predict_sides(load_network(store, checkpoint.address), sides, store)
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
    )


def predict_sides(network: Any, sides: Sequence[FeatureSet], store: Store) -> np.ndarray:
    """Class probabilities, float64 (n, classes), averaged over handles to the same images in other spaces."""
    return np.mean([predict_rows(network, Rows(side, store)) for side in sides], axis=0)


def _note(evaluation: Evaluation) -> str:
    return f"accuracy {evaluation.metrics.accuracy:.4f}"


def measure(labels: np.ndarray, probabilities: np.ndarray) -> Metrics:
    """Metrics of predictions.

    Args:
        labels: integers (n,), class indices.
        probabilities: floats (n, classes), rows summing to 1.
    """
    from scipy.stats import binomtest
    from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score

    classes = probabilities.shape[1]
    called = probabilities.argmax(axis=1)
    right = int((called == labels).sum())
    interval = binomtest(right, len(labels)).proportion_ci(0.95, method="wilson")
    auc = None
    if len(np.unique(labels)) == classes:
        scores = probabilities[:, 1] if classes == 2 else probabilities
        auc = float(roc_auc_score(labels, scores, multi_class="ovr"))
    confusion = confusion_matrix(labels, called, labels=range(classes))
    return Metrics(
        images=len(labels),
        accuracy=right / len(labels),
        accuracy_interval=(float(interval.low), float(interval.high)),
        log_loss=float(log_loss(labels, probabilities, labels=range(classes))),
        auc=auc,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )
