"""How much of a store in an object store is kept on this machine's disk: the shards read last, up to a limit."""

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from thaw.errors import BadConfig

# The only files that come and go with what is read; all else in a store is small beside them.
BULKY = "features.npy"
_LIMIT = "THAW_CACHE_GB"
# Some are deleted ahead of need: finding out what is there takes a look at every file.
_EVICTED_TO = 0.9
# What is on its way at a time takes room from what is kept.
_COMING_SHARE = 0.25


@dataclass(frozen=True)
class Traffic:
    """What reading shards has cost so far: those that were on this disk, those that were fetched, and their bytes."""

    hits: int = 0
    misses: int = 0
    fetched_bytes: int = 0

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.hits - other.hits, self.misses - other.misses, self.fetched_bytes - other.fetched_bytes
        )

    def __str__(self) -> str:
        reads = self.hits + self.misses
        return (
            f"{self.hits / max(reads, 1):.0%} of {reads:,} shard reads from this disk, "
            f"{self.fetched_bytes / 1e6:,.0f} MB fetched"
        )


class DiskCache:
    """Keeps the bulky files below a folder within a limit: those that were not used for longest go first.

    Several processes may share the folder. A file may go at any time; who needs it fetches it again.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None):
        """`limit_bytes` defaults to what THAW_CACHE_GB says, in 1e9 bytes; without it there is no limit."""
        self.traffic = Traffic()
        self.limit_bytes = _read_limit() if limit_bytes is None else limit_bytes
        self._folder = folder
        self._lock = threading.Condition()
        self._held: int | None = None
        self._coming = 0
        self._opening: Counter[Path] = Counter()

    def holds(self, file: Path) -> bool:
        """Whether a file is one of those that count."""
        return file.name == BULKY

    def hit(self, file: Path) -> None:
        """Tell that a file was found here and is used."""
        with self._lock:
            self.traffic = replace(self.traffic, hits=self.traffic.hits + 1)
        with suppress(FileNotFoundError):
            os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))

    def miss(self, file: Path, size: int) -> None:
        """Tell that a file of so many bytes was fetched."""
        with self._lock:
            fetched = self.traffic.fetched_bytes + size
            self.traffic = replace(self.traffic, misses=self.traffic.misses + 1, fetched_bytes=fetched)
        self.keep(file, size)

    def keep(self, file: Path, size: int) -> None:
        """Tell that a file of so many bytes was put here."""
        with self._lock:
            if self._held is not None:
                self._held += size

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Have room for a file of so many bytes while it is fetched, beside those that others fetch meanwhile."""
        most = math.inf if self.limit_bytes is None else _COMING_SHARE * self.limit_bytes
        with self._lock:
            self._lock.wait_for(lambda: not self._coming or self._coming + size <= most)
            self._coming += size
        try:
            self.make_room()
            yield
        finally:
            with self._lock:
                self._coming -= size
                self._lock.notify_all()

    @contextmanager
    def opening(self, file: Path) -> Iterator[None]:
        """Keep a file from being deleted by this process until it is open: what is open can be read to its end."""
        with self._lock:
            self._opening[file] += 1
        try:
            yield
        finally:
            with self._lock:
                self._opening[file] -= 1

    def make_room(self, size: int = 0) -> None:
        """Delete what was not used for longest, where another file of so many bytes would break the limit."""
        if self.limit_bytes is None:
            return
        with self._lock:
            size += self._coming
            if self._held is not None and self._held + size <= self.limit_bytes:
                return
            # Other processes add files too: only the folder itself knows.
            files = sorted(self._list(), key=lambda found: found[1])
            self._held = sum(held for _, _, held in files)
            for file, _, held in files:
                if self._held + size <= _EVICTED_TO * self.limit_bytes:
                    break
                if self._opening[file]:
                    continue
                file.unlink(missing_ok=True)
                self._held -= held

    def _list(self) -> list[tuple[Path, int, int]]:
        found = []
        for file in self._folder.glob(f"features/*/*/{BULKY}"):
            with suppress(FileNotFoundError):
                facts = file.stat()
                found.append((file, facts.st_atime_ns, facts.st_size))
        return found


def find_cache_folder() -> Path:
    """THAW_CACHE, or `thaw` in the user's cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thaw"
    return Path(os.environ.get("THAW_CACHE") or usual).expanduser().absolute()


def _read_limit() -> int | None:
    text = os.environ.get(_LIMIT)
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if limit <= 0:
        raise BadConfig(f"{_LIMIT} is a number of gigabytes above 0, such as 50. Received: {text!r}.")
    return int(limit * 1e9)
