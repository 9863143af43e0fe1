"""Class probabilities of image files, folders and archives, by a saved model."""

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from thaw.answers import LabelledImage
from thaw.archive import is_image_name, open_dump, printable
from thaw.errors import BadDump, BadImage
from thaw.images import read_image
from thaw.layout import natural_key
from thaw.location import Url
from thaw.model import (
    ModelFacts,
    predict_pixels,
    predict_watched,
    watch_prefix,
)
from thaw.objects import REQUESTS_AT_ONCE, Objects
from thaw.progress import track
from thaw.registry import read_registry
from thaw.store import Store

BATCH_IMAGES = 32


def find_model(name: str, store: Store) -> Path:
    """The file of a model, from its path or from its name in the registry: `champion`, `v3`, digits of a run.

    Raises:
        NoSuchModel: it is neither a path nor a name.
    """
    if Path(name).exists() or Path(name).suffix or Path(name).name != name:
        return Path(name)
    return store.fetch("runs", read_registry(store).find(name).run, "model.keras")


def predict_images(
    model: Any,
    facts: ModelFacts,
    sources: Sequence[Path | Url],
    keep: Callable[[np.ndarray], None] | None = None,
    start: int = 0,
    end: int | None = None,
    listing: str | None = None,
) -> Iterator[LabelledImage]:
    """Label every image found in files, folders and zip archives, on a disk or at URLs, in their order.

    An image that can't be read gets a row with its error; the others are not held up.

    Args:
        keep: is given, batch by batch, what the model's frozen prefix makes of the images that could be read:
            float32 (n, channels).
        start, end: which of the images, all of them by default.
        listing: what `digest_listing` says of all of them, where others count on the same images.

    Raises:
        BadDump: an archive can't be opened, or the images are not those of the listing any more.
    """
    model = watch_prefix(model) if keep else model
    with ExitStack() as opened, ThreadPoolExecutor(count_readers(sources)) as pool:
        images = list(list_images(sources, opened))
        if listing and digest_listing(path for path, _ in images) != listing:
            raise BadDump(
                f"images came to {', '.join(map(str, sources))}, or went, while they were labelled. "
                "Run the same command again."
            )
        images = images[start:end]
        read = partial(_read_image, facts=facts)
        with track("predict", len(images), "images") as advance:
            for first in range(0, len(images), BATCH_IMAGES):
                batch = images[first : first + BATCH_IMAGES]
                paths = [path for path, _ in batch]
                yield from _label_batch(model, facts, paths, list(pool.map(read, batch)), keep)
                advance(len(batch))


def digest_listing(paths: Iterable[str]) -> str:
    """What tells images, in their order, from others."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.encode() + b"\0")
    return digest.hexdigest()


def count_readers(sources: Sequence[Path | Url]) -> int | None:
    """How many threads should read at once, where that is not the processors' number."""
    return REQUESTS_AT_ONCE if any(isinstance(source, Url) for source in sources) else None


def list_images(
    sources: Sequence[Path | Url], opened: ExitStack
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Every image of files, folders and zip archives, in their order: its path, and what reads its bytes.

    Args:
        opened: closes the archives; bytes are read before that.

    Raises:
        BadDump: an archive can't be opened.
    """
    for source in sources:
        if _is_dump(source):
            dump = opened.enter_context(open_dump(source))
            for name in sorted(filter(is_image_name, dump.members()), key=natural_key):
                yield f"{printable(str(source))}/{name}", partial(dump.read, name)
        else:
            yield printable(str(source)), partial(_read_file, source)


def _is_dump(source: Path | Url) -> bool:
    if isinstance(source, Url):
        return not is_image_name(source.name)
    return source.is_dir() or (source.is_file() and zipfile.is_zipfile(source))


def _read_file(path: Path | Url) -> bytes:
    try:
        return Objects(path).read("") if isinstance(path, Url) else path.read_bytes()
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error


def _read_image(image: tuple[str, Callable[[], bytes]], facts: ModelFacts) -> np.ndarray | str:
    """The pixels, or the reason why there are none."""
    try:
        return read_image(
            image[1](), facts.image_size_pixels, facts.resize_filter, facts.resize_fit, facts.colour
        )
    except BadImage as error:
        return str(error)


def _label_batch(
    model: Any,
    facts: ModelFacts,
    paths: Sequence[str],
    images: Sequence[np.ndarray | str],
    keep: Callable[[np.ndarray], None] | None,
) -> Iterator[LabelledImage]:
    blank = np.zeros(facts.shape, dtype=np.uint8)
    pixels = [blank if isinstance(image, str) else image for image in images]
    # One batch shape means that Keras compiles the model once.
    pixels += [blank] * (BATCH_IMAGES - len(pixels))
    if keep:
        probabilities, pooled = predict_watched(model, np.stack(pixels))
        keep(pooled[[number for number, image in enumerate(images) if not isinstance(image, str)]])
    else:
        probabilities = predict_pixels(model, np.stack(pixels))
    for path, image, row in zip(paths, images, probabilities.tolist(), strict=False):
        if isinstance(image, str):
            yield LabelledImage(path=path, error=image)
        else:
            label = facts.classes[int(np.argmax(row))]
            yield LabelledImage(path=path, label=label, probabilities=tuple(row))
