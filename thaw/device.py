"""What this machine computes with. The one module that computes with TensorFlow, or JAX, itself."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any


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


def compile_function(function: Callable[..., Any], fuse: bool) -> Callable[..., Any]:
    """Compile for TensorFlow; `fuse` lets XLA join operations, which pays where memory is what is waited for."""
    prepare_keras()
    import tensorflow

    return tensorflow.function(function, jit_compile=fuse, autograph=False)


def differentiate(function: Callable[[], tuple[Any, Any]], variables: Sequence[Any]) -> tuple[Any, list[Any]]:
    """What else `function` returns beside its loss, and the loss's gradients, inside a compiled function.

    Args:
        function: returns a scalar loss, and anything.
    """
    import tensorflow

    loss, other = function()
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
