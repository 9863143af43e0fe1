"""A training epoch of block 5 and the head: Thaw on cached block-4 features against plain Keras.

Goal: 8 times as fast as the same epoch end to end in plain Keras. Plain Keras on the same features held in
memory as float32 arrays, the pieces that a careful user would put together, stands beside it.
With `--accuracy`: validation accuracy over three seeds, see `fine_tune_accuracy`; it takes long.
"""

from pathlib import Path

from benchmarks.dumps import find_dump, find_weights, unpack_classes, write_archive
from benchmarks.fine_tune_accuracy import compare_accuracies
from benchmarks.harness import Place, run_benchmarks, run_rounds, start_worker, step
from benchmarks.results import Entry, Goal, divide
from benchmarks.stages import Clock, open_images
from thaw.config import HeadConfig, PhaseConfig
from thaw.features import cache_features
from thaw.fine_tune import fine_tune
from thaw.head import train_head
from thaw.progress import listen
from thaw.rows import export_features
from thaw.store import Store

_EPOCHS = 4  # of a round; the first two, in which functions are compiled, are not timed


class FineTuning:
    """Thaw's side."""

    def __init__(self, dump: str, store: str, weights: str, pixels: int, per_class: int):
        self.store = Store(store)
        self.images = open_images(
            self.store,
            Path(dump),
            "book1-finetune",
            split={"train": per_class, "validation": 1, "test": 1},
            backbone={"weights": weights, "image_size_pixels": pixels, "preprocessing": "caffe"},
        )

    def prepare(self, features: str) -> None:
        """Cache the features, write them as arrays for plain Keras, and train a head to start from."""
        self.block4 = cache_features(*self.images.given, "block4_pool", self.store).value
        export_features(self.block4, Path(features), self.store)
        bottlenecks = cache_features(*self.images.given, "block5_pool", self.store).value
        settings = HeadConfig(epochs=1, stop="at_budget")
        self.head = train_head(bottlenecks, settings, self.images.config.gate, self.store).value

    def train(self, seed: int) -> dict[str, float]:
        config = self.images.config
        settings = PhaseConfig(epochs=_EPOCHS, patience_epochs=None, seed=seed)
        clock = Clock()
        with listen(clock):
            fine_tune(self.head, self.block4, self.images.backbone, config.backbone, settings, self.store)
        return {"s": clock.seconds_per_epoch(_EPOCHS)}


def measure(place: Place) -> list[Entry]:
    if place.subject == "accuracy":
        return compare_accuracies(place)
    pixels, per_class = place.pick(150, 48), place.pick(128, 32)
    source, features = find_dump("200px"), place.folder / "features"
    given = {"weights": find_weights(), "pixels": pixels}
    images = unpack_classes(source, place.folder / "images", range(per_class))
    archive = write_archive(source, place.folder / "images.zip", range(per_class + 2))
    with (
        start_worker(
            "fine_tune_epoch:FineTuning",
            dump=archive,
            store=place.folder / "store",
            per_class=per_class,
            **given,
        ) as thaw,
        start_worker("plain.block5:Block5", images=images, features=features, **given) as plain,
    ):
        step("features and head, not timed", thaw.call, "prepare", features=features)
        step("warm-up of plain Keras", plain.call, "warm_up")
        sides = {
            "Thaw": lambda number: thaw.call("train", seed=number),
            "plain Keras end to end": lambda _: plain.call("train_end_to_end"),
            "plain Keras on features": lambda _: plain.call("train_pieces"),
        }
        seconds = {name: figures["s"] for name, figures in run_rounds(place.rounds, sides).items()}
    sizes = f"{2 * per_class} images at {pixels} px, batches of 32, RMSprop, dense 256 and dropout 0.5"
    epochs = f"Seconds per epoch of {sizes}"
    return [
        Entry(
            benchmark="fine_tune_epoch",
            name="against plain Keras end to end",
            rounds=divide(seconds["plain Keras end to end"], seconds["Thaw"]),
            unit="×",
            goal=Goal(bound="at least", value=8),
            absolute={"Thaw, s": seconds["Thaw"], "plain Keras, s": seconds["plain Keras end to end"]},
            note=f"{epochs}. Thaw's are the mean of {_EPOCHS - 2} after two more, with validation on 4 images and "
            "the journal; plain Keras's is one `fit` after a first step, without validation, its images in memory.",
        ),
        Entry(
            benchmark="fine_tune_epoch",
            name="against plain Keras on the same features in memory",
            rounds=divide(seconds["plain Keras on features"], seconds["Thaw"]),
            unit="×",
            absolute={"Thaw, s": seconds["Thaw"], "plain Keras, s": seconds["plain Keras on features"]},
            note="The same epochs of Thaw, without the convolutions of blocks 1 to 4 on either side.",
        ),
    ]


if __name__ == "__main__":
    run_benchmarks("fine_tune_epoch")
