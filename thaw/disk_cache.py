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
# A look at the folder costs as much as it has files: one for each file that comes would be too many.
_FILES_A_LOOK = 100
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

    A file that is larger than the limit is kept alone. Several processes may share the folder, each with what it
    is fetching on top for a moment. A file may go at any time; who needs it fetches it again.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None):
        """`limit_bytes` defaults to what THAW_CACHE_GB says, in 1e9 bytes; without it there is no limit.

        Raises:
            BadConfig: THAW_CACHE_GB is no number above 0.
        """
        self.traffic = Traffic()
        self.limit_bytes = _read_limit() if limit_bytes is None else limit_bytes
        self._folder = folder
        self._lock = threading.Condition()
        # Bytes here when the folder was last looked at and since, and how many files may come until the next look.
        self._held, self._looks_in = 0, 0
        # Bytes of files that this process is about to put here, and files that it is about to open.
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

    def miss(self, size: int) -> None:
        """Tell that a file of so many bytes was fetched."""
        with self._lock:
            fetched = self.traffic.fetched_bytes + size
            self.traffic = replace(self.traffic, misses=self.traffic.misses + 1, fetched_bytes=fetched)

    @contextmanager
    def room(self, file: Path, size: int) -> Iterator[None]:
        """Have room for a file of so many bytes, which is put here inside; what is not one of those that count has.

        What was not used for longest is deleted where the limit would be broken.
        """
        if not self.holds(file) or self.limit_bytes is None:
            yield
            return
        most = _COMING_SHARE * self.limit_bytes
        with self._lock:
            self._lock.wait_for(lambda: not self._coming or self._coming + size <= most)
            self._coming += size
            self._evict(file)
        try:
            yield
        finally:
            with self._lock:
                self._coming -= size
                self._held += size
                self._evict(file)
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
                if not self._opening[file]:
                    del self._opening[file]

    def _evict(self, newest: Path) -> None:
        self._looks_in -= 1
        if self._held + self._coming <= self.limit_bytes and self._looks_in > 0:
            return
        # Other processes add files too: only the folder itself knows.
        files = sorted(self._list(), key=lambda found: found[1])
        self._looks_in = len(files) // _FILES_A_LOOK
        self._held = sum(size for _, _, size in files)
        if self._held + self._coming <= self.limit_bytes:
            return
        for file, _, size in files:
            if self._held + self._coming <= _EVICTED_TO * self.limit_bytes:
                break
            if file != newest and not self._opening[file]:
                file.unlink(missing_ok=True)
                self._held -= size

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
        limit = math.nan
    if not 0 < limit < math.inf:
        raise BadConfig(f"{_LIMIT} is a number of gigabytes above 0, such as 50. Received: {text!r}.")
    return int(limit * 1e9)
