"""Images per second through VGG16: Thaw's cached extraction against the book's loop in plain Keras.

Goal: twice the images per second of plain float32 Keras where the processor multiplies bfloat16 in
hardware, as many where it does not; and 85 % of what the cores reach in a large matrix product.
"""

import math
import time
from pathlib import Path

from benchmarks.dumps import find_dump, find_weights, unpack_classes, write_archive
from benchmarks.harness import Figures, Place, run_benchmarks, run_rounds, start_worker, step
from benchmarks.results import Entry, Goal, describe_machine, divide
from benchmarks.stages import EVERY_IMAGE, Clock, Images, open_images
from thaw.backbone import build_backbone
from thaw.device import prepare_keras
from thaw.features import cache_features
from thaw.progress import listen
from thaw.store import Store

_WARM_UP_PER_CLASS = 32
_KERAS = "plain Keras in float32"
_PRODUCT_SIDES, _PRODUCT_REPEATS = (2048, 3072), 4


class Extraction:
    """Thaw's side."""

    def __init__(self, weights: str, pixels: int):
        self.backbone = {"weights": weights, "image_size_pixels": pixels}

    def extract(self, dump: str, store: str, precision: str) -> dict[str, float]:
        images, clock = self._open(dump, store, precision), Clock()
        started = time.perf_counter()
        with listen(clock):
            cache_features(*images.given, "block5_pool", Store(store))
        count, seconds = len(images.manifest.images), time.perf_counter() - started
        return {
            "images/s": count / seconds,
            "images/s without start": clock.units_per_second(),
            "images/s scanned": count / images.scan_seconds,
        }

    def multiply(self, precision: str) -> dict[str, float]:
        """The best of several matrix products, an addition and a multiplication counted as two."""
        keras = prepare_keras()
        rates = []
        for side in _PRODUCT_SIDES:
            matrix = keras.ops.ones((side, side), precision)
            for _ in range(_PRODUCT_REPEATS):
                started = time.perf_counter()
                keras.ops.convert_to_numpy(keras.ops.matmul(matrix, matrix))
                rates.append(2 * side**3 / (time.perf_counter() - started) / 1e9)
        return {"GFLOP/s": max(rates)}

    def count_operations(self, dump: str, store: str) -> dict[str, float]:
        """The convolutions' additions and multiplications for one image: 2·H·W·9·Cin·Cout of each."""
        images = self._open(dump, store)
        network = build_backbone(images.backbone, images.config.backbone.image_size_pixels)
        convolutions = [layer for layer in network.layers if "conv" in layer.name]
        multiplied = sum(
            math.prod(layer.output.shape[1:3]) * math.prod(layer.kernel.shape) for layer in convolutions
        )
        return {"GFLOP": 2 * multiplied / 1e9}

    def _open(self, dump: str, store: str, precision: str = "auto") -> Images:
        backbone = {**self.backbone, "precision": precision}
        return open_images(Store(store), Path(dump), "book2-bottleneck", split=EVERY_IMAGE, backbone=backbone)


def measure(place: Place) -> list[Entry]:
    pixels, per_class = place.pick(150, 48), place.pick(128, 32)
    source = find_dump("original")
    precisions = ("bfloat16", "float32") if describe_machine()["bfloat16_in_hardware"] else ("float32",)
    given = {"weights": find_weights(), "pixels": pixels}

    # Every round has other images. The last ones, beyond the rounds, warm both sides up.
    folders, archives = [], []
    for number in range(place.rounds + 1):
        images = per_class if number < place.rounds else _WARM_UP_PER_CLASS
        chosen = range(number * per_class, number * per_class + images)
        folders.append(unpack_classes(source, place.folder / f"images-{number}", chosen))
        archives.append(write_archive(source, place.folder / f"images-{number}.zip", chosen))

    with (
        start_worker("plain.extraction:Extraction", **given) as plain,
        start_worker("extraction:Extraction", **given) as thaw,
    ):

        def extract_plain(number: int) -> dict[str, float]:
            return plain.call("extract", folder=folders[number])

        def extract(number: int, precision: str) -> dict[str, float]:
            store = place.folder / f"store-{number}-{precision}"
            return thaw.call("extract", dump=archives[number], store=store, precision=precision)

        step("warm-up of plain Keras", extract_plain, place.rounds)
        counted = {"dump": archives[-1], "store": place.folder / "store"}
        operations = step("count operations", thaw.call, "count_operations", **counted)["GFLOP"]
        sides = {_KERAS: extract_plain}
        for precision in precisions:
            step(f"warm-up of Thaw in {precision}", extract, place.rounds, precision)
            sides[f"Thaw in {precision}"] = lambda number, own=precision: extract(number, own)
            sides[f"matrix product in {precision}"] = lambda _, own=precision: thaw.call(
                "multiply", precision=own
            )
        figures = run_rounds(place.rounds, sides)
    return [
        entry
        for precision in precisions
        for entry in _report(precision, figures, operations, f"{2 * per_class} images at {pixels} px")
    ]


def _report(precision: str, figures: Figures, operations: float, sizes: str) -> list[Entry]:
    thaw, plain = figures[f"Thaw in {precision}"], figures[_KERAS]["images/s"]
    product = figures[f"matrix product in {precision}"]["GFLOP/s"]
    steady = thaw["images/s without start"]
    return [
        Entry(
            benchmark="extraction",
            name=f"{precision} against plain float32 Keras",
            rounds=divide(thaw["images/s"], plain),
            unit="×",
            goal=Goal(bound="at least", value=2.0 if precision == "bfloat16" else 1.0),
            absolute={
                "Thaw, images/s": thaw["images/s"],
                "its batches alone": steady,
                "plain Keras, images/s": plain,
                "scan, images/s": thaw["images/s scanned"],
            },
            note=f"{sizes} per round, fresh ones each, warmed up on others. Both sides read and decode the files. "
            "Thaw's figure has in it that it builds the network and writes the cache, not the scan (hash, verify, "
            "split), which stands apart; Keras's model is built before.",
        ),
        Entry(
            benchmark="extraction",
            name=f"{precision} share of the cores' multiply rate",
            rounds=[100 * rate * operations / peak for rate, peak in zip(steady, product, strict=True)],
            unit="%",
            goal=Goal(bound="at least", value=85),
            absolute={"large matrix product, GFLOP/s": product, "VGG16, GFLOP/image": [operations]},
            note="The convolutions' arithmetic at the rate of the batches alone, decoding in it, against the best "
            "of several matrix products in the same process between the rounds.",
        ),
    ]


if __name__ == "__main__":
    run_benchmarks("extraction")
