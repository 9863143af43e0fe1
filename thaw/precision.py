"""In which precision to compute: bfloat16 where this machine multiplies it faster.

The frozen prefix computes in it throughout. What trains keeps its weights in float32, and computes in
bfloat16 on a GPU only: processor cores train as fast in float32 by minimal filtering.
"""

import hashlib
import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from thaw.claims import claim
from thaw.device import computes_on_cpu, dtype_policy, prepare_keras
from thaw.records import Record, digest_of
from thaw.store import Store

# A convolution from the middle of VGG16 at 150 pixels.
_SIDE_PIXELS, _CHANNELS, _IMAGES = 37, 256, 8
_ROUNDS = 3
# Hardware multiplies bfloat16 about twice as fast as float32; where it is emulated it is slower.
_WORTH_IT = 1.3


@dataclass(frozen=True, kw_only=True)
class Precision(Record):
    """The dtype of the frozen prefix, that of training as Keras names the policy, and why."""

    name: str
    training: str
    reason: str


def choose_precision(asked: str, store: Store) -> Precision:
    """Settle the precision `auto` by a calibration of about a second, made once for each kind of machine.

    The result is kept in the store, so that every run on such a machine computes in the same feature space.

    Raises:
        NotPublished: none is kept, in a store that is only looked at.
    """
    if asked != "auto":
        return Precision(name=asked, training=asked, reason="set in the configuration")
    address = digest_of("calibration", _describe_machine())
    known = store.read("calibrations", address, Precision)
    if known:
        return known
    with claim(store, "calibrations", address):
        known = store.read("calibrations", address, Precision)
        if known is None:
            known = _calibrate()
            store.publish("calibrations", address, known)
    return known


def _calibrate() -> Precision:
    slow, fast = (_measure_rate(name) for name in ("float32", "bfloat16"))
    figures = f"{fast:.0f} against {slow:.0f} thousand million operations a second, measured once"
    if fast < _WORTH_IT * slow:
        reason = f"bfloat16 would not convolve faster: {figures}"
        return Precision(name="float32", training="float32", reason=reason)
    training = "float32" if computes_on_cpu() else "mixed_bfloat16"
    reason = f"it convolves {fast / slow:.1f} times as fast: {figures}"
    return Precision(name="bfloat16", training=training, reason=reason)


def _measure_rate(name: str) -> float:
    """Multiplications and additions of a convolution, in 10^9 a second."""
    keras = prepare_keras()
    shape = (_SIDE_PIXELS, _SIDE_PIXELS, _CHANNELS)
    with dtype_policy(name):
        network = keras.Sequential([keras.Input(shape), keras.layers.Conv2D(_CHANNELS, 3, padding="same")])
    images = np.ones((_IMAGES, *shape), np.float32)
    network.predict_on_batch(images)
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        network.predict_on_batch(images)
        seconds.append(time.perf_counter() - started)
    return 2 * 9 * images.size * _CHANNELS / min(seconds) / 1e9


@cache
def _describe_machine() -> dict[str, str]:
    """What decides how fast this machine multiplies, found without starting TensorFlow."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    flags = facts.get("flags") or facts.get("Features") or ""
    return {
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        "flags": hashlib.sha256(flags.encode()).hexdigest()[:16],
        "gpus": " ".join(sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "all"),
        "keras_backend": os.environ.get("KERAS_BACKEND", "tensorflow"),
        "tensorflow": importlib.metadata.version("tensorflow"),
    }
