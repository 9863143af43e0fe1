"""Peak memory of an extraction: of 500 images, and of 25,000.

Goal: 25,000 images take no more than 15 % more than 500 do, and no extraction more than 3 GiB.
With `--pixels 150` at the size of the recipes, which takes a quarter of an hour with bfloat16.
"""

import resource
import sys
import time
from pathlib import Path

from benchmarks.dumps import find_dump, find_weights, write_repeats
from benchmarks.harness import Place, run_benchmarks, start_worker, step
from benchmarks.results import Entry, Goal
from benchmarks.stages import EVERY_IMAGE, open_images
from thaw.features import cache_features
from thaw.store import Store

_LARGE_PIXELS = 150
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


class Extraction:
    """One extraction in a fresh process, from the scan of the dump to the published features."""

    def __init__(self, dump: str, store: str, weights: str, pixels: int):
        self.dump, self.store = Path(dump), Store(store)
        self.backbone = {"weights": weights, "image_size_pixels": pixels}

    def extract(self) -> dict[str, float]:
        started = time.perf_counter()
        images = open_images(
            self.store, self.dump, "book2-bottleneck", split=EVERY_IMAGE, backbone=self.backbone
        )
        cache_features(*images.given, "block5_pool", self.store)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
        rate = len(images.manifest.images) / (time.perf_counter() - started)
        return {"GiB": peak / 2**30, "images/s": rate}


def measure(place: Place) -> list[Entry]:
    few, many = place.pick((500, 25_000), (40, 120))
    small, large = place.pixels, place.pick(_LARGE_PIXELS, 64)
    source, weights = find_dump("original"), find_weights()
    archives = {
        images: step(f"write {images} images", write_repeats, source, place.folder / f"{images}.zip", images)
        for images in (few, many)
    }

    def extract(images: int, pixels: int) -> dict[str, float]:
        given = {"store": place.folder / f"store-{images}-{pixels}", "weights": weights, "pixels": pixels}
        with start_worker("memory:Extraction", dump=archives[images], **given) as fresh:
            return step(f"extract {images} images at {pixels} px", fresh.call, "extract")

    cases = dict.fromkeys(((few, small), (many, small), (few, large)))
    peaks = {case: extract(*case) for case in cases}
    low, high = peaks[few, small]["GiB"], peaks[many, small]["GiB"]
    figures = {
        f"{images} images at {pixels} px, GiB": [peak["GiB"]] for (images, pixels), peak in peaks.items()
    }
    return [
        Entry(
            benchmark="memory",
            name=f"peak of {many} images more than that of {few}",
            rounds=[100 * (high / low - 1)],
            unit="%",
            goal=Goal(bound="at most", value=15),
            absolute=figures,
            note="Peak resident memory (ru_maxrss) of a fresh process that scans, splits and extracts, each once. "
            "The many are real images of Kaggle's own resolution, repeated with other bytes.",
        ),
        Entry(
            benchmark="memory",
            name="highest peak",
            rounds=[max(peak["GiB"] for peak in peaks.values())],
            unit="GiB",
            goal=Goal(bound="at most", value=3),
        ),
    ]


if __name__ == "__main__":
    run_benchmarks("memory")
