"""Class probabilities of image files, folders and archives, by a saved model, and whether they drifted."""

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np

from thaw.answers import LabelledImage, check_suffix, replace_file, write_answers
from thaw.archive import is_image_name, open_dump, printable
from thaw.drift import FALSE_ALARM_RATE, Drift, judge_drift, project
from thaw.errors import BadConfig, BadDump, BadImage
from thaw.images import read_image
from thaw.layout import natural_key
from thaw.location import Url
from thaw.model import (
    ModelFacts,
    load_model,
    load_population,
    predict_pixels,
    predict_watched,
    watch_prefix,
)
from thaw.objects import REQUESTS_AT_ONCE, Objects
from thaw.progress import track
from thaw.records import Made, Record
from thaw.registry import read_registry
from thaw.report.drift import say_drift
from thaw.store import Store

_BATCH_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Labelled(Record):
    """What was labelled: by which model, into which file, how many images each class was given, and the drift.

    `file` holds the answers, `drift_file` the `Drift` beside them.
    """

    model: str
    checkpoint: str
    file: str
    images: int
    unreadable: int
    counts: Mapping[str, int]
    drift: Drift
    drift_file: str


def find_model(name: str, store: Store) -> Path:
    """The file of a model, from its path or from its name in the registry: `champion`, `v3`, digits of a run.

    Raises:
        NoSuchModel: it is neither a path nor a name.
    """
    if Path(name).exists() or Path(name).suffix or Path(name).name != name:
        return Path(name)
    return store.fetch("runs", read_registry(store).find(name).run, "model.keras")


def label_images(
    sources: Sequence[Path | Url],
    model: str,
    file: Path | None,
    store: Store,
    false_alarm_rate: float = FALSE_ALARM_RATE,
) -> Made[Labelled]:
    """Label images, write the rows to a CSV or Parquet file, in one piece at the end, and the drift beside it.

    Args:
        model: as `find_model` takes it.
        file: ends in .csv or .parquet; relative to `predictions/` in the store, where a CSV file of its own is
            made if none is named.
        false_alarm_rate: how often images like those that the model learned from may be said to have drifted.

    Raises:
        BadDump: there are no images that can be read, or an archive can't be opened.
        BadModel, NoSuchModel: there is no such model.
        BadConfig: the file is neither CSV nor Parquet, it or its folder can't be written, or the rate is no share.
    """
    if file:
        check_suffix(file)
    if not 0 < false_alarm_rate < 1:
        raise BadConfig(
            f"a false-alarm rate lies between 0 and 1, such as 0.01. Received: {false_alarm_rate}."
        )
    path = find_model(model, store)
    network, facts = load_model(path)
    population = load_population(path)
    written = _make_place(
        file or Path(f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{facts.checkpoint}-{token_hex(2)}.csv"), store
    )
    along: list[np.ndarray] = []

    def keep(pooled: np.ndarray) -> None:
        along.append(project(pooled, population.mean, population.basis))

    rows = list(predict_images(network, facts, sources, keep if population else None))
    if not rows:
        raise BadDump(
            f"no images found in {', '.join(map(str, sources))}. Pass images, folders or zip archives."
        )
    if all(row.error for row in rows):
        raise BadDump(f"none of the {len(rows):,} images could be read; of {rows[0].path}: {rows[0].error}")
    given = Counter(row.label for row in rows if row.label)
    counts = {label: given[label] for label in facts.classes}
    drift = judge_drift(population, np.concatenate(along) if along else None, counts, false_alarm_rate)
    drift_file = written.with_name(f"{written.name}.drift.json")
    with replace_file(written) as table, replace_file(drift_file) as record:
        write_answers(table, facts.classes, rows, written.suffix)
        record.write_text(drift.to_json(), encoding="utf-8")
    for made in (written, drift_file):
        store.share(made)
    labelled = Labelled(
        model=model,
        checkpoint=facts.checkpoint,
        file=str(written),
        images=len(rows),
        unreadable=sum(row.error is not None for row in rows),
        counts=counts,
        drift=drift,
        drift_file=str(drift_file),
    )
    return Made(value=labelled, reused=False, note=f"{len(rows)} images in {written}; {say_drift(drift)}")


def predict_images(
    model: Any,
    facts: ModelFacts,
    sources: Sequence[Path | Url],
    keep: Callable[[np.ndarray], None] | None = None,
) -> Iterator[LabelledImage]:
    """Label every image found in files, folders and zip archives, on a disk or at URLs, in their order.

    An image that can't be read gets a row with its error; the others are not held up.

    Args:
        keep: is given, batch by batch, what the model's frozen prefix makes of the images that could be read:
            float32 (n, channels).

    Raises:
        BadDump: an archive can't be opened.
    """
    model = watch_prefix(model) if keep else model
    with ExitStack() as opened, ThreadPoolExecutor(count_readers(sources)) as pool:
        images = list(list_images(sources, opened))
        read = partial(_read_image, facts=facts)
        with track("predict", len(images), "images") as advance:
            for start in range(0, len(images), _BATCH_IMAGES):
                batch = images[start : start + _BATCH_IMAGES]
                paths = [path for path, _ in batch]
                yield from _label_batch(model, facts, paths, list(pool.map(read, batch)), keep)
                advance(len(batch))


def _make_place(file: Path, store: Store) -> Path:
    """The whole path of a file, whose folder is made.

    Raises:
        BadConfig: it can't be written there.
    """
    place = store.folder("predictions", str(file))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadConfig(f"there is no writing to {place}: {error.strerror}. Give another file.") from None
    if place.is_dir():
        raise BadConfig(f"there is no writing to {place}: it is a folder. Give another file.")
    return place


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
    pixels += [blank] * (_BATCH_IMAGES - len(pixels))
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
