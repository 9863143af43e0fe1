"""Extraction by two workers, each on a core of its own, against one: what a second worker brings.

Goal: 1.8 times the images per second, start-up left out.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.dumps import find_dump, find_weights, write_archive
from benchmarks.harness import BenchmarkFailed, Place, run_benchmarks, run_rounds, start_worker, step
from benchmarks.results import Entry, Goal, describe_machine, divide
from benchmarks.stages import EVERY_IMAGE, open_images
from thaw.features import FeatureRequest, cache_request, list_parts, read_split
from thaw.portions import Portion, PortionSize, fill_portion, plan_portions
from thaw.progress import listen
from thaw.shards import SpaceFolder
from thaw.store import Store

_CUT = "block5_pool"
_MEGABYTES = 10**6
_ONE, _TWO = "one worker", "two workers"


class Mark(NamedTuple):
    """How many images a worker had done at a moment, and what it had used of its core by then."""

    seconds: float
    core_seconds: float
    images: int


class Workers:
    """A Dask cluster of workers with a core and a thread each, and what they are to do."""

    def __init__(self, weights: str, pixels: int, precision: str, workers: int):
        self.backbone = {"weights": weights, "image_size_pixels": pixels, "precision": precision}
        self.workers = workers

    def extract(self, dump: str, store: str) -> dict[str, float]:
        """Share the images out among the workers, from cold processes to the last row."""
        from distributed import LocalCluster

        request, portions = self._plan(dump, store)
        begun = time.time()
        with (
            LocalCluster(self.workers, threads_per_worker=1, dashboard_address=None) as cluster,
            cluster.get_client() as client,
        ):
            cores = sorted(os.sched_getaffinity(0))
            for number, address in enumerate(sorted(client.scheduler_info()["workers"])):
                client.run(_stay_on_core, cores[number % len(cores)], workers=[address])
            futures = [
                client.submit(extract_portion, request, portion, store, pure=False) for portion in portions
            ]
            marks = client.gather(futures)
        seconds = time.time() - begun
        # From each worker's first batch to its last; all are at work at once.
        spans = [end.seconds - start.seconds for start, end in marks]
        images = [end.images - start.images for start, end in marks]
        used = sum(end.core_seconds - start.core_seconds for start, end in marks)
        together = min(end.seconds for _, end in marks) - max(start.seconds for start, _ in marks)
        return {
            "images/s": sum(count / span for count, span in zip(images, spans, strict=True)),
            "images per core second": sum(images) / used,
            "s from cold": seconds,
            "% together": 100 * max(0.0, together) / max(spans),
        }

    def compare_threads(self, dump: str, store: str) -> dict[str, float]:
        """Rows that differ in any bit between a worker on one core and this process on all of them."""
        request, _ = self._plan(dump, f"{store}-all")
        cache_request(request, Store(f"{store}-all"))
        self.extract(dump, store)
        found = [_read_rows(request, Store(place)) for place in (store, f"{store}-all")]
        return {"rows that differ": sum(not np.array_equal(*rows) for rows in zip(*found, strict=True))}

    def _plan(self, dump: str, store: str) -> tuple[FeatureRequest, tuple[Portion, ...]]:
        place = Store(store)
        images = open_images(place, Path(dump), "book2-bottleneck", split=EVERY_IMAGE, backbone=self.backbone)
        split, source, backbone, settings = images.given
        request = FeatureRequest(
            split=split.digest, dump=source, backbone=backbone, settings=settings, cut=_CUT
        )
        size = PortionSize(images=-(-len(images.manifest.images) // self.workers), megabytes=_MEGABYTES)
        plan = plan_portions(request, size, place).value
        return plan.request, plan.portions


def extract_portion(request: FeatureRequest, portion: Portion, store: str) -> tuple[Mark, Mark]:
    """Fill a portion, and say when its first batch was done and when its last."""
    marks: list[Mark] = []
    with listen(lambda label, done, total, note: marks.append(Mark(time.time(), time.process_time(), done))):
        fill_portion(request, portion, Store(store))
    return marks[0], marks[-1]


def measure(place: Place) -> list[Entry]:
    pixels, per_class = place.pick(150, 48), place.pick(256, 64)
    if len(os.sched_getaffinity(0)) < 2:
        raise BenchmarkFailed("two workers need two cores")
    source, precision = find_dump("original"), "float32"
    if describe_machine()["bfloat16_in_hardware"]:
        precision = "bfloat16"
    archive = write_archive(source, place.folder / "images.zip", range(per_class))
    given = {"weights": find_weights(), "pixels": pixels, "precision": precision}

    def extract(number: int, workers: int) -> dict[str, float]:
        # Whoever shares the work out is no worker: it has a process of its own and waits.
        with start_worker("scaling:Workers", **given, workers=workers) as asker:
            return asker.call("extract", dump=archive, store=place.folder / f"store-{workers}-{number}")

    with start_worker("scaling:Workers", **given, workers=2) as asker:
        compared = step(
            "threads compared", asker.call, "compare_threads", dump=archive, store=place.folder / "threads"
        )
    sides = {_ONE: lambda number: extract(number, 1), _TWO: lambda number: extract(number, 2)}
    figures = run_rounds(place.rounds, sides)
    one, two = figures[_ONE], figures[_TWO]
    sizes = f"{2 * per_class} images at {pixels} px in {precision}"
    return [
        Entry(
            benchmark="scaling",
            name="two workers against one",
            rounds=divide(two["images/s"], one["images/s"]),
            unit="×",
            goal=Goal(bound="at least", value=1.8),
            absolute={
                "one worker, images/s": one["images/s"],
                "two workers, images/s": two["images/s"],
                "one worker, images per core second": one["images per core second"],
                "two workers, images per core second": two["images per core second"],
                "two workers at work at the same time, %": two["% together"],
                "one worker, s from cold processes": one["s from cold"],
                "two workers, s from cold processes": two["s from cold"],
            },
            note=f"{sizes}, on Dask workers of one thread, each on a core of its own; a portion for each. The rate is "
            "that after each worker's first batch; decoding, and writing all but the last shard, are in it. Twice the "
            "ratio of images per core second is what two cores give that nothing else uses.",
        ),
        Entry(
            benchmark="scaling",
            name="rows that differ between one thread and all cores",
            rounds=[compared["rows that differ"]],
            unit="rows",
            goal=Goal(bound="at most", value=0),
            note=f"{sizes}: two workers of one thread each, against one process with threads on every core.",
        ),
    ]


def _stay_on_core(core: int) -> None:
    """Keep this process, and what threads it starts, on one core. TensorFlow starts as many as it sees cores."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def _read_rows(request: FeatureRequest, store: Store) -> list[np.ndarray]:
    (part,) = list_parts(request, read_split(request, store), store)
    folder = SpaceFolder(store, part.space)
    return list(folder.read(folder.find(part.list_rows())))


if __name__ == "__main__":
    run_benchmarks("scaling")
