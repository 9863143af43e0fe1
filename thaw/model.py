"""A saved model: raw pixels in, class probabilities out, in one `.keras` file that plain Keras loads.

The file also holds `thaw.json`, a `ModelFacts` that says what goes in and what the probabilities mean, and
`population.npz`, what the images that it learned from look like to its frozen prefix, where it has one.
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
from thaw.drift import Population
from thaw.errors import BadModel
from thaw.records import PIXELS, Backbone, Checkpoint, Record
from thaw.reliability import scale_outputs
from thaw.store import Store
from thaw.trainer import load_network, spread_classes

FACTS_MEMBER, _POPULATION_MEMBER = "thaw.json", "population.npz"
_PREFIX = "frozen_prefix"


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Record):
    """What a saved model takes and gives: images of a square size, and one probability per class.

    `temperature` is what the logits are divided by inside it.
    """

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
    temperature: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image's pixels: (size, size, channels)."""
        return (self.image_size_pixels, self.image_size_pixels, 1 if self.colour == "grey" else 3)


def assemble_model(
    checkpoint: Checkpoint,
    backbone: Backbone,
    settings: BackboneConfig,
    store: Store,
    temperature: float = 1.0,
) -> Any:
    """Preprocessing, frozen prefix, trained network and temperature as one float32 model.

    It takes pixels, float32 or uint8 of 0 to 255, (n, size, size, channels), and gives (n, 1), the
    probability of the second class, or (n, classes).
    """
    keras = prepare_keras()
    size = settings.image_size_pixels
    network = load_network(store, checkpoint.address)
    prefix = None
    if checkpoint.cut != PIXELS:
        prefix = split_model(build_backbone(backbone, size), None, checkpoint.cut)
        prefix.name = _PREFIX

    def judge(images: Any) -> Any:
        return network(prefix(preprocess(images, backbone.preprocessing)) if prefix else images)

    pixels = keras.Input((size, size, settings.channels), name="pixels")
    outputs = judge(pixels)
    if checkpoint.mirrored:
        outputs = keras.layers.Average()([outputs, judge(keras.ops.flip(pixels, axis=2))])
    if temperature != 1:
        outputs = scale_outputs(outputs, temperature)
    model = keras.Model(pixels, outputs, name="thaw")
    model.trainable = False
    return model


def watch_prefix(model: Any) -> Any:
    """The same model, which also gives what its frozen prefix makes of the pixels, averaged over the map.

    Where the model averages over mirror images, that is of the images as they are.

    Returns:
        a Keras model from pixels to [the probabilities, float32 (n, channels)].

    Raises:
        BadModel: it has no frozen prefix that goes by its name.
    """
    keras = prepare_keras()
    prefix = next((layer for layer in model.layers if layer.name == _PREFIX), None)
    if prefix is None:
        raise BadModel(f"the model has no part '{_PREFIX}'. Release it again by the command that trained it.")
    # The first call is that of the images as they are.
    features = prefix._inbound_nodes[0].output_tensors[0]
    maps = tuple(range(1, len(features.shape) - 1))
    pooled = keras.ops.mean(features, axis=maps) if maps else features
    return keras.Model(model.inputs[0], [model.outputs[0], pooled])


def save_model(model: Any, path: Path, facts: ModelFacts, population: Population | None = None) -> None:
    """Save a model as `.keras`, with its facts inside, and the population that it learned from."""
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(FACTS_MEMBER, facts.to_json())
        if population:
            archive.writestr(_POPULATION_MEMBER, population.to_bytes())


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


def load_population(path: Path) -> Population | None:
    """The population in a saved model's file, or None where it keeps none.

    Raises:
        BadModel: it can't be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if _POPULATION_MEMBER not in archive.namelist():
                return None
            return Population.from_bytes(archive.read(_POPULATION_MEMBER))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise BadModel(f"the population in {path} can't be read ({error}).") from None


def predict_pixels(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Class probabilities, float64 (n, classes), of uint8 images (n, size, size, channels)."""
    return spread_classes(np.asarray(model.predict_on_batch(pixels.astype(np.float32))))


def predict_watched(model: Any, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `predict_pixels`, of a model of `watch_prefix`, and the pooled features float32 (n, channels)."""
    probabilities, pooled = model.predict_on_batch(pixels.astype(np.float32))
    return spread_classes(np.asarray(probabilities)), np.asarray(pooled)
