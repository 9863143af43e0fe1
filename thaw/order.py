"""The order that rows are trained in: drawn from a seed and the epoch, whatever reads them and from where."""

import itertools
from collections.abc import Iterator

import numpy as np

# Up to so many rows an epoch is one permutation of all. A window of shards is what a disk should have room for.
WINDOW_ROWS = 65_536
# As many as a shard has: rows are extracted in the order of the split, so that a block is a shard or nearly so.
_BLOCK_ROWS = 256


def order_rows(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Every row once: a permutation of `rows`, int64 (rows,).

    Up to `WINDOW_ROWS` it is one permutation of all. Above, blocks of consecutive rows are permuted and taken in
    windows alike in size, none larger than `WINDOW_ROWS`, and the rows of each window are permuted: whoever reads
    them needs the shards of one window at a time, not all of them.

    A split's rows come class by class. A window has rows of at least 128 blocks from anywhere in it, so that
    batches hold the classes in nearly the shares that the split does.

    Source: shuffling shards first and then rows within a buffer is how data that exceeds memory is commonly
    streamed: `shuffle` of tf.data, the shard shuffle of WebDataset, the `py1s` and `py1b` of MosaicML Streaming.
    Here the buffer is replaced whole and not row by row, which makes the order a function of its arguments alone.
    """
    dice = np.random.default_rng([seed, epoch])
    if rows <= WINDOW_ROWS:
        return dice.permutation(rows)
    starts = _BLOCK_ROWS * dice.permutation(-(-rows // _BLOCK_ROWS))
    order = (starts[:, None] + np.arange(_BLOCK_ROWS)).ravel()
    # The last block of the split may be a short one.
    windows = np.array_split(order[order < rows], -(-rows // WINDOW_ROWS))
    return np.concatenate([dice.permutation(window) for window in windows])


def group_batches(order: np.ndarray, batch_size: int, batches: int) -> Iterator[np.ndarray]:
    """Rows in the order they are trained in, as arrays (batches, rows): groups, single batches, the rest."""
    grouped = len(order) // (batch_size * batches) * batches
    whole = len(order) // batch_size
    starts = [*range(0, grouped, batches), *range(grouped, whole), whole]
    for start, end in itertools.pairwise([*starts, None]):
        rows = order[start * batch_size : None if end is None else end * batch_size]
        if len(rows):
            # Within a batch the order does not count, and shards are read from front to back.
            yield np.sort(rows.reshape(1 if end is None else end - start, -1))
