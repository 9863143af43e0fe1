"""K-fold cross-validation: each image that is learned from is predicted by a head that did not train on it."""

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from thaw.config import GateConfig, HeadConfig, Section, TrainConfig
from thaw.convergence import judge_convergence
from thaw.errors import BadConfig, ShortClass
from thaw.evaluate import evaluate, measure
from thaw.head import train_head
from thaw.layout import natural_key
from thaw.records import (
    Checkpoint,
    Evaluation,
    Features,
    History,
    ImageRow,
    Made,
    Metrics,
    Prediction,
    Record,
    Split,
    StageTime,
    Verdict,
    digest_of,
)
from thaw.report.folds import plot_folds, write_predictions
from thaw.rows import ViewSource
from thaw.split import Groups, publish_rows
from thaw.store import Store
from thaw.suspects import rank_labels

RECORD, TABLE, PICTURE = "crossvalidation.json", "out_of_fold.csv", "curves.png"


class FoldsConfig(Section):
    """How the images that are learned from are divided."""

    folds: int = Field(5, ge=2, le=100, description="Parts, each held out once while the others train.")
    repeats: int = Field(
        1, ge=1, le=100, description="Times that all of this is done, with folds drawn anew."
    )


@dataclass(frozen=True, kw_only=True)
class ScoredFold(Record):
    """The head that trained without a fold, and what it makes of the fold's images."""

    checkpoint: Checkpoint
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class Fold(Record):
    """One fold held out: its split, the head that did without it, and how well that head knows it.

    `number` counts from 1 within a repeat. `images` are those of the fold; `log_loss` is in nats.
    """

    repeat: int
    number: int
    split: str
    checkpoint: str
    train_images: int
    images: int
    history: History
    verdict: Verdict
    accuracy: float
    log_loss: float


@dataclass(frozen=True, kw_only=True)
class OutOfFold(Prediction):
    """One image, and the probability that the head which trained without its fold gave each class."""

    repeat: int
    fold: int


@dataclass(frozen=True, kw_only=True)
class Spread(Record):
    """A figure over the folds, each of which counts the same.

    The deviation is that of a sample (n - 1). The error is the deviation over the root of the folds of one
    repeat, since a repeat brings no new images. Folds share most of what their heads learned from, so that it
    understates what another set of images would change.
    """

    mean: float
    standard_deviation: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class CrossValidation(Record):
    """What cross-validation came to. Its folder in the store is `crossvalidations/<address>/`.

    `predictions` hold each image that is learned from once a repeat, in the order of its class and path, and
    `pooled` measures them all; its interval counts an image once, however often it was predicted.
    `test_images` were left alone, and so were the recipe's `phases_left_out` of fine-tuning.
    """

    address: str
    recipe: str
    split: str
    seed: int
    repeats: int
    classes: tuple[str, ...]
    test_images: int
    phases_left_out: int
    folds: tuple[Fold, ...]
    accuracy: Spread
    log_loss: Spread
    pooled: Metrics
    predictions: tuple[OutOfFold, ...]
    stages: tuple[StageTime, ...] = ()


def make_folds(split: Split, folds: int, seed: int, groups: Groups = ()) -> tuple[Split, ...]:
    """Divide the images that a split learns from, its train and validation rows, into folds.

    Each fold validates in a split of its own, the others train, and the test rows stay what they are. Images
    of a class are dealt out in an order drawn from their bytes and the seed: the order of rows does not count,
    and the counts of a class, as those of all images, differ by one at most between folds, but for the images
    of a group, such as near-identical ones: these follow the first of them.

    Returns:
        One split for each fold, with rows class by class, in natural order of their paths.

    Raises:
        BadConfig: fewer than two folds.
        ShortClass: a class has fewer images to learn from than there are folds, or groups leave a fold without.
    """
    if folds < 2:
        raise BadConfig(
            f"setting 'folds': one fold is held out while others train, so it takes 2 or more. Received: {folds}."
        )
    learned = (*split.train, *split.validation)
    order: list[ImageRow] = []
    dealt: list[ImageRow] = []
    for label in split.classes:
        rows = [row for row in learned if row.label == label]
        if len(rows) < folds:
            raise ShortClass(
                f"class '{label}' has {len(rows)} images to learn from (train and validation), {folds} folds need "
                f"{folds} or more. Use fewer folds, add images, or leave fewer of them to test."
            )
        order += sorted(rows, key=lambda row: natural_key(row.path))
        dealt += sorted(rows, key=lambda row: _draw(row, seed))
    # Dealt on from class to class, so that the first fold does not get the odd image of each.
    places = {row: number % folds for number, row in enumerate(dealt)}
    for group in groups:
        members = [row for row in group if row in places]
        places |= {row: places[members[0]] for row in members}
    for label in split.classes:
        if len({places[row] for row in order if row.label == label}) < folds:
            raise ShortClass(
                f"class '{label}' has so many near-identical images, which stay together, that {folds} folds can't "
                "have some of it each. Use fewer folds, add images, or set duplicates.placement to 'alone'."
            )
    return tuple(
        Split(
            strategy=f"fold {number + 1} of {folds}",
            seed=seed,
            classes=split.classes,
            train=tuple(row for row in order if places[row] != number),
            validation=tuple(row for row in order if places[row] == number),
            test=split.test,
        )
        for number in range(folds)
    )


