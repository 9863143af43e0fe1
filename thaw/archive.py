"""Open a dump, a zip archive or a folder, and read its members in place. Nothing is ever extracted.

Those in object stores are opened in `thaw.remote`.
"""

import os
import re
import stat
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from thaw.errors import BadDump, BadImage, ThawError
from thaw.location import Url, parse_source

# HEIC can't be decoded here, but an image left out in silence is worse than one in quarantine.
_IMAGE_NAME = re.compile(
    r".+\.(jpe?g|jpe|jfif|a?png|webp|bmp|dib|gif|tiff?|p[pgn]m|avif|jp2|hei[cf])", re.IGNORECASE
)
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
# Members are read into memory whole; no photograph comes near this.
_LARGEST_MEMBER_BYTES = 256 * 1024**2
_UTF8_FLAG, _ENCRYPTED_FLAG = 0x800, 0x1

_OTHER_ARCHIVES = (
    (b"\x1f\x8b", "a gzip archive"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"\x93NUMPY", "a single NumPy array (.npy)"),
)


class Dump(ABC):
    """An open dump. Reads are safe from many threads.

    Members go by relative POSIX paths, with bytes that can't be printed escaped. `refused` holds those
    that are never read (links, paths that lead outside) and why; `folders` every folder's path; `readers` how
    many threads should read at once, where that is not the processors' number.
    """

    readers: int | None = None

    def __init__(self, path: Path | Url):
        self.path = path
        self.refused: dict[str, str] = {}
        self.folders: set[str] = set()
        self._sources: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close what is open. Reading ends here."""

    def members(self) -> Iterator[str]:
        """The paths of all files that can be read, junk included."""
        yield from self._sources

    def read(self, name: str) -> bytes:
        """One member's bytes.

        Raises:
            BadImage: there is no such member, or its bytes can't be read.
            StoreUnreachable, StoreNotWritable, BadDump: none can, now, and it is not the image's fault.
        """
        if name not in self._sources:
            raise BadImage("it is not in the dump")
        try:
            return self._read(self._sources[name])
        except ThawError:
            raise
        except Exception as error:  # decompressors raise whatever damaged bytes lead them to
            raise BadImage(f"it can't be read from the dump: {error or type(error).__name__}") from error

    @abstractmethod
    def _read(self, source: Any) -> bytes: ...

    def _add(self, name: str, source: Any) -> None:
        if name in self._sources:
            self.refused[name] = "another member has the same path; the first one is used"
            return
        self._sources[name] = source
        self._add_folder(name.rpartition("/")[0])

    def _add_folder(self, name: str) -> None:
        while name and name not in self.folders:
            if not is_litter(name):
                self.folders.add(name)
            name = name.rpartition("/")[0]


def open_dump(path: Path | Url | str) -> Dump:
    """Open a zip archive or a folder of images, or a NumPy archive of images and labels.

    A NumPy archive is a zip archive called `.npz`, or one that holds `.npy` files alone.

    Raises:
        BadDump: there is nothing at the path or URL, or it is no readable zip archive, or an encrypted one, or a
            NumPy archive without the arrays that images and labels are taken from.
        BadConfig, StoreNotWritable, StoreUnreachable: of a URL, as `thaw.objects.Objects` says.
    """
    from thaw.arrays import ArrayDump, holds_only_arrays  # itself built on what is here
    from thaw.remote import open_remote_dump  # so is this

    path = parse_source(path)
    if isinstance(path, Url):
        return open_remote_dump(path)
    path = path.expanduser()
    if path.is_dir():
        return FolderDump(path)
    if path.is_file() and path.suffix.lower() == ".npz":
        return ArrayDump(path)
    if path.is_file():
        dump = ZipDump(path)
        if not holds_only_arrays(dump.members()):
            return dump
        dump.close()
        return ArrayDump(path)
    raise BadDump(
        f"no dump at {path}: there is no such file or folder. Pass a zip archive or a folder of images, or a "
        "NumPy archive (.npz)."
    )


def is_litter(name: str) -> bool:
    """Whether a path is hidden, or what an operating system leaves behind."""
    return any(part.startswith(".") or part.lower() in _LITTER for part in name.split("/"))


def is_image_name(name: str) -> bool:
    """Whether a member is an image going by its name."""
    return _IMAGE_NAME.fullmatch(name) is not None and not is_litter(name)


class ZipDump(Dump):
    """A zip archive, read through one handle that threads take turns with."""

    def __init__(self, path: Path | Url, file: Path | IO[bytes] | None = None):
        """`file` is what is opened, where that is not `path` itself; messages name the path."""
        super().__init__(path)
        self._lock = threading.Lock()
        self._archive = _open_zip(path, path if file is None else file)
        try:
            for member in self._archive.infolist():
                self._list(member)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._archive.close()

    def _list(self, member: zipfile.ZipInfo) -> None:
        written = _readable_name(member)
        name = printable("/".join(part for part in written.split("/") if part not in ("", ".")))
        mode = stat.S_IFMT(member.external_attr >> 16)
        if member.flag_bits & _ENCRYPTED_FLAG:
            raise BadDump(
                f"{self.path} is encrypted ({name} needs a password). "
                "Unpack it with its password and pass the folder."
            )
        if written.startswith("/") or re.match(r"[A-Za-z]:", written):
            self.refused[printable(written)] = "its path is absolute"
        elif ".." in written.split("/"):
            self.refused[name] = "its path leads outside the dump"
        elif written.endswith("/"):
            self._add_folder(name)
        elif mode == stat.S_IFLNK:
            self.refused[name] = "a symbolic link, which is never followed"
        elif mode not in (0, stat.S_IFREG):
            self.refused[name] = "not a regular file"
        elif name:
            self._add(name, member)

    def _read(self, source: zipfile.ZipInfo) -> bytes:
        check_size(source.file_size)
        with self._lock, self._archive.open(source) as member:
            return member.read()


class FolderDump(Dump):
    """A folder. Links to files inside it are read, links that lead outside are refused."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._root = path.resolve()
        for folder, subfolders, files in os.walk(self._root, onerror=self._fail):
            place = Path(folder)
            for name in sorted(subfolders):
                if (place / name).is_symlink():
                    self.refused[self._name(place / name)] = "a link to a folder, which is never followed"
                else:
                    self._add_folder(self._name(place / name))
            for name in sorted(files):
                self._list(place / name)

    def _fail(self, error: OSError) -> None:
        raise BadDump(
            f"{printable(str(error.filename))} can't be listed: {error.strerror}. Mend its permissions."
        ) from error

    def _name(self, path: Path) -> str:
        return printable(path.relative_to(self._root).as_posix())

    def _list(self, path: Path) -> None:
        name, target = self._name(path), path
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            if not target.is_relative_to(self._root):
                self.refused[name] = "a link that leads outside the dump"
                return
        if target.is_file():
            self._add(name, target)
        else:
            self.refused[name] = "a link to nothing" if path.is_symlink() else "not a regular file"

    def close(self) -> None:
        """Nothing stays open between reads."""

    def _read(self, source: Path) -> bytes:
        check_size(source.stat().st_size)
        return source.read_bytes()


