"""Tasks from a dump to a split, and the backbone that will look at it."""

from collections.abc import Mapping

from prefect.artifacts import create_table_artifact

from tasks.screen import show
from tasks.stage import stage
from thaw import backbone as backbones
from thaw import dump as dumps
from thaw import growth
from thaw import split as splits
from thaw.config import BackboneConfig, DumpConfig, SplitConfig
from thaw.growth import DumpChange
from thaw.records import Backbone, Made, Manifest, Side, Split
from thaw.store import Store

_EXAMPLES = 5


@stage("load {settings.name}", retries=1)
def load_backbone(settings: BackboneConfig, store: Store) -> Made[Backbone]:
    return backbones.load_backbone(settings, store)


@stage("scan dump", retries=1)
def scan_dump(dump: DumpConfig, store: Store) -> Made[Manifest]:
    return dumps.scan_dump(dump, store)


def _show_split(split: Split) -> None:
    rows = [{"side": side, **counts} for side, counts in split.counts().items()]
    title = f"Images of each class, split {split.digest}"
    show(create_table_artifact, rows, key="split", description=title)


@stage("split", present=_show_split)
def split_images(manifest: Manifest, settings: SplitConfig, store: Store) -> Made[Split]:
    return splits.publish_split(manifest, settings, store)


@stage("grow split", present=_show_split)
def grow_split(
    before: Split,
    known: Manifest,
    learned: Mapping[str, Side],
    manifest: Manifest,
    settings: SplitConfig,
    store: Store,
) -> Made[Split]:
    return growth.publish_grown_split(before, known, learned, manifest, settings, store)


def _show_change(change: DumpChange) -> None:
    rows = [
        {"change": "added", "images": len(change.added), "such as": ", ".join(change.added[:_EXAMPLES])},
        {
            "change": "deleted",
            "images": len(change.deleted),
            "such as": ", ".join(change.deleted[:_EXAMPLES]),
        },
        {
            "change": "relabelled",
            "images": len(change.relabelled),
            "such as": ", ".join(
                f"{path}: {old} → {new}" for path, old, new in change.relabelled[:_EXAMPLES]
            ),
        },
        {
            "change": "newly quarantined",
            "images": len(change.quarantined),
            "such as": ", ".join(change.quarantined[:_EXAMPLES]),
        },
    ]
    title = f"The dump, compared with the champion's: {change}"
    show(create_table_artifact, rows, key="dump-change", description=title)


@stage("compare with the champion's dump", present=_show_change)
def compare_dump(known: Manifest, manifest: Manifest, store: Store) -> Made[DumpChange]:
    return growth.publish_change(known, manifest, store)
