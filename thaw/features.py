"""Fill the feature cache: each image passes the frozen prefix once per view, whatever asks for it."""

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import compress, groupby, islice
from typing import Literal, TypeVar

import numpy as np

from thaw.archive import open_dump
from thaw.augment import MIRROR
from thaw.backbone import cut_points, find_cut, order_cuts
from thaw.claims import claim
from thaw.config import AugmentationConfig, BackboneConfig, DumpConfig
from thaw.extract import BATCH_ROWS, Extractor, map_ahead, read_views
from thaw.index import Key, pack_keys
from thaw.precision import choose_precision
from thaw.progress import track
from thaw.records import SIDES, Backbone, Features, FeatureSet, FeatureSpace, ImageRow, Made, Side, Split
from thaw.shards import SpaceFolder
from thaw.store import Store

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
# Missing rows by (cut to start from, cuts to reach); None starts from pixels.
Plan = dict[tuple[str | None, tuple[str, ...]], list[Key]]

# A killed writer loses at most one shard: some ten seconds of VGG16 on two cores.
_SHARD_ROWS = 256
_PIXELS_AHEAD_ROWS = 3 * BATCH_ROWS
_FEATURES_AHEAD_BATCHES = 2


def describe_space(
    backbone: Backbone,
    settings: BackboneConfig,
    cut: str,
    store: Store,
    augmentation: AugmentationConfig | None = None,
) -> FeatureSpace:
    """The space that features at `cut` belong to, with the precision settled for this machine."""
    asked = settings.precision
    if asked == "auto" and not backbone.name.startswith("vgg"):
        # Whether bfloat16 leaves their accuracy alone was measured of VGG only; others have normalisations.
        asked = "float32"
    space = FeatureSpace(
        backbone=backbone.name,
        weights_sha256=backbone.weights_sha256,
        cut=cut,
        image_size_pixels=settings.image_size_pixels,
        resize_fit=settings.resize_fit,
        resize_filter=settings.resize_filter,
        colour=settings.colour,
        preprocessing=backbone.preprocessing,
        precision=choose_precision(asked, store).name,
        storage=settings.storage,
        augmentation=augmentation.model_dump() if augmentation else None,
    )
    return space.at(cut)


def cache_features(
    split: Split,
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    cut: str | int,
    store: Store,
    views: int | Literal["fresh"] = 0,
    augmentation: AugmentationConfig | None = None,
    keep: Sequence[str] = (),
    sides: Sequence[Side] = SIDES,
) -> Made[Features]:
    """Fill the cache at `cut` with every image of the split, or `views` augmented views of those to train on.

    Only rows that are missing are computed, from the deepest cached cut that has them, else from pixels.
    Fresh views are drawn when they are trained on: nothing of them is cached.

    Args:
        keep: shallower cuts to fill in the same pass.
        sides: those whose images are wanted.

    Raises:
        BadCut: the backbone can't be cut there.
        BadDump: an image changed since the dump was scanned.
        DiskFull: there is no room for the missing rows.
        NotPublished: rows are missing, in a store that is only looked at.
    """
    cut, *others = (find_cut(backbone, each) for each in (cut, *keep))
    cuts = sorted({cut, *others}, key=order_cuts(backbone).index)
    plain = describe_space(backbone, settings, cut, store)
    sets = {side: FeatureSet(space=plain.digest, split=split.digest, side=side) for side in SIDES}
    wanted = [(row, 0) for side in sides if side != "train" or not views for row in split.rows(side)]
    made, total = _fill(plain, cuts, wanted, dump, backbone, settings, None, store), len(wanted)
    if views:
        space = describe_space(backbone, settings, cut, store, augmentation)
        cached = () if views == "fresh" else range(1, views + 1)
        wanted = [(row, view) for row in split.train for view in cached]
        made += _fill(space, cuts, wanted, dump, backbone, settings, augmentation, store)
        total += len(wanted)
        sets["train"] = dataclasses.replace(sets["train"], space=space.digest, views=views)
    note = f"{total - made} of {total} rows at {' and '.join(cuts)} were cached"
    return Made(value=Features(cut=cut, **sets), reused=made == 0, note=note)


def cache_mirrored(
    split: Split,
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    cut: str | int,
    store: Store,
    sides: Sequence[Side] = ("validation", "test"),
) -> Made[Features]:
    """Fill the cache at `cut` with the mirror image of every image on these sides of the split.

    Raises:
        As `cache_features` does.
    """
    cut = find_cut(backbone, cut)
    space = describe_space(backbone, settings, cut, store, MIRROR)
    sets = {side: FeatureSet(space=space.digest, split=split.digest, side=side, views=1) for side in SIDES}
    wanted = [(row, 1) for side in sides for row in split.rows(side)]
    made = _fill(space, [cut], wanted, dump, backbone, settings, MIRROR, store)
    note = f"{len(wanted) - made} of {len(wanted)} rows at {cut} were cached"
    return Made(value=Features(cut=cut, **sets), reused=made == 0, note=note)


