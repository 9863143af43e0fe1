"""The feature cache: append-only shards of rows, each published by one rename and checked when opened."""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from thaw.disk_cache import BULKY
from thaw.errors import FeatureOverflow
from thaw.records import FeatureSpace
from thaw.store import Store

logger = logging.getLogger(__name__)

# A row's key: the SHA-256 of the image's bytes, and the number of the view (0 is the image itself).
Key = tuple[str, int]
_KEY_DTYPE = np.dtype([("image", "u1", 32), ("view", "<u4")])


def read_space(digest: str, store: Store) -> FeatureSpace:
    """What the digest of a feature space stands for."""
    return store.read_file(store.folder("features", digest, "space.json"), FeatureSpace)


class SpaceFolder:
    """One feature space on disk: `features/<space>/<shard>/features.npy, keys.npy, shard.json`.

    Opening reads every shard's bytes once to compare checksums. A shard that fails is set aside, so
    that its rows count as missing.
    """

    def __init__(self, store: Store, space: FeatureSpace):
        self.space = space
        self._store = store
        self._folder = store.folder("features", space.digest)
        self._shards: list[np.ndarray] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        names = sorted(name for name in store.list("features", space.digest) if name != "space.json")
        store.fetch_folders([("features", space.digest, name) for name in names], but=(BULKY,))
        for name in names:
            self._open(self._folder / name)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shape(self) -> tuple[int, ...]:
        """One row's (height, width, channels)."""
        return self._shards[0].shape[1:]

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Those keys that no shard holds, in the order given, each once."""
        return [key for key in dict.fromkeys(keys) if _pack(key) not in self._places]

    def append(self, keys: Sequence[Key], features: np.ndarray) -> None:
        """Publish rows as one new shard: `features` is (len(keys), *shape).

        Raises:
            FeatureOverflow: a value doesn't fit the space's storage dtype.
        """
        with np.errstate(over="ignore"):
            rows = features.astype(self.space.storage)
        if not np.isfinite(rows).all():
            raise FeatureOverflow(
                f"features at {self.space.cut} exceed what {self.space.storage} holds. "
                "Set backbone.storage to float32."
            )
        packed = np.frombuffer(b"".join(_pack(key) for key in keys), dtype=_KEY_DTYPE)
        name = hashlib.sha256(packed.tobytes()).hexdigest()[:16]
        with self._store.publish_folder("features", self.space.digest, name) as partial:
            np.save(partial / "features.npy", rows, allow_pickle=False)
            np.save(partial / "keys.npy", packed, allow_pickle=False)
            checksums = {file: checksum(partial / file) for file in ("features.npy", "keys.npy")}
            (partial / "shard.json").write_text(json.dumps({"rows": len(rows), "sha256": checksums}))
        self._open(self._folder / name)

    def publish_facts(self) -> None:
        """Write `space.json`, which says what the folder's digest stands for, where it is not there."""
        if not (self._folder / "space.json").exists():
            with self._store.publish_file("features", self.space.digest, "space.json") as partial:
                partial.write_text(self.space.to_json(), encoding="utf-8")

    def find(self, keys: Iterable[Key]) -> np.ndarray:
        """Where rows lie: an int64 array (n, 2) of shard and row numbers, for `read`."""
        return np.array([self._places[_pack(key)] for key in keys], dtype=np.int64).reshape(-1, 2)

    def read(self, places: np.ndarray) -> np.ndarray:
        """Copy rows out of the memory-mapped shards: (n, *shape) in the storage dtype."""
        rows = np.empty((len(places), *self.shape), dtype=self.space.storage)
        for number, (shard, row) in enumerate(places):
            rows[number] = self._shards[shard][row]
        return rows

    def _open(self, folder: Path) -> None:
        try:
            facts = json.loads((folder / "shard.json").read_bytes())
            self._store.fetch("features", self.space.digest, folder.name, BULKY)
            for file, expected in facts["sha256"].items():
                if checksum(folder / file) != expected:
                    raise ValueError(f"{file} does not match its checksum")
            keys = np.load(folder / "keys.npy", allow_pickle=False)
            features = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
        except (ValueError, KeyError, FileNotFoundError) as error:
            self._store.set_aside(folder, str(error))
            return
        packed, size = keys.tobytes(), _KEY_DTYPE.itemsize
        for row in range(len(keys)):
            self._places[packed[row * size : (row + 1) * size]] = (len(self._shards), row)
        self._shards.append(features)


def _pack(key: Key) -> bytes:
    return bytes.fromhex(key[0]) + key[1].to_bytes(4, "little")


def checksum(file: Path) -> str:
    """The SHA-256 of a file's bytes, read once per process unless the file changes."""
    facts = file.stat()
    return _checksum(file, facts.st_mtime_ns, facts.st_size, facts.st_ino)


@lru_cache(maxsize=100_000)
def _checksum(file: Path, *_changed: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
