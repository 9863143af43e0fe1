"""Share out the rows that the feature cache lacks among workers, in portions that any of them can fill."""

import math
import socket
import time
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from thaw.backbone import build_backbone
from thaw.features import FeatureRequest, cache_request, describe_space, list_parts, read_split
from thaw.fill import SHARD_ROWS, fill_beside_others, open_folders
from thaw.index import pack_keys
from thaw.records import PIXELS, Made, Record
from thaw.store import Store

# More portions than this would be more bookkeeping than work.
_MOST_PORTIONS = 1000
# So few that starting a worker for each costs little, and so many that nobody waits long for the last one. What counts
# as one worker may start many machines, and more may come.
_PORTIONS_PER_WORKER, _PORTIONS = 4, 32
_LEAST_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class PortionSize(Record):
    """The most that a portion holds: images, and 10^6 bytes of features.

    Where `images` is None it follows from how much there is to share out, and among how many `workers`.
    """

    images: int | None
    megabytes: float
    workers: int = 1

    def limit_images(self, images: int, views: int = 1) -> int:
        """The most images of a portion, where so many are to be shared out, with so many rows of each."""
        if self.images:
            return self.images
        portions = max(_PORTIONS, _PORTIONS_PER_WORKER * self.workers)
        rows = max(_LEAST_ROWS, math.ceil(images * views / portions))
        return max(1, math.ceil(rows / views))


@dataclass(frozen=True, kw_only=True)
class Portion(Record):
    """What one worker is given at a time: images `start` up to `end` of one part of a request.

    `rows` are those of the images; `missing` of them were not cached when it was planned.
    """

    part: int
    start: int
    end: int
    rows: int
    missing: int

    @property
    def title(self) -> str:
        """What it is for people."""
        return f"images {self.start:,} to {self.end:,}"


Request = TypeVar("Request", bound=Record)


@dataclass(frozen=True, kw_only=True)
class PortionPlan(Record, Generic[Request]):
    """How a request is shared out: the request with what had to be settled first, and what is missing in portions.

    `computed` rows were not worth sharing, and are done.
    """

    request: Request
    portions: tuple[Portion, ...]
    rows: int
    computed: int = 0


@dataclass(frozen=True, kw_only=True)
class PortionReport(Record):
    """What came of a portion: rows computed and rows that were there by then, on which machine, how long it took."""

    computed: int
    found: int
    seconds: float
    host: str


def plan_portions(
    request: FeatureRequest, size: PortionSize, store: Store
) -> Made[PortionPlan[FeatureRequest]]:
    """Share out the rows that are missing, in portions of at most this size.

    Portions are about as large as each other, and end where shards do, unless they are smaller than one.

    Raises:
        As `cache_features` does.
    """
    settled = describe_space(request.backbone, request.settings, request.cut, store).precision
    settings = request.settings.model_copy(update={"precision": settled})
    request = replace(request, settings=settings)
    parts, cuts = list_parts(request, read_split(request, store), store), request.cuts
    portions: list[Portion] = []
    for number, part in enumerate(parts):
        # Fresh views are drawn when they are trained on.
        if not len(part):
            continue
        views = len(part.views)
        packed = pack_keys((row.sha256, view) for row in part.images for view in part.views)
        held = np.array(
            [folder.holds(packed) for folder in open_folders(part.space, cuts, packed, store).values()]
        )
        missing = (~held.all(axis=0)).reshape(-1, views).sum(axis=1)
        incomplete = np.flatnonzero(missing)
        if incomplete.size:
            most = _count_images(request, len(incomplete), views, size)
            for some in np.split(incomplete, range(most, len(incomplete), most)):
                start, end = int(some[0]), int(some[-1]) + 1
                lacking = int(missing[start:end].sum())
                rows = (end - start) * views
                portions.append(Portion(part=number, start=start, end=end, rows=rows, missing=lacking))
    plan = PortionPlan(request=request, portions=tuple(portions), rows=sum(len(part) for part in parts))
    note = f"{sum(portion.missing for portion in portions):,} rows in {len(portions):,} portions"
    return Made(value=plan, reused=not portions, note=note)


def begin_request(
    request: FeatureRequest, size: PortionSize, store: Store
) -> Made[PortionPlan[FeatureRequest]]:
    """Share out the rows that are missing, or fill them in where there is no more than one portion.

    Raises:
        As `cache_features` does.
    """
    made = plan_portions(request, size, store)
    plan = made.value
    if len(plan.portions) != 1:
        return made
    cached = cache_request(plan.request, store)
    computed = plan.portions[0].missing
    return replace(cached, value=replace(plan, portions=(), computed=computed))


def fill_portion(
    request: FeatureRequest, portion: Portion, store: Store, backwards: bool = False
) -> Made[PortionReport]:
    """Compute what a portion lacks, beside other workers.

    Args:
        backwards: from the end, for a second worker on the same portion.

    Raises:
        As `cache_features` does.
    """
    started = time.monotonic()
    whole = list_parts(request, read_split(request, store), store)[portion.part]
    part = replace(whole, images=whole.images[portion.start : portion.end])
    computed = fill_beside_others(part, request.cuts, request.source, store, backwards)
    report = report_portion(computed, portion, started)
    return Made(value=report, reused=computed == 0, note=f"{computed:,} of {portion.rows:,} rows computed")


def report_portion(computed: int, portion: Portion, started: float) -> PortionReport:
    """What came of a portion that this machine began at `started`, by its monotonic clock."""
    return PortionReport(
        computed=computed,
        found=portion.rows - computed,
        seconds=round(time.monotonic() - started, 3),
        host=socket.gethostname(),
    )


def _count_images(request: FeatureRequest, incomplete: int, views: int, size: PortionSize) -> int:
    """How many images a portion has, of so many in all: within both limits where that is possible."""
    within_bytes = int(size.megabytes * 1e6 / (_measure_row_bytes(request) * views))
    fitting = max(1, min(size.limit_images(incomplete, views), within_bytes))
    whole = max(1, SHARD_ROWS // views)
    if fitting >= whole:
        fitting -= fitting % whole
    portions = min(math.ceil(incomplete / fitting), _MOST_PORTIONS)
    even = math.ceil(incomplete / portions)
    rounded = math.ceil(even / whole) * whole
    return rounded if rounded <= fitting else even


def _measure_row_bytes(request: FeatureRequest) -> int:
    """Bytes of one row at all the cuts together, from the shapes of the network."""
    size, item = request.settings.image_size_pixels, np.dtype(request.settings.storage).itemsize
    network = build_backbone(request.backbone, size)
    shapes = [
        (size, size, 3) if cut == PIXELS else network.get_layer(cut).output.shape[1:] for cut in request.cuts
    ]
    return sum(math.prod(shape) for shape in shapes) * item
