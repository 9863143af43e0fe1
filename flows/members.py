"""The networks that a model is made of: a head each, the gate's verdict, and the phases that thaw behind it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

from tasks import features, training
from thaw.config import GateConfig, PhaseConfig, TrainConfig, TrainingConfig
from thaw.ensemble import Member, list_members
from thaw.records import Backbone, Checkpoint, Features, Split, Verdict
from thaw.rows import ViewSource
from thaw.store import Store


def cache_bottlenecks(config: TrainConfig, backbone: Backbone, split: Split, store: Store) -> Features:
    """The features that the head learns from; those that fine-tuning starts from come up on the way."""
    keep = tuple(phase.cut for phase in config.fine_tune)
    return _cache(config, backbone, split, backbone.end, config.head.views, store, keep)


def cache_mirrored(
    config: TrainConfig, backbone: Backbone, split: Split, cut: str | int, store: Store
) -> Features:
    """The features of the mirror images that the model is asked about as well."""
    sides = ("validation", "test")
    return features.cache_features(
        split, config.dump, backbone, config.backbone, cut, store, sides=sides, mirrored=True
    )


def train_heads(
    config: TrainConfig,
    bottlenecks: Features,
    source: ViewSource,
    store: Store,
    champions_head: Checkpoint | None = None,
) -> list[Member]:
    """Each member's head and the gate's verdict on it.

    Args:
        champions_head: a head that the first member starts from as well; it keeps what validates better.
    """
    members = []
    for own in list_members(config):
        trained = [_train_head(own, bottlenecks, source, store)]
        if champions_head and not members:
            trained.append(_train_head(own, bottlenecks, source, store, champions_head))
        head, verdict = min(trained, key=_rank_head)
        members.append(Member(seed=own.head.seed, head=head, verdict=verdict))
    return members


def thaw_in_phases(
    config: TrainConfig,
    members: Sequence[Member],
    bottlenecks: Features,
    split: Split,
    source: ViewSource,
    store: Store,
) -> tuple[list[Member], Features]:
    """The members after every phase, and the features of the last one; the bottlenecks, where there is none.

    Where a member has not converged its thawing ends: what it came to is kept, what was to follow is left out.
    """
    members, shallow = list(members), bottlenecks
    for number, phase in enumerate(config.fine_tune):
        if not any(member.opens_gate for member in members):
            break
        shallow = _cache(config, source.backbone, split, phase.cut, phase.views, store)
        extends = number + 1 < len(config.fine_tune)
        for place, own in enumerate(list_members(config)):
            if members[place].opens_gate:
                settings = own.fine_tune[number]
                members[place] = _thaw(members[place], shallow, settings, config.gate, source, store, extends)
    return members, shallow


def _cache(
    config: TrainConfig,
    backbone: Backbone,
    split: Split,
    cut: str | int,
    views: int | str,
    store: Store,
    keep: Sequence[str | int] = (),
) -> Features:
    images = (split, config.dump, backbone, config.backbone, cut, store)
    return features.cache_features(*images, keep, views, config.augmentation)


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


def _rank_head(trained: tuple[Checkpoint, Verdict]) -> tuple[bool, float]:
    """Converged ones first, then by what is monitored of the best epoch."""
    history = trained[0].history
    return not trained[1].opens_gate, history.rank_of(history.best) if history.best else math.inf


def _thaw(
    member: Member,
    shallow: Features,
    settings: PhaseConfig,
    gate: GateConfig,
    source: ViewSource,
    store: Store,
    extends: bool,
) -> Member:
    train = partial(
        training.thaw_and_train,
        trained=member.model,
        features=shallow,
        backbone=source.backbone,
        backbone_settings=source.settings,
        settings=settings,
        store=store,
        source=source,
    )
    tuned, verdict = _train_until_converged(train, gate, settings, extends)
    return dataclasses.replace(
        member, phases=(*member.phases, tuned), phase_verdicts=(*member.phase_verdicts, verdict)
    )


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
