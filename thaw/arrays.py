"""Open a NumPy archive (.npz) of images and labels. Each of its images is a member, made in memory."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np

from thaw.archive import ZipDump, is_litter
from thaw.errors import BadDump, BadImage
from thaw.location import Url

ACCEPTED_ARRAYS = (
    "Accepted arrays: x_train and y_train, with x_test and y_test or x_val and y_val (or x_validation and "
    "y_validation) beside them; or one pair, x and y, or images and labels; and classes, or class_names, "
    "with the classes' names by number."
)

Parsed = TypeVar("Parsed")

_SUFFIX = ".npy"
# thaw.layout takes a folder of such a name for one side of a split, not for a class.
_SIDE_NAME = re.compile(r"(?i)(train(ing)?|test(ing)?|val(id(ation)?)?)\d*([_-]?(set|images|data))?")
# Wide enough for a million rows, so that images keep their paths when the arrays grow.
_FEWEST_DIGITS = 6


class Pair(NamedTuple):
    """The names of an array of images and of that of their labels, and the side they stand for; '' is none."""

    images: str
    labels: str
    side: str = ""


class Header(NamedTuple):
    """What an array's file says of it before its values."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        objects = " (Python objects, which are never unpickled)" if self.dtype.hasobject else ""
        return f"{self.dtype} {self.shape}{objects}"


# Those of sides come first, in the order of the sides.
_PAIRS = (
    Pair("x_train", "y_train", "train"),
    Pair("x_val", "y_val", "validation"),
    Pair("x_validation", "y_validation", "validation"),
    Pair("x_test", "y_test", "test"),
    Pair("x", "y"),
    Pair("images", "labels"),
)


