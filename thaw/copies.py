"""The copies on this machine's disk of what is published in an object store."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from thaw.errors import Damaged
from thaw.marker import MARKER, Marker, Published, checksum, read_marker

# Disks and object stores round the times that they keep.
_SAME_SECONDS = 0.001


class Copies:
    """Files below a folder, at the keys that they are published under. Several processes may share it.

    A folder's copy is that of the marker which is here too. What was brought by one marker never stays beside another.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        # When the markers that were listed last were written, in seconds since 1970, by their folders.
        self._listed: dict[str, float] = {}

    def note(self, folder: str, written: float) -> None:
        """Tell when the marker that is published was written: a copy of another one does not count from now on."""
        self._listed[folder] = written

    def recall_marker(self, folder: str) -> Marker | None:
        """The marker of a folder that was brought here before, unless another one was noted since."""
        file = self.folder / folder / MARKER
        try:
            facts = file.stat()
            if abs(self._listed.get(folder, facts.st_mtime) - facts.st_mtime) > _SAME_SECONDS:
                return None
            return _read_marker_file(file, facts.st_mtime_ns, facts.st_size, facts.st_ino)
        except (OSError, ValueError):
            return None

    def keep_marker(self, folder: str, data: bytes) -> Marker:
        """Have a marker that is published here too, and nothing that was brought by another one.

        Raises:
            Damaged: it is none.
        """
        try:
            marker = read_marker(data)
        except ValueError as error:
            raise Damaged(f"the marker of {folder} is damaged: {error}", folder) from error
        file = self.folder / folder / MARKER
        try:
            known = file.read_bytes() == data
        except OSError:
            known = None
        if known is False:
            self.forget(folder)
        if not known:
            with self.aside(f"{folder}/{MARKER}") as partial:
                partial.write_bytes(data)
        if folder in self._listed:
            with suppress(FileNotFoundError):
                os.utime(file, (self._listed[folder], self._listed[folder]))
        return marker

    def holds_folder(self, folder: str) -> bool:
        """Whether anything of a published folder was brought here."""
        return (self.folder / folder / MARKER).exists()

    def forget(self, key: str) -> None:
        """Delete the copy of a file, or of a folder with all that is in it, at once."""
        here = self.folder / key
        if here.is_dir():
            gone = Path(tempfile.mkdtemp(dir=self._make_partials()))
            with suppress(OSError):  # whoever else forgets it is as good
                here.rename(gone / here.name)
            shutil.rmtree(gone, ignore_errors=True)
        else:
            with suppress(NotADirectoryError):
                here.unlink(missing_ok=True)

    def place(self, made: Path, key: str) -> None:
        """Move a file to where the copy of a key lies."""
        target = self.folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        made.replace(target)

    @contextmanager
    def aside(self, key: str) -> Iterator[Path]:
        """Yield a file to write; at the end it becomes the copy of a key."""
        descriptor, name = tempfile.mkstemp(dir=self._make_partials())
        os.close(descriptor)
        partial = Path(name)
        try:
            yield partial
            self.place(partial, key)
        finally:
            partial.unlink(missing_ok=True)

    def _make_partials(self) -> Path:
        partials = self.folder / "partial"
        partials.mkdir(parents=True, exist_ok=True)
        return partials


def is_whole(file: Path, facts: Published) -> bool:
    """Whether a file is here with the bytes that were published."""
    try:
        return file.stat().st_size == facts.bytes and checksum(file) == facts.sha256
    except (FileNotFoundError, NotADirectoryError):
        return False


@lru_cache(maxsize=100_000)
def _read_marker_file(file: Path, *_changed: int) -> Marker:
    return read_marker(file.read_bytes())
