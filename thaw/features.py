"""Push images once through the frozen prefix and keep what comes out.

A feature depends on its space alone, not on the way it was computed: at every pooling the
activations are rounded to the storage dtype, so that a deep cut computed from a cached shallower
one equals the same cut computed from pixels.
"""

import dataclasses
import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from thaw.archive import Dump, open_dump
from thaw.augment import draw_view
from thaw.backbone import build_backbone, check_cut, cut_model, cut_points, preprocess
from thaw.config import AugmentationConfig, BackboneConfig, DumpConfig
from thaw.device import choose_precision, prepare_keras
from thaw.errors import BadDump, BadImage
from thaw.images import decode_image, resize_image
from thaw.progress import track
from thaw.records import SIDES, Backbone, Features, FeatureSet, FeatureSpace, ImageRow, Made, Split
from thaw.shards import Key, SpaceFolder
from thaw.store import Store

logger = logging.getLogger(__name__)

_BATCH_ROWS = 32
# A killed writer loses at most one shard: some ten seconds of VGG16 on two cores.
_SHARD_ROWS = 256
_DECODE_AHEAD = 3 * _BATCH_ROWS


def describe_space(
    backbone: Backbone, settings: BackboneConfig, cut: str, augmentation: AugmentationConfig | None = None
) -> FeatureSpace:
    """The space that features at `cut` belong to, with the precision settled for this machine."""
    return FeatureSpace(
        backbone=backbone.name,
        weights_sha256=backbone.weights_sha256,
        cut=cut,
        image_size_pixels=settings.image_size_pixels,
        resize_filter=settings.resize_filter,
        preprocessing=backbone.preprocessing,
        precision=choose_precision(settings.precision).name,
        storage=settings.storage,
        augmentation=augmentation.model_dump() if augmentation else None,
    )


def cache_features(
    split: Split,
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    cut: str,
    store: Store,
    views: int = 0,
    augmentation: AugmentationConfig | None = None,
) -> Made[Features]:
    """Fill the cache at `cut` with every image of the split, or `views` augmented views of those to train on.

    Only rows that are missing are computed, from the deepest cached cut that has them, else from pixels.

    Raises:
        BadCut: the backbone can't be cut there.
        BadDump: an image changed since the dump was scanned.
        DiskFull: there is no room for the missing rows.
    """
    check_cut(backbone, cut)
    plain = describe_space(backbone, settings, cut)
    sides = {side: FeatureSet(space=plain.digest, split=split.digest, side=side) for side in SIDES}
    wanted = [(row, 0) for side in SIDES if side != "train" or not views for row in split.rows(side)]
    made, total = _fill(plain, wanted, dump, backbone, settings, None, store), len(wanted)
    if views:
        space = describe_space(backbone, settings, cut, augmentation)
        wanted = [(row, view) for view in range(1, views + 1) for row in split.train]
        made += _fill(space, wanted, dump, backbone, settings, augmentation, store)
        total += len(wanted)
        sides["train"] = dataclasses.replace(sides["train"], space=space.digest, views=views)
    note = f"{total - made} of {total} rows at {cut} were cached"
    return Made(value=Features(cut=cut, **sides), reused=made == 0, note=note)


class Rows:
    """The cached rows behind a FeatureSet: read from memory-mapped shards, in any order.

    Attributes:
        images: the manifest rows, in the order of the split.
        classes: the class names, by index.
        labels: int64 (n,), the class index of each image.
        versions: how many versions of each image there are: its views, or 1, the image itself.
        shape: one row's (height, width, channels).
        dtype: what the rows are stored in.
    """

    def __init__(self, features: FeatureSet, store: Store):
        split = store.read("splits", features.split, Split)
        self.images = images = split.rows(features.side)
        self.classes = split.classes
        self.labels = np.array(split.labels(features.side), dtype=np.int64)
        views = range(1, features.views + 1) if features.views else (0,)
        self.versions = len(views)
        space = store.read_file(store.folder("features", features.space, "space.json"), FeatureSpace)
        self._folder = SpaceFolder(store, space)
        self._places = [self._folder.find((row.sha256, view) for row in images) for view in views]
        self.shape = self._folder.shape
        self.dtype = self._folder.space.storage

    def __len__(self) -> int:
        return len(self.labels)

    def count_labels(self) -> tuple[int, ...]:
        """Images of each class, by class index."""
        return tuple(int(count) for count in np.bincount(self.labels, minlength=len(self.classes)))

    def read(self, indices: np.ndarray | slice, version: int = 0) -> np.ndarray:
        """Features of the images at `indices`: float32 (n, *shape)."""
        return self._folder.read(self._places[version][indices]).astype(np.float32)


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
            "descr": np.dtype(rows.dtype).str,
            "fortran_order": False,
            "shape": (len(rows), *rows.shape),
        }
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(rows), _SHARD_ROWS):
                file.write(rows.read(slice(start, start + _SHARD_ROWS)).astype(rows.dtype).tobytes())
        partial.replace(array)
        np.save(labels, rows.labels)
        paths[side] = [image.path for image in rows.images]
        written += [array, labels]
    names = folder / "classes.json"
    names.write_text(json.dumps({"classes": rows.classes, "paths": paths}, indent=1), encoding="utf-8")
    return [*written, names]


