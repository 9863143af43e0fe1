"""The method, from an opened dump to a tested model, as the flows share it."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from prefect.runtime import deployment
from prefect.states import Completed, State
from pydantic import Field

from tasks import dataset, features, release, training
from tasks.dispatch import Dispatch
from tasks.screen import label_run
from thaw import archive
from thaw.backbone import find_cut
from thaw.config import BackboneConfig, DumpConfig, GateConfig, TrainConfig, TrainingConfig
from thaw.errors import BadConfig
from thaw.fine_tune import check_phases
from thaw.records import (
    Backbone,
    Checkpoint,
    Evaluation,
    Features,
    FeatureSet,
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
    check_phases(config.fine_tune, backbone)
    return backbone, dataset.scan_dump(config.dump, store)


def cache_bottlenecks(config: TrainConfig, backbone: Backbone, split: Split, store: Store) -> Features:
    """The features that the head learns from; those that fine-tuning starts from come up on the way."""
    keep = tuple(phase.cut for phase in config.fine_tune)
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
    if not verdict.opens_gate and (config.fine_tune or verdict.is_hopeless):
        outcome = release.release_run(dataclasses.replace(run, stages=tuple(stages)), store)
        return dataclasses.replace(outcome, stages=tuple(stages))

    run = dataclasses.replace(run, head_evaluation=release.evaluate(head, bottlenecks.test, store))
    if config.fine_tune:
        phases, verdicts, test = _thaw_in_phases(config, backbone, split, source, head, store)
        evaluation = release.evaluate(phases[-1], test, store)
        run = dataclasses.replace(run, phases=phases, phase_verdicts=verdicts, evaluation=evaluation)
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
    cut: str | int,
    views: int | str,
    store: Store,
    keep: Sequence[str | int] = (),
) -> Features:
    cut, *keep = (find_cut(backbone, each) for each in (cut, *keep))
    images = (split, config.dump, backbone, config.backbone, cut, store)
    if views:
        return features.cache_views(*images, views, config.augmentation, tuple(keep))
    return features.cache_features(*images, tuple(keep))


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
    return min(heads, key=_rank_head)


def _rank_head(trained: tuple[Checkpoint, Verdict]) -> tuple[bool, float]:
    """Converged ones first, then by what is monitored of the best epoch."""
    history = trained[0].history
    return not trained[1].opens_gate, history.rank_of(history.best) if history.best else math.inf


def _train_head(
    config: TrainConfig,
    bottlenecks: Features,
    source: ViewSource,
    store: Store,
    start: Checkpoint | None = None,
) -> tuple[Checkpoint, Verdict]:
    given = {"bottlenecks": bottlenecks, "settings": config.head, "gate": config.gate}
    given |= {"store": store, "source": source}
    warm = partial(training.train_warm_head, start=start)
    train = partial(warm if start else training.train_head, **given)
    return _train_until_converged(train, config.gate, config.head, extends=bool(config.fine_tune))


def _thaw_in_phases(
    config: TrainConfig, backbone: Backbone, split: Split, source: ViewSource, head: Checkpoint, store: Store
) -> tuple[tuple[Checkpoint, ...], tuple[Verdict, ...], FeatureSet]:
    """What each phase came to, the gate's verdict on each, and the test rows for the last.

    A phase that has not converged ends the thawing: what it came to is kept, what was to follow is left out.
    """
    phases: list[Checkpoint] = [head]
    verdicts: list[Verdict] = []
    for number, settings in enumerate(config.fine_tune, 1):
        shallow = _cache(config, backbone, split, settings.cut, settings.views, store)
        train = partial(
            training.thaw_and_train,
            trained=phases[-1],
            features=shallow,
            backbone=backbone,
            backbone_settings=config.backbone,
            settings=settings,
            store=store,
            source=source,
        )
        extends = number < len(config.fine_tune)
        tuned, verdict = _train_until_converged(train, config.gate, settings, extends)
        phases.append(tuned)
        verdicts.append(verdict)
        if not verdict.opens_gate:
            break
    return tuple(phases[1:]), tuple(verdicts), shallow.test


def _train_until_converged(
    train: Callable[..., Checkpoint], gate: GateConfig, settings: TrainingConfig, extends: bool
) -> tuple[Checkpoint, Verdict]:
    """What was trained, and the gate's verdict on it.

    Args:
        train: trains for so many budgets.
        extends: whether it is given further budgets as long as it still improves and the gate grants them,
            since something waits behind the gate.
    """
    for budget in range(1, gate.max_extensions + 2):
        trained = train(budget=budget)
        verdict = training.judge_convergence(trained, gate, settings)
        if verdict.state != "improving" or not extends:
            break
    return trained, verdict
