"""The same dump, some nights later: train on what is new, and let the better model be champion."""

import dataclasses

from prefect import flow, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows.method import (
    HERE,
    StorePath,
    Where,
    close_gate,
    find_duplicates,
    open_dump,
    open_store,
    score_model,
    split_dump,
    train_model,
)
from tasks import dataset, release
from tasks.pools import cancel_children
from tasks.screen import label_run
from tasks.stage import run_stages
from thaw.config import PromotionConfig, TrainConfig
from thaw.contest import enter, find_reason_to_skip, recall_learned
from thaw.errors import ThawError
from thaw.promotion import Decision, decide, hold
from thaw.records import StageTime
from thaw.registry import read_registry
from thaw.report.contest import render_decision
from thaw.store import Store

_RULE = PromotionConfig()
_ANSWER_SECONDS = 14 * 24 * 3600


class Approval(RunInput):
    """What a person answers where a model waits to become champion."""

    promote: bool = Field(False, description="Make the new model champion.")
    remark: str = Field("", description="Kept with the decision.")


@flow(
    name="retrain",
    flow_run_name="retrain {config.recipe} on {config.dump.path.name}",
    on_cancellation=[cancel_children],
)
def retrain(
    config: TrainConfig,
    promotion: PromotionConfig = _RULE,
    store: StorePath = None,
    runner: Where = HERE,
) -> State:
    """Compare the dump with the champion's; where there is something new, train, test and offer the model.

    Ends as Promoted, Kept or Held, with a `Decision`; as Skipped where there is nothing new; as GateClosed
    where the head did not converge; or as Failed with one plain sentence.
    """
    try:
        place = open_store(store)
        with run_stages(runner) as stages:
            # A run that waited for an answer starts from the top, and goes on with what it had offered.
            offer = place.read("offers", str(flow_run.id), Decision)
            ended = offer or _train(config, promotion, place, stages)
            if isinstance(ended, State):
                return ended
            if ended.outcome == "held" and deployment.id:
                place.publish("offers", str(flow_run.id), ended)
                ended = _ask(ended)
            release.record_decision(ended, read_registry(place).find(ended.challenger), place)
    except ThawError as error:
        label_run("failed")
        return Failed(message=str(error), data=error)
    label_run(f"v{ended.challenger} {ended.outcome}")
    message = f"v{ended.challenger} {ended.reason}"
    return Completed(name=ended.outcome.capitalize(), message=message, data=ended)


def _train(
    config: TrainConfig, rule: PromotionConfig, store: Store, stages: list[StageTime]
) -> Decision | State:
    """The rule's decision on a model trained on what is new; or the state of a run that comes to none."""
    backbone, manifest = open_dump(config, store)
    registry = read_registry(store)
    if registry.champion is None:
        duplicates, split = split_dump(config, manifest, store)
        outcome = train_model(config, backbone, manifest, duplicates, split, store, stages)
        if outcome.withheld:
            return close_gate(outcome)
        challenger = release.register_model(outcome, config, store)
        return decide(None, rule, challenger=challenger.number, champion=None)

    champion = enter(registry.champion, store)
    change = dataset.compare_dump(champion.manifest, manifest, store)
    if reason := find_reason_to_skip(registry, change, config, rule):
        label_run("skipped")
        return Completed(name="Skipped", message=reason)
    # Before anything costly is done: a champion that can't be loaded can't be judged beside.
    theirs = dataset.load_backbone(champion.config.backbone, store)
    learned = recall_learned(registry, store)
    duplicates = find_duplicates(config, manifest, store)
    known = (champion.split, champion.manifest, learned)
    split = dataset.grow_split(*known, manifest, config.split, store, duplicates)
    start = champion.head if champion.starts(config, split) else None
    outcome = train_model(config, backbone, manifest, duplicates, split, store, stages, start)
    if outcome.withheld:
        return close_gate(outcome)
    challenger = enter(release.register_model(outcome, config, store), store)
    numbers = {"challenger": challenger.version.number, "champion": champion.version.number}
    if champion.split.classes != split.classes:
        known, now = (", ".join(one.classes) for one in (champion.split, split))
        return hold(f"held: the champion knows the classes {known}, the dump has {now}", rule, **numbers)
    evaluations = (
        score_model(champion, theirs, split, config.dump, store),
        score_model(challenger, backbone, split, config.dump, store),
    )
    return decide(release.compare_models(*evaluations), rule, **numbers)


def _ask(decision: Decision) -> Decision:
    """A person's decision. Ends this process until there is an answer in the Prefect UI."""
    label_run(f"v{decision.challenger} waits for approval")
    answer = suspend_flow_run(
        wait_for_input=Approval.with_initial_data(description=render_decision(decision)),
        key=f"promote-v{decision.challenger}-over-v{decision.champion or 0}",
        timeout=_ANSWER_SECONDS,
    )
    remark = f" ({answer.remark})" if answer.remark else ""
    words = "approved by a person" if answer.promote else "declined by a person"
    outcome = "promoted" if answer.promote else "kept"
    return dataclasses.replace(decision, outcome=outcome, reason=f"{words}{remark}; {decision.reason}")
