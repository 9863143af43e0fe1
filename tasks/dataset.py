"""Tasks from a dump to a split, and the backbone that will look at it."""

from collections.abc import Mapping

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.screen import show
from tasks.stage import stage
from thaw import backbone as backbones
from thaw import dump as dumps
from thaw import duplicates as copies
from thaw import growth, properties
from thaw import split as splits
from thaw.config import BackboneConfig, DumpConfig, DuplicatesConfig, SplitConfig
from thaw.duplicates import Duplicates
from thaw.growth import DumpChange
from thaw.properties import PropertyCheck
from thaw.records import Backbone, Made, Manifest, Side, Split
from thaw.report.duplicates import list_images
from thaw.report.page import drop_surrogates, list_blocks
from thaw.report.properties import describe_properties, list_warnings
from thaw.store import Store

_EXAMPLES = 5


@stage("load {settings.name}", retries=1)
def load_backbone(settings: BackboneConfig, store: Store) -> Made[Backbone]:
    return backbones.load_backbone(settings, store)


@stage("scan dump", retries=1)
def scan_dump(dump: DumpConfig, store: Store) -> Made[Manifest]:
    return dumps.scan_dump(dump, store)


def _show_duplicates(duplicates: Duplicates) -> None:
    rows = [
        {"group": number, "image": row.path, "class": row.label, "bits apart": group.distance_bits}
        | ({} if group.similarity is None else {"alike": round(group.similarity, 3)})
        for number, group, row, _ in list_images(duplicates)
    ]
    if rows:
        title = f"Near-identical images: {len(duplicates.groups):,} groups"
        show(create_table_artifact, rows, key="duplicates", description=title)


@stage("find near-identical images", retries=1, present=_show_duplicates)
def find_duplicates(
    manifest: Manifest, dump: DumpConfig, settings: DuplicatesConfig, store: Store
) -> Made[Duplicates]:
    return copies.find_duplicates(manifest, dump, settings, store)


@stage("confirm near-identical images", wants_gpu=True, retries=1, present=_show_duplicates)
def confirm_duplicates(
    duplicates: Duplicates,
    split: Split,
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    store: Store,
) -> Made[Duplicates]:
    return copies.confirm_duplicates(duplicates, split, dump, backbone, settings, store)


def _show_properties(made: PropertyCheck) -> None:
    for warning in list_warnings(made):
        get_run_logger().warning(warning)
    section = describe_properties(made)
    markdown = drop_surrogates("\n\n".join(list_blocks(section)))
    show(create_markdown_artifact, markdown, key="properties", description=section.title)


@stage("check properties of images", retries=1, present=_show_properties)
def check_properties(
    manifest: Manifest, dump: DumpConfig, image_size_pixels: int, store: Store
) -> Made[PropertyCheck]:
    return properties.publish_properties(manifest, dump, image_size_pixels, store)


def _show_split(split: Split) -> None:
    rows = [{"side": side, **counts} for side, counts in split.counts().items()]
    title = f"Images of each class, split {split.digest}"
    show(create_table_artifact, rows, key="split", description=title)


@stage("split", present=_show_split)
def split_images(
    manifest: Manifest, settings: SplitConfig, store: Store, duplicates: Duplicates
) -> Made[Split]:
    return splits.publish_split(manifest, settings, store, duplicates.rows)


@stage("grow split", present=_show_split)
def grow_split(
    before: Split,
    known: Manifest,
    learned: Mapping[str, Side],
    manifest: Manifest,
    settings: SplitConfig,
    store: Store,
    duplicates: Duplicates,
) -> Made[Split]:
    given = (before, known, learned, manifest, settings, store)
    return growth.publish_grown_split(*given, duplicates.rows)


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
