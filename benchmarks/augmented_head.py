"""A head trained on augmented images: Thaw on K cached views of each against plain Keras end to end.

Goal: 10 times as fast over 50 epochs with 8 views, the extraction of the views included.
"""

import time
from pathlib import Path

from benchmarks.dumps import find_dump, find_weights, unpack_classes, write_archive
from benchmarks.harness import Place, run_benchmarks, run_rounds, start_worker, step
from benchmarks.results import Entry, Goal, divide
from benchmarks.stages import open_images
from thaw.features import cache_features
from thaw.head import train_head
from thaw.store import Store

EPOCHS = 50


class AugmentedHead:
    """Thaw's side."""

    def __init__(self, dump: str, weights: str, pixels: int, split: dict[str, int]):
        self.dump, self.split = Path(dump), split
        self.backbone = {"weights": weights, "image_size_pixels": pixels}

    def train(self, store: str, views: int, epochs: int) -> dict[str, float]:
        """Seconds from the dump to the head, nothing cached before."""
        place, started = Store(store), time.perf_counter()
        # Augmentation by the recipe: flip, rotation by a tenth of a turn, zoom by a fifth.
        images = open_images(
            place,
            self.dump,
            "book2-augmented-head",
            split=self.split,
            backbone=self.backbone,
            head={"views": views, "epochs": epochs, "stop": "at_budget"},
        )
        config = images.config
        features = cache_features(
            *images.given, images.backbone.end, place, config.head.views, config.augmentation
        ).value
        extracted = time.perf_counter()
        train_head(features, config.head, config.gate, place)
        ended = time.perf_counter()
        return {"s": ended - started, "s training": ended - extracted}


def measure(place: Place) -> list[Entry]:
    pixels, views = place.pick(180, 48), place.pick(8, 2)
    split = {"train": 32, "validation": 16, "test": 1}
    source, train, used = find_dump("200px"), split["train"], sum(split.values())
    given = {"weights": find_weights(), "pixels": pixels}
    folders = {
        "train": unpack_classes(source, place.folder / "train", range(train)),
        "validation": unpack_classes(source, place.folder / "validation", range(train, used - 1)),
    }
    archive = write_archive(source, place.folder / "images.zip", range(used))
    with (
        start_worker("augmented_head:AugmentedHead", dump=archive, split=split, **given) as thaw,
        start_worker("plain.end_to_end:EndToEnd", stage="head", **folders, **given) as plain,
    ):

        def train_thaw(number: int, epochs: int = EPOCHS, views: int = views) -> dict[str, float]:
            return thaw.call("train", store=place.folder / f"store-{number}", views=views, epochs=epochs)

        step("warm-up of Thaw", train_thaw, place.rounds, epochs=2, views=1)
        step("warm-up of plain Keras", plain.call, "warm_up")
        sides = {
            f"Thaw, {EPOCHS} epochs": train_thaw,
            "plain Keras, one epoch": lambda _: plain.call("train_epoch"),
        }
        thaw_figures, plain_figures = run_rounds(place.rounds, sides).values()
    projected = [EPOCHS * seconds for seconds in plain_figures["s"]]
    return [
        Entry(
            benchmark="augmented_head",
            name=f"{EPOCHS} epochs on {views} cached views against plain Keras end to end",
            rounds=divide(projected, thaw_figures["s"]),
            unit="×",
            goal=Goal(bound="at least", value=10),
            absolute={
                "Thaw, s": thaw_figures["s"],
                "training alone": thaw_figures["s training"],
                f"plain Keras, s per epoch (× {EPOCHS})": plain_figures["s"],
            },
            note=f"{2 * train} + {2 * split['validation']} images at {pixels} px. Thaw's time runs from the dump to "
            "the head in a fresh store. Plain Keras augments and runs the whole network in every epoch: one epoch, "
            f"after a first step, is measured in each round and multiplied by {EPOCHS}.",
        )
    ]


if __name__ == "__main__":
    run_benchmarks("augmented_head")