def _fill(
    space: FeatureSpace,
    cuts: Sequence[str],
    wanted: Sequence[tuple[ImageRow, int]],
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    augmentation: AugmentationConfig | None,
    store: Store,
) -> int:
    """See that `space` has every row at each of the cuts; returns how many this run computed."""
    rows = {(row.sha256, view): row for row, view in wanted}
    packed = pack_keys(rows)
    folders = _open(space, cuts, packed, store)
    for folder in folders.values():
        folder.publish_facts()
    if not _plan(folders, rows, packed, backbone, store):
        return 0
    with ExitStack() as claims:
        # From shallow to deep, as every run claims them, so that no two wait for each other.
        for folder in folders.values():
            claims.enter_context(claim(store, "features", folder.space.digest))
        # What another run filled while this one waited is not missing any more.
        folders = _open(space, cuts, packed, store)
        plan = _plan(folders, rows, packed, backbone, store)
        if plan:
            _compute(plan, folders, rows, dump, backbone, settings, augmentation, store)
    return sum(len(keys) for keys in plan.values())


def _open(space: FeatureSpace, cuts: Iterable[str], keys: np.ndarray, store: Store) -> dict[str, SpaceFolder]:
    """The folders of a space at these cuts, as they are now; what they hold of these rows is whole."""
    folders = {cut: SpaceFolder(store, space.at(cut)) for cut in cuts}
    for folder in folders.values():
        folder.verify(keys)
    return folders


def _deepest(folders: dict[str, SpaceFolder]) -> FeatureSpace:
    return list(folders.values())[-1].space


def _compute(
    plan: Plan,
    folders: dict[str, SpaceFolder],
    rows: dict[Key, ImageRow],
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    augmentation: AugmentationConfig | None,
    store: Store,
) -> None:
    space, missing = _deepest(folders), sum(len(keys) for keys in plan.values())
    label = f"{' and '.join(folders)} of {'views' if augmentation else 'images'}"
    with (
        track(label, len(rows), "images", done=len(rows) - missing) as advance,
        open_dump(dump.path) as opened,
    ):

        def draw(image: tuple[str, list[int]]) -> list[np.ndarray]:
            sha256, views = image
            return read_views(opened, rows[sha256, views[0]], views, settings, augmentation)

        for (start, ends), keys in plan.items():
            extractor = Extractor(space, backbone, start, ends)
            if start is None:
                images = [
                    (sha256, [view for _, view in of]) for sha256, of in groupby(keys, lambda key: key[0])
                ]
                ahead = -(-_PIXELS_AHEAD_ROWS * len(images) // len(keys))
                pixels = (view for views in map_ahead(draw, images, ahead) for view in views)
                batches: Iterable = (np.stack(batch) for batch in _chunks(pixels, BATCH_ROWS))
            else:
                logger.info("%d rows at %s are computed from %s", len(keys), " and ".join(ends), start)
                shallow = SpaceFolder(store, space.at(start))
                places = (shallow.find(batch) for batch in _chunks(keys, BATCH_ROWS))
                batches = map_ahead(shallow.read, places, _FEATURES_AHEAD_BATCHES, threads=1)
            _publish([folders[end] for end in ends], keys, iter(batches), extractor, advance, store)


def _plan(
    folders: dict[str, SpaceFolder], keys: Iterable[Key], packed: np.ndarray, backbone: Backbone, store: Store
) -> Plan:
    """What there is to compute of these rows, whose keys are given packed as well."""
    held = np.array([folder.holds(packed) for folder in folders.values()])
    incomplete = ~held.all(axis=0)
    if not incomplete.any():
        return {}
    packed = packed[incomplete]
    shallower = cut_points(backbone, list(folders)[-1])[:-1]
    opened = _open(_deepest(folders), shallower, packed, store)

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
    keys: Sequence[Key],
    batches: Iterator[np.ndarray],
    extractor: Extractor,
    advance: Callable[..., None],
    store: Store,
) -> None:
    """Run batches through the extractor and publish what comes out at each end, shard by shard."""
    for number, shard in enumerate(_chunks(keys, _SHARD_ROWS)):
        outputs = []
        for _ in _chunks(shard, BATCH_ROWS):
            outputs.append(extractor(next(batches)))
            advance(len(outputs[-1][0]))
        features = [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
        if number == 0:
            store.check_room(len(keys) * sum(rows[0].nbytes for rows in features))
        for folder, rows in zip(folders, features, strict=True):
            folder.append(shard, rows)


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    left = iter(items)
    while chunk := list(islice(left, size)):
        yield chunk
