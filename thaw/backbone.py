"""The convolutional base: find its weights, build it, know where it can be cut."""

import contextlib
import dataclasses
import hashlib
import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thaw.architectures import ARCHITECTURES, build_architecture
from thaw.config import NO_BACKBONE, WEIGHTS, BackboneConfig
from thaw.cuts import Cut, find_cuts, find_stages, resolve_cut
from thaw.device import dtype_policy, prepare_keras
from thaw.errors import BadCut, BadWeights, ThawError
from thaw.location import Url, parse_source
from thaw.mini import DRAWINGS_WEIGHTS
from thaw.records import PIXELS, Backbone, Made, digest_of
from thaw.store import Store

logger = logging.getLogger(__name__)

_DOWNLOAD_TIMEOUT_SECONDS = 8
# At which the graph is looked through; where it can be cut does not depend on it.
_USUAL_SIDE_PIXELS = 224


def load_backbone(config: BackboneConfig, store: Store) -> Made[Backbone]:
    """Find the weights, and see once that they fit the architecture.

    Raises:
        BadWeights: missing, corrupt, of another architecture, or not downloadable.
    """
    if config.name == NO_BACKBONE:
        return Made(value=_describe_nothing(config), reused=True, note="none: the head learns from pixels")
    architecture = ARCHITECTURES[config.name]
    source = _find_weights(config)
    preprocessing = architecture.preprocessing
    if config.preprocessing not in ("native", preprocessing):
        logger.warning(
            "images are preprocessed as '%s', and %s was trained with '%s': backbone.preprocessing=native",
            *(config.preprocessing, config.name, preprocessing),
        )
        preprocessing = config.preprocessing
    path = DRAWINGS_WEIGHTS if source == "drawings" else Path(source)
    file = source if source in ("imagenet", "random") else _hash_file(path)
    address = digest_of(config.name, file, preprocessing)
    known = store.read("backbones", address, Backbone)
    if known:
        here = dataclasses.replace(known, origin=config.weights, weights=_share(source, file, store))
        return Made(value=here, reused=True, note=f"weights {known.weights_sha256[:12]}")
    backbone = Backbone(
        name=config.name,
        origin=config.weights,
        weights=source,
        weights_sha256="",
        preprocessing=preprocessing,
        layers=(),
        cuts=(),
        stages=(),
    )
    model = build_backbone(backbone, _USUAL_SIDE_PIXELS)
    cuts = find_cuts(model)
    backbone = dataclasses.replace(
        backbone,
        weights=_share(source, file, store),
        weights_sha256="random" if source == "random" else _hash_weights(model),
        layers=tuple(layer.name for layer in model.layers),
        cuts=tuple(cut.name for cut in cuts),
        stages=find_stages(model, cuts),
    )
    store.publish("backbones", address, backbone)
    return Made(value=backbone, reused=False, note=f"weights {backbone.weights_sha256[:12]}")


def build_backbone(backbone: Backbone, image_size_pixels: int, precision: str = "float32") -> Any:
    """The backbone as a Keras model from preprocessed pixels (n, size, size, 3) to its last stage's end.

    None where there is no backbone.

    Raises:
        BadWeights: the weights' file does not fit the architecture.
        BadConfig: the images are too small for the architecture.
    """
    keras = prepare_keras()
    if backbone.name == NO_BACKBONE:
        return None
    keras.utils.set_random_seed(0)
    shape = (image_size_pixels, image_size_pixels, 3)
    with dtype_policy(precision):
        if backbone.weights == "imagenet":
            return _build_imagenet(backbone.name, shape)
        model = build_architecture(backbone.name, shape)
    if backbone.weights != "random":
        file = _find_file(backbone.weights)
        try:
            model.load_weights(file)
        except Exception as error:
            raise BadWeights(
                f"{backbone.weights} does not hold weights of {backbone.name} without its top: "
                f"{_first_line(error)}. Give a file of its convolutional base, or "
                f"'{ARCHITECTURES[backbone.name].published}'."
            ) from None
    return model


