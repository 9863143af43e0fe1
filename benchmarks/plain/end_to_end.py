"""The second edition's fine-tuning, end to end: every epoch augments the images and runs the whole network.

Source: F. Chollet, Deep Learning with Python, 2nd ed., ch. 8.3.1 and 8.3.2.
"""

import statistics
import time
from typing import Literal

import keras


class StepTimes(keras.callbacks.Callback):
    """The moment at which each step ended."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())

    def on_test_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())

    def median(self) -> float:
        """Seconds of a step after the first, which also fills the pipeline."""
        return statistics.median(end - start for start, end in zip(self.ends, self.ends[1:], strict=False))


class EndToEnd:
    def __init__(
        self, weights: str, train: str, validation: str, pixels: int, stage: Literal["head", "block5"]
    ):
        """`train` and `validation` are folders of classes; `stage` is what trains."""
        size = (pixels, pixels)
        self.train_dataset = keras.utils.image_dataset_from_directory(train, image_size=size, batch_size=32)
        self.validation_dataset = keras.utils.image_dataset_from_directory(
            validation, image_size=size, batch_size=32
        )
        conv_base = keras.applications.VGG16(weights=weights, include_top=False)
        conv_base.trainable = stage == "block5"
        for layer in conv_base.layers[:-4]:
            layer.trainable = False
        data_augmentation = keras.Sequential(
            [
                keras.layers.RandomFlip("horizontal"),
                keras.layers.RandomRotation(0.1),
                keras.layers.RandomZoom(0.2),
            ]
        )
        inputs = keras.Input(shape=(*size, 3))
        x = data_augmentation(inputs)
        x = keras.applications.vgg16.preprocess_input(x)
        x = conv_base(x)
        x = keras.layers.Flatten()(x)
        x = keras.layers.Dense(256)(x)
        x = keras.layers.Dropout(0.5)(x)
        outputs = keras.layers.Dense(1, activation="sigmoid")(x)
        self.model = keras.Model(inputs, outputs)
        self.model.compile(
            loss="binary_crossentropy",
            optimizer="rmsprop" if stage == "head" else keras.optimizers.RMSprop(learning_rate=1e-5),
            metrics=["accuracy"],
        )

    def warm_up(self) -> None:
        self.model.fit(self.train_dataset.take(1), validation_data=self.validation_dataset.take(1), verbose=0)

    def train_epoch(self) -> dict[str, float]:
        started = time.perf_counter()
        self.model.fit(self.train_dataset, epochs=1, validation_data=self.validation_dataset, verbose=0)
        return {"s": time.perf_counter() - started}

    def time_training(self, steps: int) -> dict[str, float]:
        """Seconds of a step: the median of so many after one more."""
        times = StepTimes()
        self.model.fit(self.train_dataset.take(steps + 1), epochs=1, callbacks=[times], verbose=0)
        return {"s per step": times.median()}

    def time_validation(self, steps: int) -> dict[str, float]:
        """The same of steps that validate."""
        times = StepTimes()
        self.model.evaluate(self.validation_dataset.take(steps + 1), callbacks=[times], verbose=0)
        return {"s per step": times.median()}
