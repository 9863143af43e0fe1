"""Pretrains VGG16-mini on drawn objects and writes the weights that Thaw ships.

    python -m thaw.weights.make_vgg16_mini [file]

About ten minutes on two cores. Held-out drawings of the 18 objects are told apart with FIGURE accuracy.
"""

import multiprocessing
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from thaw.canvas import draw_scene
from thaw.mini import DRAWINGS_WEIGHTS, build_vgg16_mini
from thaw.progress import track
from thaw.weights.objects import OBJECTS

SEED = 0
IMAGE_SIZE_PIXELS = 64
TRAIN_PER_OBJECT, HELD_OUT_PER_OBJECT = 700, 60
EPOCHS, BATCH_SIZE, LEARNING_RATE = 16, 64, 2e-3


def draw_object(name: str, number: int, size_pixels: int = IMAGE_SIZE_PIXELS) -> np.ndarray:
    """Drawing `number` of an object: uint8 pixels of shape (size, size, 3)."""
    dice = np.random.default_rng([SEED, list(OBJECTS).index(name), number])
    picture = draw_scene(OBJECTS[name], dice)
    return np.asarray(picture.resize((size_pixels, size_pixels), Image.Resampling.BILINEAR))


def draw_objects(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawings `first` to `first + count - 1` of every object.

    Returns:
        uint8 pixels of shape (images, size, size, 3), and int64 class indices of shape (images,).
    """
    jobs = [(name, number) for name in OBJECTS for number in range(first, first + count)]
    with multiprocessing.Pool() as pool, track("draw objects", len(jobs), "images") as advance:
        pixels = []
        for drawing in pool.imap(_draw_job, jobs, chunksize=50):
            pixels.append(drawing)
            advance()
    return np.stack(pixels), np.repeat(np.arange(len(OBJECTS)), count)


def pretrain_backbone(train: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray]):
    """Train VGG16-mini under a softmax layer that is thrown away.

    Both arguments are what `draw_objects` returns. Returns the backbone and its held-out accuracy.
    """
    import keras

    keras.utils.set_random_seed(SEED)
    backbone = build_vgg16_mini((None, None, 3), seed=SEED)
    normalized = _add_normalization(backbone)
    pixels = keras.Input((None, None, 3), dtype="uint8")
    pooled = keras.layers.GlobalAveragePooling2D()(normalized(keras.layers.Rescaling(1 / 255)(pixels)))
    classifier = keras.Model(pixels, keras.layers.Dense(len(OBJECTS), activation="softmax")(pooled))
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, EPOCHS * -(-len(train[0]) // BATCH_SIZE))
    classifier.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = classifier.fit(
        *train, batch_size=BATCH_SIZE, epochs=EPOCHS, validation_data=held_out, verbose=2
    ).history
    _fold_normalization(normalized, backbone)
    return backbone, history["val_accuracy"][-1]


def _add_normalization(backbone):
    """The backbone with a batch normalization after each convolution: so thin and deep, it learns nothing without."""
    import keras

    output = pixels = keras.Input((None, None, 3))
    for layer in backbone.layers[1:]:
        if isinstance(layer, keras.layers.Conv2D):
            convolution = keras.layers.Conv2D.from_config(layer.get_config() | {"activation": None, "use_bias": False})
            normalization = keras.layers.BatchNormalization(momentum=0.9, name=f"{layer.name}_normalization")
            output = keras.layers.ReLU()(normalization(convolution(output)))
        else:
            output = keras.layers.MaxPooling2D.from_config(layer.get_config())(output)
    return keras.Model(pixels, output)


def _fold_normalization(normalized, backbone) -> None:
    """Give the backbone's convolutions the kernels and biases that do what the normalizations did in inference."""
    for layer in backbone.layers:
        if "conv" in layer.name:
            (kernel,) = normalized.get_layer(layer.name).get_weights()
            normalization = normalized.get_layer(f"{layer.name}_normalization")
            scale, shift, mean, variance = normalization.get_weights()
            scale = scale / np.sqrt(variance + normalization.epsilon)
            layer.set_weights([kernel * scale, shift - mean * scale])


def _draw_job(job: tuple[str, int]) -> np.ndarray:
    return draw_object(*job)


def main(path: Path = DRAWINGS_WEIGHTS) -> None:
    train = draw_objects(HELD_OUT_PER_OBJECT, TRAIN_PER_OBJECT)
    held_out = draw_objects(0, HELD_OUT_PER_OBJECT)
    backbone, accuracy = pretrain_backbone(train, held_out)
    backbone.save_weights(path)
    print(f"{len(OBJECTS)} objects, held-out accuracy {accuracy:.3f}, {path.stat().st_size:,} bytes in {path}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
