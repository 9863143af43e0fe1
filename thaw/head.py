"""The classifier on bottleneck features: built, trained, given more epochs where it still learns."""

from typing import Any

from thaw.architectures import preprocess
from thaw.config import GateConfig, HeadConfig, TrainingConfig
from thaw.convergence import judge_convergence
from thaw.device import prepare_keras
from thaw.journal import TrainingState
from thaw.networks import add_convolutions
from thaw.records import PIXELS, Checkpoint, Features, FeatureSpace, History, Made, digest_of
from thaw.rows import Rows, ViewSource
from thaw.steps import compile_network
from thaw.store import Store
from thaw.trainer import Plan, load_network, train_network


def build_head(
    shape: tuple[int, ...], classes: int, settings: HeadConfig, preprocessing: str | None = None
) -> Any:
    """A network from features (n, *shape) to probabilities: (n, 1) for two classes, else (n, classes).

    Args:
        preprocessing: what is done first, where the features are pixels of 0 to 255.
    """
    keras = prepare_keras()
    keras.utils.set_random_seed(settings.seed)
    penalty = build_penalty(settings)
    # Each layer draws the seed of its first weights when it is made: the order of these lines is part of the method.
    last = keras.layers.Dense(1, "sigmoid") if classes == 2 else keras.layers.Dense(classes, "softmax")
    entry = keras.Input(shape)
    tensor = preprocess(entry, preprocessing) if preprocessing else entry
    if settings.network != "dense":
        tensor = add_convolutions(settings.network, tensor, penalty)
    pool = keras.layers.Flatten if settings.pooling == "flatten" else keras.layers.GlobalAveragePooling2D
    tensor = pool()(tensor)
    if settings.input_dropout:
        tensor = keras.layers.Dropout(settings.input_dropout)(tensor)
    for units in settings.dense_units:
        tensor = keras.layers.Dense(units, settings.activation, kernel_regularizer=penalty)(tensor)
        if settings.dropout:
            tensor = keras.layers.Dropout(settings.dropout)(tensor)
    return keras.Model(entry, last(tensor), name="head")


def build_penalty(settings: TrainingConfig) -> Any:
    """The regularizer of kernels that train, or None where nothing is penalised."""
    keras = prepare_keras()
    return keras.regularizers.L1L2(settings.l1, settings.l2) if settings.l1 or settings.l2 else None


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

    def begin(validation: Rows, blank: History) -> TrainingState:
        if budget > 1:
            return go_on(train_head(features, settings, gate, store, budget - 1, source, start).value, store)
        classes = len(validation.classes)
        network = build_head(validation.shape, classes, settings, _preprocessing_of(validation.space))
        if start:
            network.set_weights(load_network(store, start.address).get_weights())
        compile_network(network, settings.optimizer, classes)
        return TrainingState(network=network, history=blank, best=network.get_weights())

    def has_settled(history: History) -> bool:
        return (
            settings.stop == "when_converged"
            and judge_convergence(history, gate, settings).state != "improving"
        )

    plan = Plan(
        address=_address(features, settings, gate, budget, start),
        stage="network" if features.cut == PIXELS else "head",
        label="head",
        features=features,
        settings=settings,
        budget=budget,
        has_settled=has_settled,
        measures_start=start is not None,
    )
    return train_network(plan, begin, store, source)


def go_on(before: Checkpoint, store: Store) -> TrainingState:
    """The state at the end of a budget, to begin a further one with."""
    best = load_network(store, before.address).get_weights()
    return TrainingState(
        network=load_network(store, before.address, "last"), history=before.history, best=best
    )


def _preprocessing_of(space: FeatureSpace) -> str | None:
    return space.preprocessing if space.cut == PIXELS else None


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
