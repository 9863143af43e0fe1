"""Open a dump in an object store: a folder of objects, or a zip archive that is read in place."""

import tempfile
import threading
import zipfile
from pathlib import Path

from thaw.archive import Dump, ZipDump, check_size, printable
from thaw.arrays import ArrayDump, holds_only_arrays
from thaw.errors import BadDump, BadImage, ThawError
from thaw.location import Url
from thaw.objects import REQUESTS_AT_ONCE, Facts, Objects

# The end of an archive holds its table of contents: 60 to 100 bytes a member.
_TABLE_BYTES = 1024**2
# A member's own header: 30 bytes, its name, and what else its writer noted, which the table may leave out.
_HEADER_BYTES, _NOTES_BYTES = 30, 2**16


def open_remote_dump(url: Url) -> Dump:
    """Open what lies at a URL: as an archive where that ends in .zip or .npz, else as a folder of objects.

    A NumPy archive is fetched whole, into a file that is gone when the dump is closed.

    Raises:
        BadDump: as `thaw.archive.open_dump`.
    """
    objects = Objects(url)
    if url.lower().endswith((".zip", ".npz")):
        try:
            facts = objects.find("")
        except FileNotFoundError:
            return ObjectDump(url, objects)
        if url.lower().endswith(".npz"):
            return _open_arrays(url, objects)
        dump = RemoteZipDump(url, objects, facts)
        if not holds_only_arrays(dump.members()):
            return dump
        dump.close()
        return _open_arrays(url, objects)
    return ObjectDump(url, objects)


class ObjectDump(Dump):
    """A folder of objects, listed once."""

    readers = REQUESTS_AT_ONCE

    def __init__(self, url: Url, objects: Objects):
        super().__init__(url)
        self._objects = objects
        listed = objects.list()
        if not listed:
            raise BadDump(
                f"no dump at {url}: there is no such object or folder. Pass the URL of a zip archive (.zip), of a "
                "NumPy archive (.npz) or of a folder of images."
            )
        for key in sorted(listed):
            parts = key.split("/")
            name = printable("/".join(part for part in parts if part not in ("", ".")))
            if ".." in parts:
                self.refused[name] = "its path leads outside the dump"
            else:
                self._add(name, (key, listed[key].size))

    def close(self) -> None:
        """Nothing stays open between reads."""

    def _read(self, source: tuple[str, int]) -> bytes:
        key, size = source
        check_size(size)
        try:
            return self._objects.read(key)
        except FileNotFoundError:
            raise BadImage("it is not in the dump any more") from None


class RemoteZipDump(ZipDump):
    """A zip archive in an object store. Each member is one request, and threads wait for theirs at once."""

    readers = REQUESTS_AT_ONCE

    def __init__(self, url: Url, objects: Objects, facts: Facts):
        self._objects, self._facts = objects, facts
        self._file = _RemoteFile(objects, facts.size)
        super().__init__(url, self._file)
        self._file.let_go()
        starts = sorted(member.header_offset for member in self._archive.infolist())
        self._ends = dict(zip(starts, [*starts[1:], self._archive.start_dir], strict=True))

    def _read(self, source: zipfile.ZipInfo) -> bytes:
        check_size(source.file_size)
        start = source.header_offset
        # Up to the next member, unless far more lies in between than this one can take up.
        least = _HEADER_BYTES + len(source.orig_filename.encode()) + len(source.extra) + source.compress_size
        size = max(least, min(self._ends[start] - start, least + 2 * _NOTES_BYTES))
        check_size(size)
        try:
            self._file.hold(start, start + size)
            with self._archive.open(source) as member:
                return member.read()
        except ThawError:
            raise
        except Exception:
            if self._has_changed():
                raise BadDump(f"{self.path} changed while it was read. Run the same command again.") from None
            raise
        finally:
            self._file.let_go()

    def _has_changed(self) -> bool:
        try:
            return self._objects.find("") != self._facts
        except FileNotFoundError:
            return True


class _RemoteFile:
    """An object as a file that zipfile reads from many threads: each has a place and held bytes of its own.

    So zipfile's lock, which spans its reads, is never held while the network is waited for, as long as a thread
    holds what it is about to read.
    """

    def __init__(self, objects: Objects, size: int):
        self._objects, self._size = objects, size
        self._own = threading.local()
        self.hold(max(0, size - _TABLE_BYTES), size)

    def hold(self, start: int, end: int) -> None:
        """Fetch these bytes for this thread."""
        end = min(end, self._size)
        self._own.start = start
        self._own.data = self._objects.read("", start, end) if start < end else b""

    def let_go(self) -> None:
        """Forget what this thread holds."""
        self._own.start, self._own.data = 0, b""

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Raises OSError for a place before the start, as files do."""
        place = offset + (0, self.tell(), self._size)[whence]
        if place < 0:
            raise OSError(f"there is no place {place} in a file")
        self._own.place = place
        return place

    def tell(self) -> int:
        return getattr(self._own, "place", 0)

    def read(self, size: int = -1) -> bytes:
        start = self.tell()
        end = self._size if size < 0 else min(start + size, self._size)
        held = getattr(self._own, "start", 0), len(getattr(self._own, "data", b""))
        if start < end and not held[0] <= start <= end <= sum(held):
            self.hold(start, end)
        data = self._own.data[start - self._own.start : end - self._own.start] if start < end else b""
        self._own.place = start + len(data)
        return data

    def close(self) -> None:
        """Nothing is open."""


def _open_arrays(url: Url, objects: Objects) -> ArrayDump:
    with tempfile.TemporaryDirectory(prefix="thaw-") as folder:
        file = Path(folder) / "arrays.npz"
        objects.download("", file)
        # The open archive outlives the file's name.
        return ArrayDump(url, file)
