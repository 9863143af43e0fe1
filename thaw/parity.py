"""Whether an export gives the probabilities of its model: both answer the same images.

Each does in a process of its own with nothing but its runtime, on processor cores: a GPU's rounding would be taken for
the export's.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from thaw import replay
from thaw.errors import ParityFailed
from thaw.formats import Format, Quantised, takes_jpegs
from thaw.images import is_upright_jpeg
from thaw.model import ModelFacts
from thaw.records import Record
from thaw.trainer import spread_classes


@dataclass(frozen=True, kw_only=True)
class Limit(Record):
    """What the absolute differences of probabilities may come to: the largest of them, or their mean."""

    of: Literal["largest", "mean"]
    value: float


# In float32 runtimes differ by rounding alone. Weights of fewer bits can move an image that the model is unsure of
# far, so that only the mean tells whether something is broken.
LIMITS: dict[Quantised, Limit] = {
    "none": Limit(of="largest", value=1e-3),
    "float16": Limit(of="mean", value=1e-3),
    "int8": Limit(of="mean", value=0.02),
}
# TensorFlow decodes and resizes as Pillow does but for the last bit of a pixel; a large photograph, which Thaw decodes
# smaller, differs by more.
JPEG_LIMIT = Limit(of="mean", value=0.01)


@dataclass(frozen=True, kw_only=True)
class Difference(Record):
    """How the probabilities of an export differ from its model's, over images.

    `same_class` counts the images that both call by the same name. The accuracies, the model's and the export's,
    are None where the images' labels are not known.
    """

    images: int
    largest: float
    mean: float
    limit: Limit
    same_class: int
    model_accuracy: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class CheckedImage:
    """An image file, its pixels as the model takes them, uint8 (size, size, channels), and its label if it is known."""

    data: bytes
    pixels: np.ndarray
    label: str | None


def prove_export(
    source: Path,
    made: Path,
    facts: ModelFacts,
    format: Format,
    quantised: Quantised,
    images: Sequence[CheckedImage],
    scratch: Path,
) -> tuple[Difference, Difference | None]:
    """How an export differs from its model on the images' pixels, and a SavedModel on the JPEG files themselves.

    Args:
        source: the model's `.keras` file.
        made: the export.
        scratch: an empty folder.

    Raises:
        ParityFailed: by more than the limit, or its runtime can't run it.
    """
    pixels = scratch / "pixels.npy"
    np.save(pixels, np.stack([image.pixels for image in images]), allow_pickle=False)
    expected = _replay("keras", source, pixels)
    given = _replay(format, made, pixels)
    difference = _compare(expected, given, images, facts, LIMITS[quantised], f"the {format} export")
    jpegs = [number for number, image in enumerate(images) if is_upright_jpeg(image.data)]
    if format != "savedmodel" or not takes_jpegs(facts) or not jpegs:
        return difference, None
    files = scratch / "files"
    files.mkdir()
    for number in jpegs:
        (files / f"{number:06d}.jpg").write_bytes(images[number].data)
    given, some = _replay("jpeg", made, files), [images[number] for number in jpegs]
    what = "the SavedModel's JPEG signature"
    return difference, _compare(expected[jpegs], given, some, facts, JPEG_LIMIT, what)


def _replay(kind: str, model: Path, images: Path) -> np.ndarray:
    """The model's outputs, float64 (n, 1) or (n, classes), by a process that has nothing but the runtime.

    Raises:
        ParityFailed: the runtime can't run the model.
    """
    answers = images.with_name("answers.npy")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-P", replay.__file__, kind, *map(str, (model, images, answers))]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"it ended with code {ended.returncode}"]
        raise ParityFailed(f"the export was not written: {kind} can't run it ({said[-1]}).")
    return np.load(answers, allow_pickle=False).astype(np.float64)


def _compare(
    expected: np.ndarray,
    given: np.ndarray,
    images: Sequence[CheckedImage],
    facts: ModelFacts,
    limit: Limit,
    what: str,
) -> Difference:
    """How outputs differ from those expected.

    Raises:
        ParityFailed: by more than the limit, or they are no numbers.
    """
    difference = np.abs(expected - given)
    figures = {"largest": float(difference.max()), "mean": float(difference.mean())}
    # What is no number is not within any limit.
    if not figures[limit.of] <= limit.value:
        raise ParityFailed(
            f"the export was not written: {what} gives other probabilities than the model. Over {len(images):,} "
            f"images their {limit.of} difference is {figures[limit.of]:.2g}; the limit is {limit.value:g}."
        )
    called, ours = (spread_classes(outputs).argmax(axis=1) for outputs in (expected, given))
    labels = None
    if all(image.label in facts.classes for image in images):
        labels = np.array([facts.classes.index(image.label) for image in images])
    return Difference(
        images=len(images),
        **figures,
        limit=limit,
        same_class=int((called == ours).sum()),
        model_accuracy=None if labels is None else float((called == labels).mean()),
        accuracy=None if labels is None else float((ours == labels).mean()),
    )
