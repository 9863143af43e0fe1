"""Where rows lie: an index of millions of keys as sorted arrays, which hold no Python object for any of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np

# A row's key: the SHA-256 of the image's bytes, and the number of the view (0 is the image itself).
Key = tuple[str, int]
KEY_DTYPE = np.dtype([("image", "u1", 32), ("view", "<u4")])

_WORDS = np.dtype([("words", "<u8", 4), ("view", "<u4")])
# As plain bytes, keys are moved and compared several times faster than field by field.
_BYTES = np.dtype((np.void, KEY_DTYPE.itemsize))
# An odd number whose multiples differ in their high bits (2^64 divided by the golden ratio): the views of
# an image get fingerprints far apart.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
# What is packed or looked up at a time, so that what lies between stays small beside the index itself.
_BLOCK_KEYS = 65_536


def pack_keys(keys: Iterable[Key] | np.ndarray) -> np.ndarray:
    """Keys as a structured array (n,) of 36 bytes each: `image` uint8 (32,), `view` uint32.

    Keys that are packed already are returned as they are.

    Raises:
        ValueError: an image is not told by 64 hexadecimal digits.
    """
    if isinstance(keys, np.ndarray):
        return keys
    left, blocks = iter(keys), [np.empty(0, KEY_DTYPE)]
    while block := list(islice(left, _BLOCK_KEYS)):
        digests = bytes.fromhex("".join(image for image, _ in block))
        packed = np.empty(len(block), KEY_DTYPE)
        packed["image"] = np.frombuffer(digests, np.uint8).reshape(len(block), 32)
        packed["view"] = np.fromiter((view for _, view in block), np.uint32, len(block))
        blocks.append(packed)
    return np.concatenate(blocks)


class KeyIndex:
    """The keys of rows, and the place of each: the number of its shard, and of its row in there.

    Keys are told apart by all of their 36 bytes. They lie in a few runs, each sorted by fingerprint: a
    lookup is one binary search per run. What comes in is a run of its own, and joins the run before it
    once it is half as long, so that shard after shard costs no more than sorting now and then.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(run.keys) for run in self._runs)

    def add(self, keys: np.ndarray, places: np.ndarray) -> None:
        """Take in packed keys (n,) with their places, integers (n, 2).

        A key that comes twice, or is held already, keeps the place that it had first.
        """
        new = self.find(keys)[:, 0] < 0
        run = _sort(_view_bytes(keys)[new], places[new].astype(np.int32))
        while self._runs and len(self._runs[-1].keys) < 2 * len(run.keys):
            before = self._runs.pop()
            run = _sort(np.concatenate([before.keys, run.keys]), np.concatenate([before.places, run.places]))
        if len(run.keys):
            self._runs.append(run)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The places of packed keys (n,): int64 (n, 2) of shard and row numbers, -1 where a key is absent."""
        sought, places = _view_bytes(keys), np.full((len(keys), 2), -1, np.int64)
        for start in range(0, len(keys), _BLOCK_KEYS):
            block = sought[start : start + _BLOCK_KEYS]
            fingerprints = _fingerprint(block)
            for run in self._runs:
                asked, held = run.find(block, fingerprints)
                places[start + asked] = run.places[held]
        return places


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Distinct keys as bytes (n,) and their places int32 (n, 2), in the order of their fingerprints uint64 (n,)."""

    fingerprints: np.ndarray
    keys: np.ndarray
    places: np.ndarray

    def find(self, keys: np.ndarray, fingerprints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the keys are held, and where in this run each of those is."""
        positions = np.searchsorted(self.fingerprints, fingerprints)
        sought = np.flatnonzero(positions < len(self.keys))
        asked, held = [], []
        while sought.size:
            at = positions[sought]
            alike = self.fingerprints[at] == fingerprints[sought]
            sought, at = sought[alike], at[alike]
            same = self.keys[at] == keys[sought]
            asked.append(sought[same])
            held.append(at[same])
            # Other keys may have the same fingerprint: they lie side by side.
            sought, at = sought[~same], at[~same] + 1
            positions[sought] = at
            sought = sought[at < len(self.keys)]
        none = np.empty(0, np.int64)
        return np.concatenate([none, *asked]), np.concatenate([none, *held])


def _view_bytes(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys).view(_BYTES)


def _sort(keys: np.ndarray, places: np.ndarray) -> _Run:
    fingerprints = _fingerprint(keys)
    # Stable: where a key comes twice, its first place stays in front; and what is sorted in parts is merged.
    order = np.argsort(fingerprints, kind="stable")
    fingerprints = fingerprints[order]
    alike = np.flatnonzero(fingerprints[1:] == fingerprints[:-1])
    if alike.size:
        suspects = np.union1d(alike, alike + 1)
        _, first = np.unique(keys[order[suspects]], return_index=True)
        kept = np.ones(len(order), bool)
        kept[suspects] = False
        kept[suspects[first]] = True
        order, fingerprints = order[kept], fingerprints[kept]
    return _Run(fingerprints=fingerprints, keys=keys[order], places=places[order])


def _fingerprint(keys: np.ndarray) -> np.ndarray:
    """64 bits of each key that all of its bytes decide: uint64 (n,)."""
    parts = keys.view(_WORDS)
    views = parts["view"].astype(np.uint64) * _SPREAD
    return np.bitwise_xor.reduce(parts["words"], axis=1) ^ views
