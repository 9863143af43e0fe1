"""A dense head on bottleneck features by the book, the features in memory as arrays.

Source: F. Chollet, Deep Learning with Python, 1st ed., ch. 5.3.1.
"""

import time
from pathlib import Path

import keras
import numpy as np


class EpochTimes(keras.callbacks.Callback):
    """The moment at which each epoch ended, its validation included."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(time.perf_counter())


class Head:
    def __init__(self, features: str):
        self.train_features, self.train_labels = self.load(features, "train")
        self.validation = self.load(features, "validation")

    def load(self, folder: str, side: str) -> tuple[np.ndarray, np.ndarray]:
        features = np.load(Path(folder) / f"bottleneck_features_{side}.npy").astype("float32")
        return features.reshape(len(features), -1), np.load(Path(folder) / f"labels_{side}.npy")

    def train(self, seed: int, epochs: int) -> dict[str, float]:
        """Seconds per epoch after the first, and the last epoch's validation accuracy."""
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.Input(self.train_features.shape[1:]),
                keras.layers.Dense(256, activation="relu"),
                keras.layers.Dropout(0.5),
                keras.layers.Dense(1, activation="sigmoid"),
            ]
        )
        model.compile(
            loss="binary_crossentropy",
            optimizer=keras.optimizers.RMSprop(learning_rate=2e-5),
            metrics=["accuracy"],
        )
        times = EpochTimes()
        history = model.fit(
            self.train_features,
            self.train_labels,
            epochs=epochs,
            batch_size=20,
            validation_data=self.validation,
            callbacks=[times],
            verbose=0,
        ).history
        seconds = (times.ends[-1] - times.ends[0]) / (epochs - 1)
        return {"s per epoch": seconds, "val accuracy": history["val_accuracy"][-1]}