class ArrayDump(ZipDump):
    """A NumPy archive, whose members are the rows of its arrays as images in binary netpbm.

    They are called `train/<class>/000017.pgm` (`.ppm` in colour), or `<class>/000017.pgm` where the archive
    has one pair without sides; the number is the row's. A class goes by its name in the archive, in which
    what a path can't hold becomes `_`, else by its number.

    Labels are read when the archive is opened. An array of images is read whole when the first of them is,
    and kept until the dump is closed; one that is not uint8 is read at once, to see that its values fit.
    Arrays that stand for nothing here are among those refused.

    Raises:
        BadDump: it is no readable zip archive, its arrays are no images and labels, or they are damaged.
    """

    def __init__(self, path: Path | Url, file: Path | None = None):
        """`file` is what is opened, where that is not `path` itself."""
        # First, since an archive that is refused on opening is closed again.
        self._pixels: dict[str, np.ndarray] = {}
        self._closed = False
        super().__init__(path, file)
        members, self._sources = self._sources, {}
        self.folders.clear()
        self._arrays = {
            name.removesuffix(_SUFFIX): member
            for name, member in members.items()
            if name.endswith(_SUFFIX) and not is_litter(name)
        }
        try:
            used = self._list_images()
        except BaseException as error:
            self.close()
            if isinstance(error, BadDump):
                raise self._blame(error) from error
            raise
        unused = members.keys() - {f"{name}{_SUFFIX}" for name in used}
        self.refused |= dict.fromkeys(unused, "an array that is not used")

    def close(self) -> None:
        """Close the archive and let go of the pixels."""
        with self._lock:
            self._closed = True
            self._pixels.clear()
            super().close()

    def read(self, name: str) -> bytes:
        """One image, in binary netpbm.

        Raises:
            BadImage: there is no such member, or the dump is closed.
            BadDump: the array that the image is in is damaged; none of it can be read.
        """
        try:
            if name in self._sources:
                self._load(self._sources[name][0])
        except BadDump as error:
            raise self._blame(error) from error
        return super().read(name)

    def _read(self, source: tuple[str, int]) -> bytes:
        array, row = source
        return encode_netpbm(self._load(array)[row])

    def _load(self, name: str) -> np.ndarray:
        with self._lock:
            if self._closed:
                raise BadImage("the dump is closed")
            if name not in self._pixels:
                self._pixels[name] = _to_bytes(name, self._parse(name, _parse_array))
            return self._pixels[name]

    def _blame(self, error: BadDump) -> BadDump:
        return BadDump(f"{self.path} can't be used: {error}")

    def _list_images(self) -> set[str]:
        """Make a member of each image; returns the names of the arrays that have a part in it."""
        pairs = {pair: self._read_pair(pair) for pair in self._find_pairs()}
        naming = next((name for name in ("classes", "class_names") if name in self._arrays), None)
        names = self._read_names(naming) if naming else None
        folders = name_folders(set().union(*(labels for _, labels in pairs.values())), names)
        digits = max(_FEWEST_DIGITS, *(len(str(len(labels) - 1)) for _, labels in pairs.values()))
        for pair, (header, labels) in pairs.items():
            top = f"{pair.side}/" if pair.side else ""
            suffix = "ppm" if header.shape[3:] == (3,) else "pgm"
            for row, label in enumerate(labels):
                self._add(f"{top}{folders[label]}/{row:0{digits}}.{suffix}", (pair.images, row))
            if header.dtype != np.uint8:
                self._load(pair.images)
        return {name for pair in pairs for name in (pair.images, pair.labels)} | {naming or ""}

    def _find_pairs(self) -> list[Pair]:
        touched = [pair for pair in _PAIRS if {pair.images, pair.labels} & self._arrays.keys()]
        found = [pair for pair in touched if pair.side] or touched
        sides = [pair.side for pair in found]
        if not found:
            raise BadDump(f"it holds no pair of images and labels. {self._list_arrays()}")
        if sides[0] not in ("train", ""):
            raise BadDump(f"it holds {found[0].images}, but no x_train and y_train. {self._list_arrays()}")
        for images, labels, _ in found:
            if lacking := {images, labels} - self._arrays.keys():
                raise BadDump(f"of {images} and {labels}, it lacks {lacking.pop()}. {self._list_arrays()}")
        if len(set(sides)) < len(sides):
            names = ", ".join(pair.images for pair in found)
            raise BadDump(f"of {names}, two stand for the same images. Leave one out. {ACCEPTED_ARRAYS}")
        return found

    def _list_arrays(self) -> str:
        arrays = ", ".join(f"{name} {self._parse(name, _parse_header)}" for name in self._arrays)
        return f"It holds the arrays: {arrays or 'none'}. {ACCEPTED_ARRAYS}"

    def _read_pair(self, pair: Pair) -> tuple[Header, list[int]]:
        """What the images are, and the number of each one's class."""
        images, labels = self._parse(pair.images, _parse_header), self._parse(pair.labels, _parse_header)
        _check_images(pair.images, images)
        _check_labels(pair.labels, labels)
        if images.shape[0] != labels.shape[0]:
            raise BadDump(
                f"array {pair.images} holds {images.shape[0]} images, {pair.labels} {labels.shape[0]} labels. "
                "Save one label for each image, in the same order."
            )
        numbers = self._parse(pair.labels, _parse_array).ravel().tolist()
        if min(numbers) < 0:
            raise BadDump(f"array {pair.labels} holds class {min(numbers)}. Count the classes from 0.")
        return images, numbers

    def _read_names(self, name: str) -> list[str]:
        header = self._parse(name, _parse_header)
        if header.dtype.kind not in "US" or len(header.shape) != 1:
            raise BadDump(
                f"array {name} is {header}, not class names. Save one string for each class, of shape (classes,) "
                "and dtype str, or leave the array out: classes then go by their numbers."
            )
        names = self._parse(name, _parse_array).tolist()
        return [text.decode(errors="replace") if isinstance(text, bytes) else text for text in names]

    def _parse(self, name: str, parse: Callable[[IO[bytes]], Parsed]) -> Parsed:
        try:
            with self._archive.open(self._arrays[name]) as file:
                return parse(file)
        except Exception as error:  # decompressors and parsers raise whatever damaged bytes lead them to
            why = str(error) or type(error).__name__
            raise BadDump(f"array {name} can't be read: {why}. Save the archive again.") from error


