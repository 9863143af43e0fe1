"""Convolutional bases of published networks that are trained from scratch, each written as its paper's table.

What follows the last maps (flattening, dense layers, dropout) is the head's. Every layer has a name, and a
pooling that ends a block is called `…_pool`.

`blog-convnet`: F. Chollet, Building powerful image classification models using very little data, 2016.
`book1-convnet`: F. Chollet, Deep Learning with Python, 1st ed. 2017, listing 5.5.
`shoes-convnet`: three brands of shoes at 224 pixels. Published of it is only that it pools by the average
    first and by the maximum later; one pooling by the average, and 32, 64 and 128 kernels, are chosen here.
`lenet5`: Y. LeCun and others, Gradient-Based Learning Applied to Document Recognition, 1998, fig. 2. Not
    kept: the trained coefficient and bias of each pooled map and its squashing, tanh scaled to ±1.7159, the
    table that connects maps of C3 to some of S2 only, the RBF output, the initial weights. The first
    convolution pads images of 28 pixels to the published 32.
`alexnet`: A. Krizhevsky and others, ImageNet Classification with Deep Convolutional Neural Networks, 2012,
    as one tower: no convolution is split between two GPUs. 227 pixels give the published maps, the paper's
    224 do not. Not kept: the initial weights and biases.
`googlenet`: C. Szegedy and others, Going Deeper with Convolutions, 2014, table 1 and fig. 3. Not kept: the
    two auxiliary classifiers. The paper leaves the response normalisation's constants open; AlexNet's serve.
`fashion-convnet`: A. Géron, Hands-On Machine Learning, 3rd ed. 2022, ch. 14, Fashion-MNIST.
`resnet34`: K. He and others, Deep Residual Learning for Image Recognition, 2015, table 1, with projections
    where the shape changes (option B).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from thaw.device import prepare_keras
from thaw.errors import BadConfig

Padding = Literal["valid", "same"]

# k, n and alpha of AlexNet's section 3.3.
_OFFSET, _NEIGHBOURS, _SCALE = 2.0, 5, 1e-4
# Published for none of these networks. Keras's momentum of 0.99 would need hundreds of batches before the statistics
# that validation uses mean anything; a few thousand images give some tens of batches an epoch.
_BATCH = {"momentum": 0.9, "epsilon": 1e-5}


@dataclass(frozen=True)
class Layer:
    """One row of a network's table: by itself, one that keeps the size of the maps."""

    name: str
    # Of rows that have no such column. Annotated, they would come before the columns of the rows that do.
    size, stride, padding = 1, 1, "same"

    def add_to(self, tensor: Any, penalty: Any) -> Any:
        raise NotImplementedError

    def smallest_input(self, output: int) -> int:
        """The side, in pixels, that this needs for maps of `output`; where it pads, whole strides."""
        if self.padding == "same":
            return output * self.stride
        return (output - 1) * self.stride + self.size


@dataclass(frozen=True)
class Convolution(Layer):
    """`filters` kernels of `size` × `size` pixels and their biases, then the activation.

    Batch normalisation, where there is any, comes between the two and takes the biases' place.
    """

    filters: int
    size: int = 3
    stride: int = 1
    padding: Padding = "same"
    activation: str | None = "relu"
    initializer: str = "glorot_uniform"
    normalized: bool = False

    def add_to(self, tensor: Any, penalty: Any) -> Any:
        layers = prepare_keras().layers
        tensor = layers.Conv2D(
            self.filters,
            self.size,
            self.stride,
            self.padding,
            activation=None if self.normalized else self.activation,
            use_bias=not self.normalized,
            kernel_initializer=self.initializer,
            kernel_regularizer=penalty,
            name=self.name,
        )(tensor)
        if self.normalized:
            tensor = layers.BatchNormalization(name=f"{self.name}_norm", **_BATCH)(tensor)
            if self.activation:
                tensor = layers.Activation(self.activation, name=f"{self.name}_{self.activation}")(tensor)
        return tensor


@dataclass(frozen=True)
class Pooling(Layer):
    """The maximum or the average of windows of `size` × `size` pixels."""

    kind: Literal["max", "average"] = "max"
    size: int = 2
    stride: int = 2
    padding: Padding = "valid"

    def add_to(self, tensor: Any, penalty: Any) -> Any:
        layers = prepare_keras().layers
        kind = layers.MaxPooling2D if self.kind == "max" else layers.AveragePooling2D
        return kind(self.size, self.stride, self.padding, name=self.name)(tensor)