def publish_folds(
    split: Split, settings: FoldsConfig, seed: int, store: Store, groups: Groups = ()
) -> Made[tuple[Split, ...]]:
    """Make the folds of every repeat, the first from `seed` and each other from the next one, and publish them.

    Raises:
        BadConfig, ShortClass: as `make_folds` does.
    """
    drawn = [
        fold
        for repeat in range(settings.repeats)
        for fold in make_folds(split, settings.folds, seed + repeat, groups)
    ]
    reused = [publish_rows(fold, store).reused for fold in drawn]
    learned = len(split.train) + len(split.validation)
    note = f"{len(drawn)} folds of {learned:,} images, {len(split.test):,} test images left alone"
    return Made(value=tuple(drawn), reused=all(reused), note=note)


def score_fold(
    features: Features, settings: HeadConfig, gate: GateConfig, store: Store, source: ViewSource
) -> Made[ScoredFold]:
    """Train a head without a fold, for one budget, and let its best weights predict the fold.

    Args:
        features: of the fold's split; its test rows need not be cached.
        gate: ends training where the head's settings leave that to it.

    Raises:
        NotPublished: it was not done yet, and the store is only looked at.
    """
    head = train_head(features, settings, gate, store, source=source)
    evaluation = evaluate(head.value, features.validation, store)
    return Made(
        value=ScoredFold(checkpoint=head.value, evaluation=evaluation.value),
        reused=head.reused and evaluation.reused,
        note=f"{head.note}, {evaluation.note}",
    )


def publish_crossvalidation(
    scored: Sequence[ScoredFold], split: Split, settings: FoldsConfig, config: TrainConfig, store: Store
) -> Made[CrossValidation]:
    """Measure what the folds came to, and publish it: the record, its predictions as CSV, its curves.

    Args:
        scored: the folds of every repeat, in the order of `publish_folds`.
        split: the one whose images were divided.
    """
    checkpoints = [fold.checkpoint.address for fold in scored]
    given = (config.recipe, split.digest, len(config.fine_tune), config.gate, settings, checkpoints)
    address = digest_of("crossvalidation", "with label quality", *given)
    note = f"cross-validation {address}"
    found = store.read_folder("crossvalidations", address, RECORD, CrossValidation, (PICTURE, TABLE))
    if found:
        return Made(value=found, reused=True, note=note)
    places = list(itertools.product(range(1, settings.repeats + 1), range(1, settings.folds + 1)))
    folds = tuple(
        _describe_fold(*place, fold, split, config) for place, fold in zip(places, scored, strict=True)
    )
    order = {label: number for number, label in enumerate(split.classes)}
    predictions = [
        OutOfFold(**vars(row), repeat=repeat, fold=number)
        for (repeat, number), fold in zip(places, scored, strict=True)
        for row in fold.evaluation.predictions
    ]
    predictions.sort(key=lambda row: (row.repeat, order[row.label], natural_key(row.path)))
    made = CrossValidation(
        address=address,
        recipe=config.recipe,
        split=split.digest,
        seed=config.split.seed,
        repeats=settings.repeats,
        classes=split.classes,
        test_images=len(split.test),
        phases_left_out=len(config.fine_tune),
        folds=folds,
        accuracy=measure_spread([fold.accuracy for fold in folds], settings.folds),
        log_loss=measure_spread([fold.log_loss for fold in folds], settings.folds),
        pooled=_pool(predictions, split.classes, settings.repeats),
        predictions=tuple(predictions),
    )
    with store.publish_folder("crossvalidations", address) as partial:
        qualities = {image.path: image.score for image in rank_labels(made).images}
        write_predictions(partial / TABLE, split.classes, predictions, qualities)
        (partial / PICTURE).write_bytes(plot_folds([fold.history for fold in folds]))
        (partial / RECORD).write_text(made.to_json(), encoding="utf-8")
    return Made(value=made, reused=False, note=note)


def measure_spread(figures: Sequence[float], folds: int) -> Spread:
    """The spread of one figure for each fold of every repeat.

    Args:
        folds: those of one repeat.
    """
    deviation = float(np.std(figures, ddof=1))
    return Spread(
        mean=float(np.mean(figures)),
        standard_deviation=deviation,
        standard_error=deviation / math.sqrt(folds),
    )


def _draw(row: ImageRow, seed: int) -> str:
    return hashlib.sha256(f"fold:{seed}:{row.sha256}".encode()).hexdigest()


def _describe_fold(repeat: int, number: int, scored: ScoredFold, split: Split, config: TrainConfig) -> Fold:
    metrics, history = scored.evaluation.metrics, scored.checkpoint.history
    return Fold(
        repeat=repeat,
        number=number,
        split=scored.checkpoint.split,
        checkpoint=scored.checkpoint.address,
        train_images=len(split.train) + len(split.validation) - metrics.images,
        images=metrics.images,
        history=history,
        verdict=judge_convergence(history, config.gate, config.head),
        accuracy=metrics.accuracy,
        log_loss=metrics.log_loss,
    )


def _pool(predictions: Sequence[OutOfFold], classes: Sequence[str], repeats: int) -> Metrics:
    """Metrics over all predictions, with the interval of as many images as there are."""
    labels = np.array([classes.index(row.label) for row in predictions])
    metrics = measure(labels, np.array([row.probabilities for row in predictions]))
    if repeats == 1:
        return metrics
    from scipy.stats import binomtest

    images = len(predictions) // repeats
    interval = binomtest(round(metrics.accuracy * images), images).proportion_ci(0.95, method="wilson")
    return replace(metrics, images=images, accuracy_interval=(float(interval.low), float(interval.high)))
