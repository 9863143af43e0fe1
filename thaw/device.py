"""What this machine computes with. The one module that computes with TensorFlow, or JAX, itself."""

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

logger = logging.getLogger(__name__)

# Trainings on the same devices go one after the other: sums over devices that meet in another order wait for ever.
_ONE_SHARED_TRAINING = threading.RLock()


@cache
def prepare_keras():
    """Import Keras, quietly and with reproducible operations, and return the module.

    Takes seconds the first time, so call it where Keras is needed and not before.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _quiet_standard_error():
        import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        for gpu in tensorflow.config.list_physical_devices("GPU"):
            tensorflow.config.experimental.set_memory_growth(gpu, True)
        # Its warnings about tracing say nothing to whoever trains a model.
        tensorflow.get_logger().setLevel("ERROR")
        tensorflow.config.experimental.enable_op_determinism()
        # This pass joins sums of two into sums of many, whose order depends on which term is ready first.
        tensorflow.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    # Operations are only reproducible once a seed is set; every stage then sets its own.
    # Wherever TensorFlow is installed Keras would import it for seconds to seed it too; it asks once.
    with _hide_module("tensorflow"):
        keras.utils.set_random_seed(0)
    return keras


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Build layers in this dtype inside the block."""
    keras = prepare_keras()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def list_layers(network: Any) -> Iterator[Any]:
    """Every layer of a network, those of networks inside it included."""
    for layer in network.layers:
        yield from list_layers(layer) if hasattr(layer, "layers") else (layer,)


def computes_on_cpu() -> bool:
    """Whether Keras has nothing but processor cores to compute on."""
    keras = prepare_keras()
    return all(device.lower().startswith("cpu") for device in keras.distribution.list_devices())


@contextmanager
def share_batches(batch_size: int) -> Iterator[None]:
    """Let networks built or loaded inside the block be trained by several devices, each on its share of a batch.

    All visible devices of the best kind take part, as far as their number divides the batch; CUDA_VISIBLE_DEVICES
    says which GPUs are visible. Each device has all the weights. Where there is one, nothing changes.

    Args:
        batch_size: images of a batch over all devices. A smaller batch that does not divide evenly, such as the
            last of an epoch, is computed whole by every device, so that its gradients are those of its images.

    Source: https://keras.io/guides/distribution, which is for JAX alone, and for TensorFlow
        https://keras.io/guides/distributed_training_with_tensorflow.
    """
    visible = prepare_keras().distribution.list_devices()
    chosen = choose_sharing(visible, batch_size)
    if len(chosen) == 1:
        yield
        return
    logger.info(
        "each batch of %d images is shared by %d of %d devices: %s",
        *(batch_size, len(chosen), len(visible), ", ".join(chosen)),
    )
    with _ONE_SHARED_TRAINING, _mirror(tuple(chosen)).scope():
        yield


def choose_sharing(devices: Sequence[str], batch_size: int) -> Sequence[str]:
    """As many of the devices as get equal shares of a batch."""
    count = max(number for number in range(1, len(devices) + 1) if batch_size % number == 0)
    return devices[:count]


@cache
def _mirror(devices: tuple[str, ...]) -> Any:
    """What shares batches among these devices, for the backend that computes. Its scope may be entered twice."""
    keras = prepare_keras()
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        return tensorflow.distribute.MirroredStrategy([device.upper() for device in devices])

    class Mirror(keras.distribution.DataParallel):
        def get_data_layout(self, data_shape: Sequence[int]) -> Any:
            if data_shape[0] % self.num_model_replicas == 0:
                return super().get_data_layout(data_shape)
            # JAX divides arrays evenly or not at all.
            return keras.distribution.TensorLayout([None] * len(data_shape), self.device_mesh)

    return Mirror(devices=list(devices))


def count_shares() -> int:
    """How many devices share a batch of what TensorFlow compiles here."""
    import tensorflow

    return tensorflow.distribute.get_strategy().num_replicas_in_sync


