"""From a dump to a tested model: the method as a flow."""

import dataclasses
from typing import Annotated

from prefect import flow
from prefect.states import Completed, Failed, State
from pydantic import Field

from tasks import dataset, features, release, training
from tasks.stage import time_stages
from thaw.backbone import check_cut
from thaw.config import TrainConfig
from thaw.errors import ThawError
from thaw.precision import choose_precision
from thaw.records import Outcome, StageTime
from thaw.report import RunSummary
from thaw.rows import ViewSource
from thaw.store import Store

StorePath = Annotated[
    str | None, Field(description="Folder of the store; THAW_STORE, or store/, when empty.")
]


@flow(name="train", flow_run_name="{config.recipe} on {config.dump.path.name}")
def train(config: TrainConfig, store: StorePath = None) -> State:
    """Dump to tested model; block 5 thaws only behind a converged head.

    Ends as Completed, or as GateClosed where the head did not converge, both with an `Outcome`; or as
    Failed with one plain sentence.
    """
    try:
        with time_stages() as stages:
            outcome = run_method(config, Store(store), stages)
    except ThawError as error:
        return Failed(message=str(error), data=error)
    outcome = dataclasses.replace(outcome, stages=tuple(stages))
    if outcome.withheld:
        # Of type Completed, since Prefect ends every run of type Failed with an exception's trace.
        return Completed(name="GateClosed", message=f"no model: {outcome.verdict.reason}", data=outcome)
    accuracy = outcome.metrics.accuracy
    return Completed(message=f"test accuracy {accuracy:.4f}, run {outcome.run}", data=outcome)


def run_method(config: TrainConfig, store: Store, stages: list[StageTime]) -> Outcome:
    """The stages in their order; each is found published or made, and adds its time to `stages`."""
    store.check_writable()
    tuning, thaws = config.fine_tune, config.fine_tune.epochs > 0
    backbone = dataset.load_backbone(config.backbone, store)
    check_cut(backbone, tuning.cut)
    manifest = dataset.scan_dump(config.dump, store)
    split = dataset.split_images(manifest, config.split, store)

    images = (split, config.dump, backbone, config.backbone)
    source = ViewSource(
        dump=config.dump, backbone=backbone, settings=config.backbone, augmentation=config.augmentation
    )
    # What fine-tuning will start from comes up on the way, and no image passes the prefix twice.
    keep = (tuning.cut,) if thaws else ()
    if config.head.views:
        views = (config.head.views, config.augmentation)
        bottlenecks = features.cache_views(*images, backbone.end, store, *views, keep)
    else:
        bottlenecks = features.cache_features(*images, backbone.end, store, keep)

    for budget in range(1, config.gate.max_extensions + 2):
        head = training.train_head(bottlenecks, config.head, config.gate, store, budget, source)
        verdict = training.judge_convergence(head, config.gate)
        if verdict.state != "improving" or not thaws:
            break

    run = RunSummary(
        title=f"{config.recipe} on {config.dump.path.name}",
        config=config,
        manifest=manifest,
        split=split,
        head=head,
        verdict=verdict,
        backbone=backbone,
        precision=choose_precision(config.backbone.precision, store).name,
    )
    if not verdict.opens_gate and (thaws or verdict.is_hopeless):
        return release.release_run(dataclasses.replace(run, stages=tuple(stages)), store)

    run = dataclasses.replace(run, head_evaluation=release.evaluate(head, bottlenecks.test, store))
    if thaws:
        if tuning.views:
            shallow = features.cache_views(*images, tuning.cut, store, tuning.views, config.augmentation)
        else:
            shallow = features.cache_features(*images, tuning.cut, store)
        tuned = training.thaw_and_train(head, shallow, backbone, config.backbone, tuning, store, source)
        evaluation = release.evaluate(tuned, shallow.test, store)
        run = dataclasses.replace(run, fine_tuned=tuned, evaluation=evaluation)
    return release.release_run(dataclasses.replace(run, stages=tuple(stages)), store)