def _open_zip(path: Path | Url, file: Path | IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except ThawError:
        raise
    except OSError as error:
        raise BadDump(f"{path} can't be opened: {error.strerror}. Mend its permissions.") from error
    except Exception as error:  # a damaged table of contents makes zipfile raise a dozen different things
        raise BadDump(f"{path} {_describe(_read_start(file), error)}") from error


def _read_start(file: Path | IO[bytes]) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(300)
    file.seek(0)
    return file.read(300)


def _describe(start: bytes, error: Exception) -> str:
    """What a file is that can't be opened as a zip archive, by its first bytes, and what to do about it."""
    if not start:
        return "is an empty file. Download or copy it again."
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return f"is a truncated or corrupt zip archive ({error}). Download or copy it again."
    if re.match(rb"\s*<(!doctype|html)", start, re.IGNORECASE):
        return "is an HTML page, not a zip archive: perhaps the site's log-in page. Download it again."
    known = (description for magic, description in _OTHER_ARCHIVES if start.startswith(magic))
    if start[257:262] == b"ustar":
        known = iter(["a tar archive"])
    what = next(known, "no zip archive")
    return (
        f"is {what}. Pass a zip archive, or a folder of images (unpack other archives first), or a NumPy archive "
        "(.npz, as numpy.savez_compressed writes it)."
    )


def _readable_name(member: zipfile.ZipInfo) -> str:
    """A member's path with `/` between its parts, decoded as whoever wrote it probably meant it."""
    name = member.orig_filename.split("\0")[0]
    if not member.flag_bits & _UTF8_FLAG:
        # zipfile reads names without the UTF-8 flag as cp437; many a writer means UTF-8 all the same.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def printable(name: str) -> str:
    """The name with lone surrogates (bytes that are no UTF-8) and control characters escaped."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def check_size(size_bytes: int) -> None:
    """Raises BadImage for a member that memory should not be filled with."""
    if size_bytes > _LARGEST_MEMBER_BYTES:
        limit = _LARGEST_MEMBER_BYTES // 1024**2
        raise BadImage(f"too large: {size_bytes / 1024**2:,.0f} MiB, the limit is {limit} MiB")
