"""The one training loop: from cached features, with early stopping, and going on exactly after a kill.

Everything random is drawn from (seed, epoch), and a journal keeps the network with its optimizer's
slots, so that a run that was cut off ends with the very weights of an undisturbed one.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from thaw.claims import claim
from thaw.config import HeadConfig, PhaseConfig
from thaw.device import list_layers, prepare_keras, share_batches
from thaw.journal import Journal, TrainingState
from thaw.optimizer import set_rate, slow_down_by_depth
from thaw.order import group_batches, order_rows
from thaw.progress import track
from thaw.records import Checkpoint, Epoch, Features, History, Made
from thaw.rows import FreshRows, Rows, ViewSource, open_training_rows
from thaw.steps import KerasSteps, compile_steps
from thaw.store import Store

logger = logging.getLogger(__name__)

_VALIDATED_ROWS = PREDICTED_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be trained, and when it is over.

    Attributes:
        address: of the checkpoint that it becomes.
        budget: how many times the settings' epochs may be spent.
        has_settled: ends training before that; beside it the settings' own patience does.
        measures_start: whether the weights at the start compete for the best.
        depths: how many stages below the top each layer lies that trains more slowly for it.
    """

    address: str
    stage: Literal["head", "network", "fine_tuned"]
    label: str
    features: Features
    settings: HeadConfig | PhaseConfig
    budget: int = 1
    has_settled: Callable[[History], bool] = lambda history: False
    measures_start: bool = False
    depths: Callable[[], Mapping[str, int]] = dict

    @property
    def epochs(self) -> int:
        return self.settings.epochs * self.budget

    def is_over(self, history: History) -> bool:
        settings, done = self.settings, len(history.epochs)
        if not done:
            return False
        out_of_patience = (
            settings.patience_epochs is not None
            and history.count_idle_epochs(settings.min_improvement) >= settings.patience_epochs
        )
        return (
            done >= self.epochs
            or not math.isfinite(history.epochs[-1].loss)
            or out_of_patience
            or self.has_settled(history)
        )


def train_network(
    plan: Plan,
    begin: Callable[[Rows, History], TrainingState],
    store: Store,
    source: ViewSource | None = None,
) -> Made[Checkpoint]:
    """Train a compiled network and publish it as `checkpoints/<address>/`, unless that was done before.

    `model.keras` there has the weights that validated best, those at the start included where the plan
    measures them; `last.keras` has the last ones and the optimizer.

    Args:
        begin: builds the state to start from, of the validation rows and a history without epochs; not called
            where a journal tells how to go on.
        source: what fresh views are drawn from, where the features ask for those.

    Raises:
        NotPublished: it was not trained yet, in a store that is only looked at.
    """
    found = find_checkpoint(store, plan.address)
    if found:
        return hand_back(found, reused=True)
    validation = Rows(plan.features.validation, store)
    blank = History(validation_counts=validation.count_labels(), monitor=plan.settings.monitor)
    with (
        open_training_rows(plan.features, source, store) as train,
        share_batches(plan.settings.batch_size),
        claim(store, "checkpoints", plan.address),
    ):
        found = find_checkpoint(store, plan.address)
        if found:
            return hand_back(found, reused=True)
        journal = Journal(store, plan.address)
        state = journal.read() or begin(validation, blank)
        _train(state, train, validation, plan, journal)
        finished = _publish(state, plan, store)
        journal.clear()
    return hand_back(finished, reused=False)


def hand_back(checkpoint: Checkpoint, reused: bool) -> Made[Checkpoint]:
    """A checkpoint as a stage hands it on."""
    return Made(value=checkpoint, reused=reused, note=f"{len(checkpoint.history.epochs)} epochs")


def find_checkpoint(store: Store, address: str) -> Checkpoint | None:
    """The checkpoint published under an address, or None where it may be made.

    Raises:
        NotPublished: there is none, in a store that is only looked at.
    """
    record = ("checkpoints", address, "checkpoint.json", Checkpoint)
    found = store.read_folder(*record, ("model.keras",))
    if found and not found.members:
        # What was trained can be trained on.
        found = store.read_folder(*record, ("model.keras", "last.keras"))
    if found is None:
        store.check_may_make("checkpoints", address)
    return found


def load_network(store: Store, address: str, which: Literal["model", "last"] = "model") -> Any:
    """A checkpoint's network: `model` with its best weights, or `last` with the optimizer, to go on with."""
    return prepare_keras().models.load_model(store.fetch("checkpoints", address, f"{which}.keras"))


