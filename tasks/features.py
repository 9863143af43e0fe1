"""Tasks that fill the feature cache."""

from collections.abc import Sequence

from tasks.sharing import Sharing
from tasks.stage import stage
from thaw import features, portions
from thaw.backbone import find_cut
from thaw.config import AugmentationConfig, BackboneConfig, DumpConfig, Views
from thaw.features import FeatureRequest
from thaw.portions import Portion, PortionPlan, PortionReport, PortionSize
from thaw.records import SIDES, Backbone, Features, Made, Side, Split
from thaw.store import Store


@stage("{request.title}", wants_gpu=True)
def begin_request(
    request: FeatureRequest, size: PortionSize, store: Store
) -> Made[PortionPlan[FeatureRequest]]:
    return portions.begin_request(request, size, store)


@stage("{request.title}: {portion.title}", wants_gpu=True)
def fill_portion(
    request: FeatureRequest, portion: Portion, store: Store, backwards: bool = False
) -> Made[PortionReport]:
    return portions.fill_portion(request, portion, store, backwards)


@stage("{request.title}", sharing=Sharing(begin_request, fill_portion), retries=1)
def cache_request(request: FeatureRequest, store: Store) -> Made[Features]:
    return features.cache_request(request, store)


def cache_features(
    split: Split,
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    cut: str | int,
    store: Store,
    keep: Sequence[str | int] = (),
    views: Views = 0,
    augmentation: AugmentationConfig | None = None,
    sides: Sequence[Side] = SIDES,
    mirrored: bool = False,
    fold: str = "",
) -> Features:
    """Fill the cache with what a stage needs of a split, or with its mirror images."""
    request = FeatureRequest(
        split=split.digest,
        dump=dump,
        backbone=backbone,
        settings=settings,
        cut=find_cut(backbone, cut),
        keep=tuple(find_cut(backbone, each) for each in keep),
        sides=tuple(sides),
        views=views,
        augmentation=augmentation if views else None,
        mirrored=mirrored,
        fold=fold,
    )
    return cache_request(request, store)
