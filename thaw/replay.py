"""Answers of an exported model, by its own runtime and nothing else.

    python -P replay.py onnx model.onnx pixels.npy answers.npy

It runs in a process of its own and imports nothing of Thaw, so that what it proves holds wherever the file goes.
Pixels are uint8 (n, size, size, channels); answers are what the model gives, float32 (n, outputs). For
`jpeg` they are of a SavedModel's second signature, and a folder of JPEG files stands in the place of pixels.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_BATCH_IMAGES = 32
# What must not have been imported: whoever loads the file may not have it.
STRANGERS = {
    "keras": ("thaw",),
    "savedmodel": ("thaw",),
    "jpeg": ("thaw",),
    "onnx": ("thaw", "keras", "tensorflow"),
    "tflite": ("thaw", "keras", "tensorflow"),
}


def load_keras(path: str) -> Callable[[np.ndarray], Any]:
    import keras

    return keras.models.load_model(path, compile=False).predict_on_batch


def load_savedmodel(path: str) -> Callable[[np.ndarray], Any]:
    import tensorflow

    model = tensorflow.saved_model.load(path)
    return lambda pixels: model.serve(pixels)["probabilities"]


def load_jpeg(path: str) -> Callable[[np.ndarray], Any]:
    import tensorflow

    model = tensorflow.saved_model.load(path)
    return lambda files: model.jpeg(tensorflow.constant(files))["probabilities"]


def load_onnx(path: str) -> Callable[[np.ndarray], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["probabilities"], {"pixels": pixels})[0]


def load_tflite(path: str) -> Callable[[np.ndarray], Any]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path).get_signature_runner()
    return lambda pixels: next(iter(runner(pixels=pixels).values()))


LOADERS = {
    "keras": load_keras,
    "savedmodel": load_savedmodel,
    "jpeg": load_jpeg,
    "onnx": load_onnx,
    "tflite": load_tflite,
}


def replay(kind: str, model: str, images: str, answers: str) -> None:
    """Write the model's answers to the images."""
    predict = LOADERS[kind](model)
    if kind == "jpeg":
        rows = [file.read_bytes() for file in sorted(Path(images).iterdir())]
    else:
        rows = np.load(images, mmap_mode="r", allow_pickle=False)
    outputs = []
    for start in range(0, len(rows), _BATCH_IMAGES):
        batch = rows[start : start + _BATCH_IMAGES]
        outputs.append(np.asarray(predict(batch if kind == "jpeg" else batch.astype(np.float32))))
    found = [name for name in STRANGERS[kind] if name in sys.modules]
    if found:
        raise SystemExit(f"{kind} was to run without {', '.join(found)}")
    np.save(answers, np.concatenate(outputs).astype(np.float32), allow_pickle=False)


if __name__ == "__main__":
    replay(*sys.argv[1:])
