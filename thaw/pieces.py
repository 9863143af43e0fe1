"""What many workers make of many rows, each of some of them, until it is put together: `pieces/<address>/<rows>/`."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thaw.portions import Portion, PortionSize
from thaw.store import Store


def plan_pieces(address: str, rows: int, size: PortionSize, batch: int, store: Store) -> tuple[Portion, ...]:
    """The pieces that nobody has made yet, of at most this size; none where one would hold all.

    Pieces are about as large as each other, and end where batches do, so that what comes out is what one worker makes.
    """
    pieces = math.ceil(rows / size.limit_images(rows))
    if pieces < 2:
        return ()
    each = max(batch, math.ceil(rows / pieces / batch) * batch)
    bounds = [
        (start, min(start + each, end))
        for begin, end in _find_gaps(address, rows, store)
        for start in range(begin, end, each)
    ]
    return tuple(
        Portion(part=0, start=start, end=end, rows=end - start, missing=end - start) for start, end in bounds
    )


def is_made(address: str, portion: Portion, store: Store) -> bool:
    """Whether somebody has made a piece."""
    return store.is_published("pieces", address, _name(portion.start, portion.end))


@contextmanager
def publish_piece(address: str, portion: Portion, store: Store) -> Iterator[Path]:
    """Yield a folder to fill with what was made of a portion."""
    with store.publish_folder("pieces", address, _name(portion.start, portion.end)) as folder:
        yield folder


def fetch_pieces(address: str, rows: int, store: Store) -> list[Path]:
    """The folders of all pieces in the order of their rows, or none where they don't make up so many rows."""
    chains: dict[int, tuple[str, ...]] = {0: ()}
    # Who began with pieces of another size may have left some that overlap.
    for start, end in _list_bounds(address, store):
        if start in chains:
            chains.setdefault(end, (*chains[start], _name(start, end)))
    return [store.fetch("pieces", address, name) for name in chains.get(rows, ())]


def clear_pieces(address: str, store: Store) -> None:
    """Delete the pieces of what was put together."""
    store.discard("pieces", address)


def _find_gaps(address: str, rows: int, store: Store) -> Iterator[tuple[int, int]]:
    """What lies between pieces that are made."""
    reached = 0
    for start, end in [*_list_bounds(address, store), (rows, rows)]:
        if start > reached:
            yield reached, start
        if start >= reached:
            reached = end


def _list_bounds(address: str, store: Store) -> list[tuple[int, int]]:
    """Where pieces that are made start and end, the first ones first."""
    return sorted(tuple(map(int, name.split("-"))) for name in store.list("pieces", address))


def _name(start: int, end: int) -> str:
    return f"{start:012}-{end:012}"
