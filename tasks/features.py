"""Tasks that fill the feature cache."""

from tasks.stage import stage
from thaw import features
from thaw.config import AugmentationConfig, BackboneConfig, DumpConfig, Views
from thaw.records import Backbone, Features, Made, Side, Split
from thaw.store import Store


@stage("features at {cut}", wants_gpu=True, retries=1)
def cache_features(
    split: Split,
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    cut: str,
    store: Store,
    keep: tuple[str, ...] = (),
) -> Made[Features]:
    return features.cache_features(split, dump, backbone, settings, cut, store, keep=keep)


@stage("{views} views at {cut}", wants_gpu=True, retries=1)
def cache_views(
    split: Split,
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    cut: str,
    store: Store,
    views: Views,
    augmentation: AugmentationConfig,
    keep: tuple[str, ...] = (),
) -> Made[Features]:
    return features.cache_features(split, dump, backbone, settings, cut, store, views, augmentation, keep)


@stage("mirror images at {cut}", wants_gpu=True, retries=1)
def cache_mirrored(
    split: Split,
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    cut: str,
    store: Store,
    sides: tuple[Side, ...] = ("validation", "test"),
) -> Made[Features]:
    return features.cache_mirrored(split, dump, backbone, settings, cut, store, sides)


@stage("test rows at {cut}", wants_gpu=True, retries=1)
def cache_test_rows(
    split: Split,
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    cut: str,
    store: Store,
) -> Made[Features]:
    return features.cache_features(split, dump, backbone, settings, cut, store, sides=("test",))
