"""A head's training epoch at batch 20: Thaw on its cache against Keras's `fit` on the same features in memory.

Goal: twice as fast, to the same validation accuracy.
"""

from pathlib import Path

from benchmarks.dumps import find_dump, find_weights
from benchmarks.harness import Place, run_benchmarks, run_rounds, start_worker, step
from benchmarks.results import Entry, Goal, divide
from benchmarks.stages import Clock, open_images
from thaw.features import cache_features
from thaw.head import train_head
from thaw.progress import listen
from thaw.rows import export_features
from thaw.store import Store


class Head:
    """Thaw's side: the first edition's recipe."""

    def __init__(self, dump: str, store: str, weights: str, pixels: int, split: dict[str, int]):
        self.store = Store(store)
        backbone = {"weights": weights, "image_size_pixels": pixels}
        self.images = open_images(self.store, Path(dump), "book1-bottleneck", split=split, backbone=backbone)

    def prepare(self, features: str) -> None:
        """Cache the features, and write them as arrays for plain Keras."""
        self.bottlenecks = cache_features(*self.images.given, "block5_pool", self.store).value
        export_features(self.bottlenecks, Path(features), self.store)

    def train(self, seed: int, epochs: int) -> dict[str, float]:
        config, clock = self.images.config, Clock()
        settings = config.head.model_copy(update={"seed": seed, "epochs": epochs})
        with listen(clock):
            head = train_head(self.bottlenecks, settings, config.gate, self.store).value
        seconds, last = clock.seconds_per_epoch(epochs), head.history.epochs[-1]
        return {"s per epoch": seconds, "val accuracy": last.val_accuracy}


def measure(place: Place) -> list[Entry]:
    pixels, epochs = place.pick(150, 48), place.pick(30, 4)
    split = place.pick(
        {"train": 500, "validation": 200, "test": 1}, {"train": 40, "validation": 10, "test": 1}
    )
    features = place.folder / "features"
    with (
        start_worker(
            "head_epoch:Head",
            dump=find_dump("200px"),
            store=place.folder / "store",
            weights=find_weights(),
            pixels=pixels,
            split=split,
        ) as thaw,
        start_worker("plain.head:Head", features=features) as plain,
    ):
        step("features, not timed", thaw.call, "prepare", features=features)
        # A first training in each process, at a seed of its own, is the warm-up.
        step("warm-up of Thaw", thaw.call, "train", seed=place.rounds, epochs=3)
        step("warm-up of plain Keras", plain.call, "train", seed=place.rounds, epochs=3)
        sides = {
            "Thaw": lambda number: thaw.call("train", seed=number, epochs=epochs),
            "plain Keras": lambda number: plain.call("train", seed=number, epochs=epochs),
        }
        figures = run_rounds(place.rounds, sides)
    thaw_figures, plain_figures = figures["Thaw"], figures["plain Keras"]
    sizes = f"{2 * split['train']} + {2 * split['validation']} images at {pixels} px"
    return [
        Entry(
            benchmark="head_epoch",
            name="against plain Keras on the same features",
            rounds=divide(plain_figures["s per epoch"], thaw_figures["s per epoch"]),
            unit="×",
            goal=Goal(bound="at least", value=2),
            absolute={
                "Thaw, s per epoch": thaw_figures["s per epoch"],
                "plain Keras, s per epoch": plain_figures["s per epoch"],
                "Thaw, val accuracy": thaw_figures["val accuracy"],
                "plain Keras, val accuracy": plain_figures["val accuracy"],
            },
            note=f"{sizes} (block5_pool), dense 256 and dropout 0.5, RMSprop 2e-5, batches of 20, {epochs} epochs. "
            "A round has a seed of its own, and takes the mean of its later epochs, validation included. "
            "Plain Keras holds the same features as float32 arrays; accuracies are those of the last epoch.",
        )
    ]


if __name__ == "__main__":
    run_benchmarks("head_epoch")
