"""Validation accuracy after fine-tuning over three seeds: Thaw against the same pieces in plain float32 Keras.

Goal: none but to show that speed costs no accuracy. Run by `python -m benchmarks.fine_tune_epoch --accuracy`.
"""

from pathlib import Path

from benchmarks.dumps import find_dump, find_weights, unpack_classes, write_archive
from benchmarks.harness import Place, run_rounds, start_worker
from benchmarks.results import Entry
from benchmarks.stages import open_images
from thaw.config import HeadConfig, OptimizerConfig, PhaseConfig
from thaw.features import cache_features
from thaw.fine_tune import fine_tune
from thaw.head import train_head
from thaw.store import Store


class Accuracy:
    """Thaw's side."""

    def __init__(self, dump: str, store: str, weights: str, pixels: int, sides: dict[str, int]):
        self.store = Store(store)
        backbone = {"weights": weights, "image_size_pixels": pixels}
        self.images = open_images(self.store, Path(dump), "book2-finetune", split=sides, backbone=backbone)
        cuts = ("block4_pool", "block5_pool")
        self.block4, self.bottlenecks = (
            cache_features(*self.images.given, cut, self.store).value for cut in cuts
        )

    def train(self, seed: int, head_epochs: int, epochs: int) -> dict[str, float]:
        config = self.images.config
        optimizer = OptimizerConfig(name="rmsprop", learning_rate=1e-4)
        settings = HeadConfig(epochs=head_epochs, stop="at_budget", optimizer=optimizer, seed=seed)
        head = train_head(self.bottlenecks, settings, config.gate, self.store).value
        settings = PhaseConfig(epochs=epochs, patience_epochs=None, seed=seed)
        given = (self.block4, self.images.backbone, config.backbone, settings, self.store)
        tuned = fine_tune(head, *given).value
        return {"val accuracy": tuned.history.epochs[-1].val_accuracy}


def compare_accuracies(place: Place) -> list[Entry]:
    pixels = place.pick(150, 48)
    train, validation = place.pick((500, 500), (16, 8))
    schedule = place.pick({"head_epochs": 20, "epochs": 5}, {"head_epochs": 2, "epochs": 1})
    source, everything = find_dump("200px"), train + validation
    given = {"weights": find_weights(), "pixels": pixels}
    folders = {
        "train": unpack_classes(source, place.folder / "train", range(train)),
        "validation": unpack_classes(source, place.folder / "validation", range(train, everything)),
    }
    archive = write_archive(source, place.folder / "images.zip", range(everything + 1))
    sides = {"train": train, "validation": validation, "test": 1}
    store = place.folder / "store"
    with (
        start_worker("plain.accuracy:Accuracy", **folders, **given) as plain,
        start_worker("fine_tune_accuracy:Accuracy", dump=archive, store=store, sides=sides, **given) as thaw,
    ):
        figures = run_rounds(
            place.rounds,
            {
                "plain Keras": lambda seed: plain.call("train", seed=seed, **schedule),
                "Thaw": lambda seed: thaw.call("train", seed=seed, **schedule),
            },
        )
    thaw_accuracy, plain_accuracy = (figures[name]["val accuracy"] for name in ("Thaw", "plain Keras"))
    return [
        Entry(
            benchmark="fine_tune_accuracy",
            name=f"validation accuracy over {place.rounds} seeds, more than plain Keras",
            rounds=[100 * (own - other) for own, other in zip(thaw_accuracy, plain_accuracy, strict=True)],
            unit="points",
            absolute={"Thaw": thaw_accuracy, "plain Keras": plain_accuracy},
            note=f"{2 * train} + {2 * validation} images at {pixels} px, after {schedule['head_epochs']} epochs of "
            f"the head and {schedule['epochs']} of block 5. Plain Keras trains and extracts in float32; Thaw's "
            "features are of the precision it chooses, stored as float16. One seed draws other weights on each side.",
        )
    ]
