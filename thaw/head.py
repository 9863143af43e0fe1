"""The dense classifier on bottleneck features: built, trained, given more epochs where it still learns."""

from typing import Any

from thaw.config import GateConfig, HeadConfig
from thaw.convergence import judge_convergence
from thaw.device import prepare_keras
from thaw.records import Checkpoint, Features, History, Made, digest_of
from thaw.rows import Rows, ViewSource, open_training_rows
from thaw.steps import compile_network
from thaw.store import Store
from thaw.trainer import (
    Schedule,
    TrainingState,
    find_checkpoint,
    load_network,
    plan_checkpoint,
    train_network,
)


def build_head(shape: tuple[int, ...], classes: int, settings: HeadConfig) -> Any:
    """A network from features (n, *shape) to probabilities: (n, 1) for two classes, else (n, classes)."""
    keras = prepare_keras()
    keras.utils.set_random_seed(settings.seed)
    penalty = keras.regularizers.L2(settings.l2) if settings.l2 else None
    last = keras.layers.Dense(1, "sigmoid") if classes == 2 else keras.layers.Dense(classes, "softmax")
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(settings.dense_units, settings.activation, kernel_regularizer=penalty),
            keras.layers.Dropout(settings.dropout),
            last,
        ],
        name="head",
    )


def train_head(
    features: Features,
    settings: HeadConfig,
    gate: GateConfig,
    store: Store,
    budget: int = 1,
    source: ViewSource | None = None,
    start: Checkpoint | None = None,
) -> Made[Checkpoint]:
    """Train a head for its budget of epochs, or until the gate's verdict on it is settled.

    Args:
        budget: which one it is; after the first, training goes on from the end of the one before.
        source: what fresh views are drawn from, where the features ask for those.
        start: a head of the same shape to go on from, which takes part in the choice of the best weights;
            without one the first weights are drawn.
    """
    address = _address(features, settings, gate, budget, start)
    found = find_checkpoint(store, address)
    if found:
        return Made(value=found, reused=True, note=f"{len(found.history.epochs)} epochs")
    validation = Rows(features.validation, store)
    counts = validation.count_labels()
    checkpoint = plan_checkpoint(address, "head", features, counts)

    def begin() -> TrainingState:
        if budget > 1:
            before = train_head(features, settings, gate, store, budget - 1, source, start).value
            best = load_network(store, before.address).get_weights()
            network = load_network(store, before.address, "last")
            return TrainingState(network=network, history=before.history, best=best)
        network = build_head(validation.shape, len(counts), settings)
        if start:
            network.set_weights(load_network(store, start.address).get_weights())
        compile_network(network, settings.optimizer, len(counts))
        return TrainingState(network=network, history=checkpoint.history, best=network.get_weights())

    def settled(history: History) -> bool:
        return settings.stop == "when_converged" and judge_convergence(history, gate).state != "improving"

    schedule = Schedule(
        epochs=settings.epochs * budget,
        batch_size=settings.batch_size,
        seed=settings.seed,
        should_stop=settled,
        measures_start=start is not None,
    )
    with open_training_rows(features, source, store) as train:
        finished = train_network(begin, train, validation, schedule, store, checkpoint, "head")
    return Made(value=finished, reused=False, note=f"{len(finished.history.epochs)} epochs")


def _address(
    features: Features, settings: HeadConfig, gate: GateConfig, budget: int, start: Checkpoint | None
) -> str:
    # The gate decides what is trained only where it ends training.
    ending = gate.model_dump(exclude={"max_extensions", "override_gate"})
    return digest_of(
        "head",
        features.train,
        features.validation,
        settings,
        ending if settings.stop == "when_converged" else None,
        budget,
        *([start.address] if start else []),
    )
