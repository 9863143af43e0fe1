"""Thaw the suffix of the backbone behind a converged head, and train both gently.

Source: F. Chollet, Deep Learning with Python, 2nd ed., ch. 8.3.2.
"""

from typing import Any

from thaw.backbone import build_backbone, cut_model
from thaw.config import BackboneConfig, FineTuneConfig
from thaw.device import list_layers, prepare_keras
from thaw.precision import choose_precision
from thaw.records import Backbone, Checkpoint, Features, History, Made, digest_of
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


def fine_tune(
    head: Checkpoint,
    features: Features,
    backbone: Backbone,
    backbone_settings: BackboneConfig,
    settings: FineTuneConfig,
    store: Store,
    source: ViewSource | None = None,
) -> Made[Checkpoint]:
    """Train the layers after `settings.cut` and the head, from the head's best weights on.

    The best weights by validation loss are kept; those at the start take part, so that a fine-tuned
    network never validates worse than its head.

    Args:
        source: what fresh views are drawn from, where the features ask for those.
    """
    precision = choose_precision(settings.precision, store).training
    given = settings.model_copy(update={"precision": precision})
    address = digest_of("fine_tune", head.address, features.train, features.validation, given)
    found = find_checkpoint(store, address)
    if found:
        return Made(value=found, reused=True, note=f"{len(found.history.epochs)} epochs")
    validation = Rows(features.validation, store)
    counts = validation.count_labels()
    checkpoint = plan_checkpoint(address, "fine_tuned", features, counts)

    def begin() -> TrainingState:
        network = thaw_suffix(
            build_backbone(backbone, backbone_settings.image_size_pixels, precision),
            settings.cut,
            load_network(store, head.address),
        )
        compile_network(network, settings.optimizer, len(counts))
        return TrainingState(network=network, history=checkpoint.history, best=network.get_weights())

    def has_settled(history: History) -> bool:
        patience = settings.patience_epochs
        return patience is not None and len(history.epochs) - history.best_epoch >= patience

    schedule = Schedule(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        should_stop=has_settled,
        measures_start=True,
    )
    with open_training_rows(features, source, store) as train:
        finished = train_network(begin, train, validation, schedule, store, checkpoint, "fine-tune")
    return Made(value=finished, reused=False, note=f"{len(finished.history.epochs)} epochs")


def thaw_suffix(network: Any, cut: str, head: Any) -> Any:
    """The trainable network from features at `cut` to class probabilities.

    BatchNorm layers stay frozen, which in Keras also keeps them in inference mode.
    """
    keras = prepare_keras()
    suffix = cut_model(network, cut, None)
    for layer in list_layers(suffix):
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    entry = keras.Input(network.get_layer(cut).output.shape[1:])
    return keras.Model(entry, head(suffix(entry)), name="fine_tuned")
