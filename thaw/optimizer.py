"""Optimizers as Keras has them, how their step sizes change, and which layers take smaller steps."""

import math
from collections.abc import Mapping
from typing import Any

from thaw.config import HeadConfig, OptimizerConfig, PhaseConfig
from thaw.device import list_forms, list_layers, prepare_keras
from thaw.records import History


def build_optimizer(settings: OptimizerConfig) -> Any:
    """A Keras optimizer; schedule exponential is part of it, the others are set epoch by epoch."""
    keras = prepare_keras()
    rate: Any = settings.learning_rate
    if settings.schedule == "exponential":
        rate = keras.optimizers.schedules.ExponentialDecay(
            rate, settings.decay_steps, settings.decay_rate, staircase=True
        )
    return {
        "rmsprop": lambda: keras.optimizers.RMSprop(rate, momentum=settings.momentum),
        "sgd": lambda: keras.optimizers.SGD(rate, momentum=settings.momentum),
        "adam": lambda: keras.optimizers.Adam(rate),
    }[settings.name]()


def set_rate(optimizer: Any, settings: OptimizerConfig, history: History, epochs: int) -> None:
    """Set the step size of the next epoch, by what the epochs so far came to."""
    if settings.schedule in ("cosine", "plateau"):
        optimizer.learning_rate = plan_rate(settings, history, epochs)


def plan_rate(settings: OptimizerConfig, history: History, epochs: int) -> float:
    """The step size of the next epoch under schedule cosine or plateau, from the history alone.

    Args:
        epochs: of one budget; a cosine begins anew with each.
    """
    if settings.schedule == "cosine":
        share = len(history.epochs) % epochs / epochs
        return settings.learning_rate * (1 + math.cos(math.pi * share)) / 2
    best, idle, rate = math.inf, 0, settings.learning_rate
    for epoch in history.epochs:
        idle = 0 if history.rank_of(epoch) < best else idle + 1
        best = min(best, history.rank_of(epoch))
        if idle == settings.plateau_epochs:
            rate, idle = rate * settings.decay_rate, 0
    return rate


def slow_down_by_depth(network: Any, depths: Mapping[str, int], settings: HeadConfig | PhaseConfig) -> None:
    """Let a compiled network's optimizer take smaller steps with layers that lie deeper.

    Args:
        depths: how many stages below the top each layer lies, by its name; others take whole steps.
    """
    factor = getattr(settings, "depth_factor", 1.0)
    if factor == 1 or not depths:
        return
    shares = {}
    for layer in list_layers(network):
        for variable in layer.trainable_variables:
            forms = map(id, list_forms(variable))
            shares |= dict.fromkeys(forms, factor ** depths.get(layer.name, 0))
    step = network.optimizer.update_step

    def step_by_depth(gradient: Any, variable: Any, learning_rate: Any) -> None:
        step(gradient, variable, learning_rate * shares[id(variable)])

    network.optimizer.update_step = step_by_depth
