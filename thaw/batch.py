"""Label many images: into a table, with what says whether they drifted; alone, or in portions by many."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex

import numpy as np

from thaw.answers import LabelledImage, check_suffix, read_answers, replace_file, write_answers
from thaw.drift import FALSE_ALARM_RATE, Drift, judge_drift, project
from thaw.errors import BadConfig, BadDump
from thaw.location import Url, parse_source
from thaw.model import load_model, load_population
from thaw.pieces import clear_pieces, fetch_pieces, is_made, plan_pieces, publish_piece
from thaw.portions import Portion, PortionPlan, PortionReport, PortionSize, report_portion
from thaw.predict import BATCH_IMAGES, digest_listing, find_model, list_images, predict_images
from thaw.records import Made, Record, digest_of
from thaw.registry import read_registry
from thaw.report.drift import say_drift
from thaw.store import Store

_ANSWERS, _ALONG = "answers.parquet", "along.npy"


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


@dataclass(frozen=True, kw_only=True)
class LabelRequest(Record):
    """What `label_images` is asked for, for many to work on.

    `batch` tells it from other requests for the same images, which may have changed in between. `name` is what the
    model was called by who asked. `images` is how many there are, and `listing` what `digest_listing` says of them,
    once they were looked for.
    """

    sources: tuple[str, ...]
    model: str
    file: str | None
    false_alarm_rate: float
    batch: str
    name: str | None = None
    images: int = 0
    listing: str = ""

    @property
    def title(self) -> str:
        """What it is for people."""
        return f"label images with {self.name or self.model}"

    @property
    def address(self) -> str:
        """Where the pieces of the answers lie."""
        return digest_of("labels", self.batch, self.model, self.listing)

    def parse_sources(self) -> list[Path | Url]:
        """Where the images are."""
        return [parse_source(source) for source in self.sources]


def label_images(
    sources: Sequence[Path | Url],
    model: str,
    file: Path | None,
    store: Store,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    pieces: Sequence[Path] = (),
) -> Made[Labelled]:
    """Label images, write the rows to a CSV or Parquet file, in one piece at the end, and the drift beside it.

    Args:
        model: as `find_model` takes it.
        file: ends in .csv or .parquet; relative to `predictions/` in the store, where a CSV file of its own is
            made if none is named.
        false_alarm_rate: how often images like those that the model learned from may be said to have drifted.
        pieces: what others have labelled, of all the images.

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
    labeller = _Labeller(find_model(model, store))
    facts, population = labeller.facts, labeller.population
    written = _make_place(
        file or Path(f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{facts.checkpoint}-{token_hex(2)}.csv"), store
    )
    rows, along = _read_pieces(pieces) if pieces else labeller.label(sources)
    if not rows:
        raise BadDump(
            f"no images found in {', '.join(map(str, sources))}. Pass images, folders or zip archives."
        )
    if all(row.error for row in rows):
        raise BadDump(f"none of the {len(rows):,} images could be read; of {rows[0].path}: {rows[0].error}")
    given = Counter(row.label for row in rows if row.label)
    counts = {label: given[label] for label in facts.classes}
    drift = judge_drift(population, along, counts, false_alarm_rate)
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


def begin_labels(request: LabelRequest, size: PortionSize, store: Store) -> Made[PortionPlan[LabelRequest]]:
    """Share out the images; where there is no more than one portion it is left to who asks.

    Raises:
        As `label_images` does.
    """
    # Should another model become champion meanwhile, all portions are labelled by the same one.
    request = replace(request, model=str(_name_model(request.model, store)))
    with ExitStack() as opened:
        paths = [path for path, _ in list_images(request.parse_sources(), opened)]
    request = replace(request, images=len(paths), listing=digest_listing(paths))
    portions = plan_pieces(request.address, len(paths), size, BATCH_IMAGES, store)
    plan = PortionPlan(request=request, portions=portions, rows=len(paths))
    return Made(value=plan, reused=False, note=f"{len(paths):,} images in {len(portions):,} portions")


def label_portion(
    request: LabelRequest, portion: Portion, store: Store, backwards: bool = False
) -> Made[PortionReport]:
    """Label a portion of the images, unless another worker has. It is too little to be begun at the other end.

    Raises:
        As `label_images` does.
    """
    started, reused = time.monotonic(), is_made(request.address, portion, store)
    if not reused:
        labeller = _Labeller(find_model(request.model, store))
        rows, along = labeller.label(request.parse_sources(), portion.start, portion.end, request.listing)
        with publish_piece(request.address, portion, store) as folder:
            write_answers(folder / _ANSWERS, labeller.facts.classes, rows, ".parquet")
            if along is not None:
                np.save(folder / _ALONG, along, allow_pickle=False)
    report = report_portion(0 if reused else portion.rows, portion, started)
    return Made(value=report, reused=reused, note=f"{report.computed:,} of {portion.rows:,} images labelled")


def label_request(request: LabelRequest, store: Store) -> Made[Labelled]:
    """Label the images asked for, with what others have labelled of them.

    Raises:
        NotPublished: the store is only looked at; labels are made anew each time.
        As `label_images` does.
    """
    store.check_may_make("predictions", request.batch)
    file = Path(request.file) if request.file else None
    pieces = fetch_pieces(request.address, request.images, store)
    given = (request.model, file, store, request.false_alarm_rate, pieces)
    made = label_images(request.parse_sources(), *given)
    clear_pieces(request.address, store)
    return replace(made, value=replace(made.value, model=request.name or request.model))


class _Labeller:
    """A model, and what it takes to label images and to tell whether they drifted."""

    def __init__(self, path: Path):
        self._network, self.facts = load_model(path)
        self.population = load_population(path)

    def label(
        self,
        sources: Sequence[Path | Url],
        start: int = 0,
        end: int | None = None,
        listing: str | None = None,
    ) -> tuple[list[LabelledImage], np.ndarray | None]:
        """The answers of the images from `start` up to `end` of a listing, and where those that could be read lie.

        That is along the axes of the model's population: float64 (n, components), None where it has none.
        """
        along: list[np.ndarray] = []

        def keep(pooled: np.ndarray) -> None:
            along.append(project(pooled, self.population.mean, self.population.basis))

        kept = keep if self.population else None
        rows = list(predict_images(self._network, self.facts, sources, kept, start, end, listing))
        return rows, np.concatenate(along) if along else None


def _name_model(name: str, store: Store) -> Path | str:
    """A name that stands for the same model from now on."""
    path = find_model(name, store)
    return f"v{read_registry(store).find(name).number}" if str(path) != name else name


def _read_pieces(folders: Sequence[Path]) -> tuple[list[LabelledImage], np.ndarray | None]:
    """What others have labelled."""
    rows = [row for folder in folders for row in read_answers(folder / _ANSWERS)]
    along = [np.load(folder / _ALONG) for folder in folders if (folder / _ALONG).exists()]
    return rows, np.concatenate(along) if along else None


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
