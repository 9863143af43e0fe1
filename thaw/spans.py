"""Rows of a store that lies elsewhere, read for many batches at once, so that its shards are fetched rarely."""

from collections.abc import Iterator, Sequence

import numpy as np

from thaw.extract import map_ahead
from thaw.shards import SpaceFolder

# Two spans are in memory at a time: one is trained on while the next is read.
SPAN_BYTES = 256 * 2**20
# Shards of some megabytes each: enough of them to fill the network, whose answers take their time.
_SHARDS_AT_ONCE = 8


class SpanReader:
    """Reads groups of rows span by span: what the next batches need is gathered in one pass over the shards.

    Every second pass goes over the shards backwards. A disk that keeps the shards which were used last then has
    nearly as large a share of them as it has room for, where passes in one direction would find none.
    """

    def __init__(self, folder: SpaceFolder):
        self._folder = folder
        self._backwards = True

    def read(self, groups: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Rows in the storage dtype, (n, *shape) for each group of n places as `SpaceFolder.find` gives them."""
        for parts in map_ahead(self._gather, self._cut_spans(groups), ahead=1, threads=1):
            while parts:
                # A copy: what holds on to a batch must not hold on to its span.
                yield parts.pop(0).copy()

    def _cut_spans(self, groups: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
        """Consecutive groups, as many as fit into a span, or one."""
        row_bytes = np.dtype(self._folder.space.storage).itemsize * int(np.prod(self._folder.shape))
        ends = np.cumsum([len(group) for group in groups]) * row_bytes
        start = taken = 0
        while start < len(groups):
            end = max(start + 1, int(np.searchsorted(ends, taken + SPAN_BYTES, side="right")))
            yield groups[start:end]
            start, taken = end, ends[end - 1]

    def _gather(self, span: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The rows of each group of a span, as parts of one array."""
        self._backwards = not self._backwards
        rows = self._folder.read(np.concatenate(span), _SHARDS_AT_ONCE, self._backwards)
        return np.split(rows, np.cumsum([len(group) for group in span])[:-1])
