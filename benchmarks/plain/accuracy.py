"""Fine-tuning block 5 in two steps, all in float32: a head on bottleneck features first, then block 5 with it."""

import keras
import numpy as np

from benchmarks.plain.block5 import build_head, compile_gently


class Accuracy:
    def __init__(self, weights: str, train: str, validation: str, pixels: int):
        """`train` and `validation` are folders of classes."""
        self.weights, self.pixels = weights, pixels
        self.train_features, self.train_labels = self.extract(train)
        self.validation = self.extract(validation)

    def extract(self, folder: str) -> tuple[np.ndarray, np.ndarray]:
        conv_base = self.load_base()
        prefix = keras.Model(conv_base.input, conv_base.get_layer("block4_pool").output)
        dataset = keras.utils.image_dataset_from_directory(
            folder, image_size=(self.pixels, self.pixels), batch_size=32
        )
        features, labels = [], []
        for images, batch_labels in dataset:
            features.append(prefix.predict(keras.applications.vgg16.preprocess_input(images), verbose=0))
            labels.append(batch_labels)
        return np.concatenate(features), np.concatenate(labels)

    def train(self, seed: int, head_epochs: int, epochs: int) -> dict[str, float]:
        """Validation accuracy of the last epoch, after a head whose best epoch by validation loss was kept."""
        keras.utils.set_random_seed(seed)
        conv_base = self.load_base()
        block5 = keras.Model(conv_base.get_layer("block4_pool").output, conv_base.output)
        head = build_head()
        head.compile(
            loss="binary_crossentropy",
            optimizer=keras.optimizers.RMSprop(learning_rate=1e-4),
            metrics=["accuracy"],
        )
        features, labels = self.validation
        head.fit(
            block5.predict(self.train_features, verbose=0),
            self.train_labels,
            batch_size=32,
            epochs=head_epochs,
            validation_data=(block5.predict(features, verbose=0), labels),
            callbacks=[keras.callbacks.EarlyStopping(patience=head_epochs, restore_best_weights=True)],
            verbose=0,
        )
        model = keras.Sequential([block5, head])
        compile_gently(model)
        history = model.fit(
            self.train_features,
            self.train_labels,
            batch_size=32,
            epochs=epochs,
            validation_data=self.validation,
            verbose=0,
        ).history
        return {"val accuracy": history["val_accuracy"][-1]}

    def load_base(self) -> keras.Model:
        return keras.applications.VGG16(
            weights=self.weights, include_top=False, input_shape=(self.pixels, self.pixels, 3)
        )