@dataclass(frozen=True)
class ResponseNormalization(Layer):
    """Local response normalisation: b = a / (k + alpha · Σ a²)^beta over five neighbouring channels.

    It is a graph of Keras's own operations, so that a saved network loads without Thaw.
    """

    def add_to(self, tensor: Any, penalty: Any) -> Any:
        keras = prepare_keras()
        height, width, channels = tensor.shape[1:]
        # The sum is a convolution along the channels, in float32 whatever the network computes in. Five
        # slices and their sum would take several times as long.
        squares = keras.ops.square(keras.ops.cast(tensor, "float32"))
        squares = keras.ops.reshape(squares, (-1, height * width, channels, 1))
        sums = keras.ops.conv(squares, np.ones((1, _NEIGHBOURS, 1, 1), np.float32), padding="same")
        sums = keras.ops.reshape(sums, (-1, height, width, channels))
        scale = keras.layers.Rescaling(_SCALE, _OFFSET, dtype="float32", name=f"{self.name}_scale")
        scaled = scale(sums)
        # beta is 3/4, and two roots are quicker to compute than a power.
        damping = keras.ops.rsqrt(scaled * keras.ops.sqrt(scaled))
        return keras.layers.Multiply(name=self.name)([tensor, damping])


@dataclass(frozen=True)
class Inception(Layer):
    """Kernels of four kinds side by side, their maps joined; the fields are the columns of table 1."""

    filters_1x1: int
    reduce_3x3: int
    filters_3x3: int
    reduce_5x5: int
    filters_5x5: int
    pool_projection: int

    def add_to(self, tensor: Any, penalty: Any) -> Any:
        def convolve(tensor: Any, kind: str, filters: int, size: int) -> Any:
            return Convolution(f"{self.name}_{kind}", filters, size).add_to(tensor, penalty)

        pooled = Pooling(f"{self.name}_maximum", size=3, stride=1, padding="same").add_to(tensor, penalty)
        branches = [
            convolve(tensor, "1x1", self.filters_1x1, 1),
            convolve(convolve(tensor, "3x3_reduce", self.reduce_3x3, 1), "3x3", self.filters_3x3, 3),
            convolve(convolve(tensor, "5x5_reduce", self.reduce_5x5, 1), "5x5", self.filters_5x5, 5),
            convolve(pooled, "projection", self.pool_projection, 1),
        ]
        return prepare_keras().layers.Concatenate(name=f"{self.name}_out")(branches)


@dataclass(frozen=True)
class ResidualUnit(Layer):
    """Two convolutions whose result is added to what came in, projected where the shape changes."""

    filters: int
    stride: int = 1

    def add_to(self, tensor: Any, penalty: Any) -> Any:
        layers = prepare_keras().layers
        convolve = partial(Convolution, filters=self.filters, initializer="he_normal", normalized=True)
        first = convolve(f"{self.name}_conv1", stride=self.stride)
        second = convolve(f"{self.name}_conv2", activation=None)
        residual = _add_layers([first, second], tensor, penalty)
        if residual.shape != tensor.shape:
            shortcut = convolve(f"{self.name}_shortcut", size=1, stride=self.stride, activation=None)
            tensor = shortcut.add_to(tensor, penalty)
        total = layers.Add(name=f"{self.name}_add")([residual, tensor])
        return layers.Activation("relu", name=f"{self.name}_out")(total)


def _plain_blocks(*filters: int, first: Literal["max", "average"] = "max") -> tuple[Layer, ...]:
    """Blocks of one 3 × 3 convolution without padding and a pooling that halves; `first` is the first one's."""
    rows: list[Layer] = []
    for number, count in enumerate(filters, start=1):
        rows.append(Convolution(f"block{number}_conv", count, padding="valid"))
        rows.append(Pooling(f"block{number}_pool", first if number == 1 else "max"))
    return tuple(rows)


def _residual_units(block: str, filters: int, units: int, stride: int = 2) -> tuple[Layer, ...]:
    """Residual units of equal width; the first one's stride is `stride`."""
    return tuple(
        ResidualUnit(f"{block}_unit{number}", filters, stride if number == 1 else 1)
        for number in range(1, units + 1)
    )


