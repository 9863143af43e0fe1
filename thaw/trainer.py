"""The one training loop: from cached features, with early stopping, and going on exactly after a kill.

Everything random is drawn from (seed, epoch), and a journal keeps the network with its optimizer's
slots, so that a run that was cut off ends with the very weights of an undisturbed one.
"""

import dataclasses
import itertools
import logging
import math
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from thaw.claims import claim
from thaw.device import list_layers, prepare_keras
from thaw.extract import map_ahead
from thaw.progress import track
from thaw.records import Checkpoint, Epoch, Features, History
from thaw.rows import FreshRows, Rows
from thaw.steps import KerasSteps, compile_steps
from thaw.store import Store

logger = logging.getLogger(__name__)

# Epochs of a head take a fraction of a second; saving after each would cost more than they do.
_JOURNAL_SECONDS = 5.0
_VALIDATED_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to train, on what batches, when to stop early, and whether the weights at the start compete."""

    epochs: int
    batch_size: int
    seed: int
    should_stop: Callable[[History], bool]
    measures_start: bool = False


@dataclass(kw_only=True)
class TrainingState:
    """Where training stands: the network as it is, its history, and the best weights so far."""

    network: Any
    history: History
    best: list[np.ndarray]


def train_network(
    begin: Callable[[], TrainingState],
    train: Rows | FreshRows,
    validation: Rows,
    schedule: Schedule,
    store: Store,
    checkpoint: Checkpoint,
    label: str,
) -> Checkpoint:
    """Train a compiled network and publish it as `checkpoints/<address>/`, unless another run does.

    `model.keras` there has the weights of the lowest validation loss, those at the start included
    where the history has figures for them; `last.keras` has the last ones and the optimizer.

    Args:
        begin: builds the state to start from; not called where a journal tells how to go on.
        checkpoint: what the result is to be; its history is left to fill in.
    """
    with claim(store, "checkpoints", checkpoint.address):
        found = find_checkpoint(store, checkpoint.address)
        if found:
            return found
        journal = _Journal(store, checkpoint.address)
        state = journal.read() or begin()
        _train(state, train, validation, schedule, journal, label)
        finished = dataclasses.replace(checkpoint, history=state.history)
        _publish(state, finished, store)
        journal.clear()
    return finished


def plan_checkpoint(
    address: str, stage: Literal["head", "fine_tuned"], features: Features, validation_counts: tuple[int, ...]
) -> Checkpoint:
    """The checkpoint that training on these features is to become, its history still empty."""
    return Checkpoint(
        address=address,
        stage=stage,
        cut=features.cut,
        split=features.train.split,
        space=features.train.space,
        history=History(validation_counts=validation_counts),
    )


def find_checkpoint(store: Store, address: str) -> Checkpoint | None:
    """The checkpoint published under an address, or None where it may be made.

    Raises:
        NotPublished: there is none, in a store that is only looked at.
    """
    files = ("model.keras", "last.keras")
    found = store.read_folder("checkpoints", address, "checkpoint.json", Checkpoint, files)
    if found is None:
        store.check_may_make("checkpoints", address)
    return found


def load_network(store: Store, address: str, which: Literal["model", "last"] = "model") -> Any:
    """A checkpoint's network: `model` with its best weights, or `last` with the optimizer, to go on with."""
    return prepare_keras().models.load_model(store.folder("checkpoints", address, f"{which}.keras"))


def predict_rows(network: Any, rows: Rows, batch_size: int = 64) -> np.ndarray:
    """Class probabilities of every row: float64 (n, classes), each row summing to 1."""
    outputs = []
    with track("predict", len(rows), "images") as advance:
        for start in range(0, len(rows), batch_size):
            features = rows.read(slice(start, start + batch_size)).astype(np.float32)
            outputs.append(np.asarray(network.predict_on_batch(features)))
            advance(len(outputs[-1]))
    return spread_classes(np.concatenate(outputs))


def spread_classes(outputs: np.ndarray) -> np.ndarray:
    """A network's outputs as float64 (n, classes): a lone sigmoid is the probability of the second class."""
    outputs = outputs.astype(np.float64)
    if outputs.shape[1] == 1:
        return np.hstack([1 - outputs, outputs])
    # A softmax in float32 sums to 1 within its own rounding, which is not that of float64.
    return outputs / outputs.sum(axis=1, keepdims=True)


def _train(
    state: TrainingState,
    train: Rows | FreshRows,
    validation: Rows,
    schedule: Schedule,
    journal: "_Journal",
    label: str,
) -> None:
    steps = compile_steps(state.network)
    if schedule.measures_start and not state.history.start:
        state.history = dataclasses.replace(state.history, start=_measure_start(steps, validation))
    done = len(state.history.epochs)
    with track(label, schedule.epochs * len(train), "images", done=done * len(train)) as advance:
        while done < schedule.epochs and not (done and _is_over(state.history, schedule)):
            epoch = _run_epoch(steps, state.network, train, validation, schedule, done, advance)
            state.history = dataclasses.replace(state.history, epochs=(*state.history.epochs, epoch))
            done += 1
            if state.history.best_epoch == done:
                state.best = state.network.get_weights()
            journal.keep(state)
            logger.info(
                "%s, epoch %d of %d: loss %.4f, accuracy %.4f, val loss %.4f, val accuracy %.4f",
                *(label, done, schedule.epochs),
                *(epoch.loss, epoch.accuracy, epoch.val_loss, epoch.val_accuracy),
            )


