"""Compiled steps of training: what Keras's `fit` does with each batch, without what it costs each batch.

On TensorFlow a step is a function of its own. A large dense network waits for memory, so XLA joins its
operations and two steps go into one call; a convolutional one multiplies, on processor cores by minimal filtering.
On Keras's other backends, which compile steps well themselves, Keras's own step is used; on JAX it is Keras, too, that
shares a batch among devices.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from thaw.config import OptimizerConfig
from thaw.device import (
    compile_function,
    count_shares,
    differentiate,
    find_share,
    list_layers,
    prepare_keras,
    share_out,
)
from thaw.optimizer import build_optimizer
from thaw.winograd import speed_up_convolutions

# Below so many weights XLA takes longer to compile than it saves.
_JOINED_WEIGHTS = 500_000


def compile_network(network: Any, optimizer: OptimizerConfig, classes: int) -> None:
    """Attach optimizer, cross-entropy and accuracy: binary for two classes, sparse for more."""
    keras = prepare_keras()
    if classes == 2:
        loss, metrics = (
            keras.losses.BinaryCrossentropy(),
            (keras.metrics.BinaryCrossentropy, keras.metrics.BinaryAccuracy),
        )
    else:
        loss = keras.losses.SparseCategoricalCrossentropy()
        metrics = (keras.metrics.SparseCategoricalCrossentropy, keras.metrics.SparseCategoricalAccuracy)
    # The loss contains weight penalties; histories compare cross-entropies, so that is a metric of its own.
    named = [metric(name=name) for metric, name in zip(metrics, ("cross_entropy", "accuracy"), strict=True)]
    network.compile(optimizer=build_optimizer(optimizer), loss=loss, metrics=named)


class KerasSteps:
    """Keras's own steps.

    Attributes:
        batches: how many batches one call of `train` takes when there are so many.
    """

    batches = 1

    def __init__(self, network: Any):
        """`network` is compiled."""
        self._network = network

    def train(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Take one step for each batch.

        Args:
            features: (batches, images, height, width, channels).
            labels: class indices (batches, images).

        Returns:
            The sum over images of cross-entropy, in nats, and how many were told right.
        """
        return sum(
            self._total(batch, self._network.train_on_batch(rows, batch[:, None], return_dict=True))
            for rows, batch in zip(features, labels, strict=True)
        )

    def score(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The same figures of one batch, (images, …), without training on it."""
        return self._total(labels, self._network.test_on_batch(features, labels[:, None], return_dict=True))

    @staticmethod
    def _total(labels: np.ndarray, figures: dict[str, Any]) -> np.ndarray:
        # Means of this batch alone: Keras forgets earlier batches at every call.
        return len(labels) * np.array([figures["cross_entropy"], figures["accuracy"]], dtype=np.float64)


class TensorFlowSteps(KerasSteps):
    """Steps compiled for TensorFlow."""

    def __init__(self, network: Any):
        super().__init__(network)
        speed_up_convolutions(network)
        convolution = prepare_keras().layers.Conv2D
        dense = not any(isinstance(layer, convolution) for layer in list_layers(network))
        self.batches = 2 if dense and network.count_params() >= _JOINED_WEIGHTS else 1
        network.optimizer.build(network.trainable_variables)
        self._step = compile_function(self._step_through, fuse=False)
        self._steps = compile_function(self._step_through, fuse=True)
        self._score = compile_function(self._forward, fuse=False)

    def train(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        step = self._step if len(features) == 1 else self._steps
        return np.asarray(step(features, labels[..., None]), dtype=np.float64)

    def score(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.asarray(self._score(features, labels[..., None]), dtype=np.float64)

    def _step_through(self, features: Any, labels: Any) -> Any:
        network, totals = self._network, 0.0
        for number in range(features.shape[0]):

            def lose(rows: Any = features[number], batch: Any = labels[number]) -> tuple[Any, Any]:
                figures = self._measure(rows, batch, training=True)
                return figures[0] / rows.shape[0] + sum(network.losses), figures

            figures, gradients = differentiate(lose, network.trainable_variables)
            network.optimizer.apply(gradients, network.trainable_variables)
            totals += figures
        return totals

    def _forward(self, features: Any, labels: Any) -> Any:
        return self._measure(features, labels, training=False)

    def _measure(self, features: Any, labels: Any, training: bool) -> Any:
        keras = prepare_keras()
        ops = keras.ops
        outputs = self._network(ops.cast(features, "float32"), training=training)
        outputs = ops.cast(outputs, "float32")
        if outputs.shape[-1] == 1:
            losses = keras.losses.binary_crossentropy(ops.cast(labels, "float32"), outputs)
            told = ops.cast(outputs[:, 0] > 0.5, labels.dtype)
        else:
            losses = keras.losses.sparse_categorical_crossentropy(labels, outputs)
            told = ops.cast(ops.argmax(outputs, axis=-1), labels.dtype)
        right = ops.sum(ops.cast(told == labels[:, 0], "float32"))
        return ops.stack([ops.sum(losses), right])


class SharedSteps(TensorFlowSteps):
    """Steps of a network that `share_batches` gave to several devices on TensorFlow: each takes its share of a batch.

    They do what one device does, but for the order of sums, and for dropout: each device draws masks of its own,
    from the seed and its number, so the masks are not those of one device. (On JAX they are.)
    """

    def __init__(self, network: Any):
        super().__init__(network)
        layers = prepare_keras().layers
        every = list(list_layers(network))
        self._norms = [layer for layer in every if isinstance(layer, layers.BatchNormalization)]
        self._dropouts = [layer for layer in every if isinstance(layer, layers.Dropout)]
        self._share_step = share_out(self._step_through_share, axis=1)
        # XLA does not join operations of several devices.
        self.batches = 1
        self._step = compile_function(self._step_together, fuse=False)
        self._score = compile_function(share_out(self._forward, axis=0), fuse=False)

    def _step_together(self, features: Any, labels: Any) -> Any:
        """Step with the statistics of all shares, as one device would take them of the whole batch."""
        before = [norm.synchronized for norm in self._norms]
        # Not for good: it would be saved with the layer, which other backends could then not load.
        for norm in self._norms:
            norm.synchronized = True
        try:
            return self._share_step(features, labels)
        finally:
            for norm, synchronized in zip(self._norms, before, strict=True):
                norm.synchronized = synchronized

    def _step_through_share(self, features: Any, labels: Any) -> Any:
        with self._draw_own_masks():
            return self._step_through(features, labels)

    @contextmanager
    def _draw_own_masks(self) -> Iterator[None]:
        """Draw dropout from a seed of the device's own, which leaves all devices with the same in the end."""
        own = find_share() * np.array([1, 0])
        seeds = [layer.seed_generator.state for layer in self._dropouts]
        for seed in seeds:
            seed.assign_add(own)
        yield
        for seed in seeds:
            seed.assign_sub(own)


def compile_steps(network: Any) -> KerasSteps:
    """The fastest steps that this machine has for a compiled network."""
    if prepare_keras().backend.backend() != "tensorflow":
        return KerasSteps(network)
    return (SharedSteps if count_shares() > 1 else TensorFlowSteps)(network)
