"""Compute the rows that the feature cache lacks, and publish them shard by shard."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import compress, groupby, islice, tee
from typing import TypeVar

import numpy as np

from thaw.archive import open_dump
from thaw.backbone import cut_points
from thaw.claims import claim
from thaw.config import AugmentationConfig, BackboneConfig, DumpConfig
from thaw.extract import BATCH_ROWS, Extractor, map_ahead, read_views
from thaw.index import Key, pack_keys
from thaw.progress import track
from thaw.records import Backbone, FeatureSpace, ImageRow
from thaw.shards import SpaceFolder
from thaw.store import Store

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
# Missing rows by (cut to start from, cuts to reach); None starts from pixels.
Plan = dict[tuple[str | None, tuple[str, ...]], list[Key]]

# A killed writer loses at most one shard: some ten seconds of VGG16 on two cores.
SHARD_ROWS = 256
_PIXELS_AHEAD_ROWS = 3 * BATCH_ROWS
_FEATURES_AHEAD_BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class Source:
    """What rows are computed from: the images' bytes, the backbone, and how they become its pixels."""

    dump: DumpConfig
    backbone: Backbone
    settings: BackboneConfig


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of one space: so many views of each of some images; view 0 is the image itself."""

    space: FeatureSpace
    images: Sequence[ImageRow]
    views: Sequence[int]
    augmentation: AugmentationConfig | None

    def __len__(self) -> int:
        return len(self.images) * len(self.views)

    def list_rows(self) -> dict[Key, ImageRow]:
        """The image of each row, by the row's key."""
        return {(row.sha256, view): row for row in self.images for view in self.views}


def fill(part: Part, cuts: Sequence[str], source: Source, store: Store) -> int:
    """See that the cache has every row of a part at each of the cuts, from shallow to deep.

    Returns how many rows this run computed. Another run that wants the same waits for this one.
    """
    rows = part.list_rows()
    packed = pack_keys(rows)
    folders = open_folders(part.space, cuts, packed, store)
    _publish_facts(folders)
    if not _plan(folders, rows, packed, source.backbone, store):
        return 0
    with claim_spaces(part.space, cuts, store):
        # What another run filled while this one waited is not missing any more.
        return _fill(part, cuts, source, store)


def fill_beside_others(
    part: Part, cuts: Sequence[str], source: Source, store: Store, backwards: bool = False
) -> int:
    """Do the same where others work on the same rows, or on others of their space, and nobody waits.

    A shard that is there by the time its turn comes is left out. Who comes second begins at the end, so that two
    that work on the same rows meet in the middle.
    """
    return _fill(part, cuts, source, store, shared=True, backwards=backwards)


@contextmanager
def claim_spaces(space: FeatureSpace, cuts: Sequence[str], store: Store) -> Iterator[None]:
    """Be the only run that fills a space at these cuts."""
    with ExitStack() as claims:
        # From shallow to deep, as every run claims them, so that no two wait for each other.
        for cut in cuts:
            claims.enter_context(claim(store, "features", space.at(cut).digest))
        yield


def open_folders(
    space: FeatureSpace, cuts: Iterable[str], keys: np.ndarray, store: Store
) -> dict[str, SpaceFolder]:
    """The folders of a space at these cuts, as they are now; what they hold of these rows is whole."""
    folders = {cut: SpaceFolder(store, space.at(cut)) for cut in cuts}
    for folder in folders.values():
        folder.verify(keys)
    return folders


def _publish_facts(folders: dict[str, SpaceFolder]) -> None:
    for folder in folders.values():
        folder.publish_facts()


