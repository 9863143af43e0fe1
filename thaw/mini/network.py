"""VGG16-mini: VGG16's layers with an eighth of the filters, for demos and tests that download nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

# Pretrained by `python -m thaw.mini.pretrain` on pixels in 0..1.
DRAWINGS_WEIGHTS = Path(__file__).parent / "vgg16-mini.weights.h5"

_BLOCKS = ((8, 2), (16, 2), (32, 3), (64, 3), (64, 3))


def build_vgg16_mini(input_shape: tuple[int | None, int | None, int], seed: int = 0) -> keras.Model:
    """VGG16's convolutional base, thinned: 13 convolutions and 5 poolings under VGG16's own layer names.

    Args:
        input_shape: (height, width, channels); height and width at least 32, or None for any.
        seed: of the weights, which are He-normal until others are loaded.

    Returns:
        a model from pixels in 0..1, float32 of shape (batch, height, width, channels), to `block5_pool`,
        float32 of shape (batch, height // 32, width // 32, 64), never negative.

    Example:
        >>> model = build_vgg16_mini((64, 64, 3))
        >>> model.load_weights(DRAWINGS_WEIGHTS)
        >>> model.output_shape
        (None, 2, 2, 64)
    """
    import keras

    pixels = keras.Input(input_shape, name="pixels")
    output, depth = pixels, 0
    for block, (filters, convolutions) in enumerate(_BLOCKS, start=1):
        for number in range(1, convolutions + 1):
            output = keras.layers.Conv2D(
                filters,
                3,
                padding="same",
                activation="relu",
                kernel_initializer=keras.initializers.HeNormal(seed=1000 * seed + depth),
                name=f"block{block}_conv{number}",
            )(output)
            depth += 1
        output = keras.layers.MaxPooling2D(2, strides=2, name=f"block{block}_pool")(output)
    return keras.Model(pixels, output, name="vgg16-mini")
