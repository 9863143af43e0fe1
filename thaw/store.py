"""The store: one folder that holds everything a run makes, under the digest of what decided it.

Whatever is in the store is whole and never changes: it is written aside and put in place by one
rename. A writer that is killed leaves nothing that is read, and two writers of the same thing
agree, so nobody needs a lock. That the work is not done twice is `thaw.claims`' concern.
"""

import errno
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from thaw.errors import DiskFull, NotPublished, StoreNotWritable
from thaw.records import Record

logger = logging.getLogger(__name__)
SomeRecord = TypeVar("SomeRecord", bound=Record)

_ABANDONED_SECONDS = 24 * 3600
_NEARLY_FULL_BYTES = 1_000_000
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


class Store:
    """A store's root folder, created when first written to, or only looked at and never written to."""

    def __init__(self, root: Path | str | None = None, looks_only: bool = False):
        """`root` defaults to THAW_STORE, or `store` in the working folder."""
        self.looks_only = looks_only
        self.root = Path(root or os.environ.get("THAW_STORE") or "store").expanduser().absolute()

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def folder(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def looking(self) -> "Store":
        """The same store, only looked at: a stage finds its result there or raises NotPublished at once."""
        return Store(self.root, looks_only=True)

    def check_may_make(self, *parts: str) -> None:
        """See that what is not published at `parts` may be made here.

        Raises:
            NotPublished: the store is only looked at.
        """
        if self.looks_only:
            raise NotPublished(
                f"{'/'.join(parts)} is not published, and this store is only looked at. "
                f"Run the job that makes it on the store at {self.root}."
            )

    def check_writable(self) -> None:
        """Write and remove one small file.

        Raises:
            StoreNotWritable: the folder can't be created or written.
        """
        with self.publish_file("writable"):
            pass
        self.folder("writable").unlink(missing_ok=True)

    def check_room(self, needed_bytes: int) -> None:
        """See that the disk has room for so many bytes more.

        Raises:
            DiskFull: it has not.
        """
        free = self.free_bytes()
        if needed_bytes > free:
            raise DiskFull(
                f"{needed_bytes / 1e6:.0f} MB more are needed and the disk of the store at {self.root} has "
                f"{free / 1e6:.0f} MB left. Make room, or choose another folder with --store or THAW_STORE."
            )

    def free_bytes(self) -> int:
        """Bytes left on the disk that the store lies on, or would lie on."""
        return shutil.disk_usage(next(path for path in (self.root, *self.root.parents) if path.exists())).free

    def read(self, kind: str, digest: str, record: type[SomeRecord]) -> SomeRecord | None:
        """The record published as `<kind>/<digest>.json`, or None. A damaged file is set aside."""
        return self.read_file(self.folder(kind, f"{digest}.json"), record)

    def read_file(self, path: Path, record: type[SomeRecord]) -> SomeRecord | None:
        """The record in a file, or None. A damaged file is set aside."""
        try:
            return record.from_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            self.set_aside(path, f"not a readable {record.__name__}: {error.errors()[0]['msg']}")
            return None

    def read_folder(
        self, kind: str, digest: str, name: str, record: type[SomeRecord], files: Sequence[str]
    ) -> SomeRecord | None:
        """The record that speaks for the folder `<kind>/<digest>`, or None.

        A folder whose record is damaged, or which lacks one of the `files`, is set aside whole.
        """
        folder = self.folder(kind, digest)
        found = self.read_file(folder / name, record)
        lost = [file for file in files if not (folder / file).is_file()]
        if folder.exists() and (found is None or lost):
            self.set_aside(folder, f"it lacks {', '.join(lost or [name])}")
            return None
        return found

    def publish(self, kind: str, digest: str, record: Record) -> None:
        """Publish a record as `<kind>/<digest>.json`."""
        with self.publish_file(kind, f"{digest}.json") as partial:
            partial.write_text(record.to_json(), encoding="utf-8")

    @contextmanager
    def publish_file(self, *parts: str) -> Iterator[Path]:
        """Yield a path to write; what is there at the end replaces the file at `parts`."""
        self.check_may_make(*parts)
        with self._partial() as folder:
            partial = folder / parts[-1]
            partial.touch()
            yield partial
            target = self.folder(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(target)

    @contextmanager
    def publish_folder(self, *parts: str) -> Iterator[Path]:
        """Yield an empty folder to fill; at the end it becomes the folder at `parts`.

        Where another writer was faster its folder stays, and this one is dropped: both hold the same.
        """
        self.check_may_make(*parts)
        with self._partial() as folder:
            partial = folder / parts[-1]
            partial.mkdir()
            yield partial
            target = self.folder(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    def set_aside(self, path: Path, reason: str) -> None:
        """Move a damaged file or folder out of the way, so that it is made again.

        In a store that is only looked at it stays where it is, for the run that makes it again.
        """
        if self.looks_only:
            return
        target = self.folder("damaged", f"{path.parent.name}-{path.name}-{time.time_ns()}")
        logger.warning("%s is damaged (%s); moved to %s, to be made again", path, reason, target)
        with self._writing():
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process set it aside first
                path.rename(target)

    @contextmanager
    def _partial(self) -> Iterator[Path]:
        with self._writing():
            partials = self.folder("partial")
            partials.mkdir(parents=True, exist_ok=True)
            _sweep(partials)
            folder = Path(tempfile.mkdtemp(dir=partials))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # NumPy's and HDF5's own writers report a short write without an error number.
            if error.errno in (errno.ENOSPC, errno.EDQUOT) or (
                error.errno is None and self.free_bytes() < _NEARLY_FULL_BYTES
            ):
                raise DiskFull(
                    f"no room left for the store at {self.root} ({self.free_bytes() / 1e6:.0f} MB free). "
                    "What is published stays valid: make room, or move the store and pass --store, "
                    "then run the same command again."
                ) from error
            if error.errno in _NOT_WRITABLE and Path(error.filename or self.root).is_relative_to(self.root):
                raise StoreNotWritable(
                    f"the store at {self.root} can't be written: {error.strerror}. "
                    "Choose another folder with --store or THAW_STORE, or mend its permissions."
                ) from error
            raise


def _sweep(partials: Path) -> None:
    """Remove what killed writers left behind long ago."""
    for leftover in partials.iterdir():
        try:
            if time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
        except FileNotFoundError:
            continue
