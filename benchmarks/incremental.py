"""What images cost that the cache knows: extraction again with nothing new, and with a tenth more images.

Goal: with nothing new no image passes the network, and the stage ends within 2 s; a dump grown by 10 %
costs 12 % of its first extraction or less.
"""

import time
from pathlib import Path

from benchmarks.dumps import find_dump, find_weights, write_archive, write_grown
from benchmarks.harness import Place, run_benchmarks, run_rounds, start_worker, step, time_command
from benchmarks.results import Entry, Goal
from benchmarks.stages import open_images
from thaw.device import prepare_keras
from thaw.features import cache_features
from thaw.store import Store

# An image's side by its bytes, so that growth moves none; the fractions use every image.
HASH_SPLIT = {"strategy": "hash", "train": 0.7, "validation": 0.15, "test": 0.15}


class Extraction:
    """The stages of `thaw features`, each timed."""

    def __init__(self, dump: str, store: str, weights: str, pixels: int):
        self.store, self.dump = Store(store), Path(dump)
        self.backbone = {"weights": weights, "image_size_pixels": pixels}

    def extract(self) -> dict[str, float]:
        """Seconds of the scan and of the extraction, TensorFlow imported before."""
        started = time.perf_counter()
        prepare_keras()
        imported = time.perf_counter()
        return {"s of import": imported - started, **self.find()}

    def find(self) -> dict[str, float]:
        """The same where nothing is expected to be computed, so that TensorFlow is not even imported."""
        images = open_images(
            self.store, self.dump, "book2-bottleneck", split=HASH_SPLIT, backbone=self.backbone
        )
        started = time.perf_counter()
        made = cache_features(*images.given, "block5_pool", self.store)
        seconds = time.perf_counter() - started
        return {"s of scan": images.scan_seconds, "s of extraction": seconds, "cached": float(made.reused)}


def measure(place: Place) -> list[Entry]:
    pixels = place.pick(150, 48)
    dump, images = find_dump("200px"), 4000
    if place.sizes == "quick":
        dump, images = write_archive(dump, place.folder / "dump.zip", range(30)), 60
    added = images // 10
    growth = {find_dump("200px-growth"): range(2000, 2000 + added // 2)}
    grown = write_grown(dump, growth, place.folder / "grown.zip")
    given = {"store": place.folder / "store", "weights": find_weights(), "pixels": pixels}

    def run(method: str, archive: Path) -> dict[str, float]:
        with start_worker("incremental:Extraction", dump=archive, **given) as fresh:
            return fresh.call(method)

    def run_command(_: int) -> dict[str, float]:
        split = [f"--set=split.{name}={value}" for name, value in HASH_SPLIT.items()]
        seconds, printed = time_command(
            *("features", "--dump", dump, "--weights", given["weights"], "--store", given["store"]),
            *(*split, f"--set=backbone.image_size_pixels={pixels}", "--recipe=book2-bottleneck"),
        )
        return {"s": seconds, "cached": float(printed["cached"])}

    first = step(f"first extraction of {images} images, the longest part", run, "extract", dump)
    again = run_rounds(
        place.rounds, {"nothing new": lambda _: run("find", dump), "the command, nothing new": run_command}
    )
    more = step(f"extraction with {added} images more", run, "extract", grown)

    stage, command = again["nothing new"], again["the command, nothing new"]
    share = 100 * more["s of extraction"] / first["s of extraction"]
    with_import = [run["s of extraction"] + run["s of import"] for run in (more, first)]
    sizes = f"{images} images at {pixels} px"
    return [
        Entry(
            benchmark="incremental",
            name="extraction with nothing new",
            rounds=stage["s of extraction"],
            unit="s",
            goal=Goal(bound="at most", value=2),
            absolute={
                "whole command, s": command["s"],
                "scan within, s": stage["s of scan"],
                "first extraction, s": [first["s of extraction"]],
            },
            note=f"{sizes} (block5_pool), in a fresh process each time; the command is `thaw features`.",
        ),
        Entry(
            benchmark="incremental",
            name="runs with nothing new that passed an image through the network",
            rounds=[2 * place.rounds - sum(stage["cached"]) - sum(command["cached"])],
            unit="",
            goal=Goal(bound="at most", value=0),
            note=f"Of {2 * place.rounds}, as the stage and the command report it.",
        ),
        Entry(
            benchmark="incremental",
            name=f"extraction after {added} images came to {images}",
            rounds=[share],
            unit="%",
            goal=Goal(bound="at most", value=12),
            absolute={
                "s": [more["s of extraction"]],
                "first extraction, s": [first["s of extraction"]],
                "with TensorFlow's import, %": [100 * with_import[0] / with_import[1]],
            },
            note="Of the first extraction's time, each once, in a fresh process that had imported TensorFlow before.",
        ),
    ]


if __name__ == "__main__":
    run_benchmarks("incremental")