_TABLES: dict[str, tuple[Layer, ...]] = {
    "blog-convnet": _plain_blocks(32, 32, 64),
    "book1-convnet": _plain_blocks(32, 64, 128, 128),
    "shoes-convnet": _plain_blocks(32, 64, 128, first="average"),
    "lenet5": (
        Convolution("block1_conv", 6, size=5, activation="tanh"),
        Pooling("block1_pool", "average"),
        Convolution("block2_conv", 16, size=5, padding="valid", activation="tanh"),
        Pooling("block2_pool", "average"),
        Convolution("block3_conv", 120, size=5, padding="valid", activation="tanh"),
    ),
    "alexnet": (
        Convolution("block1_conv", 96, size=11, stride=4, padding="valid"),
        ResponseNormalization("block1_norm"),
        Pooling("block1_pool", size=3),
        Convolution("block2_conv", 256, size=5),
        ResponseNormalization("block2_norm"),
        Pooling("block2_pool", size=3),
        Convolution("block3_conv1", 384),
        Convolution("block3_conv2", 384),
        Convolution("block3_conv3", 256),
        Pooling("block3_pool", size=3),
    ),
    "googlenet": (
        Convolution("block1_conv", 64, size=7, stride=2),
        Pooling("block1_pool", size=3, padding="same"),
        ResponseNormalization("block1_norm"),
        Convolution("block2_reduce", 64, size=1),
        Convolution("block2_conv", 192),
        ResponseNormalization("block2_norm"),
        Pooling("block2_pool", size=3, padding="same"),
        Inception("block3a", 64, 96, 128, 16, 32, 32),
        Inception("block3b", 128, 128, 192, 32, 96, 64),
        Pooling("block3_pool", size=3, padding="same"),
        Inception("block4a", 192, 96, 208, 16, 48, 64),
        Inception("block4b", 160, 112, 224, 24, 64, 64),
        Inception("block4c", 128, 128, 256, 24, 64, 64),
        Inception("block4d", 112, 144, 288, 32, 64, 64),
        Inception("block4e", 256, 160, 320, 32, 128, 128),
        Pooling("block4_pool", size=3, padding="same"),
        Inception("block5a", 256, 160, 320, 32, 128, 128),
        Inception("block5b", 384, 192, 384, 48, 128, 128),
    ),
    "fashion-convnet": (
        Convolution("block1_conv", 64, size=7, initializer="he_normal"),
        Pooling("block1_pool"),
        Convolution("block2_conv1", 128, initializer="he_normal"),
        Convolution("block2_conv2", 128, initializer="he_normal"),
        Pooling("block2_pool"),
        Convolution("block3_conv1", 256, initializer="he_normal"),
        Convolution("block3_conv2", 256, initializer="he_normal"),
        Pooling("block3_pool"),
    ),
    "resnet34": (
        Convolution("block1_conv", 64, size=7, stride=2, initializer="he_normal", normalized=True),
        Pooling("block1_pool", size=3, padding="same"),
        *_residual_units("block2", 64, units=3, stride=1),
        *_residual_units("block3", 128, units=4),
        *_residual_units("block4", 256, units=6),
        *_residual_units("block5", 512, units=3),
    ),
}

NETWORKS: tuple[str, ...] = tuple(_TABLES)


def add_convolutions(name: str, pixels: Any, penalty: Any = None) -> Any:
    """The last maps of a network on preprocessed pixels, both KerasTensors float32 (n, height, width, channels).

    Args:
        name: one of `NETWORKS`.
        penalty: Keras regularizer of every convolution's kernels.

    Raises:
        BadConfig: no network has this name, or the images are too small for it.
    """
    height, width = pixels.shape[1:3]
    smallest = find_smallest_side(name)
    if min(height, width) < smallest:
        raise BadConfig(
            f"{name} needs images of at least {smallest} × {smallest} pixels, these are {width} × {height}. "
            f"Set image_size_pixels to {smallest} or more, or choose another network."
        )
    return _add_layers(_TABLES[name], pixels, penalty)


def find_smallest_side(name: str) -> int:
    """The least height and width, in pixels, of images that a network can take.

    Raises:
        BadConfig: no network has this name.
    """
    if name not in _TABLES:
        raise BadConfig(f"no network is called '{name}'. Choose one of {', '.join(NETWORKS)}.")
    side = 1
    for row in reversed(_TABLES[name]):
        side = row.smallest_input(side)
    return side


def _add_layers(rows: Sequence[Layer], tensor: Any, penalty: Any) -> Any:
    for row in rows:
        tensor = row.add_to(tensor, penalty)
    return tensor
