"""The disk that a store, or a copy of one, lies on: making things there, and what to say when it is full."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from thaw.errors import DiskFull, StoreNotWritable

_ABANDONED_SECONDS = 24 * 3600
_NEARLY_FULL_BYTES = 1_000_000
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


class Disk:
    """A folder on a disk, created when first written to.

    Raises:
        DiskFull: there is no room left.
        StoreNotWritable: the folder can't be created or written.
    """

    def __init__(self, root: Path, copies: str | None = None):
        """`copies` is the address of the store that the folder holds copies of, where it is not that store."""
        self._root = root
        self._name = (
            f"this machine's copy of the store at {copies}, {root}," if copies else f"the store at {root}"
        )
        self._ways_out = (
            ("let it keep less, with THAW_CACHE_GB", "with THAW_CACHE")
            if copies
            else ("move the store and pass --store", "with --store or THAW_STORE")
        )

    def free_bytes(self) -> int:
        """Bytes left on the disk that the folder lies on or would lie on."""
        return shutil.disk_usage(
            next(path for path in (self._root, *self._root.parents) if path.exists())
        ).free

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """Yield a new folder on the same disk, which is gone afterwards."""
        with self.writing():
            partials = self._root / "partial"
            partials.mkdir(parents=True, exist_ok=True)
            _sweep(partials)
            folder = Path(tempfile.mkdtemp(dir=partials))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def remove_folder(self, folder: Path) -> None:
        """Delete a folder at once: one that is being deleted is not there any more."""
        try:
            with self.partial() as partial, suppress(FileNotFoundError):  # deleted meanwhile
                folder.rename(partial / folder.name)
        except DiskFull:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Tell in plain words why the disk can't be written."""
        try:
            yield
        except OSError as error:
            # NumPy's and HDF5's own writers report a short write without an error number.
            if error.errno in (errno.ENOSPC, errno.EDQUOT) or (
                error.errno is None and self.free_bytes() < _NEARLY_FULL_BYTES
            ):
                raise DiskFull(
                    f"no room left for {self._name} ({self.free_bytes() / 1e6:.0f} MB free). "
                    f"What is published stays valid: make room, or {self._ways_out[0]}, "
                    "then run the same command again."
                ) from error
            if error.errno in _NOT_WRITABLE and Path(error.filename or self._root).is_relative_to(self._root):
                raise StoreNotWritable(
                    f"{self._name} can't be written: {error.strerror}. "
                    f"Choose another folder {self._ways_out[1]}, or mend its permissions."
                ) from error
            raise


def write_through(path: Path, data: bytes) -> None:
    """Write a file so that it outlives a power cut."""
    with path.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _sweep(partials: Path) -> None:
    """Remove what killed writers left behind long ago."""
    for leftover in partials.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink()
