"""Arrays in `.npy` files, memory-mapped. As `np.load` does it, which takes most of its time to parse the header."""

import io
import math
import mmap
from functools import lru_cache
from pathlib import Path

import numpy as np

# Each map holds a file open, of which a process commonly may have 1,024.
_OPEN_MAPS = 256


def map_array(file: Path) -> np.ndarray:
    """The array in a file, read where it is used.

    Raises:
        ValueError: it is no such file, or cut short.
    """
    with file.open("rb") as opened:
        return read_array(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))


@lru_cache(maxsize=_OPEN_MAPS)
def keep_mapped(file: Path, *_version: int) -> np.ndarray:
    """The same, mapped once for as long as the file's version stays what is given."""
    return map_array(file)


def read_array(content: bytes | mmap.mmap) -> np.ndarray:
    """The array in a file's content, not copied.

    Raises:
        ValueError: the content is no such file, or cut short.
    """
    # A magic string of 6 bytes, the version in 2, the length of the header in 2, and the header.
    start = bytes(content[: 10 + int.from_bytes(content[8:10], "little")])
    shape, dtype = _read_header(start)
    return np.frombuffer(content, dtype, math.prod(shape), offset=len(start)).reshape(shape)


# Once for all files that have the same header.
@lru_cache(maxsize=1_000)
def _read_header(start: bytes) -> tuple[tuple[int, ...], np.dtype]:
    opened = io.BytesIO(start)
    version = np.lib.format.read_magic(opened)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(opened)
    if version != (1, 0) or fortran_order or dtype.hasobject:
        raise ValueError(f"not an array of a shard: {start!r}")
    return shape, dtype
