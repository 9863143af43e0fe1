"""Slips: small texts in a store that come, change and go, unlike all else there. Claims are written on them."""

from pathlib import Path
from typing import Protocol

from thaw.objects import Objects


class Slip(Protocol):
    """One text, on a disk or in an object store."""

    def create(self, text: str) -> bool:
        """Write it where there is none yet, and say whether there was none."""

    def read(self) -> str:
        """What it says; nothing where it is not there."""

    def rewrite(self, text: str) -> None:
        """Change what it says."""

    def remove(self) -> None:
        """See that it is not there."""


class FileSlip:
    """A text in a file."""

    def __init__(self, path: Path):
        self._path = path

    def create(self, text: str) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._path.open("x", encoding="ascii") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def read(self) -> str:
        try:
            return self._path.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return ""

    def rewrite(self, text: str) -> None:
        """Change what it says, in place and with a text as long: on a full disk a new file would not fit."""
        with self._path.open("r+", encoding="ascii") as file:
            file.write(text)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class ObjectSlip:
    """A text in an object of its own."""

    def __init__(self, objects: Objects, key: str):
        self._objects, self._key = objects, key

    def create(self, text: str) -> bool:
        return self._objects.create(self._key, text.encode("ascii"))

    def read(self) -> str:
        try:
            return self._objects.read(self._key).decode("ascii", errors="replace")
        except FileNotFoundError:
            return ""

    def rewrite(self, text: str) -> None:
        self._objects.replace(self._key, text.encode("ascii"))

    def remove(self) -> None:
        self._objects.delete([self._key])
