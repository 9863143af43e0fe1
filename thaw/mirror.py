"""This machine's copy of a store that lies in an object store, and how things are published there.

What is read is brought here first, what is made is put there before it counts. A folder is published in two
steps: its files go to `<folder>/<checksum>/<name>`, where nobody looks; then its marker, with the names, sizes
and checksums of the files, is put where there is none yet. Whoever comes second drops its own. So a writer that
dies in between leaves nothing that is read.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from thaw.disk_cache import DiskCache, find_cache_folder
from thaw.location import Url
from thaw.objects import Objects

MARKER = "published.json"
_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file of a published folder: its size in bytes, and the SHA-256 of those."""

    bytes: int
    sha256: str

    def find(self, folder: str, name: str) -> str:
        """The key of its object."""
        return f"{folder}/{self.sha256[:16]}/{name}"


Marker = Mapping[str, Published]


def describe_folder(folder: Path) -> bytes:
    """A marker for the files of a folder, those of its subfolders included."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in files
    }
    return json.dumps({"files": facts}, indent=1).encode()


def read_marker(data: bytes) -> Marker:
    """The files that a marker names."""
    return {name: Published(**facts) for name, facts in json.loads(data)["files"].items()}


class Mirror:
    """Brings what is published in an object store to this disk, and publishes there. Keys are POSIX paths."""

    def __init__(self, url: Url):
        self.objects = Objects(url)
        place = f"{url.name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        self.folder = find_cache_folder() / "stores" / place
        self.cache = DiskCache(self.folder)

    def find_marker(self, folder: str) -> Marker | None:
        """What is published as a folder, or None."""
        try:
            data = self.objects.read(f"{folder}/{MARKER}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return read_marker(data)

    def list(self, folder: str) -> list[str]:
        """Names of what is published directly in a folder, files and folders, the newest first."""
        newest: dict[str, float] = {}
        for key, facts in self.objects.list(folder).items():
            name, *rest = key[len(folder) + 1 :].split("/")
            # Anything deeper is a file of a folder, and counts where that has its marker.
            if len(rest) < 2:
                newest[name] = max(facts.written, newest.get(name, 0.0))
        return sorted(newest, key=lambda name: newest[name], reverse=True)

    def bring(self, key: str) -> bool:
        """See that a published file, or a published folder with all its files, is here; False where there is none."""
        folder, _, name = key.rpartition("/")
        known = self._recall_marker(folder)
        if known is None or name not in known:
            if f"{key}/{MARKER}" in self.objects.list(key):
                self.bring_folders([key])
                return True
            with suppress(FileNotFoundError, FileExistsError, IsADirectoryError), self._aside(key) as partial:
                self.objects.download(key, partial)
                return True
            known = self.find_marker(folder) if folder else None
        if known is None or name not in known:
            return False
        self.bring_file(folder, name, known)
        return True

    def bring_file(self, folder: str, name: str, marker: Marker | None = None) -> Path:
        """One file of a published folder, whole as it was published.

        Raises:
            FileNotFoundError: it is not published, or its bytes are lost or damaged there.
        """
        file = self.folder / folder / name
        marker = marker or self._recall_marker(folder) or self.find_marker(folder) or {}
        if name not in marker:
            raise FileNotFoundError(f"{folder}/{name} is not published")
        bulky = self.cache.holds(file)
        if file.is_file() and file.stat().st_size == marker[name].bytes:
            if bulky:
                self.cache.hit(file)
            return file
        with self.cache.room(marker[name].bytes) if bulky else nullcontext():
            with self._aside(f"{folder}/{name}") as partial:
                self.objects.download(marker[name].find(folder, name), partial)
                if _hash(partial) != marker[name].sha256:
                    raise FileNotFoundError(f"{folder}/{name} does not match its checksum")
            if bulky:
                self.cache.miss(file, marker[name].bytes)
        return file

    def bring_folders(self, folders: Sequence[str], but: Sequence[str] = ()) -> None:
        """Bring published folders, many at once, but for files of certain names."""
        unknown = [folder for folder in folders if self._recall_marker(folder) is None]
        markers = self.objects.read_many([f"{folder}/{MARKER}" for folder in unknown])
        wanted = []
        for folder in folders:
            data = markers.get(f"{folder}/{MARKER}")
            marker = read_marker(data) if data else self._recall_marker(folder)
            wanted += [(folder, name, marker) for name in marker or () if name not in but]
            if data:
                self._write(f"{folder}/{MARKER}", data)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda one: self.bring_file(*one), wanted):
                pass

    def put_file(self, file: Path, key: str) -> None:
        """Publish a file, over the one that is there; it stays here as well."""
        self.objects.upload(file, key)
        self._place(file, key)

    def upload(self, path: Path) -> None:
        """Put a file, or every file of a folder, that was written here to begin with."""
        for file in path.rglob("*") if path.is_dir() else (path,):
            if file.is_file():
                self.objects.upload(file, file.relative_to(self.folder).as_posix())

    def put_folder(self, folder: Path, key: str) -> None:
        """Publish a folder unless another writer was faster; what was published is here afterwards, or fetched."""
        data = describe_folder(folder)
        marker = read_marker(data)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(
                pool.map(
                    lambda name: self.objects.upload(folder / name, marker[name].find(key, name)), marker
                )
            )
        if not self.objects.create(f"{key}/{MARKER}", data):
            winner = self.find_marker(key) or {}
            lost = [facts.find(key, name) for name, facts in marker.items() if winner.get(name) != facts]
            self.objects.delete(lost)
            return
        (folder / MARKER).write_bytes(data)
        self._place(folder, key)
        for name, facts in marker.items():
            file = self.folder / key / name
            if self.cache.holds(file):
                self.cache.make_room(facts.bytes)
                self.cache.keep(file, facts.bytes)

    def delete(self, key: str) -> None:
        """Delete a published file or folder, its marker first, here and there."""
        listed = self.objects.list(key)
        marker = f"{key}/{MARKER}"
        self.objects.delete([*([marker] if marker in listed else []), *(listed.keys() - {marker})])
        self.forget(key)

    def forget(self, key: str) -> None:
        """Delete the copy that is here."""
        here = self.folder / key
        if here.is_dir():
            shutil.rmtree(here, ignore_errors=True)
        here.is_file() and here.unlink(missing_ok=True)

    def set_aside(self, key: str, under: str) -> None:
        """Take a damaged file or folder out of the way: what is left of it is kept at another key."""
        for name in (key, f"{key}/{MARKER}"):
            with suppress(FileNotFoundError, IsADirectoryError):
                self.objects.replace(name.replace(key, under, 1), self.objects.read(name))
                self.objects.delete([name])
        self.forget(key)

    def _recall_marker(self, folder: str) -> Marker | None:
        """The marker of a folder that was brought here before: published folders don't change."""
        try:
            return read_marker((self.folder / folder / MARKER).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _write(self, key: str, data: bytes) -> None:
        with self._aside(key) as partial:
            partial.write_bytes(data)

    def _place(self, made: Path, key: str) -> None:
        target = self.folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        if made.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        with suppress(OSError):  # another process brought it here meanwhile
            made.rename(target)

    @contextmanager
    def _aside(self, key: str) -> Iterator[Path]:
        """Yield a path to write; at the end it becomes the copy of `key`."""
        partials = self.folder / "partial"
        partials.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=partials)
        os.close(descriptor)
        partial, target = Path(name), self.folder / key
        try:
            yield partial
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
