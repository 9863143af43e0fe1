"""Fill the feature cache: each image passes the frozen prefix once per view, whatever asks for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from thaw.augment import MIRROR
from thaw.backbone import find_cut, order_cuts
from thaw.config import AugmentationConfig, BackboneConfig, DumpConfig, Views
from thaw.errors import NotPublished
from thaw.fill import Part, Source, fill
from thaw.precision import choose_precision
from thaw.records import (
    SIDES,
    Backbone,
    Features,
    FeatureSet,
    FeatureSpace,
    Made,
    Record,
    Side,
    Split,
)
from thaw.store import Store


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


@dataclass(frozen=True, kw_only=True)
class FeatureRequest(Record):
    """Rows of the feature cache that a stage asks for: images of a split at a cut.

    `split` is a digest. Images to train on are wanted in `views` augmented views of each, the others as they
    are; or all of them mirrored. `keep` are shallower cuts to fill in the same pass. `fold` says to people which
    fold the split is.
    """

    split: str
    dump: DumpConfig
    backbone: Backbone
    settings: BackboneConfig
    cut: str
    keep: tuple[str, ...] = ()
    sides: tuple[Side, ...] = SIDES
    views: Views = 0
    augmentation: AugmentationConfig | None = None
    mirrored: bool = False
    fold: str = ""

    @property
    def title(self) -> str:
        """What it is for people."""
        if self.fold:
            return f"features of {self.fold}"
        if self.mirrored:
            return f"mirror images at {self.cut}"
        if self.sides == ("test",):
            return f"test rows at {self.cut}"
        return f"{self.views} views at {self.cut}" if self.views else f"features at {self.cut}"

    @property
    def cuts(self) -> list[str]:
        """Every cut that is filled, from shallow to deep."""
        cuts = {find_cut(self.backbone, cut) for cut in (self.cut, *self.keep)}
        return sorted(cuts, key=order_cuts(self.backbone).index)

    @property
    def source(self) -> Source:
        return Source(dump=self.dump, backbone=self.backbone, settings=self.settings)


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
    request = FeatureRequest(
        split=split.digest,
        dump=dump,
        backbone=backbone,
        settings=settings,
        cut=find_cut(backbone, cut),
        keep=tuple(find_cut(backbone, each) for each in keep),
        sides=tuple(sides),
        views=views,
        augmentation=augmentation,
    )
    return cache_request(request, store, split)


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
    request = FeatureRequest(
        split=split.digest,
        dump=dump,
        backbone=backbone,
        settings=settings,
        cut=find_cut(backbone, cut),
        sides=tuple(sides),
        mirrored=True,
    )
    return cache_request(request, store, split)


def cache_request(request: FeatureRequest, store: Store, split: Split | None = None) -> Made[Features]:
    """Fill the cache with what is asked for, in this process.

    Args:
        split: the one that the request names, where it is at hand.

    Raises:
        As `cache_features` does.
    """
    split = split or read_split(request, store)
    parts, cuts = list_parts(request, split, store), request.cuts
    made = sum(fill(part, cuts, request.source, store) for part in parts)
    total = sum(len(part) for part in parts)
    note = f"{total - made} of {total} rows at {' and '.join(cuts)} were cached"
    return Made(value=_describe_features(request, store), reused=made == 0, note=note)


def read_split(request: FeatureRequest, store: Store) -> Split:
    """The split of a request.

    Raises:
        NotPublished: the store does not have it.
    """
    split = store.read("splits", request.split, Split)
    if split is None:
        raise NotPublished(
            f"there is no split {request.split} in the store at {store.address}. Split the dump first."
        )
    return split


def list_parts(request: FeatureRequest, split: Split, store: Store) -> list[Part]:
    """What is asked for, space by space."""

    def describe(augmentation: AugmentationConfig | None) -> FeatureSpace:
        return describe_space(request.backbone, request.settings, request.cut, store, augmentation)

    rows = {side: split.rows(side) for side in request.sides}
    if request.mirrored:
        images = [row for side in request.sides for row in rows[side]]
        return [Part(space=describe(MIRROR), images=images, views=(1,), augmentation=MIRROR)]
    plain = [row for side in request.sides if side != "train" or not request.views for row in rows[side]]
    parts = [Part(space=describe(None), images=plain, views=(0,), augmentation=None)]
    if request.views:
        views = () if request.views == "fresh" else tuple(range(1, request.views + 1))
        augmented = request.augmentation
        parts.append(Part(space=describe(augmented), images=split.train, views=views, augmentation=augmented))
    return parts


def _describe_features(request: FeatureRequest, store: Store) -> Features:
    """The handles to what was asked for."""

    def describe(augmentation: AugmentationConfig | None, **views: Views) -> dict[Side, FeatureSet]:
        space = describe_space(request.backbone, request.settings, request.cut, store, augmentation)
        return {
            side: FeatureSet(space=space.digest, split=request.split, side=side, **views) for side in SIDES
        }

    if request.mirrored:
        return Features(cut=request.cut, **describe(MIRROR, views=1))
    sets = describe(None)
    if request.views:
        sets["train"] = describe(request.augmentation, views=request.views)["train"]
    return Features(cut=request.cut, **sets)
