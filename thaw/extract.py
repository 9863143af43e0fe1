"""The frozen prefix at work: pixels, or features at a shallower cut, in; features at one or more cuts out.

At the end of every stage the activations are rounded to the storage dtype, so that a feature depends on
its space alone, and not on the cut that it was computed from.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from thaw.architectures import preprocess
from thaw.archive import Dump
from thaw.augment import draw_view
from thaw.backbone import build_backbone, cut_points
from thaw.config import AugmentationConfig, BackboneConfig
from thaw.cuts import split_model
from thaw.device import prepare_keras
from thaw.errors import BadDump, BadImage
from thaw.images import read_image
from thaw.records import PIXELS, Backbone, FeatureSpace, ImageRow
from thaw.winograd import speed_up_convolutions

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_ROWS = 32


class Extractor:
    """Computes features of images, or of features cached at `start`, at each of the cuts `ends`."""

    def __init__(self, space: FeatureSpace, backbone: Backbone, start: str | None, ends: Sequence[str]):
        """`space` says how to compute; its own cut plays no part. `start` is a cut, or None for decoded images."""
        self._ends = tuple(ends)
        self._model = None
        if self._ends != (PIXELS,):
            self._model = _build_extractor(space, backbone, start or PIXELS, self._ends)

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        """Features of up to BATCH_ROWS rows at each end: (n, *shape) in the storage dtype.

        Args:
            batch: uint8 pixels (n, size, size, channels), or features at the start.
        """
        if self._model is None:
            return [batch]
        # One batch shape means one compiled graph, and rows that don't depend on their neighbours.
        padding = [(0, BATCH_ROWS - len(batch))] + [(0, 0)] * (batch.ndim - 1)
        features = self._model.predict_on_batch(np.pad(batch, padding))
        return [np.asarray(features[cut])[: len(batch)] for cut in self._ends]


def _build_extractor(space: FeatureSpace, backbone: Backbone, start: str, ends: Sequence[str]) -> Any:
    """A model from rows at `start` to features by the name of their cut, rounded at every stage's end."""
    keras = prepare_keras()
    size = space.image_size_pixels
    network = build_backbone(backbone, size, space.precision)
    speed_up_convolutions(network)
    shape = (size, size, 3) if start == PIXELS else network.get_layer(start).output.shape[1:]
    entry = keras.Input(shape, dtype=space.at(start).storage)
    tensors = {start: entry}

    def reach(cut: str) -> Any:
        if cut not in tensors:
            before = cut_points(backbone, cut)[-2]
            rows = reach(before)
            if before == PIXELS:
                rows = preprocess(keras.ops.cast(rows, "float32"), space.preprocessing)
            part = split_model(network, None if before == PIXELS else before, cut)
            tensors[cut] = keras.ops.cast(part(keras.ops.cast(rows, space.precision)), space.storage)
        return tensors[cut]

    return keras.Model(entry, {cut: reach(cut) for cut in ends})


def read_pixels(dump: Dump, row: ImageRow, settings: BackboneConfig) -> np.ndarray:
    """One image of an open dump as the backbone gets it: uint8 (size, size, channels).

    Raises:
        BadDump: its bytes are not those that were scanned.
    """
    try:
        data = dump.read(row.path)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise BadImage("its bytes are others")
        return read_image(
            data,
            settings.image_size_pixels,
            settings.resize_filter,
            settings.resize_fit,
            settings.colour,
        )
    except BadImage as error:
        raise BadDump(
            f"{row.path} changed since the dump was scanned ({error}). Run the same command again."
        ) from error


def read_views(
    dump: Dump,
    row: ImageRow,
    views: Sequence[int],
    settings: BackboneConfig,
    augmentation: AugmentationConfig | None,
) -> list[np.ndarray]:
    """Views of one image of an open dump, decoded once; view 0 is the image itself.

    Raises:
        BadDump: its bytes are not those that were scanned.
    """
    pixels = read_pixels(dump, row, settings)
    return [draw_view(pixels, row.sha256, view, augmentation) if view else pixels for view in views]


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int, threads: int | None = None
) -> Iterator[Result]:
    """Results of `function` in order, computed on threads before they are asked for.

    Args:
        ahead: at most so many items before, or one for each thread where that is more.
    """
    ahead = max(ahead, threads or 0)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