def find_share() -> Any:
    """Whose share a function of `share_out` computes: the number of the device, from 0 on."""
    import tensorflow

    return tensorflow.distribute.get_replica_context().replica_id_in_sync_group


def share_out(function: Callable[..., Any], axis: int) -> Callable[..., Any]:
    """Let every device run a function on its share of the images, inside a compiled function, and add up the results.

    Images that do not divide evenly go to every device, and the results' mean is taken.

    Args:
        function: of tensors; returns one of a shape that does not depend on theirs.
        axis: along which they hold images.
    """
    import tensorflow

    strategy, count = tensorflow.distribute.get_strategy(), count_shares()

    def run(*batches: Any) -> Any:
        divides = batches[0].shape[axis] % count == 0

        def hand_out(batch: Any) -> Any:
            shares = tensorflow.split(batch, count, axis) if divides else [batch] * count
            return strategy.experimental_distribute_values_from_function(
                lambda context: shares[context.replica_id_in_sync_group]
            )

        results = strategy.run(function, [hand_out(batch) for batch in batches])
        return strategy.reduce("SUM" if divides else "MEAN", results, axis=None)

    return run


def list_forms(variable: Any) -> tuple[Any, ...]:
    """What an optimizer may be handed for a variable: itself, what is inside, or that on one of several devices."""
    if prepare_keras().backend.backend() != "tensorflow":
        return variable, variable.value
    import tensorflow

    copies = tensorflow.distribute.get_strategy().experimental_local_results(variable.value)
    return variable, variable.value, *copies


def compile_function(function: Callable[..., Any], fuse: bool) -> Callable[..., Any]:
    """Compile for TensorFlow; `fuse` lets XLA join operations, which pays where memory is what is waited for."""
    prepare_keras()
    import tensorflow

    return tensorflow.function(function, jit_compile=fuse, autograph=False)


def differentiate(function: Callable[[], tuple[Any, Any]], variables: Sequence[Any]) -> tuple[Any, list[Any]]:
    """What else `function` returns beside its loss, and the loss's gradients, inside a compiled function.

    Where devices share a batch the optimizer adds up their gradients, so each one's are divided by their number.

    Args:
        function: returns a scalar loss, and anything.
    """
    import tensorflow

    loss, other = function()
    if count_shares() > 1:
        loss /= count_shares()
    # A gradient with many terms is added up two at a time: sums of more depend on which term is ready first.
    two_at_a_time = tensorflow.AggregationMethod.EXPERIMENTAL_TREE
    handles = [variable.value for variable in variables]
    return other, tensorflow.gradients(loss, handles, aggregation_method=two_at_a_time)


def differentiate_at(function: Callable[[Any], tuple[Any, Any]], tensor: Any) -> tuple[Any, Any]:
    """The gradient of a loss at a tensor, and what else `function` returns beside it.

    Args:
        function: of the tensor, returns a scalar loss, and any tensors.
    """
    if prepare_keras().backend.backend() == "jax":
        import jax

        return jax.grad(function, has_aux=True)(tensor)
    import tensorflow

    with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tensor)
        loss, other = function(tensor)
    return tape.gradient(loss, tensor), other


def list_devices() -> list[str]:
    """Names of the devices Keras can use, such as `CPU` or the model of a GPU."""
    keras = prepare_keras()
    if keras.backend.backend() != "tensorflow":
        return keras.distribution.list_devices()
    import tensorflow

    devices = tensorflow.config.list_physical_devices()
    details = [(device, tensorflow.config.experimental.get_device_details(device)) for device in devices]
    return [detail.get("device_name", device.device_type) for device, detail in details]


@contextmanager
def _hide_module(name: str) -> Iterator[None]:
    """Make a module look as if it were not installed, unless it is imported already."""
    hidden = sys.modules.setdefault(name, None) is None
    try:
        yield
    finally:
        if hidden:
            del sys.modules[name]


@contextmanager
def _quiet_standard_error() -> Iterator[None]:
    """Hold back what libraries write to the process's standard error; show it only if the block fails.

    TensorFlow announces its build there on import, before any setting of its log level takes effect.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