def encode_netpbm(pixels: np.ndarray) -> bytes:
    """One image in binary netpbm: grey (P5) from uint8 (height, width[, 1]), colour (P6) from (height, width, 3).

    Source: https://netpbm.sourceforge.net/doc/pgm.html and https://netpbm.sourceforge.net/doc/ppm.html
    """
    height, width, *channels = pixels.shape
    kind = "P6" if channels == [3] else "P5"
    return f"{kind}\n{width} {height}\n255\n".encode() + pixels.tobytes()


def name_folders(used: Collection[int], names: Sequence[str] | None) -> dict[int, str]:
    """A folder for each class in use: its name made safe for a path, else its number, all of one width.

    Raises:
        BadDump: a class has no name, or two would share a folder.
    """
    if names is None:
        digits = len(str(max(used)))
        return {index: f"{index:0{digits}}" for index in used}
    if max(used) >= len(names):
        raise BadDump(
            f"the labels hold class {max(used)}, but {len(names)} classes have names, counted from 0. Add the "
            "names that are missing, or count the classes from 0."
        )
    owners: dict[str, int] = {}
    for index in sorted(used):
        folder = _make_safe(names[index])
        if not folder:
            raise BadDump(f"class {index} has no name: it is {names[index]!r}. Give it one.")
        other = owners.setdefault(folder, index)
        if other != index:
            raise BadDump(
                f"classes {other} and {index}, {names[other]!r} and {names[index]!r}, would share the name "
                f"{folder!r}. Rename one of them."
            )
    return {index: folder for folder, index in owners.items()}


def holds_only_arrays(members: Iterable[str]) -> bool:
    """Whether an archive of these members is a NumPy archive, whatever its own name is."""
    kept = [name for name in members if not is_litter(name)]
    return bool(kept) and all(name.endswith(_SUFFIX) for name in kept)


def _make_safe(name: str) -> str:
    folder = "".join(char if char.isprintable() and char not in "/\\" else "_" for char in name.strip())
    if folder.startswith("."):
        folder = f"_{folder[1:]}"
    return f"{folder}_" if _SIDE_NAME.fullmatch(folder) or is_litter(folder) else folder


def _parse_header(file: IO[bytes]) -> Header:
    parsers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in parsers:
        raise ValueError(f"version {version} of the format is only for arrays of records")
    shape, _, dtype = parsers[version](file)
    return Header(dtype, shape)


def _parse_array(file: IO[bytes]) -> np.ndarray:
    array = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):  # zipfile compares the checksum where the file ends
        raise ValueError("it is longer than its header says")
    return array


def _check_images(name: str, header: Header) -> None:
    shape = header.shape
    if header.dtype.kind not in "ui":
        raise BadDump(
            f"array {name} is {header}; pixels are whole numbers from 0 to 255. Multiply pixels from 0 to 1 by "
            "255 and cast them to uint8."
        )
    if len(shape) != 3 and not (len(shape) == 4 and shape[3] in (1, 3)):
        raise BadDump(
            f"array {name} is {header}; images have the shape (n, height, width), or (n, height, width, 3) in "
            "colour. Reshape rows of pixels, put channels last, and leave out transparency."
        )
    if 0 in shape:
        raise BadDump(f"array {name} is {header}: it holds no pixels. Leave it and its labels out.")


def _check_labels(name: str, header: Header) -> None:
    if header.dtype.kind not in "ui" or header.shape[1:] not in ((), (1,)) or not header.shape:
        raise BadDump(
            f"array {name} is {header}; labels are integers of shape (n,) or (n, 1), which count the classes from "
            "0. Take argmax(axis=1) of one-hot rows, and put names into an array class_names."
        )


def _to_bytes(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
        raise BadDump(
            f"array {name}, {array.dtype}, holds values from {array.min()} to {array.max()}; pixels are whole "
            "numbers from 0 to 255. Scale them to that range and cast them to uint8."
        )
    return np.ascontiguousarray(array, dtype=np.uint8)
