"""The convolutional base: find its weights, build it, cut it in two.

Source: K. Simonyan and A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image
Recognition, 2015; layer names as in keras.applications.
"""

import contextlib
import dataclasses
import hashlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thaw.config import BackboneConfig
from thaw.device import dtype_policy, prepare_keras
from thaw.errors import BadCut, BadWeights
from thaw.mini import DRAWINGS_WEIGHTS, build_vgg16_mini
from thaw.records import Backbone, Made, digest_of
from thaw.store import Store

# Means of ImageNet's blue, green and red, as subtracted by Caffe's VGG models.
CAFFE_MEANS_BGR = (103.939, 116.779, 123.68)
# As published with keras.applications; a download that was cut off has another.
_IMAGENET_VGG16_MD5 = "6d6bbae143d832006294945121d1f1fc"
_DOWNLOAD_TIMEOUT_SECONDS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """How one backbone is built, and what its published weights are called and expect."""

    build: Callable[[tuple[int, int, int]], Any]
    preprocessing: str
    published: str
    find_published: Callable[[], Path]


def _build_vgg16(input_shape: tuple[int, int, int]) -> Any:
    keras = prepare_keras()
    return keras.applications.VGG16(weights=None, include_top=False, input_shape=input_shape)


def _find_imagenet_vgg16() -> Path:
    name = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    file = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models" / name
    if file.is_file() and _hash_file(file, "md5") == _IMAGENET_VGG16_MD5:
        return file
    keras = prepare_keras()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_SECONDS)
    try:
        # Keras prints its progress to standard output, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            keras.applications.VGG16(weights="imagenet", include_top=False)
    except Exception as error:
        raise BadWeights(
            f"the ImageNet weights of vgg16 could not be downloaded ({_first_line(error)}). Connect and run "
            f"again, or copy {name} from another machine into {file.parent}, or give its path: --weights PATH."
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    if not file.is_file():
        raise BadWeights(
            f"Keras could not keep the ImageNet weights of vgg16 in {file.parent}. Make that folder writable, "
            "set KERAS_HOME to another one, or give the path of the weights: --weights PATH."
        )
    return file


ARCHITECTURES = {
    "vgg16": Architecture(
        build=_build_vgg16,
        preprocessing="caffe",
        published="imagenet",
        find_published=_find_imagenet_vgg16,
    ),
    "vgg16-mini": Architecture(
        build=build_vgg16_mini,
        preprocessing="unit",
        published="drawings",
        find_published=lambda: DRAWINGS_WEIGHTS,
    ),
}


def load_backbone(config: BackboneConfig, store: Store) -> Made[Backbone]:
    """Find the weights, and see once that they fit the architecture.

    Raises:
        BadWeights: missing, corrupt, of another architecture, or not downloadable.
    """
    architecture = ARCHITECTURES[config.name]
    path = _find_weights(config, architecture)
    sha256 = _hash_file(path) if path else "random"
    preprocessing = architecture.preprocessing if config.preprocessing == "native" else config.preprocessing
    address = digest_of(config.name, sha256, preprocessing)
    source = str(path) if path else "random"
    known = store.read("backbones", address, Backbone)
    if known:
        here = dataclasses.replace(known, origin=config.weights, weights=source)
        return Made(value=here, reused=True, note=f"weights {sha256[:12]}")
    backbone = Backbone(
        name=config.name,
        origin=config.weights,
        weights=source,
        weights_sha256=sha256,
        preprocessing=preprocessing,
        layers=(),
    )
    model = build_backbone(backbone, config.image_size_pixels)
    backbone = dataclasses.replace(backbone, layers=tuple(layer.name for layer in model.layers[1:]))
    store.publish("backbones", address, backbone)
    return Made(value=backbone, reused=False, note=f"weights {sha256[:12]}")


def build_backbone(backbone: Backbone, image_size_pixels: int, precision: str = "float32") -> Any:
    """The backbone as a Keras model from preprocessed pixels (n, size, size, 3) to its last pooling.

    Raises:
        BadWeights: the weights' file does not fit the architecture.
    """
    keras = prepare_keras()
    keras.utils.set_random_seed(0)
    with dtype_policy(precision):
        model = ARCHITECTURES[backbone.name].build((image_size_pixels, image_size_pixels, 3))
    if backbone.weights != "random":
        try:
            model.load_weights(backbone.weights)
        except Exception as error:
            raise BadWeights(
                f"{backbone.weights} does not hold weights of {backbone.name} without its top: "
                f"{_first_line(error)}. Give a file of its convolutional base, or "
                f"'{ARCHITECTURES[backbone.name].published}'."
            ) from None
    return model


def preprocess(pixels: Any, kind: str) -> Any:
    """Bring RGB pixels of 0 to 255, as a Keras tensor (n, height, width, 3), to what the backbone expects.

    `unit` gives 0 to 1; `caffe` gives BGR less ImageNet's means.
    """
    keras = prepare_keras()
    if kind == "unit":
        return keras.layers.Rescaling(1 / 255, dtype="float32")(pixels)
    flipped = keras.ops.flip(pixels, axis=-1)
    return keras.layers.Rescaling(1.0, offset=[-mean for mean in CAFFE_MEANS_BGR], dtype="float32")(flipped)


def check_cut(backbone: Backbone, cut: str) -> None:
    """See that the backbone has a layer of this name.

    Raises:
        BadCut: it has none; the message lists the poolings, where a cut costs least to store.
    """
    if cut not in backbone.layers:
        pools = [name for name in backbone.layers if name.endswith("_pool")]
        raise BadCut(f"{backbone.name} has no layer '{cut}' to cut at. Cut at one of {', '.join(pools)}.")


def cut_points(backbone: Backbone, cut: str) -> tuple[str, ...]:
    """The poolings up to `cut`, and `cut` itself, from shallow to deep."""
    check_cut(backbone, cut)
    before = backbone.layers[: backbone.layers.index(cut)]
    return (*(name for name in before if name.endswith("_pool")), cut)


def cut_model(model: Any, start: str | None, end: str | None) -> Any:
    """The part of a backbone after layer `start` up to and with layer `end`, sharing its weights.

    None stands for the input and for the last layer.
    """
    keras = prepare_keras()
    tensor = model.input if start is None else model.get_layer(start).output
    return keras.Model(tensor, model.output if end is None else model.get_layer(end).output)


def _find_weights(config: BackboneConfig, architecture: Architecture) -> Path | None:
    if config.weights == "random":
        return None
    if config.weights == architecture.published:
        return architecture.find_published()
    names = {other.published for other in ARCHITECTURES.values()}
    if config.weights in names:
        raise BadWeights(
            f"there are no '{config.weights}' weights of {config.name}. "
            f"Use '{architecture.published}', 'random', or the path of a file."
        )
    path = Path(config.weights).expanduser()
    if not path.is_file():
        raise BadWeights(
            f"no weights at {path}. Give the path of a weights file, '{architecture.published}' or 'random'."
        )
    return path.absolute()


def _hash_file(path: Path, algorithm: str = "sha256") -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise BadWeights(f"the weights at {path} can't be read: {error.strerror}.") from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
