"""A small run up to its features, to train on."""

import dataclasses
from pathlib import Path

from tests.conftest import small_config
from thaw.backbone import load_backbone
from thaw.config import TrainConfig
from thaw.dump import scan_dump
from thaw.features import cache_features
from thaw.fine_tune import fine_tune
from thaw.head import train_head
from thaw.records import Backbone, Features, Split
from thaw.split import publish_split
from thaw.store import Store


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a run has made when training begins."""

    config: TrainConfig
    store: Store
    backbone: Backbone
    split: Split
    block4: Features
    bottlenecks: Features


def prepare(dump: Path, root: Path) -> Prepared:
    config, store = small_config(dump), Store(root)
    backbone = load_backbone(config.backbone, store).value
    split = publish_split(scan_dump(config.dump, store).value, config.split, store).value
    given = (split, config.dump, backbone, config.backbone)
    block4 = cache_features(*given, "block4_pool", store, 1, config.augmentation).value
    bottlenecks = cache_features(*given, "block5_pool", store).value
    return Prepared(config, store, backbone, split, block4, bottlenecks)


def head_of(prepared: Prepared, store: Store | None = None, budget: int = 1, **changes):
    settings = prepared.config.head.model_copy(update=changes)
    return train_head(prepared.bottlenecks, settings, prepared.config.gate, store or prepared.store, budget)


def tune(prepared: Prepared, head, store: Store | None = None, **changes):
    settings = prepared.config.fine_tune[0].model_copy(update=changes)
    given = (prepared.backbone, prepared.config.backbone, settings, store or prepared.store)
    return fine_tune(head, prepared.block4, *given)
