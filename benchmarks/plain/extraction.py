"""Bottleneck features by the book: every batch of a folder once through the convolutional base.

Source: F. Chollet, Deep Learning with Python, 2nd ed., ch. 8.3.1.
"""

import time

import keras
import numpy as np


class Extraction:
    def __init__(self, weights: str, pixels: int):
        self.image_size = (pixels, pixels)
        self.conv_base = keras.applications.VGG16(
            weights=weights, include_top=False, input_shape=(*self.image_size, 3)
        )

    def get_features_and_labels(self, folder: str) -> tuple[np.ndarray, np.ndarray]:
        dataset = keras.utils.image_dataset_from_directory(folder, image_size=self.image_size, batch_size=32)
        all_features, all_labels = [], []
        for images, labels in dataset:
            preprocessed_images = keras.applications.vgg16.preprocess_input(images)
            all_features.append(self.conv_base.predict(preprocessed_images, verbose=0))
            all_labels.append(labels)
        return np.concatenate(all_features), np.concatenate(all_labels)

    def extract(self, folder: str) -> dict[str, float]:
        started = time.perf_counter()
        features, _ = self.get_features_and_labels(folder)
        return {"images/s": len(features) / (time.perf_counter() - started)}
