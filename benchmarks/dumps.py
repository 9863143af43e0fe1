"""The real images, cut to a benchmark's size: as an archive for Thaw, and as folders for plain Keras."""

import itertools
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from benchmarks.harness import PROJECT, BenchmarkFailed

LABELS = ("cat", "dog")


def find_dump(name: str) -> Path:
    """One of the archives of real cats and dogs."""
    return _find_shared() / "data" / f"dogs-vs-cats-{name}.zip"


def find_weights() -> Path:
    """VGG16's ImageNet weights without the top."""
    return _find_shared() / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"


def write_archive(source: Path, target: Path, numbers: Iterable[int]) -> Path:
    """Copy images of these numbers, of each class, into a new archive in Kaggle's flat layout."""
    return _write(target, _read_images(source, numbers))


def unpack_classes(source: Path, folder: Path, numbers: Iterable[int]) -> Path:
    """Write images of these numbers as `cat/cat.0.jpg` and `dog/dog.0.jpg`, for image_dataset_from_directory."""
    for name, data in _read_images(source, numbers):
        target = folder / name[:3] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def write_grown(source: Path, growth: Mapping[Path, Iterable[int]], target: Path) -> Path:
    """Copy a whole archive, and from others the images of these numbers of each class."""
    with zipfile.ZipFile(source) as archive:
        numbers = range(sum(name.startswith("train/cat.") for name in archive.namelist()))
    parts = [_read_images(path, chosen) for path, chosen in {source: numbers, **growth}.items()]
    return _write(target, itertools.chain(*parts))


def write_repeats(source: Path, target: Path, images: int) -> Path:
    """Fill an archive with so many images, half of each class, by repeating those of another.

    Each repeat ends in a number of its own. Decoders stop before it, so that it costs what the original does, but
    its bytes, and so its SHA-256, are new.
    """
    with zipfile.ZipFile(source) as archive:
        originals = {
            label: sorted(name for name in archive.namelist() if name.startswith(f"train/{label}."))
            for label in LABELS
        }

        def repeat() -> Iterator[tuple[str, bytes]]:
            for label, names in originals.items():
                for number in range(images // len(LABELS)):
                    data = archive.read(names[number % len(names)])
                    yield f"{label}.{number}.jpg", data + number.to_bytes(4, "big")

        return _write(target, repeat())


def _find_shared() -> Path:
    folder = Path(os.environ.get("THAW_SHARED") or PROJECT.parent / "shared")
    if not (folder / "data").is_dir():
        raise BenchmarkFailed(f"no real images: {folder}/data is not there. Point THAW_SHARED to them.")
    return folder


def _read_images(source: Path, numbers: Iterable[int]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(source) as archive:
        for number in numbers:
            for label in LABELS:
                name = f"{label}.{number}.jpg"
                yield name, archive.read(f"train/{name}")


def _write(target: Path, images: Iterable[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in images:
            archive.writestr(f"train/{name}", data)
    return target
