"""Thaw's side of the comparisons: what several of them need before and while they measure."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thaw.backbone import load_backbone
from thaw.config import BackboneConfig, DumpConfig, TrainConfig, build_config
from thaw.dump import scan_dump
from thaw.duplicates import Duplicates, find_duplicates
from thaw.records import Backbone, Manifest, Split
from thaw.split import publish_split
from thaw.store import Store

EVERY_IMAGE = {"strategy": "index", "train": 0.8, "validation": 0.1, "test": 0.1}


@dataclass(frozen=True, kw_only=True)
class Images:
    """A dump scanned and split, how long the scan took, and the backbone that is to look at it."""

    config: TrainConfig
    manifest: Manifest
    duplicates: Duplicates
    split: Split
    backbone: Backbone
    scan_seconds: float

    @property
    def given(self) -> tuple[Split, DumpConfig, Backbone, BackboneConfig]:
        """The leading arguments of `cache_features`."""
        return self.split, self.config.dump, self.backbone, self.config.backbone


def open_images(store: Store, dump: Path, recipe: str, **sections: dict[str, Any]) -> Images:
    """Load the backbone, scan the dump and split it, near-identical images together; `sections` change the recipe."""
    config = build_config({"dump": {"path": dump}, "recipe": recipe, **sections})
    backbone = load_backbone(config.backbone, store).value
    started = time.perf_counter()
    manifest = scan_dump(config.dump, store).value
    seconds = time.perf_counter() - started
    duplicates = find_duplicates(manifest, config.dump, config.duplicates, store).value
    split = publish_split(manifest, config.split, store, duplicates.rows).value
    found = {"manifest": manifest, "duplicates": duplicates, "split": split}
    return Images(config=config, **found, backbone=backbone, scan_seconds=seconds)


class Clock:
    """Notes when work was done, for `thaw.progress.listen`."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int, int]] = []

    def __call__(self, label: str, done: int, total: int, note: str) -> None:
        self._marks.append((time.perf_counter(), done, total))

    def units_per_second(self) -> float:
        """The rate from the first report on: what starting up took is left out."""
        (start, first, _), (end, last, _) = self._marks[0], self._marks[-1]
        return (last - first) / (end - start)

    def seconds_per_epoch(self, epochs: int) -> float:
        """The mean after the second epoch: training is compiled in the first, its validation right after."""
        _, _, total = self._marks[-1]
        start = next(moment for moment, done, _ in self._marks if done * epochs >= 2 * total)
        return (self._marks[-1][0] - start) / (epochs - 2)
