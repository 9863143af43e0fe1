"""Class probabilities of image files, folders and archives, by a saved model."""

import csv
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from thaw.archive import is_image_name, open_dump, printable
from thaw.errors import BadImage
from thaw.images import read_image
from thaw.layout import natural_key
from thaw.model import ModelFacts, predict_pixels
from thaw.progress import track
from thaw.records import Record

_BATCH_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class LabelledImage(Record):
    """One image's answer: the likeliest class and every class's probability, or why there is none."""

    path: str
    label: str | None = None
    probabilities: tuple[float, ...] | None = None
    error: str | None = None


def predict_images(model: Any, facts: ModelFacts, sources: Sequence[Path]) -> Iterator[LabelledImage]:
    """Label every image found in files, folders and zip archives, in their order.

    An image that can't be read gets a row with its error; the others are not held up.

    Raises:
        BadDump: an archive can't be opened.
    """
    with ExitStack() as opened, ThreadPoolExecutor() as pool:
        images = list(_list_images(sources, opened))
        read = partial(_read_image, size_pixels=facts.image_size_pixels, resize_filter=facts.resize_filter)
        with track("predict", len(images), "images") as advance:
            for start in range(0, len(images), _BATCH_IMAGES):
                batch = images[start : start + _BATCH_IMAGES]
                yield from _label_batch(
                    model, facts, [path for path, _ in batch], list(pool.map(read, batch))
                )
                advance(len(batch))


def write_csv(file: Path, classes: Sequence[str], rows: Iterable[LabelledImage]) -> None:
    """Write rows as CSV: `path`, `label`, `p_<class>` for each class, `error`."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label", *(f"p_{name}" for name in classes), "error"])
        for row in rows:
            figures = (
                [f"{value:.6f}" for value in row.probabilities] if row.probabilities else [""] * len(classes)
            )
            writer.writerow([row.path, row.label or "", *figures, row.error or ""])


def _list_images(sources: Sequence[Path], opened: ExitStack) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for source in sources:
        if source.is_dir() or (source.is_file() and zipfile.is_zipfile(source)):
            dump = opened.enter_context(open_dump(source))
            for name in sorted(filter(is_image_name, dump.members()), key=natural_key):
                yield f"{printable(str(source))}/{name}", partial(dump.read, name)
        else:
            yield printable(str(source)), partial(_read_file, source)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error


def _read_image(
    image: tuple[str, Callable[[], bytes]], size_pixels: int, resize_filter: str
) -> np.ndarray | str:
    """The pixels, or the reason why there are none."""
    try:
        return read_image(image[1](), size_pixels, resize_filter)
    except BadImage as error:
        return str(error)


def _label_batch(
    model: Any, facts: ModelFacts, paths: Sequence[str], images: Sequence[np.ndarray | str]
) -> Iterator[LabelledImage]:
    blank = np.zeros((facts.image_size_pixels, facts.image_size_pixels, 3), dtype=np.uint8)
    pixels = [blank if isinstance(image, str) else image for image in images]
    # One batch shape means that Keras compiles the model once.
    pixels += [blank] * (_BATCH_IMAGES - len(pixels))
    probabilities = predict_pixels(model, np.stack(pixels))
    for path, image, row in zip(paths, images, probabilities.tolist(), strict=False):
        if isinstance(image, str):
            yield LabelledImage(path=path, error=image)
        else:
            label = facts.classes[int(np.argmax(row))]
            yield LabelledImage(path=path, label=label, probabilities=tuple(row))