def predict_rows(network: Any, rows: Rows, start: int = 0, end: int | None = None) -> np.ndarray:
    """Class probabilities of the rows from `start` up to `end`: float64 (n, classes), each row summing to 1.

    Where `start` is a multiple of PREDICTED_ROWS they are those of a pass over all rows, to the bit.
    """
    outputs, end = [], len(rows) if end is None else end
    with track("predict", end - start, "images") as advance:
        for features in rows.read_in_order(PREDICTED_ROWS, start, end):
            outputs.append(np.asarray(network.predict_on_batch(features.astype(np.float32))))
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
    state: TrainingState, train: Rows | FreshRows, validation: Rows, plan: Plan, journal: Journal
) -> None:
    slow_down_by_depth(state.network, plan.depths(), plan.settings)
    steps = compile_steps(state.network)
    if plan.measures_start and not state.history.start:
        state.history = dataclasses.replace(state.history, start=_measure_start(steps, validation))
    done = len(state.history.epochs)
    with track(plan.label, plan.epochs * len(train), "images", done=done * len(train)) as advance:
        while not plan.is_over(state.history):
            set_rate(state.network.optimizer, plan.settings.optimizer, state.history, plan.settings.epochs)
            epoch = _run_epoch(steps, state.network, train, validation, plan.settings, done, advance)
            state.history = dataclasses.replace(state.history, epochs=(*state.history.epochs, epoch))
            done += 1
            if state.history.best_epoch == done:
                state.best = state.network.get_weights()
            journal.keep(state)
            logger.info(
                "%s, epoch %d of %d: loss %.4f, accuracy %.4f, val loss %.4f, val accuracy %.4f",
                *(plan.label, done, plan.epochs),
                *(epoch.loss, epoch.accuracy, epoch.val_loss, epoch.val_accuracy),
            )


def _publish(state: TrainingState, plan: Plan, store: Store) -> Checkpoint:
    checkpoint = Checkpoint(
        address=plan.address,
        stage=plan.stage,
        cut=plan.features.cut,
        split=plan.features.train.split,
        space=plan.features.train.space,
        history=state.history,
    )
    with store.publish_folder("checkpoints", checkpoint.address) as partial:
        state.network.save(partial / "last.keras")
        best = _build_in_float32(state.network)
        best.set_weights(state.best)
        best.save(partial / "model.keras")
        (partial / "checkpoint.json").write_text(checkpoint.to_json(), encoding="utf-8")
    return checkpoint


def _build_in_float32(network: Any) -> Any:
    """The same network computing in float32, as its weights are, whatever it was trained in."""
    config = json.dumps(network.get_config())
    for name in ("mixed_bfloat16", "bfloat16"):
        config = config.replace(f'"{name}"', '"float32"')
    return type(network).from_config(json.loads(config))


def _run_epoch(
    steps: KerasSteps,
    network: Any,
    train: Rows | FreshRows,
    validation: Rows,
    settings: HeadConfig | PhaseConfig,
    number: int,
    advance: Callable[..., None],
) -> Epoch:
    _seed_dropout(network, [settings.seed, number])
    order = order_rows(len(train), settings.seed, number)
    groups = list(group_batches(order, settings.batch_size, steps.batches))
    totals, done = np.zeros(2), 0
    for group, features in zip(groups, train.read_ahead(groups, number), strict=True):
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
        # A variable on several devices has no float of its own.
        learning_rate=float(np.asarray(network.optimizer.learning_rate)),
    )


def _measure_start(steps: KerasSteps, validation: Rows) -> Epoch:
    """The validation figures of a network before it is trained."""
    loss, accuracy = _validate(steps, validation)
    return Epoch(loss=loss, accuracy=accuracy, val_loss=loss, val_accuracy=accuracy, learning_rate=0.0)


def _validate(steps: KerasSteps, rows: Rows) -> tuple[float, float]:
    totals, done = np.zeros(2), 0
    for features in rows.read_in_order(_VALIDATED_ROWS):
        totals += steps.score(features, rows.labels[done : done + len(features)])
        done += len(features)
    loss, accuracy = (totals / len(rows)).tolist()
    return loss, accuracy


def _seed_dropout(network: Any, seed: list[int]) -> None:
    dropouts = (layer for layer in list_layers(network) if isinstance(layer, prepare_keras().layers.Dropout))
    for place, layer in enumerate(dropouts):
        drawn = np.random.default_rng([*seed, place]).integers(2**31, size=2)
        layer.seed_generator.state.assign(drawn.astype(layer.seed_generator.state.dtype))
