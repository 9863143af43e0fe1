"""What this machine computes with. The one module that speaks to TensorFlow itself."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BFLOAT16_FLAGS = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The dtype of the frozen prefix, and why it was chosen."""

    name: str
    reason: str


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
        tensorflow.config.experimental.enable_op_determinism()
    # Operations are only reproducible once a seed is set; every stage then sets its own.
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


def choose_precision(asked: str) -> Precision:
    """Settle the precision `auto` to what the machine multiplies in hardware."""
    if asked != "auto":
        return Precision(name=asked, reason="set in the configuration")
    found = [name for flag, name in _BFLOAT16_FLAGS.items() if flag in _processor_flags()]
    if found:
        return Precision(name="bfloat16", reason=f"the processor has {' and '.join(found)}")
    return Precision(name="float32", reason="the processor has no bfloat16 multiplication in hardware")


def list_devices() -> list[str]:
    """Names of the devices Keras can use, such as `CPU` or the model of a GPU."""
    prepare_keras()
    import tensorflow

    devices = tensorflow.config.list_physical_devices()
    details = [(device, tensorflow.config.experimental.get_device_details(device)) for device in devices]
    return [detail.get("device_name", device.device_type) for device, detail in details]


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


@cache
def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())
