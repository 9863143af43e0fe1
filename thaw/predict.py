"""Class probabilities of image files, folders and archives, by a saved model."""

import csv
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from thaw.archive import is_image_name, open_dump, printable
from thaw.errors import BadConfig, BadDump, BadImage
from thaw.images import read_image
from thaw.layout import natural_key
from thaw.model import ModelFacts, load_model, predict_pixels
from thaw.progress import track
from thaw.records import Made, Record
from thaw.registry import read_registry
from thaw.store import Store

_BATCH_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class LabelledImage(Record):
    """One image's answer: the likeliest class and every class's probability, or why there is none."""

    path: str
    label: str | None = None
    probabilities: tuple[float, ...] | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Labelled(Record):
    """What was labelled: by which model, into which file, and how many images each class was given."""

    model: str
    csv: str
    images: int
    unreadable: int
    counts: Mapping[str, int]


def find_model(name: str, store: Store) -> Path:
    """The file of a model, from its path or from its name in the registry: `champion`, `v3`, digits of a run.

    Raises:
        NoSuchModel: it is neither a path nor a name.
    """
    if Path(name).exists() or Path(name).suffix or Path(name).name != name:
        return Path(name)
    return store.folder("runs", read_registry(store).find(name).run, "model.keras")


def label_images(sources: Sequence[Path], model: str, csv: Path | None, store: Store) -> Made[Labelled]:
    """Label images, and write the rows to a CSV file, in one piece at the end.

    Args:
        model: as `find_model` takes it.
        csv: relative to `predictions/` in the store, where a file of its own is made if none is named.

    Raises:
        BadDump: there are no images that can be read, or an archive can't be opened.
        BadModel, NoSuchModel: there is no such model.
        BadConfig: the file's folder can't be made.
    """
    network, facts = load_model(find_model(model, store))
    named = csv or f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{facts.checkpoint}.csv"
    written = store.folder("predictions", str(named))
    try:
        written.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadConfig(f"there is no writing to {written}: {error.strerror}. Give another file.") from None
    rows = list(predict_images(network, facts, sources))
    if not rows:
        raise BadDump(
            f"no images found in {', '.join(map(str, sources))}. Pass images, folders or zip archives."
        )
    if all(row.error for row in rows):
        raise BadDump(f"none of the {len(rows):,} images could be read; of {rows[0].path}: {rows[0].error}")
    partial = written.with_name(f".{written.name}.partial")
    write_csv(partial, facts.classes, rows)
    partial.replace(written)
    counts = Counter(row.label for row in rows if row.label)
    labelled = Labelled(
        model=model,
        csv=str(written),
        images=len(rows),
        unreadable=sum(row.error is not None for row in rows),
        counts={label: counts[label] for label in facts.classes},
    )
    return Made(value=labelled, reused=False, note=f"{len(rows)} images in {written}")


def predict_images(model: Any, facts: ModelFacts, sources: Sequence[Path]) -> Iterator[LabelledImage]:
    """Label every image found in files, folders and zip archives, in their order.

    An image that can't be read gets a row with its error; the others are not held up.

    Raises:
        BadDump: an archive can't be opened.
    """
    with ExitStack() as opened, ThreadPoolExecutor() as pool:
        images = list(list_images(sources, opened))
        read = partial(_read_image, facts=facts)
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


def list_images(sources: Sequence[Path], opened: ExitStack) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Every image of files, folders and zip archives, in their order: its path, and what reads its bytes.

    Args:
        opened: closes the archives; bytes are read before that.

    Raises:
        BadDump: an archive can't be opened.
    """
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


def _read_image(image: tuple[str, Callable[[], bytes]], facts: ModelFacts) -> np.ndarray | str:
    """The pixels, or the reason why there are none."""
    try:
        return read_image(
            image[1](), facts.image_size_pixels, facts.resize_filter, facts.resize_fit, facts.colour
        )
    except BadImage as error:
        return str(error)


def _label_batch(
    model: Any, facts: ModelFacts, paths: Sequence[str], images: Sequence[np.ndarray | str]
) -> Iterator[LabelledImage]:
    blank = np.zeros(facts.shape, dtype=np.uint8)
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
