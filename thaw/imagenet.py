"""Name what images show with a backbone's own top: the thousand classes of ImageNet."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from thaw.architectures import ARCHITECTURES, preprocess, scale_after_normalization
from thaw.device import prepare_keras
from thaw.errors import BadConfig, BadDump, BadWeights
from thaw.location import Url
from thaw.model import ModelFacts
from thaw.predict import predict_images
from thaw.recipe import name_nearest
from thaw.records import Made, Record
from thaw.store import Store

CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class NamedImage(Record):
    """One image's likeliest names with their probabilities, the likeliest first; or why there are none."""

    path: str
    names: tuple[tuple[str, float], ...] = ()
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class NamedImages(Record):
    """What was named, by which backbone, and the file that it was written to."""

    backbone: str
    csv: str
    images: tuple[NamedImage, ...]


def name_images(
    sources: Sequence[Path | Url],
    store: Store,
    backbone: str = "resnet50",
    weights: str = "imagenet",
    class_index: Path | None = None,
    top: int = 3,
) -> Made[NamedImages]:
    """Name every image found in files, folders and archives, and write the names to `predictions/` in the store.

    Args:
        backbone: any of keras.applications, at the size of images that it was published with.
        weights: imagenet (downloaded once), random, or the path of a file that holds the top as well.
        class_index: a file like Keras's imagenet_class_index.json; without one Keras's own is downloaded once.

    Raises:
        BadConfig: there is no such backbone.
        BadWeights: the weights, or the names of the classes, can't be had.
        BadDump: there are no images that can be read.
    """
    classes = read_classes(class_index)
    model, facts = build_classifier(backbone, weights, classes)
    images = tuple(_name(row, facts.classes, top) for row in predict_images(model, facts, sources))
    if not images:
        raise BadDump(
            f"no images found in {', '.join(map(str, sources))}. Pass images, folders or zip archives."
        )
    if all(image.error for image in images):
        raise BadDump(
            f"none of the {len(images):,} images could be read; of {images[0].path}: {images[0].error}"
        )
    file = store.folder("predictions", f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-imagenet-{backbone}.csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    _write_csv(partial, images, top)
    partial.replace(file)
    store.share(file)
    named = NamedImages(backbone=backbone, csv=str(file), images=images)
    return Made(value=named, reused=False, note=f"{len(images):,} images in {file}")


def read_classes(class_index: Path | None = None) -> tuple[str, ...]:
    """The names of ImageNet's classes, by index.

    Raises:
        BadWeights: Keras's file could not be downloaded, or the given one is none of its kind.
    """
    try:
        if class_index is None:
            decode = prepare_keras().applications.imagenet_utils.decode_predictions
            return tuple(names[0][1] for names in decode(np.eye(CLASSES), top=1))
        read = json.loads(class_index.read_text(encoding="utf-8"))
        return tuple(read[str(index)][1] for index in range(CLASSES))
    except Exception as error:
        what = f"{class_index} does not hold them" if class_index else "they could not be downloaded"
        raise BadWeights(
            f"the names of ImageNet's classes are missing: {what} ({str(error).splitlines()[0]}). Connect and run "
            "again, or give a copy of Keras's imagenet_class_index.json: --class-index FILE."
        ) from None


def build_classifier(backbone: str, weights: str, classes: Sequence[str]) -> tuple[Any, ModelFacts]:
    """A backbone with its own top as a model from pixels, as `thaw.model` describes one.

    Raises:
        BadConfig: there is no such backbone.
        BadWeights: they can't be downloaded, or don't fit.
    """
    published = [name for name, architecture in ARCHITECTURES.items() if architecture.builder]
    if backbone not in published:
        raise BadConfig(f"there is no published classifier '{backbone}'.{name_nearest(backbone, published)}")
    keras, architecture = prepare_keras(), ARCHITECTURES[backbone]
    build = getattr(keras.applications, architecture.builder)
    keras.utils.set_random_seed(0)
    try:
        network = build(weights="imagenet" if weights == "imagenet" else None)
        if backbone.startswith("efficientnetb") and weights != "imagenet":
            network = scale_after_normalization(network)
        if weights not in ("imagenet", "random"):
            network.load_weights(weights)
    except Exception as error:
        raise BadWeights(
            f"the weights of {backbone} with its top can't be had ({str(error).splitlines()[0]}). Connect and run "
            "again, or give the path of a file that holds them: --weights PATH."
        ) from None
    size = network.input_shape[1]
    pixels = keras.Input((size, size, 3), name="pixels")
    model = keras.Model(pixels, network(preprocess(pixels, architecture.preprocessing)))
    facts = ModelFacts(
        classes=tuple(classes),
        image_size_pixels=size,
        resize_filter="bilinear",
        backbone=backbone,
        stage="published",
        checkpoint=weights,
        split="none",
        gate_overridden=False,
    )
    return model, facts


def _name(row: Any, classes: Sequence[str], top: int) -> NamedImage:
    if row.error:
        return NamedImage(path=row.path, error=row.error)
    likeliest = np.argsort(row.probabilities)[::-1][:top]
    names = tuple((classes[index], row.probabilities[index]) for index in likeliest)
    return NamedImage(path=row.path, names=names)


def _write_csv(file: Path, images: Sequence[NamedImage], top: int) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        numbers = range(1, top + 1)
        writer.writerow(
            ["path", *(f"{part}{number}" for number in numbers for part in ("name", "p")), "error"]
        )
        writer.writerows([image.path, *_cells(image, top), image.error or ""] for image in images)


def _cells(image: NamedImage, top: int) -> Iterator[str]:
    for name, probability in image.names:
        yield from (name, f"{probability:.6f}")
    yield from [""] * (2 * (top - len(image.names)))
