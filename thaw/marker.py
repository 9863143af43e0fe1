"""Markers: what is published as a folder says so itself, by the names, sizes and checksums of its files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

MARKER = "published.json"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file of a published folder: its size in bytes, and the SHA-256 of those."""

    bytes: int
    sha256: str

    def find(self, folder: str, name: str) -> str:
        """The key of its object, where the folder is published in an object store."""
        return f"{folder}/{self.sha256[:16]}/{name}"


# By the names of the files, which are relative POSIX paths.
Marker = Mapping[str, Published]


def describe_folder(folder: Path) -> bytes:
    """A marker for the files of a folder, those of its subfolders included."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": checksum(path)}
        for path in files
    }
    return json.dumps({"files": facts}, indent=1).encode()


def read_marker(data: bytes) -> Marker:
    """The files that a marker names.

    Raises:
        ValueError: these bytes are no marker.
    """
    try:
        marker = {name: Published(**facts) for name, facts in json.loads(data)["files"].items()}
        if all(_is_sound(name, facts) for name, facts in marker.items()):
            return marker
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a marker: {error}") from error
    raise ValueError("not a marker: a name leads out of its folder, or a checksum is none")


def _is_sound(name: str, facts: Published) -> bool:
    path = PurePosixPath(name)
    inside = bool(name) and not path.is_absolute() and ".." not in path.parts
    return (
        inside and isinstance(facts.bytes, int) and isinstance(facts.sha256, str) and len(facts.sha256) == 64
    )


def checksum(file: Path) -> str:
    """The SHA-256 of a file's bytes, read once per process unless the file changes."""
    facts = file.stat()
    return _checksum(file, facts.st_mtime_ns, facts.st_size, facts.st_ino)


@lru_cache(maxsize=1_000_000)
def _checksum(file: Path, *_changed: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
