"""The method, from an opened dump to a tested model, as the flows share it."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

from prefect.runtime import deployment
from prefect.states import Completed, State
from pydantic import Field

from tasks import dataset, features, release, training
from tasks.dispatch import Dispatch
from tasks.screen import label_run
from thaw import archive
from thaw.backbone import check_cut
from thaw.config import BackboneConfig, DumpConfig, TrainConfig
from thaw.errors import BadConfig
from thaw.records import (
    Backbone,
    Checkpoint,
    Evaluation,
    Features,
    Manifest,
    Outcome,
    Split,
    StageTime,
    Verdict,
)
from thaw.report import RunSummary
from thaw.rows import ViewSource
from thaw.shards import read_space
from thaw.store import Store

StorePath = Annotated[
    str | None, Field(description="Folder of the store; THAW_STORE, or store/, when empty.")
]
Where = Annotated[
    Dispatch,
    Field(description="inline: every stage in this run; pools: GPU stages as runs of the pool thaw-gpu."),
]


def open_store(path: str | None) -> Store:
    """The store of a run.

    Raises:
        BadConfig: a worker's run is given a relative path: its working folder is gone with it.
    """
    given = path or os.environ.get("THAW_STORE") or ""
    if deployment.id and not Path(given).expanduser().is_absolute():
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
    check_cut(backbone, config.fine_tune.cut)
    return backbone, dataset.scan_dump(config.dump, store)


def cache_bottlenecks(config: TrainConfig, backbone: Backbone, split: Split, store: Store) -> Features:
    """The features that the head learns from; those that fine-tuning starts from come up on the way."""
    keep = (config.fine_tune.cut,) if config.fine_tune.epochs else ()
    return _cache(config, backbone, split, backbone.end, config.head.views, store, keep)


def train_model(
    config: TrainConfig,
    backbone: Backbone,
    manifest: Manifest,
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
    tuning, thaws = config.fine_tune, config.fine_tune.epochs > 0
    source = ViewSource(
        dump=config.dump, backbone=backbone, settings=config.backbone, augmentation=config.augmentation
    )
    bottlenecks = cache_bottlenecks(config, backbone, split, store)
    head, verdict = _train_heads(config, bottlenecks, source, store, champions_head)
    run = RunSummary(
        title=f"{config.recipe} on {config.dump.path.name}",
        config=config,
        manifest=manifest,
        split=split,
        head=head,
        verdict=verdict,
        backbone=backbone,
        precision=read_space(bottlenecks.test.space, store).precision,
    )
    if not verdict.opens_gate and (thaws or verdict.is_hopeless):
        outcome = release.release_run(dataclasses.replace(run, stages=tuple(stages)), store)
        return dataclasses.replace(outcome, stages=tuple(stages))

    run = dataclasses.replace(run, head_evaluation=release.evaluate(head, bottlenecks.test, store))
    if thaws:
        shallow = _cache(config, backbone, split, tuning.cut, tuning.views, store)
        tuned = training.thaw_and_train(head, shallow, backbone, config.backbone, tuning, store, source)
        evaluation = release.evaluate(tuned, shallow.test, store)
        run = dataclasses.replace(run, fine_tuned=tuned, evaluation=evaluation)
    outcome = release.release_run(dataclasses.replace(run, stages=tuple(stages)), store)
    return dataclasses.replace(outcome, stages=tuple(stages))


def score_model(
    checkpoint: Checkpoint,
    settings: BackboneConfig,
    backbone: Backbone,
    split: Split,
    dump: DumpConfig,
    store: Store,
) -> Evaluation:
    """What a model makes of the test images of a split, which may be another's than its own."""
    test = features.cache_test_rows(split, dump, backbone, settings, checkpoint.cut, store)
    return release.evaluate(checkpoint, test.test, store)


def close_gate(outcome: Outcome) -> State:
    """The state of a run whose head did not converge.

    Of type Completed, since Prefect ends every run of type Failed with an exception's trace.
    """
    label_run("gate closed")
    return Completed(name="GateClosed", message=f"no model: {outcome.verdict.reason}", data=outcome)


def _cache(
    config: TrainConfig,
    backbone: Backbone,
    split: Split,
    cut: str,
    views: int | str,
    store: Store,
    keep: tuple[str, ...] = (),
) -> Features:
    images = (split, config.dump, backbone, config.backbone, cut, store)
    if views:
        return features.cache_views(*images, views, config.augmentation, keep)
    return features.cache_features(*images, keep)


def _train_heads(
    config: TrainConfig,
    bottlenecks: Features,
    source: ViewSource,
    store: Store,
    champions_head: Checkpoint | None,
) -> tuple[Checkpoint, Verdict]:
    """The head that validates best among the converged ones, and the gate's verdict on it."""
    heads = [_train_head(config, bottlenecks, source, store)]
    if champions_head:
        heads.append(_train_head(config, bottlenecks, source, store, champions_head))
    return min(heads, key=lambda trained: (not trained[1].opens_gate, trained[0].history.best_loss))


def _train_head(
    config: TrainConfig,
    bottlenecks: Features,
    source: ViewSource,
    store: Store,
    start: Checkpoint | None = None,
) -> tuple[Checkpoint, Verdict]:
    """A head, given further budgets as long as it still improves and the gate grants them."""
    for budget in range(1, config.gate.max_extensions + 2):
        given = (bottlenecks, config.head, config.gate, store, budget, source)
        head = training.train_warm_head(*given, start) if start else training.train_head(*given)
        verdict = training.judge_convergence(head, config.gate)
        if verdict.state != "improving" or not config.fine_tune.epochs:
            break
    return head, verdict
