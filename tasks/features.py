"""Tasks that fill the feature cache."""

from tasks.stage import stage
from thaw import features
from thaw.config import AugmentationConfig, BackboneConfig, DumpConfig
from thaw.records import Backbone, Features, Made, Split
from thaw.store import Store


@stage("features at {cut}", tags=("gpu",), retries=1)
def cache_features(
    split: Split, dump: DumpConfig, backbone: Backbone, settings: BackboneConfig, cut: str, store: Store
) -> Made[Features]:
    return features.cache_features(split, dump, backbone, settings, cut, store)


@stage("{views} views at {cut}", tags=("gpu",), retries=1)
def cache_views(
    split: Split,
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    cut: str,
    store: Store,
    views: int,
    augmentation: AugmentationConfig,
) -> Made[Features]:
    return features.cache_features(split, dump, backbone, settings, cut, store, views, augmentation)
