"""The feature cache's index at a million rows: open a space, find what is missing, find and read what is asked for.

Goal: opening, finding the missing rows and planning a gather take 5 s together, and 1 GiB beyond the imports.
"""

import hashlib
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Place, run_benchmarks, run_rounds, start_worker, step
from benchmarks.results import Entry, Goal, divide
from thaw.records import FeatureSpace
from thaw.shards import SpaceFolder
from thaw.store import Store

_SHARD_ROWS = 256
_ROW_VALUES = 8
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
_STAGES = ("open", "missing", "find")


class Index:
    """A space of small rows, filled once and opened in a fresh process each time."""

    def __init__(self, store: str):
        self.store = Store(store)
        self.space = FeatureSpace(
            backbone="none",
            weights_sha256="none",
            cut="none",
            image_size_pixels=1,
            resize_fit="squash",
            resize_filter="bilinear",
            colour="rgb",
            preprocessing="none",
            precision="float32",
            storage="float16",
            augmentation=None,
        )

    def fill(self, rows: int) -> dict[str, float]:
        """Publish rows of 8 values, a shard at a time."""
        folder, started = SpaceFolder(self.store, self.space), time.perf_counter()
        keys = list_keys(rows)
        while shard := list(islice(keys, _SHARD_ROWS)):
            folder.append(shard, np.ones((len(shard), _ROW_VALUES), np.float32))
        seconds = time.perf_counter() - started
        return {"ms per shard": 1000 * seconds / -(-rows // _SHARD_ROWS)}

    def use(self, rows: int, new: int, read: int) -> dict[str, float]:
        return time_use(lambda: SpaceFolder(self.store, self.space), rows, new, read)

    def use_dictionary(self, rows: int, new: int, read: int) -> dict[str, float]:
        folder = self.store.folder("features", self.space.digest)
        return time_use(lambda: Dictionary(folder), rows, new, read)


class Dictionary:
    """The way before: a dict of the keys; every file is hashed, and mapped, when the space is opened."""

    def __init__(self, folder: Path):
        # Each map holds a file open.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.shards, self.places = [], {}
        for facts in sorted(folder.glob("*/shard.json")):
            shard = facts.parent
            for file, expected in json.loads(facts.read_bytes())["sha256"].items():
                with (shard / file).open("rb") as opened:
                    assert hashlib.file_digest(opened, "sha256").hexdigest() == expected
            keys = np.load(shard / "keys.npy")
            packed, size = keys.tobytes(), keys.dtype.itemsize
            for row in range(len(keys)):
                self.places[packed[row * size : (row + 1) * size]] = (len(self.shards), row)
            self.shards.append(np.load(shard / "features.npy", mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.places)

    def missing(self, keys: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        return [key for key in dict.fromkeys(keys) if _pack(key) not in self.places]

    def find(self, keys: Iterable[tuple[str, int]]) -> np.ndarray:
        return np.array([self.places[_pack(key)] for key in keys], dtype=np.int64).reshape(-1, 2)

    def read(self, places: np.ndarray) -> np.ndarray:
        rows = np.empty((len(places), *self.shards[0].shape[1:]), dtype=self.shards[0].dtype)
        for number, (shard, row) in enumerate(places):
            rows[number] = self.shards[shard][row]
        return rows


def _pack(key: tuple[str, int]) -> bytes:
    return bytes.fromhex(key[0]) + key[1].to_bytes(4, "little")


def list_keys(rows: int) -> Iterator[tuple[str, int]]:
    return ((hashlib.sha256(str(number).encode()).hexdigest(), 0) for number in range(rows))


def time_use(open_space: Callable[[], Any], rows: int, new: int, read: int) -> dict[str, float]:
    """Seconds to open a space of `rows`, to find `new` missing ones, to find all others and to read some of those.

    Memory has in it the keys that are asked for, as strings.
    """
    before, figures, started = _peak_bytes(), {}, 0.0
    keys = list(list_keys(rows + new))
    asked = _peak_bytes()

    def note(step: str) -> None:
        figures[f"s of {step}"] = time.perf_counter() - started

    started = time.perf_counter()
    folder = open_space()
    note("open")
    started = time.perf_counter()
    missing = folder.missing(keys)
    note("missing")
    started = time.perf_counter()
    places = folder.find(iter(keys[:rows]))
    note("find")
    peak = _peak_bytes()
    assert (len(folder), missing) == (rows, keys[rows:])
    some = places[random.Random(0).sample(range(rows), read)]
    for name in ("read", "read again"):
        started = time.perf_counter()
        features = folder.read(some)
        note(name)
    assert features.shape == (read, _ROW_VALUES)
    return {**figures, "GiB": (peak - before) / 2**30, "GiB of keys asked for": (asked - before) / 2**30}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES


def measure(place: Place) -> list[Entry]:
    rows, new, read = place.pick((1_000_000, 50_000, 10_000), (2_000, 100, 50))
    given = {"store": place.folder / "store"}
    sizes = {"rows": rows, "new": new, "read": read}
    with start_worker("index:Index", **given) as writer:
        filled = step(f"publish {rows:,} rows", writer.call, "fill", rows=rows)

    def use(method: str) -> dict[str, float]:
        with start_worker("index:Index", **given) as fresh:
            return fresh.call(method, **sizes)

    sides = {"Thaw": lambda _: use("use"), "a dict": lambda _: use("use_dictionary")}
    thaw, plain = run_rounds(place.rounds, sides).values()
    seconds, before = (
        [sum(parts) for parts in zip(*(side[f"s of {name}"] for name in _STAGES), strict=True)]
        for side in (thaw, plain)
    )
    parts = [*_STAGES, "read", "read again"]
    return [
        Entry(
            benchmark="index",
            name=f"open, missing and find at {rows:,} rows",
            rounds=seconds,
            unit="s",
            goal=Goal(bound="at most", value=5),
            absolute={
                **{f"{name}, s": thaw[f"s of {name}"] for name in parts},
                "publishing a shard, ms": [filled["ms per shard"]],
            },
            note=f"Rows of {2 * _ROW_VALUES} bytes in shards of {_SHARD_ROWS}, files in the page cache, a fresh "
            f"process each time. Missing: {new:,} of {rows + new:,} keys; find: {rows:,}; read: {read:,} at random, "
            "whose shards are checked the first time. A dict of the keys, with every file hashed and mapped when "
            "it is opened, is what Thaw had before.",
        ),
        Entry(
            benchmark="index",
            name="memory of that",
            rounds=thaw["GiB"],
            unit="GiB",
            goal=Goal(bound="at most", value=1),
            absolute={
                "the keys asked for within, GiB": thaw["GiB of keys asked for"],
                "a dict, GiB": plain["GiB"],
            },
            note="Peak resident memory beyond that of the imports, the keys asked for as Python strings within.",
        ),
        Entry(
            benchmark="index",
            name="against a dict",
            rounds=divide(before, seconds),
            unit="×",
            absolute={f"a dict, {name}, s": plain[f"s of {name}"] for name in parts},
            note="With rows so small, hashing is nearly free: of real ones every opening read 16 KB for each.",
        ),
    ]


if __name__ == "__main__":
    run_benchmarks("index")
