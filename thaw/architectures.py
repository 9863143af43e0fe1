"""Every backbone that can be asked for: how it is built, and what its published weights expect to see.

The table needs no Keras, so that a configuration can be checked against it in milliseconds.

Source: names and preprocessing as in keras.applications.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from thaw.device import prepare_keras
from thaw.errors import BadConfig
from thaw.mini import build_vgg16_mini

Preprocessing = Literal["unit", "caffe", "signed", "torch", "raw"]

# Means of ImageNet's blue, green and red, as subtracted by Caffe's models.
CAFFE_MEANS_BGR = (103.939, 116.779, 123.68)
# Means and deviations of ImageNet's red, green and blue on a scale of 0 to 1, as in torchvision.
_TORCH_MEANS = (0.485, 0.456, 0.406)
_TORCH_DEVIATIONS = (0.229, 0.224, 0.225)
# What keeps its meaning on a single channel.
GREY_PREPROCESSING = ("unit", "signed", "raw")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How one backbone is built, and what its published weights are called and expect.

    `builder` is the function of keras.applications, empty for Thaw's own. Pixels of 0 to 255 reach
    the published weights by way of `preprocessing`. `smallest_side_pixels` is the least height and width.
    """

    name: str
    builder: str
    preprocessing: Preprocessing
    published: Literal["imagenet", "drawings"] | None
    smallest_side_pixels: int