def _fill(
    part: Part,
    cuts: Sequence[str],
    source: Source,
    store: Store,
    shared: bool = False,
    backwards: bool = False,
) -> int:
    rows = part.list_rows()
    packed = pack_keys(rows)
    folders = open_folders(part.space, cuts, packed, store)
    _publish_facts(folders)
    plan = _plan(folders, rows, packed, source.backbone, store)
    if not plan:
        return 0
    missing, computed = sum(len(keys) for keys in plan.values()), 0
    label = f"{' and '.join(folders)} of {'views' if part.augmentation else 'images'}"
    with (
        track(label, len(rows), "images", done=len(rows) - missing) as advance,
        open_dump(source.dump.path) as dump,
    ):

        def draw(image: tuple[str, list[int]]) -> list[np.ndarray]:
            sha256, views = image
            return read_views(dump, rows[sha256, views[0]], views, source.settings, part.augmentation)

        for (start, ends), keys in plan.items():
            extractor = Extractor(part.space, source.backbone, start, ends)
            reached = [folders[end] for end in ends]
            shards = list(_chunks(keys, SHARD_ROWS))
            turns = shards[::-1] if backwards else shards
            # Whether a shard is left out is settled once, when its images are read ahead.
            first, again, last = tee(_leave_out(turns, reached, advance) if shared else iter(turns), 3)
            if start is None:
                ahead = _count_ahead(keys)
                # Of many views of an image few are read ahead: their pixels are held, and their shard is settled.
                readers = dump.readers and min(dump.readers, ahead)
                views = map_ahead(draw, _group_images(first), ahead, readers)
                pixels = (view for of_image in views for view in of_image)
                batches: Iterable = (
                    np.stack(list(islice(pixels, len(batch))))
                    for shard in again
                    for batch in _chunks(shard, BATCH_ROWS)
                )
            else:
                logger.info("%d rows at %s are computed from %s", len(keys), " and ".join(ends), start)
                shallow = SpaceFolder(store, part.space.at(start))
                places = (shallow.find(batch) for shard in first for batch in _chunks(shard, BATCH_ROWS))
                batches = map_ahead(shallow.read, places, _FEATURES_AHEAD_BATCHES, threads=1)
            computed += _publish(reached, last, len(keys), iter(batches), extractor, advance, store)
    return computed


def _leave_out(
    shards: Iterable[list[Key]], folders: Sequence[SpaceFolder], advance: Callable[..., None]
) -> Iterator[list[Key]]:
    """Those shards that nobody else has published by the time they are asked for."""
    for shard in shards:
        if all(folder.is_published(shard) for folder in folders):
            advance(len(shard))
        else:
            yield shard


def _group_images(shards: Iterable[list[Key]]) -> Iterator[tuple[str, list[int]]]:
    """Images with the views that are wanted of each, so that none is decoded for every view anew."""
    keys = (key for shard in shards for key in shard)
    for sha256, of_image in groupby(keys, lambda key: key[0]):
        yield sha256, [view for _, view in of_image]


def _count_ahead(keys: Sequence[Key]) -> int:
    """How many images are read ahead of need."""
    images = sum(1 for _ in groupby(keys, lambda key: key[0]))
    return -(-_PIXELS_AHEAD_ROWS * images // len(keys))


def _plan(
    folders: dict[str, SpaceFolder], keys: Iterable[Key], packed: np.ndarray, backbone: Backbone, store: Store
) -> Plan:
    """What there is to compute of these rows, whose keys are given packed as well."""
    held = np.array([folder.holds(packed) for folder in folders.values()])
    incomplete = ~held.all(axis=0)
    if not incomplete.any():
        return {}
    packed, deepest = packed[incomplete], list(folders.values())[-1]
    shallower = cut_points(backbone, list(folders)[-1])[:-1]
    opened = open_folders(deepest.space, shallower, packed, store)

    @cache
    def choose(cached: tuple[bool, ...]) -> tuple[str | None, tuple[str, ...]]:
        ends = tuple(cut for cut, has in zip(folders, cached, strict=False) if not has)
        present = dict(zip(opened, cached[len(folders) :], strict=True))
        before = cut_points(backbone, ends[0])[:-1]
        return next((cut for cut in reversed(before) if present[cut]), None), ends

    # Whether each row is cached, at the cuts wanted and then at those that it could be computed from.
    cached = [*held[:, incomplete], *(folder.holds(packed) for folder in opened.values())]
    plan = defaultdict(list)
    for key, where in zip(
        compress(keys, incomplete.tolist()), zip(*(at.tolist() for at in cached), strict=True), strict=True
    ):
        plan[choose(where)].append(key)
    return plan


def _publish(
    folders: Sequence[SpaceFolder],
    shards: Iterable[Sequence[Key]],
    wanted_rows: int,
    batches: Iterator[np.ndarray],
    extractor: Extractor,
    advance: Callable[..., None],
    store: Store,
) -> int:
    """Run batches through the extractor and publish what comes out at each end, shard by shard; counts rows."""
    computed = 0
    for shard in shards:
        outputs = []
        for _ in _chunks(shard, BATCH_ROWS):
            outputs.append(extractor(next(batches)))
            advance(len(outputs[-1][0]))
        features = [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
        if not computed:
            store.check_room(wanted_rows * sum(rows[0].nbytes for rows in features))
        for folder, rows in zip(folders, features, strict=True):
            folder.append(shard, rows)
        computed += len(shard)
    return computed


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    left = iter(items)
    while chunk := list(islice(left, size)):
        yield chunk
