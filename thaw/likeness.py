"""Are two images the same picture? Told by hashes that survive copying, resizing, cropping and mirroring.

An image is told by a hash of 128 bits: 64 of its coarse frequencies (`phash`) and 64 of the differences between
neighbours (`dhash`), which are seldom wrong together. Resized and recompressed copies differ in a few bits, but a
crop of 5 to 10 % changes a fifth of them. So the mirror image and nine parts of an image are hashed as well, and
two images count as the same where one of them, or its mirror image, is the other or a part of it.

Source: N. Krawetz, Looks Like It, 2011, and Kind of Like That, 2013 (hackerfactor.com), as ImageHash computes them.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from imagehash import dhash, phash
from PIL import Image, ImageOps

# Raised when the hashes or the way they are compared change, so that nothing of older rules is taken over.
HASHER = 1
# The side that images are squashed to before they are hashed.
SIDE_PIXELS = 64
# By cosine of VGG16's bottleneck features, averaged over their maps: of 102 copies the least alike had 0.909, and the
# most alike of 984 pairs whose hashes are only similar, 21 to 30 bits apart, 0.877.
SIMILARITY = 0.9

_KEPT_FRACTION = 0.925
_PLACES = (0.0, 0.5, 1.0)
# What is compared of one image, and what of the other: 0 is the whole, 1 its mirror image, the rest its parts.
_WHOLES = (0, 1)
_PARTS = (0, *range(2, 2 + len(_PLACES) ** 2))
HASHES = 2 + len(_PLACES) ** 2
_COMPARED = tuple({pair for whole in _WHOLES for part in _PARTS for pair in ((whole, part), (part, whole))})
# Blocks of distances that stay in a core's cache.
_BLOCK_ROWS, _BLOCK_COLUMNS = 32, 8192


@dataclass(frozen=True, kw_only=True)
class Found:
    """A group as `find_groups` finds it: positions in ascending order, and the largest distance that ties one."""

    members: tuple[int, ...]
    distance_bits: int


def hash_image(pixels: np.ndarray) -> np.ndarray:
    """The hashes of an image, of its mirror image, and of nine parts that keep 92.5 % of each side.

    Whatever lies 5 to 10 % of a side within an image is within 2.5 % of one of those parts.

    Args:
        pixels: uint8 (SIDE_PIXELS, SIDE_PIXELS, 3).

    Returns:
        uint64 (HASHES, 2): of each image its `phash` and its `dhash`.
    """
    whole = Image.fromarray(pixels).convert("L")
    images = [whole, ImageOps.mirror(whole), *_take_parts(whole)]
    bits = np.stack([np.stack([phash(image).hash, dhash(image).hash]) for image in images])
    return np.packbits(bits.reshape(HASHES, 2, 64), axis=2).view(np.uint64)[..., 0]


def find_groups(hashes: np.ndarray, distance_bits: int = 16) -> list[Found]:
    """Group near-identical images, those whose hashes differ in `distance_bits` of 128 at most.

    Groups come in the order of their first members. Thousands of images that are all alike have millions of
    pairs: of each block's only those are kept that its groups hang together by.

    Args:
        hashes: uint64 (n, HASHES, 2), as `hash_image` gives them.
    """
    return _join(_keep_closest(find_pairs(hashes, distance_bits, _keep_closest)))


def measure_similarity(features: np.ndarray) -> float:
    """How alike the images of one group are by their features, as a cosine: of each to that nearest it, the least.

    Maps are averaged over their height and width, which a mirrored or slightly cropped image hardly changes.

    Args:
        features: (n, height, width, channels) at a deep cut, n being 2 or more.
    """
    vectors = features.astype(np.float32).mean(axis=(1, 2))
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    return float(cosines.max(axis=1).min())


def find_pairs(
    hashes: np.ndarray, distance_bits: int, keep: Callable[[np.ndarray], np.ndarray] = lambda pairs: pairs
) -> np.ndarray:
    """Every pair of images whose hashes differ in so many bits at most.

    All are compared with all, in blocks on all cores: 25,000 images take some 10 seconds of one core.

    Args:
        keep: chooses among the pairs of a block.

    Returns:
        int64 (3, pairs): the first image, the second, which comes later, and their distance in bits.
    """
    # Images side by side, so that a block reads consecutive numbers.
    columns = np.ascontiguousarray(hashes.transpose(1, 2, 0))
    starts = range(0, len(hashes), _BLOCK_ROWS)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = pool.map(lambda start: keep(_compare_block(columns, start, distance_bits)), starts)
        return np.concatenate([np.empty((3, 0), np.int64), *blocks], axis=1)


def _compare_block(columns: np.ndarray, start: int, distance_bits: int) -> np.ndarray:
    """The pairs whose first image is in the block."""
    images, found = columns.shape[2], []
    rows = slice(start, start + _BLOCK_ROWS)
    for left in range(start, images, _BLOCK_COLUMNS):
        block = slice(left, left + _BLOCK_COLUMNS)
        closest = np.full((len(columns[0, 0, rows]), len(columns[0, 0, block])), 255, dtype=np.uint8)
        for ours, theirs in _COMPARED:
            bits = np.bitwise_count(columns[ours, 0, rows, None] ^ columns[theirs, 0, block])
            # Few survive the first half of the hash, so the second is looked at for those alone.
            row, column = np.divmod(np.flatnonzero(bits <= distance_bits), bits.shape[1])
            further = np.bitwise_count(columns[ours, 1, rows][row] ^ columns[theirs, 1, block][column])
            closest[row, column] = np.minimum(closest[row, column], bits[row, column] + further)
        row, column = np.nonzero(closest <= distance_bits)
        pairs = np.stack([row + start, column + left, closest[row, column].astype(np.int64)])
        found.append(pairs[:, pairs[1] > pairs[0]])
    return np.concatenate(found, axis=1)


def _keep_closest(pairs: np.ndarray) -> np.ndarray:
    """The pairs that all groups still hang together by, each by its closest ones: at most one for each image."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    if not pairs.shape[1]:
        return pairs
    used, ends = np.unique(pairs[:2], return_inverse=True)
    # A sparse graph has no edge of no length.
    graph = coo_array((pairs[2] + 1.0, tuple(ends.reshape(2, -1))), shape=(len(used), len(used)))
    kept = minimum_spanning_tree(graph.tocsr()).tocoo()
    return np.stack([used[kept.row], used[kept.col], kept.data.astype(np.int64) - 1])


def _join(pairs: np.ndarray) -> list[Found]:
    """What hangs together by pairs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not pairs.shape[1]:
        return []
    used, ends = np.unique(pairs[:2], return_inverse=True)
    first, second = ends.reshape(2, -1)
    links = coo_array((np.ones(len(first)), (first, second)), shape=(len(used), len(used)))
    _, group_of = connected_components(links, directed=False)
    members, widest = defaultdict(list), defaultdict(int)
    for place, group in enumerate(group_of):
        members[group].append(int(used[place]))
    for end, distance in zip(first, pairs[2], strict=True):
        widest[group_of[end]] = max(widest[group_of[end]], int(distance))
    groups = [Found(members=tuple(found), distance_bits=widest[group]) for group, found in members.items()]
    return sorted(groups, key=lambda group: group.members)


def _take_parts(whole: Image.Image) -> Iterator[Image.Image]:
    side, kept = whole.width, _KEPT_FRACTION * whole.width
    for upper in _PLACES:
        for left in _PLACES:
            x, y = left * (side - kept), upper * (side - kept)
            yield whole.resize(whole.size, Image.Resampling.BICUBIC, box=(x, y, x + kept, y + kept))
