"""From a dump to a tested model: the method as a flow."""

from prefect import flow
from prefect.states import Completed, Failed, State

from flows.method import HERE, StorePath, Where, close_gate, open_dump, open_store, split_dump, train_model
from tasks import release
from tasks.pools import cancel_children
from tasks.screen import label_run
from tasks.stage import run_stages
from thaw.config import TrainConfig
from thaw.errors import ThawError


@flow(
    name="train",
    flow_run_name="{config.recipe} on {config.dump.path.name}",
    on_cancellation=[cancel_children],
)
def train(config: TrainConfig, store: StorePath = None, runner: Where = HERE) -> State:
    """Dump to tested model; block 5 thaws only behind a converged head.

    Ends as Completed, or as GateClosed where the head did not converge, both with an `Outcome`; or as
    Failed with one plain sentence.
    """
    try:
        place = open_store(store)
        with run_stages(runner) as stages:
            backbone, manifest = open_dump(config, place)
            duplicates, split = split_dump(config, manifest, place)
            outcome = train_model(config, backbone, manifest, duplicates, split, place, stages)
            if outcome.withheld:
                return close_gate(outcome)
            version = release.register_model(outcome, config, place)
    except ThawError as error:
        label_run("failed")
        return Failed(message=str(error), data=error)
    accuracy = outcome.metrics.accuracy
    label_run(f"{accuracy:.4f}")
    message = f"test accuracy {accuracy:.4f}, v{version.number}, run {outcome.run}"
    return Completed(message=message, data=outcome)