def _publish(state: TrainingState, checkpoint: Checkpoint, store: Store) -> None:
    with store.publish_folder("checkpoints", checkpoint.address) as partial:
        state.network.save(partial / "last.keras")
        best = prepare_keras().models.load_model(partial / "last.keras", compile=False)
        best.set_weights(state.best)
        for layer in list_layers(best):
            # Training may have computed in bfloat16; its weights, and the model, are float32.
            layer.dtype_policy = "float32"
        best.save(partial / "model.keras")
        (partial / "checkpoint.json").write_text(checkpoint.to_json(), encoding="utf-8")


def _is_over(history: History, schedule: Schedule) -> bool:
    return not math.isfinite(history.epochs[-1].loss) or schedule.should_stop(history)


def _run_epoch(
    steps: KerasSteps,
    network: Any,
    train: Rows | FreshRows,
    validation: Rows,
    schedule: Schedule,
    number: int,
    advance: Callable[..., None],
) -> Epoch:
    _seed_dropout(network, [schedule.seed, number])
    order = np.random.default_rng([schedule.seed, number]).permutation(len(train))
    groups = list(_group(order, schedule.batch_size, steps.batches))

    def read(group: np.ndarray) -> np.ndarray:
        return train.read(group.ravel(), epoch=number).reshape(*group.shape, *train.shape)

    totals, done = np.zeros(2), 0
    for group, features in zip(groups, map_ahead(read, groups, ahead=1, threads=1), strict=True):
        totals += steps.train(features, train.labels[group])
        done += group.size
        advance(group.size, f"loss {totals[0] / done:.4f}")
    loss, accuracy = (totals / len(train)).tolist()
    val_loss, val_accuracy = _validate(steps, validation)
    return Epoch(
        loss=loss,
        accuracy=accuracy,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        learning_rate=float(network.optimizer.learning_rate),
    )


def _group(order: np.ndarray, batch_size: int, batches: int) -> Iterator[np.ndarray]:
    """Images in the order they are trained on, as arrays (batches, images): groups, single batches, the rest."""
    grouped = len(order) // (batch_size * batches) * batches
    whole = len(order) // batch_size
    starts = [*range(0, grouped, batches), *range(grouped, whole), whole]
    for start, end in itertools.pairwise([*starts, None]):
        images = order[start * batch_size : None if end is None else end * batch_size]
        if len(images):
            # Within a batch the order does not count, and shards are read from front to back.
            yield np.sort(images.reshape(1 if end is None else end - start, -1))


def _measure_start(steps: KerasSteps, validation: Rows) -> Epoch:
    """The validation figures of a network before it is trained."""
    loss, accuracy = _validate(steps, validation)
    return Epoch(loss=loss, accuracy=accuracy, val_loss=loss, val_accuracy=accuracy, learning_rate=0.0)


def _validate(steps: KerasSteps, rows: Rows) -> tuple[float, float]:
    totals = np.zeros(2)
    for start in range(0, len(rows), _VALIDATED_ROWS):
        place = slice(start, start + _VALIDATED_ROWS)
        totals += steps.score(rows.read(place), rows.labels[place])
    loss, accuracy = (totals / len(rows)).tolist()
    return loss, accuracy


def _seed_dropout(network: Any, seed: list[int]) -> None:
    dropouts = (layer for layer in list_layers(network) if isinstance(layer, prepare_keras().layers.Dropout))
    for place, layer in enumerate(dropouts):
        drawn = np.random.default_rng([*seed, place]).integers(2**31, size=2)
        layer.seed_generator.state.assign(drawn.astype(layer.seed_generator.state.dtype))


class _Journal:
    """Where training stands: `journals/<address>/<epochs>/`, the newest counts."""

    def __init__(self, store: Store, address: str):
        self._store = store
        self._folder = store.folder("journals", address)
        self._kept = time.monotonic()

    def read(self) -> TrainingState | None:
        for entry in sorted(self._folder.glob("*"), reverse=True):
            keras = prepare_keras()
            try:
                network = keras.models.load_model(entry / "last.keras")
                with np.load(entry / "best.npz", allow_pickle=False) as arrays:
                    best = [arrays[name] for name in arrays.files]
                history = History.from_json((entry / "history.json").read_bytes())
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                self._store.set_aside(entry, str(error))
                continue
            logger.info("going on after epoch %d, where an earlier run was cut off", len(history.epochs))
            return TrainingState(network=network, history=history, best=best)
        return None

    def keep(self, state: TrainingState) -> None:
        if time.monotonic() - self._kept < _JOURNAL_SECONDS:
            return
        name = f"{len(state.history.epochs):06d}"
        with self._store.publish_folder("journals", self._folder.name, name) as partial:
            state.network.save(partial / "last.keras")
            np.savez(partial / "best.npz", *state.best)
            (partial / "history.json").write_text(state.history.to_json(), encoding="utf-8")
        for entry in self._folder.glob("*"):
            if entry.name < name:
                shutil.rmtree(entry, ignore_errors=True)
        self._kept = time.monotonic()

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
