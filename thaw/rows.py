"""Features as training reads them: cached rows of one side of a split, or views drawn anew each epoch."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thaw.archive import Dump, open_dump
from thaw.config import AugmentationConfig, BackboneConfig, DumpConfig
from thaw.extract import BATCH_ROWS, Extractor, map_ahead, read_views
from thaw.records import SIDES, Backbone, Features, FeatureSet, Split
from thaw.shards import SpaceFolder, read_space
from thaw.spans import SpanReader
from thaw.store import Store

_EXPORT_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class ViewSource:
    """What fresh views are computed from, where none are cached."""

    dump: DumpConfig
    backbone: Backbone
    settings: BackboneConfig
    augmentation: AugmentationConfig


class _SplitSide:
    """The images of one side of a split.

    Attributes:
        images: the manifest rows, in the order of the split.
        classes: the class names, by index.
        labels: int64 (n,), the class index of each image.
        space: the space that their features belong to.
    """

    def __init__(self, features: FeatureSet, store: Store):
        split = store.read("splits", features.split, Split)
        self.images = split.rows(features.side)
        self.classes = split.classes
        self.labels = np.array(split.labels(features.side), dtype=np.int64)
        self.space = read_space(features.space, store)

    def __len__(self) -> int:
        return len(self.labels)

    def count_labels(self) -> tuple[int, ...]:
        """Images of each class, by class index."""
        return tuple(int(count) for count in np.bincount(self.labels, minlength=len(self.classes)))

    def read_ahead(self, groups: Sequence[np.ndarray], epoch: int = 0) -> Iterator[np.ndarray]:
        """Features of groups of images, given by their indices: (*group.shape, *shape), group by group.

        What `read` gives, but read before it is asked for.
        """

        def read(group: np.ndarray) -> np.ndarray:
            return self.read(group.ravel(), epoch).reshape(*group.shape, *self.shape)

        return map_ahead(read, groups, ahead=1, threads=1)

    def read_in_order(self, images: int, start: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
        """Features of the images from `start` up to `end`, so many at a time: (images, *shape), the last fewer."""
        indices = np.arange(len(self))[start:end]
        return self.read_ahead([indices[first : first + images] for first in range(0, len(indices), images)])


class Rows(_SplitSide):
    """The cached rows behind a FeatureSet: read from memory-mapped shards, in any order.

    Of a store that lies elsewhere, `read_ahead` reads many batches at once.

    Attributes:
        shape: one row's (height, width, channels).
    """

    def __init__(self, features: FeatureSet, store: Store):
        super().__init__(features, store)
        self._folder = SpaceFolder(store, self.space)
        self._places = [
            self._folder.find((row.sha256, view) for row in self.images) for view in _views(features)
        ]
        self.shape = self._folder.shape
        self._spans = SpanReader(self._folder) if store.mirror else None

    def read(self, indices: np.ndarray | slice, epoch: int = 0) -> np.ndarray:
        """Features of the images at `indices`: (n, *shape) in the storage dtype.

        Where images have several views, `epoch` counts through them.
        """
        return self._folder.read(self._find(epoch)[indices])

    def read_ahead(self, groups: Sequence[np.ndarray], epoch: int = 0) -> Iterator[np.ndarray]:
        if self._spans is None:
            return super().read_ahead(groups, epoch)
        places = self._find(epoch)
        rows = self._spans.read([places[group.ravel()] for group in groups])
        return (each.reshape(*group.shape, *self.shape) for group, each in zip(groups, rows, strict=True))

    def _find(self, epoch: int) -> np.ndarray:
        """Where the rows that an epoch is about lie."""
        return self._places[epoch % len(self._places)]


class FreshRows(_SplitSide):
    """Features of views that no other epoch sees, computed from pixels when they are read.

    An epoch's views are those that a cache with as many views would give it, bit for bit.
    """

    def __init__(self, features: FeatureSet, cut: str, source: ViewSource, dump: Dump, store: Store):
        super().__init__(features, store)
        self._source, self._dump = source, dump
        self._pool = ThreadPoolExecutor(dump.readers)
        self._extractor = Extractor(self.space, source.backbone, None, [cut])
        self.shape = self.read(slice(0, 1)).shape[1:]

    def read(self, indices: np.ndarray | slice, epoch: int = 0) -> np.ndarray:
        """Features of this epoch's views of the images at `indices`: (n, *shape) in the storage dtype."""

        def draw(image: int) -> np.ndarray:
            row, source = self.images[image], self._source
            return read_views(self._dump, row, [epoch + 1], source.settings, source.augmentation)[0]

        pixels = list(self._pool.map(draw, np.arange(len(self))[indices]))
        batches = [pixels[start : start + BATCH_ROWS] for start in range(0, len(pixels), BATCH_ROWS)]
        return np.concatenate([self._extractor(np.stack(batch))[0] for batch in batches])


@contextmanager
def open_training_rows(
    features: Features, source: ViewSource | None, store: Store
) -> Iterator[Rows | FreshRows]:
    """The rows to train on: cached ones, or fresh views of `source` where the features ask for those."""
    if features.train.views != "fresh":
        yield Rows(features.train, store)
        return
    if source is None:
        raise ValueError("fresh views need a source to draw them from. Received: source=None")
    with open_dump(source.dump.path) as dump:
        yield FreshRows(features.train, features.cut, source, dump, store)


def export_features(features: Features, folder: Path, store: Store) -> list[Path]:
    """Write the rows of each side as one array for use in a notebook, with their labels and paths beside.

    Files: `bottleneck_features_<side>.npy` in the storage dtype (n, *shape), `labels_<side>.npy` int64
    (n,), and `classes.json` with the class names by index and the images' paths by side.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written, paths = [], {}
    for side in SIDES:
        rows = Rows(getattr(features, side), store)
        array, labels = folder / f"bottleneck_features_{side}.npy", folder / f"labels_{side}.npy"
        partial = folder / f".{array.name}.partial"
        header = {
            "descr": np.dtype(rows.space.storage).str,
            "fortran_order": False,
            "shape": (len(rows), *rows.shape),
        }
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in rows.read_in_order(_EXPORT_ROWS):
                file.write(part.tobytes())
        partial.replace(array)
        np.save(labels, rows.labels)
        paths[side] = [image.path for image in rows.images]
        written += [array, labels]
    names = folder / "classes.json"
    names.write_text(json.dumps({"classes": rows.classes, "paths": paths}, indent=1), encoding="utf-8")
    return [*written, names]


def _views(features: FeatureSet) -> range | tuple[int]:
    return range(1, features.views + 1) if features.views else (0,)
