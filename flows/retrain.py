"""The same dump, some nights later: train on what is new, and let the better model be champion."""

import dataclasses

from prefect import flow, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows.method import StorePath, Where, close_gate, open_dump, score_model, train_model
from tasks import dataset, release
from tasks.dispatch import cancel_children
from tasks.screen import label_run
from tasks.stage import run_stages
from thaw.config import PromotionConfig, TrainConfig
from thaw.contest import Contender, enter, find_reason_to_skip
from thaw.errors import ThawError, UnlikeSplits
from thaw.growth import hold_out
from thaw.promotion import Decision, decide, hold
from thaw.records import Backbone, Split
from thaw.registry import Version, read_registry
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
    dispatch: Where = "inline",
) -> State:
    """Compare the dump with the champion's; where there is something new, train, test and offer the model.

    Ends as Promoted, Kept or Held, with a `Decision`; as Skipped where there is nothing new; as GateClosed
    where the head did not converge; or as Failed with one plain sentence.
    """
    place = Store(store)
    try:
        with run_stages(dispatch) as stages:
            backbone, manifest = open_dump(config, place)
            registry = read_registry(place)
            champion = enter(registry.champion, place) if registry.champion else None
            if champion:
                change = dataset.compare_dump(champion.manifest, manifest, place)
                if reason := find_reason_to_skip(registry, change, config):
                    label_run("skipped")
                    return Completed(name="Skipped", message=reason)
                grown = (champion.split, champion.manifest, manifest, config.split, place)
                split = dataset.grow_split(*grown)
            else:
                split = dataset.split_images(manifest, config.split, place)
            start = champion.head if champion and champion.starts(config, split) else None
            outcome = train_model(config, backbone, manifest, split, place, stages, start)
            if outcome.withheld:
                return close_gate(outcome)
            challenger = release.register_model(outcome, config, place)
            decision = _judge(champion, challenger, backbone, split, config, promotion, place)
            if decision.outcome == "held" and deployment.id:
                decision = _ask(decision)
            release.record_decision(decision, challenger, place)
    except ThawError as error:
        label_run("failed")
        return Failed(message=str(error), data=error)
    name = decision.outcome.capitalize()
    label_run(f"v{challenger.number} {decision.outcome}")
    return Completed(name=name, message=f"v{challenger.number} {decision.reason}", data=decision)


def _judge(
    champion: Contender | None,
    challenger: Version,
    backbone: Backbone,
    split: Split,
    config: TrainConfig,
    promotion: PromotionConfig,
    store: Store,
) -> Decision:
    """The rule's decision, on test images that neither model learned from."""
    if champion is None:
        return decide(None, promotion, challenger=challenger.number, champion=None)
    numbers = {"challenger": challenger.number, "champion": champion.version.number}
    try:
        test = hold_out(split, champion.split, store)
    except UnlikeSplits as error:
        return hold(str(error), **numbers)
    offered = enter(challenger, store)
    theirs = dataset.load_backbone(champion.config.backbone, store)
    evaluations = (
        score_model(champion.model, champion.config.backbone, theirs, test, config.dump, store),
        score_model(offered.model, config.backbone, backbone, test, config.dump, store),
    )
    comparison = release.compare_models(*evaluations)
    return decide(comparison, promotion, **numbers)


def _ask(decision: Decision) -> Decision:
    """End this process until a person answers in the Prefect UI; the run then starts from the top, all cached."""
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
