"""What many workers make of many rows, each of some of them, until it is put together: `pieces/<address>/<rows>/`."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thaw.portions import Portion
from thaw.store import Store


def plan_pieces(address: str, rows: int, images: int, batch: int, store: Store) -> tuple[Portion, ...]:
    """The pieces that nobody has made yet, of at most so many images each; none where one would hold all.

    Pieces are as large as each other, and end where batches do, so that what comes out is what one worker makes.
    """
    pieces = math.ceil(rows / images)
    if pieces < 2:
        return ()
    size = max(batch, math.ceil(rows / pieces / batch) * batch)
    bounds = [(start, min(start + size, rows)) for start in range(0, rows, size)]
    made = set(store.list("pieces", address))
    return tuple(
        Portion(part=0, start=start, end=end, rows=end - start, missing=end - start)
        for start, end in bounds
        if _name(start, end) not in made
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
    bounds = sorted(tuple(map(int, name.split("-"))) for name in store.list("pieces", address))
    reached = 0
    for start, end in bounds:
        if start != reached:
            return []
        reached = end
    if reached != rows:
        return []
    return [store.fetch("pieces", address, _name(*bound)) for bound in bounds]


def clear_pieces(address: str, store: Store) -> None:
    """Delete the pieces of what was put together."""
    store.discard("pieces", address)


def _name(start: int, end: int) -> str:
    return f"{start:012}-{end:012}"
