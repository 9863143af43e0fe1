"""Fine-tuning block 5 by the book: the whole network on images, or its end on features made before.

Source: F. Chollet, Deep Learning with Python, 1st ed., ch. 5.3.2.
"""

import time
from pathlib import Path

import keras
import numpy as np


def build_head() -> keras.Sequential:
    return keras.Sequential(
        [
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )


def compile_gently(model: keras.Model) -> None:
    model.compile(
        loss="binary_crossentropy",
        optimizer=keras.optimizers.RMSprop(learning_rate=1e-5),
        metrics=["accuracy"],
    )


def build_whole(weights: str, pixels: int) -> keras.Model:
    """VGG16 and a head, blocks 1 to 4 frozen."""
    conv_base = keras.applications.VGG16(weights=weights, include_top=False, input_shape=(pixels, pixels, 3))
    for layer in conv_base.layers:
        layer.trainable = layer.name.startswith("block5")
    inputs = keras.Input((pixels, pixels, 3))
    preprocessed = keras.applications.vgg16.preprocess_input(inputs)
    model = keras.Model(inputs, build_head()(conv_base(preprocessed)))
    compile_gently(model)
    return model


def build_end(weights: str, pixels: int) -> keras.Model:
    """Block 5 and a head, on features at block4_pool."""
    conv_base = keras.applications.VGG16(weights=weights, include_top=False, input_shape=(pixels, pixels, 3))
    block5 = keras.Model(conv_base.get_layer("block4_pool").output, conv_base.output)
    model = keras.Sequential([block5, build_head()])
    compile_gently(model)
    return model


class Block5:
    def __init__(self, weights: str, images: str, features: str, pixels: int):
        """`images` is a folder of classes, `features` one with arrays of the training images."""
        dataset = keras.utils.image_dataset_from_directory(
            images, image_size=(pixels, pixels), batch_size=None
        )
        examples = list(dataset.as_numpy_iterator())
        self.images = np.stack([image for image, _ in examples])
        self.image_labels = np.array([label for _, label in examples])
        folder = Path(features)
        self.features = np.load(folder / "bottleneck_features_train.npy").astype("float32")
        self.feature_labels = np.load(folder / "labels_train.npy")
        self.whole, self.end = build_whole(weights, pixels), build_end(weights, pixels)

    def warm_up(self) -> None:
        self.whole.fit(self.images[:32], self.image_labels[:32], batch_size=32, verbose=0)
        self.end.fit(self.features[:32], self.feature_labels[:32], batch_size=32, verbose=0)

    def train_end_to_end(self) -> dict[str, float]:
        started = time.perf_counter()
        self.whole.fit(self.images, self.image_labels, batch_size=32, epochs=1, verbose=0)
        return {"s": time.perf_counter() - started}

    def train_pieces(self) -> dict[str, float]:
        started = time.perf_counter()
        self.end.fit(self.features, self.feature_labels, batch_size=32, epochs=1, verbose=0)
        return {"s": time.perf_counter() - started}