def _fill(
    space: FeatureSpace,
    wanted: Sequence[tuple[ImageRow, int]],
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    augmentation: AugmentationConfig | None,
    store: Store,
) -> int:
    """Compute and publish the rows that `space` lacks; returns how many."""
    folder = SpaceFolder(store, space)
    folder.publish_facts()
    rows = {(row.sha256, view): row for row, view in wanted}
    missing = folder.missing(rows)
    if not missing:
        return 0
    computed = len(missing)
    label = f"{space.cut} of {'views' if augmentation else 'images'}"
    with track(label, len(rows), "images", done=len(rows) - computed) as advance:
        for cut in reversed(cut_points(backbone, space.cut)[:-1]):
            shallow = SpaceFolder(store, dataclasses.replace(space, cut=cut))
            absent = set(shallow.missing(missing))
            present = [key for key in missing if key not in absent]
            if present:
                logger.info("%d rows at %s are computed from %s", len(present), space.cut, cut)
                extractor = _build_extractor(space, backbone, start=cut, shape=shallow.shape)
                batches = (shallow.read(shallow.find(keys)) for keys in _chunks(present, _BATCH_ROWS))
                _publish(folder, present, batches, extractor, advance, store)
                missing = [key for key in missing if key in absent]
        if missing:
            extractor = _build_extractor(space, backbone, start=None, shape=None)
            with open_dump(dump.path) as opened:

                def draw(key: Key) -> np.ndarray:
                    pixels = read_pixels(opened, rows[key], settings)
                    return draw_view(pixels, key[0], key[1], augmentation) if augmentation else pixels

                batches = (np.stack(list(batch)) for batch in _chunks(_map_ahead(draw, missing), _BATCH_ROWS))
                _publish(folder, missing, batches, extractor, advance, store)
    return computed


def _publish(
    folder: SpaceFolder,
    keys: Sequence[Key],
    batches: Iterator[np.ndarray],
    extractor: Any,
    advance: Callable[..., None],
    store: Store,
) -> None:
    """Run batches through the extractor and publish the results shard by shard."""
    for number, shard in enumerate(_chunks(keys, _SHARD_ROWS)):
        outputs = []
        for _ in _chunks(shard, _BATCH_ROWS):
            batch = next(batches)
            # One batch shape means one compiled graph, and rows that don't depend on their neighbours.
            padding = [(0, _BATCH_ROWS - len(batch))] + [(0, 0)] * (batch.ndim - 1)
            outputs.append(extractor.predict_on_batch(np.pad(batch, padding))[: len(batch)])
            advance(len(batch))
        features = np.concatenate(outputs)
        if number == 0:
            store.check_room(len(keys) * features[0].size * np.dtype(folder.space.storage).itemsize)
        folder.append(shard, features)


def _build_extractor(
    space: FeatureSpace, backbone: Backbone, start: str | None, shape: tuple[int, ...] | None
) -> Any:
    """A model from uint8 pixels, or from stored features at `start`, to float32 features at the space's cut."""
    keras = prepare_keras()
    network = build_backbone(backbone, space.image_size_pixels, space.precision)
    points = cut_points(backbone, space.cut)
    if start is None:
        size = space.image_size_pixels
        entry = keras.Input((size, size, 3), dtype="uint8")
        tensor = preprocess(keras.ops.cast(entry, "float32"), space.preprocessing)
    else:
        points = points[points.index(start) + 1 :]
        entry = tensor = keras.Input(shape, dtype=space.storage)
    for point in points:
        tensor = cut_model(network, start, point)(keras.ops.cast(tensor, space.precision))
        tensor = keras.ops.cast(tensor, space.storage)
        start = point
    return keras.Model(entry, keras.ops.cast(tensor, "float32"))


def _map_ahead(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Results of `function` in order, computed on threads a bounded distance ahead."""
    with ThreadPoolExecutor() as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _DECODE_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def read_pixels(dump: Dump, row: ImageRow, settings: BackboneConfig) -> np.ndarray:
    """One image of an open dump as the backbone gets it: uint8 (size, size, 3).

    Raises:
        BadDump: its bytes are not those that were scanned.
    """
    try:
        data = dump.read(row.path)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise BadImage("its bytes are others")
        return resize_image(decode_image(data), settings.image_size_pixels, settings.resize_filter)
    except BadImage as error:
        raise BadDump(
            f"{row.path} changed since the dump was scanned ({error}). Run the same command again."
        ) from error
