"""This machine's copy of a store that lies in an object store, and how things are published there.

What is read is brought here first, what is made is put there before it counts. A folder is published in two
steps: its files go to `<folder>/<checksum>/<name>`, where nobody looks; then its marker, with the names, sizes
and checksums of the files, is put where there is none yet. Whoever comes second drops its own. So a writer that
dies in between leaves nothing that is read, and what is read is one writer's, whole.

A copy here counts as long as its bytes are those that the marker names. The marker's own copy may be older than
what is published, where another machine set that aside and made it again: it is held against the marker there
whenever the folder is looked for or listed, and where a file that it names is gone.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

from thaw.copies import Copies, is_whole
from thaw.disk_cache import DiskCache, find_cache_folder
from thaw.errors import Damaged
from thaw.location import Url
from thaw.marker import MARKER, Marker, Published, describe_folder, read_marker
from thaw.objects import Objects

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

_AT_ONCE = 16
# Whoever publishes and finds what is there damaged sets that aside; only ever new damage makes it try again.
_ATTEMPTS = 5
# Bytes that a network damaged on their way are whole the next time.
_DOWNLOADS = 2
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)


class Mirror:
    """Brings what is published in an object store to this disk, and publishes there. Keys are POSIX paths.

    Raises:
        Damaged: what is asked for is published, and its bytes are not those that were.
    """

    def __init__(self, url: Url):
        self.objects = Objects(url)
        place = f"{url.name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        self.folder = find_cache_folder() / "stores" / place
        self.cache = DiskCache(self.folder)
        self.copies = Copies(self.folder)

    def find_marker(self, folder: str) -> Marker | None:
        """What is published as a folder by now, or None."""
        try:
            data = self.objects.read(f"{folder}/{MARKER}")
        except _NOT_THERE:
            if self.copies.holds_folder(folder):
                self.copies.forget(folder)
            return None
        return self.copies.keep_marker(folder, data)

    def list(self, folder: str) -> list[str]:
        """Names of what is published directly in a folder, files and folders, the newest first."""
        newest: dict[str, float] = {}
        for key, facts in self.objects.list(folder).items():
            name, *rest = key[len(folder) + 1 :].split("/")
            # Anything deeper is a file of a folder, and counts where that has its marker.
            if len(rest) < 2:
                newest[name] = max(facts.written, newest.get(name, 0.0))
            if rest == [MARKER]:
                self.copies.note(f"{folder}/{name}", facts.written)
        return sorted(newest, key=lambda name: newest[name], reverse=True)

    def bring(self, key: str) -> bool:
        """See that a published file, or a published folder with all its files, is here; False where there is none."""
        marker = self.copies.recall_marker(key)
        if marker is not None:
            self._bring_files((key, name, marker) for name in marker)
            return True
        within = [(folder.as_posix(), key[len(folder.as_posix()) + 1 :]) for folder in _list_folders(key)]
        for find in (self.copies.recall_marker, self.find_marker):
            for folder, name in within:
                marker = find(folder)
                if marker is not None and name in marker:
                    self.bring_file(folder, name, marker)
                    return True
        with suppress(*_NOT_THERE), self.copies.aside(key) as partial:
            self.objects.download(key, partial)
            return True
        marker = self.find_marker(key)
        if marker is not None:
            self._bring_files((key, name, marker) for name in marker)
        return marker is not None

    def bring_file(self, folder: str, name: str, marker: Marker) -> Path:
        """One file of a published folder, whole as it was published.

        Raises:
            FileNotFoundError: it is published no more.
        """
        file = self.folder / folder / name
        if is_whole(file, marker[name]):
            if self.cache.holds(file):
                self.cache.hit(file)
            return file
        try:
            self._download(folder, name, marker[name])
        except Damaged:
            published = self.find_marker(folder)
            if published is None or name not in published:
                raise FileNotFoundError(f"{folder}/{name} is not published any more") from None
            if published[name] == marker[name]:
                raise
            return self.bring_file(folder, name, published)
        return file

    def bring_folders(self, folders: Sequence[str], but: Sequence[str] = ()) -> dict[str, Damaged]:
        """Bring published folders, many at once, but for files of certain names; tells which are damaged."""
        known = {folder: self.copies.recall_marker(folder) for folder in folders}
        markers = self.objects.read_many(
            [f"{name}/{MARKER}" for name, marker in known.items() if marker is None]
        )
        damaged: dict[str, Damaged] = {}
        for key, data in markers.items():
            folder = key.removesuffix(f"/{MARKER}")
            try:
                known[folder] = self.copies.keep_marker(folder, data)
            except Damaged as error:
                damaged[folder] = error

        def bring(file: tuple[str, str, Marker]) -> None:
            try:
                self.bring_file(*file)
            except Damaged as error:
                damaged[file[0]] = error
            except FileNotFoundError:
                pass  # set aside or deleted since it was asked for

        wanted = [(folder, name, marker) for folder, marker in known.items() for name in marker or ()]
        _do_at_once(bring, [file for file in wanted if file[1] not in but])
        return damaged

    def put_file(self, file: Path, key: str) -> None:
        """Publish a file, over the one that is there; it stays here as well."""
        self.objects.upload(file, key)
        self.copies.place(file, key)

    def upload(self, path: Path) -> None:
        """Put a file, or every file of a folder, that was written here to begin with."""
        for file in path.rglob("*") if path.is_dir() else (path,):
            if file.is_file():
                self.objects.upload(file, file.relative_to(self.folder).as_posix())

    def put_folder(self, folder: Path, key: str) -> None:
        """Publish a folder unless another writer was faster; what is published is here afterwards."""
        data = describe_folder(folder)
        marker = read_marker(data)
        for _ in range(_ATTEMPTS):
            _do_at_once(lambda name: self.objects.upload(folder / name, marker[name].find(key, name)), marker)
            if self.objects.create(f"{key}/{MARKER}", data):
                self._keep(folder, key, data, marker)
                return
            with suppress(Damaged):
                winner = self.find_marker(key)
                if winner is None:
                    continue  # set aside since
                if not self.bring_folders([key]):
                    lost = [
                        facts.find(key, name) for name, facts in marker.items() if winner.get(name) != facts
                    ]
                    self.objects.delete(lost)
                    return
            if self.set_aside(key, name_damaged(key)):
                logger.warning("%s/%s was damaged, and is published again", self.objects.url, key)
        raise Damaged(f"{self.objects.url}/{key} was damaged each time that it was published", key)

    def delete(self, key: str) -> None:
        """Delete a published file or folder, the markers first, here and there."""
        listed = self.objects.list(key).keys()
        markers = {name for name in listed if name.endswith(f"/{MARKER}")}
        self.objects.delete(sorted(markers))
        self.objects.delete([*sorted(listed - markers), *([] if listed else [key])])
        self.copies.forget(key)

    def set_aside(self, key: str, under: str, certain: bool = True) -> bool:
        """Take a damaged file or folder out of the way: what is left of it stays, where nobody looks.

        Where it is not `certain`, and the bytes there are those that were published, nothing but the copy here was
        damaged, and is made whole. Two that set the same aside do it once; where one is late by so much that the
        folder was published again in the very moment before it deletes, that work is done once more.

        Args:
            under: the key that what is left goes to.

        Returns:
            Whether anything was set aside.
        """
        for name in (f"{key}/{MARKER}", key):
            with suppress(*_NOT_THERE):
                data = self.objects.read(name)
                if not certain and self._is_sound_there(key, None if name == key else data):
                    return False
                self.objects.replace(f"{under}{name.removeprefix(key)}", data)
                if self.objects.read(name) == data:
                    self.objects.delete([name])
                self.copies.forget(key)
                return True
        return False

    def _is_sound_there(self, key: str, marker: bytes | None) -> bool:
        """Whether a damaged copy is damaged here alone. A copy that is not is as damaged as what it was made from."""
        file = self.folder / key
        if marker is None:
            return not (file.is_file() and file.read_bytes() == self.objects.read(key))
        try:
            published = self.copies.keep_marker(key, marker)
        except Damaged:
            return False
        if all(is_whole(file / name, facts) for name, facts in published.items()):
            return False
        return not self.bring_folders([key])

    def _bring_files(self, files: Iterable[tuple[str, str, Marker]]) -> None:
        _do_at_once(lambda file: self.bring_file(*file), list(files))

    def _download(self, folder: str, name: str, facts: Published) -> None:
        file, key = self.folder / folder / name, facts.find(folder, name)
        with self.cache.room(file, facts.bytes), self.copies.aside(f"{folder}/{name}") as partial:
            for attempt in range(1, _DOWNLOADS + 1):
                try:
                    self.objects.download(key, partial)
                except _NOT_THERE as error:
                    lost = f"{self.objects.url}/{folder}/{name} is lost, there is no object {key}"
                    raise Damaged(lost, folder) from error
                if is_whole(partial, facts):
                    break
                if attempt == _DOWNLOADS:
                    raise Damaged(f"{self.objects.url}/{folder}/{name} does not match its checksum", folder)
        if self.cache.holds(file):
            self.cache.miss(facts.bytes)

    def _keep(self, folder: Path, key: str, data: bytes, marker: Marker) -> None:
        """Make what was just published the copy here."""
        self.copies.keep_marker(key, data)
        for name, facts in marker.items():
            with self.cache.room(self.folder / key / name, facts.bytes):
                self.copies.place(folder / name, f"{key}/{name}")


def name_damaged(key: str) -> str:
    """Where what is left of a damaged file or folder goes."""
    place = PurePosixPath(key)
    return f"damaged/{place.parent.name}-{place.name}-{time.time_ns()}"


def _list_folders(key: str) -> list[PurePosixPath]:
    """The folders that may be published and hold a key, the innermost first: those directly in the store are kinds."""
    return [folder for folder in PurePosixPath(key).parents if len(folder.parts) > 1]


def _do_at_once(work: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Do the same to many; the first error ends it, and what was not begun is not."""
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        for _ in pool.map(work, items):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
