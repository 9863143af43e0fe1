"""Tasks from a dump to a split, and the backbone that will look at it."""

from prefect.artifacts import create_table_artifact

from tasks.stage import show, stage
from thaw import backbone as backbones
from thaw import dump as dumps
from thaw import split as splits
from thaw.config import BackboneConfig, DumpConfig, SplitConfig
from thaw.records import Backbone, Made, Manifest, Split
from thaw.store import Store


@stage("load {settings.name}", retries=1)
def load_backbone(settings: BackboneConfig, store: Store) -> Made[Backbone]:
    return backbones.load_backbone(settings, store)


@stage("scan dump", retries=1)
def scan_dump(dump: DumpConfig, store: Store) -> Made[Manifest]:
    return dumps.scan_dump(dump, store)


@stage("split")
def split_images(manifest: Manifest, settings: SplitConfig, store: Store) -> Made[Split]:
    made = splits.publish_split(manifest, settings, store)
    rows = [{"side": side, **counts} for side, counts in made.value.counts().items()]
    title = f"Images of each class, split {made.value.digest}"
    show(create_table_artifact, rows, key="split", description=title)
    return made
