"""The store: one folder that holds everything a run makes, under the digest of what decided it.

Whatever is in the store is whole and never changes: it is written aside and put in place by one
rename. A writer that is killed leaves nothing that is read, and two writers of the same thing
agree, so nobody needs a lock. That the work is not done twice is `thaw.claims`' concern.

The folder may lie in an object store. Then what is read is brought to this machine's disk first, and what is
made is put there before it counts: `thaw.mirror` does that. The rest of Thaw works with files either way.
"""

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from thaw.disk import Disk, write_through
from thaw.errors import Damaged, DiskFull, NotPublished
from thaw.location import Url, choose_location
from thaw.marker import MARKER, describe_folder
from thaw.mirror import Mirror, name_damaged
from thaw.objects import Facts
from thaw.records import Record
from thaw.slips import FileSlip, ObjectSlip, Slip

logger = logging.getLogger(__name__)
SomeRecord = TypeVar("SomeRecord", bound=Record)


class Store:
    """A store's root folder, created when first written to, or only looked at and never written to.

    Attributes:
        address: where it lies, as text: a whole path or a URL.
        mirror: what brings and publishes, where the store lies in an object store.
    """

    def __init__(self, root: Path | str | None = None, looks_only: bool = False):
        """`root` defaults to THAW_STORE, or `store` in the working folder."""
        location = choose_location(root, "THAW_STORE", "store")
        self.looks_only = looks_only
        self.address = str(location)
        self.mirror = Mirror(location) if isinstance(location, Url) else None
        self._root = self.mirror.folder if self.mirror else location
        self._disk = Disk(self._root, copies=self.address if self.mirror else None)

    def __repr__(self) -> str:
        return f"Store({self.address!r})"

    def __reduce__(self) -> tuple[type, tuple[str, bool]]:
        """Another process opens it by its address, with a disk cache as its own settings say."""
        return type(self), (self.address, self.looks_only)

    def folder(self, *parts: str) -> Path:
        """Where something lies, or would lie, on this machine's disk."""
        return self._root.joinpath(*parts)

    def fetch(self, *parts: str) -> Path:
        """The same place, and what is published there brought to it, where it is published.

        Raises:
            Damaged: it is published, and is not what was written. It is set aside.
        """
        if self.mirror:
            self._bring(*parts)
        return self.folder(*parts)

    def is_published(self, *parts: str) -> bool:
        """Whether a folder is published."""
        if self.mirror:
            return self.mirror.find_marker("/".join(parts)) is not None
        return self.folder(*parts).is_dir()

    def fetch_folders(self, folders: Sequence[tuple[str, ...]], but: Sequence[str] = ()) -> None:
        """Bring many published folders to this disk, but for files of certain names. Damaged ones are set aside."""
        if self.mirror:
            with self._disk.writing():
                damaged = self.mirror.bring_folders(["/".join(parts) for parts in folders], but)
            for key, error in damaged.items():
                self.set_aside(self.folder(key), str(error), certain=True)

    def list(self, *parts: str) -> list[str]:
        """Names of what is published directly in a folder, the newest first."""
        if self.mirror:
            return self.mirror.list("/".join(parts))
        newest = []
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.scandir(self.folder(*parts)):
                with suppress(FileNotFoundError):  # discarded meanwhile
                    newest.append((entry.stat().st_mtime_ns, entry.name))
        return [name for _, name in sorted(newest, reverse=True)]

    def survey(self, *parts: str) -> dict[str, Facts]:
        """Size and age of every file below a folder, by its path in the store, in no order.

        In an object store those are the objects, among them the files of folders that are published or not yet.
        """
        if self.mirror:
            return self.mirror.objects.list("/".join(parts))
        found = {}
        for folder, _, names in os.walk(self.folder(*parts)):
            for name in names:
                file = Path(folder, name)
                with suppress(FileNotFoundError):  # discarded meanwhile
                    facts = file.lstat()
                    key = file.relative_to(self._root).as_posix()
                    found[key] = Facts(size=facts.st_size, written=facts.st_mtime)
        return found

    def looking(self) -> "Store":
        """The same store, only looked at: a stage finds its result there or raises NotPublished at once."""
        same = copy(self)
        same.looks_only = True
        return same

    def check_may_make(self, *parts: str) -> None:
        """See that what is not published at `parts` may be made here.

        Raises:
            NotPublished: the store is only looked at.
        """
        if self.looks_only:
            raise NotPublished(
                f"{'/'.join(parts)} is not published, and this store is only looked at. "
                f"Run the job that makes it on the store at {self.address}."
            )

    def check_writable(self) -> None:
        """Write and remove one small file.

        Raises:
            StoreNotWritable: the folder can't be created or written.
            StoreUnreachable: the object store does not answer.
        """
        with self.publish_file("writable"):
            pass
        self.discard("writable")

    def check_room(self, needed_bytes: int) -> None:
        """See that the disk has room for so many bytes more. An object store has.

        Raises:
            DiskFull: it has not.
        """
        free = self.free_bytes()
        if needed_bytes > free and not self.mirror:
            raise DiskFull(
                f"{needed_bytes / 1e6:.0f} MB more are needed and the disk of the store at {self.address} has "
                f"{free / 1e6:.0f} MB left. Make room, or choose another folder with --store or THAW_STORE."
            )

    def free_bytes(self) -> int:
        """Bytes left on the disk that the store, or this machine's copy of it, lies on or would lie on."""
        return self._disk.free_bytes()

    def read(self, kind: str, digest: str, record: type[SomeRecord]) -> SomeRecord | None:
        """The record published as `<kind>/<digest>.json`, or None. A damaged file is set aside."""
        return self.read_file(self.folder(kind, f"{digest}.json"), record)

    def read_file(self, path: Path, record: type[SomeRecord]) -> SomeRecord | None:
        """The record in a file of the store, or None. A damaged file is set aside."""
        try:
            parts = path.relative_to(self._root).parts
            if self.mirror and not self._bring(*parts):
                return None  # what may lie here is the copy of one that is published no more
            return record.from_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            self.set_aside(path, f"not a readable {record.__name__}: {error.errors()[0]['msg']}")
            return None

    def read_all(self, kind: str, record: type[SomeRecord]) -> Iterator[SomeRecord]:
        """Every readable record published as `<kind>/….json`, the newest first."""
        for name in self.list(kind):
            found = self.read_file(self.folder(kind, name), record) if name.endswith(".json") else None
            if found is not None:
                yield found

    def read_folder(
        self, kind: str, digest: str, name: str, record: type[SomeRecord], files: Sequence[str]
    ) -> SomeRecord | None:
        """The record that speaks for the folder `<kind>/<digest>`, or None.

        A folder whose record is damaged, or which lacks one of the `files`, is set aside whole.
        """
        folder = self.folder(kind, digest)
        if self.mirror:
            try:
                there = self.mirror.find_marker(f"{kind}/{digest}")
            except Damaged as error:
                self.set_aside(folder, str(error), certain=True)
                return None
        else:
            there = (
                {file for file in (name, *files) if (folder / file).is_file()} if folder.exists() else None
            )
        if there is None:
            return None
        found = self.read_file(folder / name, record) if name in there else None
        lost = [file for file in (name, *files) if file not in there]
        if found is None or lost:
            self.set_aside(folder, f"it lacks {', '.join(lost or [name])}", certain=True)
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
        with self._disk.partial() as folder:
            partial = folder / parts[-1]
            partial.touch()
            yield partial
            if self.mirror:
                self.mirror.put_file(partial, "/".join(parts))
                return
            target = self.folder(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(target)

    @contextmanager
    def publish_folder(self, *parts: str) -> Iterator[Path]:
        """Yield an empty folder to fill; at the end it becomes the folder at `parts`, with a marker.

        Where another writer was faster its folder stays, and this one is dropped: both hold the same.
        """
        self.check_may_make(*parts)
        with self._disk.partial() as folder:
            partial = folder / parts[-1]
            partial.mkdir()
            yield partial
            if self.mirror:
                self.mirror.put_folder(partial, "/".join(parts))
                return
            (partial / MARKER).write_bytes(describe_folder(partial))
            self._place(partial, self.folder(*parts))

    def create(self, *parts: str, data: bytes) -> bool:
        """Publish a folder with one file, whose path `parts` are, unless there is one; says whether there was none.

        What was created outlives a power cut: unlike all else in the store, it may be something that can't be
        made again.
        """
        self.check_may_make(*parts)
        if self.mirror:
            return self.mirror.objects.create("/".join(parts), data)
        with self._disk.partial() as folder:
            partial = folder / parts[-2]
            partial.mkdir()
            write_through(partial / parts[-1], data)
            # A folder can't be renamed to one that holds something, where a file would replace another.
            return self._place(partial, self.folder(*parts[:-1]))

    def slip(self, *parts: str) -> Slip:
        """A small text that may change."""
        if self.mirror:
            return ObjectSlip(self.mirror.objects, "/".join(parts))
        return FileSlip(self.folder(*parts))

    def discard(self, *parts: str) -> None:
        """Delete a published file or folder. It is gone at once, also where this is cut off."""
        place = self.folder(*parts)
        if self.mirror:
            self.mirror.delete("/".join(parts))
        elif place.is_dir():
            self._disk.remove_folder(place)
        else:
            place.unlink(missing_ok=True)

    def share(self, path: Path) -> None:
        """See that a file or folder which was written straight to its place in the store is in the store."""
        if self.mirror and path.is_relative_to(self._root):
            self.mirror.upload(path)

    def set_aside(self, path: Path, reason: str, certain: bool = False) -> None:
        """Move a damaged file or folder out of the way, so that it is made again.

        In a store that is only looked at it stays where it is, for the run that makes it again. Where the store
        lies in an object store, and it is not `certain` that the damage is there, it may be that only the copy here
        is damaged: that is brought anew instead.
        """
        if self.looks_only:
            return
        what = path.relative_to(self._root).as_posix()
        place = name_damaged(what)
        with self._disk.writing():
            if self.mirror:
                moved = self.mirror.set_aside(what, place, certain)
            else:
                target = self.folder(place)
                target.parent.mkdir(parents=True, exist_ok=True)
                moved = False
                with suppress(FileNotFoundError):  # another process set it aside first
                    path.rename(target)
                    moved = True
        if moved:
            logger.warning(
                "%s/%s is damaged (%s); moved to %s, to be made again", self.address, what, reason, place
            )

    def _bring(self, *parts: str) -> bool:
        """Bring what is published at `parts`, if anything; where it is damaged, it is set aside."""
        with self._disk.writing():
            try:
                return self.mirror.bring("/".join(parts))
            except Damaged as error:
                damaged = error
        self.set_aside(self.folder(damaged.folder), str(damaged), certain=True)
        raise Damaged(f"{damaged}. It is made again by the command that made it.", damaged.folder)

    def _place(self, made: Path, target: Path) -> bool:
        """Rename a folder into place; False where one is there already."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            made.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        return True
