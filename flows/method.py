"""The method, from an opened dump to a tested model, as the flows share it."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

from prefect.runtime import deployment
from prefect.states import Completed, State
from pydantic import Field

from flows.members import cache_bottlenecks, cache_mirrored, thaw_in_phases, train_heads
from flows.search import search_head
from tasks import dataset, features, release, training
from tasks.credentials import use_storage_block
from tasks.screen import label_run
from thaw import archive
from thaw.config import DumpConfig, TrainConfig
from thaw.contest import Contender
from thaw.duplicates import Duplicates
from thaw.ensemble import choose_members
from thaw.errors import BadConfig
from thaw.fine_tune import check_phases
from thaw.records import (
    Backbone,
    Checkpoint,
    Evaluation,
    Features,
    Manifest,
    Outcome,
    Split,
    StageTime,
)
from thaw.report import RunSummary
from thaw.rows import ViewSource
from thaw.runner import Runner
from thaw.shards import read_space
from thaw.store import Store

StorePath = Annotated[
    str | None, Field(description="Folder or URL of the store; THAW_STORE, or store/, when empty.")
]
Where = Annotated[
    Runner, Field(description="Where the run computes: here, on pools of workers, or on a Dask cluster.")
]
HERE = Runner()


def open_store(path: str | None) -> Store:
    """The store of a run, whose credentials a Prefect block may hold.

    Raises:
        BadConfig: a worker's run is given a relative path: its working folder is gone with it. Or there is something
            wrong with the block.
    """
    use_storage_block()
    given = path or os.environ.get("THAW_STORE") or ""
    if deployment.id and "://" not in given and not Path(given).expanduser().is_absolute():
        raise BadConfig(
            f"a run on a worker needs a store with a whole path. Received: {given!r}. Give one as parameter "
            "'store', or start the worker with THAW_STORE set to one."
        )
    return Store(path)


def open_dump(config: TrainConfig, store: Store) -> tuple[Backbone, Manifest]:
    """The backbone, which must have the cuts asked for, and what the dump holds."""
    label_run(tags=(config.recipe, config.dump.path.name))
    store.check_writable()
    # A wrong path is told before weights are fetched for it.
    with archive.open_dump(config.dump.path):
        pass
    backbone = dataset.load_backbone(config.backbone, store)
    check_phases(config.fine_tune, backbone)
    return backbone, dataset.scan_dump(config.dump, store)


def find_duplicates(config: TrainConfig, manifest: Manifest, store: Store) -> Duplicates:
    """The near-identical images of the dump. They are told by the images alone, whatever the backbone."""
    return dataset.find_duplicates(manifest, config.dump, config.duplicates, store)


def split_dump(config: TrainConfig, manifest: Manifest, store: Store) -> tuple[Duplicates, Split]:
    """The near-identical images, and who trains, validates and tests, each group of them on one side."""
    duplicates = find_duplicates(config, manifest, store)
    return duplicates, dataset.split_images(manifest, config.split, store, duplicates)


def open_views(config: TrainConfig, backbone: Backbone) -> ViewSource:
    """What fresh views of the images are drawn from."""
    return ViewSource(
        dump=config.dump, backbone=backbone, settings=config.backbone, augmentation=config.augmentation
    )


def train_model(
    config: TrainConfig,
    backbone: Backbone,
    manifest: Manifest,
    duplicates: Duplicates,
    split: Split,
    store: Store,
    stages: list[StageTime],
    champions_head: Checkpoint | None = None,
) -> Outcome:
    """Features, head, gate, and only behind a converged head the thawed backbone; tested and published.

    Args:
        stages: times of the stages so far, for the report.
        champions_head: a head to start from as well, which is kept where it validates better.
    """
    size_pixels = config.backbone.image_size_pixels
    properties = dataset.check_properties(manifest, config.dump, size_pixels, store)
    source = open_views(config, backbone)
    bottlenecks = cache_bottlenecks(config, backbone, split, store)
    if duplicates.groups:
        given = (config.dump, backbone, config.backbone, store)
        duplicates = dataset.confirm_duplicates(duplicates, split, *given)
    search = search_head(config, source, split, duplicates, store)
    if search:
        searched, config = config, config.model_copy(update={"head": search.apply(config.head)})
        if config.head.views != searched.head.views:
            bottlenecks = cache_bottlenecks(config, backbone, split, store)
    heads = train_heads(config, bottlenecks, source, store, champions_head)
    run = RunSummary(
        title=f"{config.recipe} on {config.dump.path.name}",
        config=config,
        manifest=manifest,
        duplicates=duplicates,
        properties=properties,
        split=split,
        search=search,
        members=tuple(heads),
        backbone=backbone,
        precision=read_space(bottlenecks.test.space, store).precision,
    )
    passed = choose_members(heads, bool(config.fine_tune))
    if passed:
        if config.fine_tune:
            # That takes a while, and what the head behind it gives is worth knowing meanwhile.
            shown = release.evaluate(passed[0].head, bottlenecks.test, store)
            run = dataclasses.replace(run, head_evaluation=shown)
        trained, shallow = thaw_in_phases(config, heads, bottlenecks, split, source, store)
        members = choose_members(trained, bool(config.fine_tune))
        left_out = tuple(member for member in trained if member not in members)
        run = dataclasses.replace(run, members=members, left_out=left_out)
        run = _test_model(run, bottlenecks, shallow, store)
    outcome = release.release_run(dataclasses.replace(run, stages=tuple(stages)), store)
    return dataclasses.replace(outcome, stages=tuple(stages))


def score_model(
    model: Contender, backbone: Backbone, split: Split, dump: DumpConfig, store: Store
) -> Evaluation:
    """What a model, with the temperature it was released with, makes of the test images of a split.

    The split may be another than its own.
    """
    checkpoint = model.model
    images = (split, dump, backbone, model.config.backbone, checkpoint.cut, store)
    test = features.cache_features(*images, sides=("test",)).test
    mirrored = None
    if checkpoint.mirrored:
        mirrored = features.cache_features(*images, sides=("test",), mirrored=True).test
    return release.evaluate(checkpoint, test, store, mirrored, model.version.temperature)


def close_gate(outcome: Outcome) -> State:
    """The state of a run whose head did not converge.

    Of type Completed, since Prefect ends every run of type Failed with an exception's trace.
    """
    label_run("gate closed")
    return Completed(name="GateClosed", message=f"no model: {outcome.verdict.reason}", data=outcome)


def _test_model(run: RunSummary, bottlenecks: Features, shallow: Features, store: Store) -> RunSummary:
    """The run with its model, averaged and calibrated where that is asked for, and with what test rows say of it.

    Args:
        shallow: features at the cut of the members' last phase.
    """
    config, head, mirrored = run.config, run.head, None
    if config.ensemble.mirrored:
        mirrored = cache_mirrored(config, run.backbone, run.split, shallow.cut, store)
    if mirrored or len(run.members) > 1:
        networks = [member.model for member in run.members]
        run = dataclasses.replace(run, ensemble=training.join_members(networks, shallow, mirrored, store))
    if run.model is not head and (
        run.head_evaluation is None or run.head_evaluation.checkpoint != head.address
    ):
        shown = release.evaluate(head, bottlenecks.test, store)
        run = dataclasses.replace(run, head_evaluation=shown)
    temperature = 1.0
    if config.calibration.temperature == "fitted":
        rows = (shallow.validation, store, mirrored.validation if mirrored else None)
        run = dataclasses.replace(run, calibration=training.calibrate(run.model, *rows))
        temperature = run.calibration.temperature
    rows = (shallow.test, store, mirrored.test if mirrored else None)
    tested = release.evaluate(run.model, *rows, temperature)
    part = "head_evaluation" if run.model is head else "evaluation"
    heat = release.map_heat(tested, run.model, *rows)
    return dataclasses.replace(run, heat=heat, **{part: tested})