def _list_architectures() -> Iterator[Architecture]:
    families: tuple[tuple[Preprocessing, int, str], ...] = (
        ("caffe", 32, "VGG16 VGG19 ResNet50 ResNet101 ResNet152"),
        ("signed", 32, "ResNet50V2 ResNet101V2 ResNet152V2"),
        ("signed", 71, "Xception"),
        ("signed", 75, "InceptionV3 InceptionResNetV2"),
        ("signed", 32, "MobileNet MobileNetV2 NASNetMobile NASNetLarge"),
        ("torch", 32, "DenseNet121 DenseNet169 DenseNet201"),
        ("raw", 32, "MobileNetV3Small MobileNetV3Large"),
        ("raw", 32, " ".join(f"EfficientNetB{number}" for number in range(8))),
        ("raw", 32, " ".join(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L"))),
        ("raw", 32, " ".join(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge"))),
    )
    for preprocessing, smallest_side_pixels, builders in families:
        for builder in builders.split():
            yield Architecture(
                name=builder.lower(),
                builder=builder,
                preprocessing=preprocessing,
                published="imagenet",
                smallest_side_pixels=smallest_side_pixels,
            )
    yield Architecture(
        name="vgg16-mini",
        builder="",
        preprocessing="unit",
        published="drawings",
        smallest_side_pixels=32,
    )


ARCHITECTURES = {architecture.name: architecture for architecture in _list_architectures()}


def preprocess(pixels: Any, kind: Preprocessing) -> Any:
    """Bring pixels of 0 to 255, float32 (n, height, width, channels), to what a backbone expects.

    `unit` gives 0 to 1; `signed` -1 to 1; `caffe` BGR less ImageNet's means; `torch` 0 to 1 less
    ImageNet's means, over its deviations; `raw` changes nothing, for backbones that preprocess inside.

    Args:
        pixels: RGB, or grey where channels is 1; a Keras tensor or an array.

    Raises:
        BadConfig: no such kind, or one that needs three colours on grey pixels.
    """
    if kind not in get_args(Preprocessing):
        raise BadConfig(
            f"there is no preprocessing '{kind}'. Use one of {', '.join(get_args(Preprocessing))}."
        )
    channels = pixels.shape[-1]
    if channels != 3 and kind not in GREY_PREPROCESSING:
        raise BadConfig(
            f"preprocessing '{kind}' needs red, green and blue; these images have {channels} channel(s). "
            f"Use one of {', '.join(GREY_PREPROCESSING)}, or read the images in colour."
        )
    if kind == "raw":
        return pixels
    keras = prepare_keras()

    def rescale(tensor: Any, scale: Any, offset: Any) -> Any:
        return keras.layers.Rescaling(scale, offset=offset, dtype="float32")(tensor)

    if kind == "unit":
        return rescale(pixels, 1 / 255, 0.0)
    if kind == "signed":
        return rescale(pixels, 1 / 127.5, -1.0)
    if kind == "caffe":
        return rescale(keras.ops.flip(pixels, axis=-1), 1.0, [-mean for mean in CAFFE_MEANS_BGR])
    return rescale(
        pixels,
        [1 / (255 * deviation) for deviation in _TORCH_DEVIATIONS],
        [-mean / deviation for mean, deviation in zip(_TORCH_MEANS, _TORCH_DEVIATIONS, strict=True)],
    )


def build_architecture(name: str, input_shape: tuple[int, int, int], weights: str | None = None) -> Any:
    """A backbone without its top, its layers named as in a fresh process.

    Args:
        input_shape: (height, width, channels) of the preprocessed images.
        weights: imagenet, which Keras downloads once; None for random ones.

    Returns:
        a Keras model from float32 (n, height, width, channels) to its last feature maps.

    Raises:
        BadConfig: no such backbone, or the images are too small for it.
    """
    if name not in ARCHITECTURES:
        raise BadConfig(f"there is no backbone '{name}'. Use one of {', '.join(sorted(ARCHITECTURES))}.")
    architecture = ARCHITECTURES[name]
    smallest = architecture.smallest_side_pixels
    if min(input_shape[:2]) < smallest:
        height, width, _ = input_shape
        raise BadConfig(
            f"{name} needs images of at least {smallest} x {smallest} pixels; {height} x {width} is too small. "
            f"Set image_size_pixels to {smallest} or more."
        )
    keras = prepare_keras()
    if not architecture.builder:
        return build_vgg16_mini(input_shape)
    build = getattr(keras.applications, architecture.builder)
    model = build(weights=weights, include_top=False, input_shape=input_shape)
    _number_names(model)
    if name.startswith("efficientnetb") and input_shape[-1] == 3 and weights is None:
        return scale_after_normalization(model)
    return model


def _number_names(model: Any) -> None:
    """Name the layers that Keras named by itself as in a process that builds nothing else.

    Keras counts the objects of each class over the whole process: what is `add` in one run would be
    `add_17` in another, which had built other models before.
    """
    counted = defaultdict(list)
    for operation in _list_operations(model):
        stem = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", type(operation).__name__).lower()
        match = re.fullmatch(rf"{stem}(?:_(\d+))?", operation.name)
        if match:
            counted[stem].append((int(match[1] or 0), operation))
    for stem, operations in counted.items():
        operations.sort(key=lambda item: item[0])
        for position, (_, operation) in enumerate(operations):
            operation.name = f"{stem}_{position}" if position else stem
    model.output_names = [tensor._keras_history.operation.name for tensor in model.outputs]


def _list_operations(model: Any) -> Iterator[Any]:
    """Layers and plain operations of a network, those of networks inside it included."""
    # A Sequential lists neither its operations nor its input.
    entries = [tensor._keras_history.operation for tensor in model.inputs]
    for operation in getattr(model, "operations", [*entries, *model.layers]):
        yield operation
        if hasattr(operation, "layers"):
            yield from _list_operations(operation)


def scale_after_normalization(model: Any) -> Any:
    """Insert the layer that EfficientNet's published weights were trained with.

    Keras adds it only when it loads those weights itself; without it they see colours at half their scale.
    """
    keras = prepare_keras()

    def call(layer: Any, *arguments: Any, **options: Any) -> Any:
        output = layer(*arguments, **options)
        if isinstance(layer, keras.layers.Normalization):
            scale = [deviation**-0.5 for deviation in _TORCH_DEVIATIONS]
            return keras.layers.Rescaling(scale, name="rescaling_1")(output)
        return output

    entry = keras.Input(model.input_shape[1:], name=model.layers[0].name)
    return keras.models.clone_model(model, input_tensors=entry, call_function=call)
