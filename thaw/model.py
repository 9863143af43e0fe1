"""A saved model: raw pixels in, class probabilities out, in one `.keras` file that plain Keras loads.

The file also holds `thaw.json`, a `ModelFacts` that says what goes in and what the probabilities mean.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thaw.architectures import preprocess
from thaw.backbone import build_backbone
from thaw.config import BackboneConfig
from thaw.cuts import split_model
from thaw.device import prepare_keras
from thaw.errors import BadModel
from thaw.records import PIXELS, Backbone, Checkpoint, Record
from thaw.store import Store
from thaw.trainer import load_network, spread_classes

FACTS_MEMBER = "thaw.json"


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Record):
    """What a saved model takes and gives: images of a square size, and one probability per class."""

    classes: tuple[str, ...]
    image_size_pixels: int
    resize_filter: str
    backbone: str
    stage: str
    checkpoint: str
    split: str
    gate_overridden: bool
    resize_fit: str = "squash"
    colour: str = "rgb"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image's pixels: (size, size, channels)."""
        return (self.image_size_pixels, self.image_size_pixels, 1 if self.colour == "grey" else 3)


def assemble_model(checkpoint: Checkpoint, backbone: Backbone, settings: BackboneConfig, store: Store) -> Any:
    """Preprocessing, frozen prefix and trained network as one float32 model.

    It takes pixels, float32 or uint8 of 0 to 255, (n, size, size, channels), and gives (n, 1), the
    probability of the second class, or (n, classes).
    """
    keras = prepare_keras()
    size = settings.image_size_pixels
    network = load_network(store, checkpoint.address)
    prefix = None
    if checkpoint.cut != PIXELS:
        prefix = split_model(build_backbone(backbone, size), None, checkpoint.cut)

    def judge(images: Any) -> Any:
        return network(prefix(preprocess(images, backbone.preprocessing)) if prefix else images)

    pixels = keras.Input((size, size, settings.channels), name="pixels")
    outputs = judge(pixels)
    if checkpoint.mirrored:
        outputs = keras.layers.Average()([outputs, judge(keras.ops.flip(pixels, axis=2))])
    model = keras.Model(pixels, outputs, name="thaw")
    model.trainable = False
    return model


def save_model(model: Any, path: Path, facts: ModelFacts) -> None:
    """Save a model as `.keras`, with its facts inside."""
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(FACTS_MEMBER, facts.to_json())


def load_model(path: Path) -> tuple[Any, ModelFacts]:
    """A saved model and its facts.

    Raises:
        BadModel: there is no such file, or Thaw did not save it.
    """
    facts = read_facts(path)
    try:
        return prepare_keras().models.load_model(path, compile=False), facts
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise _explain_stranger(path, error) from None


def read_facts(path: Path) -> ModelFacts:
    """A saved model's facts alone, without loading it.

    Raises:
        BadModel: there is no such file, or Thaw did not save it.
    """
    if not path.is_file():
        raise BadModel(
            f"no model at {path}. `thaw train` prints where it saves one: model.keras in the run's folder."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return ModelFacts.from_json(archive.read(FACTS_MEMBER))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise _explain_stranger(path, error) from None


def _explain_stranger(path: Path, error: Exception) -> BadModel:
    return BadModel(f"{path} is not a model that Thaw saved ({error}).")


def predict_pixels(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Class probabilities, float64 (n, classes), of uint8 images (n, size, size, channels)."""
    return spread_classes(np.asarray(model.predict_on_batch(pixels.astype(np.float32))))
