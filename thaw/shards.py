"""The feature cache: append-only shards of rows, each published by one rename and checked before it is read."""

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress, count
from pathlib import Path

import numpy as np

from thaw.array_file import keep_mapped, map_array, read_array
from thaw.disk_cache import BULKY
from thaw.errors import DamagedShard, FeatureOverflow
from thaw.index import KEY_DTYPE, Key, KeyIndex, pack_keys
from thaw.marker import checksum
from thaw.records import FeatureSpace
from thaw.store import Store

# What is copied at a time bounds the memory that threads take beside the rows they read.
_COPIED_ROWS = 32
_FETCHES = 5
_FACTS = "space.json"
_NOT_A_SHARD = (ValueError, KeyError, TypeError, FileNotFoundError)


def read_space(digest: str, store: Store) -> FeatureSpace:
    """What the digest of a feature space stands for."""
    return store.read_file(store.folder("features", digest, _FACTS), FeatureSpace)


class SpaceFolder:
    """One feature space on disk: `features/<space>/<shard>/features.npy, keys.npy, shard.json`.

    Opening reads and checks the keys only. Features are checked by `verify`, and else when a shard is
    first read from. A damaged shard is set aside, so that its rows count as missing.

    Wherever keys are taken, those that `pack_keys` packed before are taken as well, except by `missing`
    and `append`.
    """

    def __init__(self, store: Store, space: FeatureSpace):
        self.space = space
        self._store = store
        self._folder = store.folder("features", space.digest)
        # Names of shards by number, and which of them were checked. No number is given twice.
        self._numbers = count()
        self._shards: dict[int, str] = {}
        self._checked: set[int] = set()
        self._index = KeyIndex()
        self._shape: tuple[int, ...] | None = None
        # Held by whoever sets shards aside, while others may be reading.
        self._changing = threading.Lock()
        self._open(dict(zip(self._numbers, self._list_shards(), strict=False)))

    def __len__(self) -> int:
        return len(self._index)

    @property
    def shape(self) -> tuple[int, ...]:
        """One row's (height, width, channels)."""
        if self._shape is None:
            if not self._shards:
                raise KeyError(f"no shard holds any row at {self.space.cut}")
            self._shape = self._map(next(iter(self._shards))).shape[1:]
        return self._shape

    def holds(self, keys: Iterable[Key] | np.ndarray) -> np.ndarray:
        """Which keys some shard holds: bool (n,)."""
        return self._index.find(pack_keys(keys))[:, 0] >= 0

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Those keys that no shard holds, in the order given, each once."""
        keys = list(keys)
        return list(dict.fromkeys(compress(keys, (~self.holds(keys)).tolist())))

    def is_published(self, keys: Sequence[Key]) -> bool:
        """Whether a shard of just these rows is published by now, here or by anybody else."""
        return self._store.is_published("features", self.space.digest, _name_shard(pack_keys(keys)))

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
        packed = pack_keys(keys)
        name = _name_shard(packed)
        with self._store.publish_folder("features", self.space.digest, name) as partial:
            np.save(partial / BULKY, rows, allow_pickle=False)
            np.save(partial / "keys.npy", packed, allow_pickle=False)
            files = [partial / file for file in (BULKY, "keys.npy")]
            facts = {
                "rows": len(rows),
                "bytes": {file.name: file.stat().st_size for file in files},
                "sha256": {file.name: checksum(file) for file in files},
            }
            (partial / "shard.json").write_text(json.dumps(facts))
        self._open({next(self._numbers): name})

    def publish_facts(self) -> None:
        """Write `space.json`, which says what the folder's digest stands for, where it is not there."""
        if not self._store.fetch("features", self.space.digest, _FACTS).exists():
            with self._store.publish_file("features", self.space.digest, _FACTS) as partial:
                partial.write_text(self.space.to_json(), encoding="utf-8")

    def verify(self, keys: Iterable[Key] | np.ndarray | None = None) -> int:
        """Compare the checksums of the shards that hold these keys, or of all, once per process.

        Damaged shards are set aside, so that their rows are missing from now on; places that `find` gave
        for other rows stay valid. Returns how many were set aside.
        """
        if keys is None:
            numbers = list(self._shards)
        else:
            held = np.unique(self._index.find(pack_keys(keys))[:, 0])
            numbers = held[held >= 0].tolist()
        with ThreadPoolExecutor() as pool:
            reasons = dict(zip(numbers, pool.map(self._find_damage, numbers), strict=True))
        damaged = {number: reason for number, reason in reasons.items() if reason}
        self._set_aside(damaged)
        return len(damaged)

    def find(self, keys: Iterable[Key] | np.ndarray) -> np.ndarray:
        """Where rows lie: an int64 array (n, 2) of shard and row numbers, for `read`.

        Raises:
            KeyError: no shard holds one of the keys.
        """
        packed = pack_keys(keys)
        places = self._index.find(packed)
        absent = np.flatnonzero(places[:, 0] < 0)
        if absent.size:
            first = packed[absent[0]]
            raise KeyError(
                f"no shard holds {absent.size} rows, first {first['image'].tobytes().hex()} {first['view']}"
            )
        return places

    def read(self, places: np.ndarray, at_once: int = 1, backwards: bool = False) -> np.ndarray:
        """Copy rows out of the memory-mapped shards: (n, *shape) in the storage dtype.

        Args:
            at_once: how many shards are opened at the same time, and fetched where they are not on this disk.
            backwards: from the last shard to the first.

        Raises:
            DamagedShard: a shard does not match its checksum, seen when it is first read from, or was set aside.
        """
        rows = np.empty((len(places), *self.shape), dtype=self.space.storage)
        # Each shard once, from front to back.
        order = np.lexsort((places[:, 1], places[:, 0]))
        numbers, starts = np.unique(places[order, 0], return_index=True)
        visits = list(zip(numbers.tolist(), np.split(order, starts[1:]), strict=False))

        def copy(visit: tuple[int, np.ndarray]) -> None:
            number, some = visit
            shard = self._map(number)
            for start in range(0, len(some), _COPIED_ROWS):
                few = some[start : start + _COPIED_ROWS]
                rows[few] = shard[places[few, 1]]

        if backwards:
            visits.reverse()
        if at_once == 1:
            for visit in visits:
                copy(visit)
        else:
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(copy, visits))
        return rows

    def _list_shards(self) -> list[str]:
        """The names of all shards, in an order that is always the same."""
        return sorted(name for name in self._store.list("features", self.space.digest) if name != _FACTS)

    def _open(self, names: dict[int, str]) -> None:
        """Take shards into the index, by number; what is none is set aside."""
        opened = {}
        self._store.fetch_folders(
            [("features", self.space.digest, name) for name in names.values()], but=(BULKY,)
        )
        for number, name in names.items():
            try:
                opened[number] = self._read_keys(name)
            except _NOT_A_SHARD as error:
                self._store.set_aside(self._folder / name, str(error))
        if opened:
            self._shards |= {number: names[number] for number in opened}
            sizes = [len(keys) for keys in opened.values()]
            rows = np.concatenate([np.arange(size) for size in sizes])
            places = np.column_stack([np.repeat(list(opened), sizes), rows])
            self._index.add(np.concatenate(list(opened.values())), places)

    def _read_keys(self, name: str) -> np.ndarray:
        """The packed keys of a shard's rows, once they match their checksum and the features are all there.

        Raises one of _NOT_A_SHARD.
        """
        folder = self._folder / name
        facts = json.loads((folder / "shard.json").read_bytes())
        content = (folder / "keys.npy").read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]["keys.npy"]:
            raise ValueError("keys.npy does not match its checksum")
        keys = read_array(content)
        if keys.dtype != KEY_DTYPE or len(keys) != facts["rows"]:
            raise ValueError("keys.npy does not hold the keys of its rows")
        # Older shards don't say how large their files are; what is not here yet is checked when it is brought.
        if "bytes" in facts and not self._store.mirror:
            size = (folder / BULKY).stat().st_size
            if size != facts["bytes"][BULKY]:
                raise ValueError(f"{BULKY} has {size} bytes, not {facts['bytes'][BULKY]}")
        return keys

    def _map(self, number: int) -> np.ndarray:
        """A shard's features, memory-mapped: (rows, *shape)."""
        with self._changing:
            name, rows = self._shards.get(number, ""), len(self)
        if name:
            reason = None if number in self._checked else self._find_damage(number)
            try:
                if reason is None:
                    return self._map_bytes(name)
            except FileNotFoundError as error:  # another process set it aside since it was checked
                reason = str(error)
            self._set_aside({number: reason})
        lost = rows - len(self)
        raise DamagedShard(
            f"shard {name or number} of the features at {self.space.cut} was damaged and is set aside; "
            f"its {f'{lost:,} ' if lost else ''}rows are made again by the same command."
        )

    def _map_bytes(self, name: str) -> np.ndarray:
        file = self._folder / name / BULKY
        if not self._store.mirror:
            return keep_mapped(file, *_tell_version(file))
        for attempt in count(1):
            with self._store.mirror.cache.opening(file):
                self._store.fetch("features", self.space.digest, name, BULKY)
                try:
                    # A map that is kept would keep the disk from being freed.
                    return map_array(file)
                except FileNotFoundError:
                    # Another process may delete it at any time; where it is lost for good, fetching it says so.
                    if attempt == _FETCHES:
                        raise
        raise AssertionError("unreachable")

    def _find_damage(self, number: int) -> str | None:
        """What is wrong with a shard's features, if anything; what comes from an object store is checked on its way."""
        if self._store.mirror:
            return None
        folder = self._folder / self._shards[number]
        try:
            # Read when it is asked for: another process may have made the shard again by now.
            facts = json.loads((folder / "shard.json").read_bytes())
            if checksum(folder / BULKY) != facts["sha256"][BULKY]:
                return "features.npy does not match its checksum"
        except _NOT_A_SHARD as error:
            return str(error)
        self._checked.add(number)
        return None

    def _set_aside(self, damaged: dict[int, str]) -> None:
        """Move shards out of the way, by number with the reason, and take them out of the index."""
        if not damaged:
            return
        with self._changing:
            for number in damaged.keys() & self._shards.keys():
                self._store.set_aside(self._folder / self._shards.pop(number), damaged[number])
            # Other shards may hold some of the same rows, so that those which are left are taken in anew.
            left, self._shards, self._index = self._shards, {}, KeyIndex()
            self._open(left)


def _name_shard(packed: np.ndarray) -> str:
    return hashlib.sha256(packed.tobytes()).hexdigest()[:16]


def _tell_version(file: Path) -> tuple[int, ...]:
    """What changes when the file does."""
    facts = file.stat()
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
