"""Thaw layers of the backbone behind what has converged, and train all that is thawed gently.

Source: F. Chollet, Deep Learning with Python, 2nd ed., ch. 8.3.2.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from thaw.architectures import preprocess
from thaw.backbone import build_backbone, find_cut, order_cuts
from thaw.config import BackboneConfig, PhaseConfig
from thaw.cuts import group_by_stage, split_model
from thaw.device import list_layers, prepare_keras
from thaw.errors import BadConfig
from thaw.head import build_penalty, go_on
from thaw.journal import TrainingState
from thaw.precision import choose_precision
from thaw.records import PIXELS, Backbone, Checkpoint, Features, History, Made, digest_of
from thaw.rows import Rows, ViewSource
from thaw.steps import compile_network
from thaw.store import Store
from thaw.trainer import Plan, load_network, train_network

# What layers call their kernels, and the penalties on them.
_KERNELS = (
    ("kernel", "kernel_regularizer"),
    ("kernel", "depthwise_regularizer"),
    ("depthwise_kernel", "depthwise_regularizer"),
    ("pointwise_kernel", "pointwise_regularizer"),
)


def check_phases(phases: Sequence[PhaseConfig], backbone: Backbone) -> None:
    """See that the backbone can be cut where the phases ask for it, and that none thaws less than the one before.

    Raises:
        BadCut: there is no such layer, or the graph can't be split there.
        BadConfig: a later phase would freeze again what an earlier one trained.
    """
    order = order_cuts(backbone)
    cuts = [find_cut(backbone, phase.cut) for phase in phases]
    for before, after in itertools.pairwise(cuts):
        if order.index(after) > order.index(before):
            raise BadConfig(
                f"setting 'fine_tune': a phase cut at '{after}' would freeze what the one before it, cut at "
                f"'{before}', trained. List the phases from the deepest cut to the shallowest."
            )


def fine_tune(
    start: Checkpoint,
    features: Features,
    backbone: Backbone,
    backbone_settings: BackboneConfig,
    settings: PhaseConfig,
    store: Store,
    source: ViewSource | None = None,
    budget: int = 1,
) -> Made[Checkpoint]:
    """Train the layers after the features' cut, from the best weights of what was trained so far on.

    The weights that validate best are kept; those at the start take part, so that a fine-tuned
    network never validates worse than what it started from.

    Args:
        start: the head, or the phase before, whose cut is not shallower than the features'.
        source: what fresh views are drawn from, where the features ask for those.
        budget: which one it is; after the first, training goes on from the end of the one before.
    """
    precision = choose_precision(settings.precision, store).training
    given = settings.model_copy(update={"precision": precision, "cut": features.cut})
    size = backbone_settings.image_size_pixels

    def begin(validation: Rows, blank: History) -> TrainingState:
        if budget > 1:
            before = fine_tune(
                start, features, backbone, backbone_settings, settings, store, source, budget - 1
            )
            return go_on(before.value, store)
        trained = load_network(store, start.address)
        for layer in list_layers(trained):
            if layer.name in backbone.layers:
                layer.dtype_policy = precision
        network = thaw_suffix(
            build_backbone(backbone, size, precision),
            features.cut,
            start.cut,
            trained,
            backbone.preprocessing,
        )
        _penalise(network, backbone, settings)
        compile_network(network, settings.optimizer, len(validation.classes))
        return TrainingState(network=network, history=blank, best=network.get_weights())

    plan = Plan(
        address=digest_of(
            *("fine_tune", start.address, features.train, features.validation, given),
            *([budget] if budget > 1 else []),
        ),
        stage="fine_tuned",
        label=f"fine-tune after {features.cut}",
        features=features,
        settings=settings,
        budget=budget,
        measures_start=True,
        depths=lambda: _list_depths(features.cut, backbone, size) if settings.depth_factor < 1 else {},
    )
    return train_network(plan, begin, store, source)


def _list_depths(cut: str, backbone: Backbone, image_size_pixels: int) -> dict[str, int]:
    if not backbone.stages:
        return {}
    network = build_backbone(backbone, image_size_pixels)
    return group_by_stage(network, None if cut == PIXELS else cut, backbone.stages)


def thaw_suffix(network: Any, cut: str, trained_from: str, trained: Any, preprocessing: str) -> Any:
    """The trainable network from features at `cut` to class probabilities.

    BatchNorm layers of the backbone stay frozen, which in Keras also keeps them in inference mode.

    Args:
        network: the backbone, as it was before training.
        trained_from: the cut that `trained` starts at, not shallower than `cut`.
        preprocessing: what is done to pixels, where `cut` is before the first layer.
    """
    keras = prepare_keras()
    if cut == trained_from:
        return trained
    begins = None if cut == PIXELS else cut
    suffix = split_model(network, begins, trained_from)
    for layer in list_layers(suffix):
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    entry = keras.Input(suffix.input_shape[1:])
    tensor = preprocess(entry, preprocessing) if cut == PIXELS else entry
    return keras.Model(entry, trained(suffix(tensor)), name="fine_tuned")


def _penalise(network: Any, backbone: Backbone, settings: PhaseConfig) -> None:
    """Give every kernel of the backbone that trains the penalty of the phase, or none; the head keeps its own."""
    penalty = build_penalty(settings)
    for layer in list_layers(network):
        if layer.trainable and layer.name in backbone.layers:
            for kernel, regularizer in _KERNELS:
                if hasattr(layer, kernel) and hasattr(layer, regularizer):
                    setattr(layer, regularizer, penalty)
                    getattr(layer, kernel).regularizer = penalty
