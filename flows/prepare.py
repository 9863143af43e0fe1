"""From a dump to cached features: the costly part of a run, so that training begins at once."""

from prefect import flow
from prefect.states import Completed, Failed, State

from flows.members import cache_bottlenecks, cache_mirrored
from flows.method import HERE, StorePath, Where, open_dump, open_store, open_views, split_dump
from flows.search import cache_folds
from tasks import dataset
from tasks.pools import cancel_children
from tasks.screen import label_run
from tasks.stage import run_stages
from thaw.config import TrainConfig
from thaw.errors import ThawError


@flow(
    name="prepare",
    flow_run_name="prepare {config.recipe} on {config.dump.path.name}",
    on_cancellation=[cancel_children],
)
def prepare(config: TrainConfig, store: StorePath = None, runner: Where = HERE) -> State:
    """Verify, check and split the images of a dump, and push each through the frozen backbone."""
    try:
        place = open_store(store)
        with run_stages(runner):
            backbone, manifest = open_dump(config, place)
            size_pixels = config.backbone.image_size_pixels
            checked = dataset.check_properties(manifest, config.dump, size_pixels, place)
            duplicates, split = split_dump(config, manifest, place)
            bottlenecks = cache_bottlenecks(config, backbone, split, place)
            if config.search.grid:
                cache_folds(config, open_views(config, backbone), split, duplicates, place)
            if config.ensemble.mirrored:
                cut = config.fine_tune[-1].cut if config.fine_tune else backbone.end
                cache_mirrored(config, backbone, split, cut, place)
    except ThawError as error:
        label_run("failed")
        return Failed(message=str(error), data=error)
    images = f"{len(manifest.images):,} images"
    label_run(images)
    aside = f", {len(manifest.quarantined):,} set aside" if manifest.quarantined else ""
    aside += f", {len(checked.troubled):,} with a problem" if checked.troubled else ""
    return Completed(message=f"{images}{aside}, split {split.digest}", data=bottlenecks)