def find_cut(backbone: Backbone, cut: str | int) -> str:
    """The name of a cut that was asked for by a layer's name or index.

    Raises:
        BadCut: there is no such layer, or the graph can't be split there; the message names those where it can.
    """
    if cut == PIXELS:
        return PIXELS
    if not backbone.cuts:
        raise BadCut(f"there is no backbone to cut at '{cut}'. Give the cut '{PIXELS}', or take a backbone.")
    cuts = [Cut(name=name, index=backbone.layers.index(name), shape=()) for name in backbone.cuts]
    return resolve_cut(cut, cuts, backbone.stages, backbone.name, backbone.layers)


def order_cuts(backbone: Backbone) -> tuple[str, ...]:
    """Every cut, from the pixels to the bottleneck."""
    return (PIXELS, *backbone.cuts)


def cut_points(backbone: Backbone, cut: str) -> tuple[str, ...]:
    """The pixels, the ends of stages before `cut`, and `cut` itself, from shallow to deep."""
    order = order_cuts(backbone)
    before = order[: order.index(find_cut(backbone, cut))]
    return (*(name for name in before if name == PIXELS or name in backbone.stages), cut)


def _describe_nothing(config: BackboneConfig) -> Backbone:
    preprocessing = "unit" if config.preprocessing == "native" else config.preprocessing
    none = {"origin": "none", "weights": "none", "weights_sha256": "none"}
    nowhere = {"layers": (), "cuts": (), "stages": ()}
    return Backbone(name=NO_BACKBONE, preprocessing=preprocessing, **none, **nowhere)


def _build_imagenet(name: str, shape: tuple[int, int, int]) -> Any:
    """An architecture with the weights that Keras publishes, downloaded where they are not there yet."""
    folder = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"
    try:
        # Keras prints its progress to standard output, which belongs to results.
        with _limit_waiting(), contextlib.redirect_stdout(sys.stderr):
            return build_architecture(name, shape, weights="imagenet")
    except ThawError:
        raise
    except Exception as error:
        raise BadWeights(
            f"the ImageNet weights of {name} could not be had ({_first_line(error)}). Connect and run again, "
            f"or copy them from another machine's {folder}, or give the path of a file: --weights PATH."
        ) from None


@contextlib.contextmanager
def _limit_waiting() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _find_weights(config: BackboneConfig) -> str:
    """The path of the weights' file, or the name of weights that every machine has of its own."""
    published = ARCHITECTURES[config.name].published
    if config.weights in ("random", published):
        return config.weights
    if config.weights in WEIGHTS:
        raise BadWeights(
            f"there are no '{config.weights}' weights of {config.name}. "
            f"Use '{published}', 'random', or the path of a file."
        )
    path = Path(config.weights).expanduser()
    if not path.is_file():
        raise BadWeights(f"no weights at {path}. Give the path of a weights file, '{published}' or 'random'.")
    return str(path.absolute())


def _share(source: str, sha256: str, store: Store) -> str:
    """Where whoever sees the store finds weights: a file is copied to it where that is an object store."""
    if source in WEIGHTS or not store.mirror or store.looks_only:
        return source
    # Keras reads a file by what its name ends in.
    name = Path(source).name
    place = ("weights", digest_of(sha256, name))
    if not store.is_published(*place):
        with store.publish_folder(*place) as partial:
            shutil.copyfile(source, partial / name)
    return f"{store.address}/{'/'.join(place)}/{name}"


def _find_file(weights: str) -> Path:
    """The weights' file on this machine; one in an object store is brought.

    Raises:
        BadWeights: it is not there any more.
    """
    if weights == "drawings":
        return DRAWINGS_WEIGHTS
    source = parse_source(weights)
    if not isinstance(source, Url):
        return source
    root, *place = source.rsplit("/", 3)
    file = Store(Url(root)).fetch(*place)
    if not file.is_file():
        raise BadWeights(
            f"no weights at {weights} any more. Run again where their file is, which puts it there."
        )
    return file


def _hash_weights(model: Any) -> str:
    """SHA-256 of the values, so that the same weights have the same digest in whatever file they came."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(array.tobytes())
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadWeights(f"the weights at {path} can't be read: {error.strerror}.") from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
