"""Several recipes on one split and one test set: what each gives for its cost."""

import os
from collections.abc import Iterator, Sequence
from multiprocessing import parent_process
from threading import Thread
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State
from prefect.task_runners import ProcessPoolTaskRunner

from flows.method import HERE, StorePath, Where, open_store, split_dump
from flows.train import train
from tasks import comparison, dataset
from tasks.screen import label_run
from tasks.stage import run_stages
from thaw.comparison import CompareConfig, PlannedRun, RunResult, describe_failure, list_runs
from thaw.config import TrainConfig
from thaw.cost import Pass, plan_passes
from thaw.duplicates import Duplicates
from thaw.errors import ThawError
from thaw.records import Outcome, Split
from thaw.report.comparison import say_best
from thaw.runner import Runner
from thaw.store import Store

# Each is a process with a Keras of its own, which waits for GPU workers most of the time.
_SIDE_BY_SIDE = 4


@flow(name="compare", flow_run_name="compare recipes on {config.dump.path.name}")
def compare(config: CompareConfig, store: StorePath = None, runner: Where = HERE) -> State:
    """Train every recipe on the same split, each as a run of its own, and set what they reach beside their cost.

    A recipe that fails, or whose gate stays closed, has its row with the reason. Ends as Completed, or as
    NoModel where no recipe has a model, both with a `ComparisonTable`; or as Failed with one plain sentence.
    """
    try:
        place = open_store(store)
        place.check_writable()
        planned = list_runs(config)
        with run_stages():
            manifest = dataset.scan_dump(config.dump, place)
            duplicates, split = split_dump(planned[0].config, manifest, place)
            run_all = _run_side_by_side if runner.kind == "pools" else _run_in_turn
            results = tuple(run_all(planned, split, duplicates, place, runner))
            table = comparison.compare_recipes(str(config.dump.path), split, results, place)
    except ThawError as error:
        label_run("failed")
        return Failed(message=str(error), data=error)
    if not table.tested:
        label_run("no model")
        return Completed(name="NoModel", message=say_best(table), data=table)
    label_run(f"best {table.tested[0].accuracy.mean:.4f}")
    return Completed(message=say_best(table), data=table)


def _run_in_turn(
    planned: Sequence[PlannedRun], split: Split, duplicates: Duplicates, store: Store, runner: Runner
) -> Iterator[RunResult]:
    for each in planned:
        try:
            passes = plan_passes(each.config, split, store, duplicates.rows)
        except ThawError:
            passes = None  # the run itself says why it can't start
        ended = train(each.config, store.address, runner, return_state=True)
        yield _describe(each, ended.result(raise_on_failure=False), passes, split, store)


def _run_side_by_side(
    planned: Sequence[PlannedRun], split: Split, _duplicates: Duplicates, store: Store, runner: Runner
) -> Iterator[RunResult]:
    """Runs in processes of their own, since Keras's seeds and dtypes belong to a whole process."""
    side_by_side = min(len(planned), _SIDE_BY_SIDE)
    with ProcessPoolTaskRunner(max_workers=side_by_side, initializer=_end_with_parent) as processes:
        futures = [
            processes.submit(train_recipe, {"config": each.config, "store": store.address, "runner": runner})
            for each in planned
        ]
        ended = [future.result(raise_on_failure=False) for future in futures]
    for each, outcome in zip(planned, ended, strict=True):
        yield _describe(each, outcome, None, split, store)


@task(name="train recipe", task_run_name="train {config.recipe}", cache_policy=NO_CACHE, persist_result=False)
def train_recipe(config: TrainConfig, store: str, runner: Runner) -> Any:
    """What a run of one recipe came to, or the error that ended it, made in another process than the comparison's."""
    return train(config, store, runner, return_state=True).result(raise_on_failure=False)


def _end_with_parent() -> None:
    """See that this process does not outlive the comparison's, should that be killed. The server cancels its runs."""

    def wait_and_end() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=wait_and_end, name="end with parent", daemon=True).start()


def _describe(
    planned: PlannedRun, outcome: Any, passes: dict[str, Pass] | None, split: Split, store: Store
) -> RunResult:
    if not isinstance(outcome, Outcome):
        return describe_failure(planned, outcome)
    try:
        return comparison.describe_run(planned, outcome, passes, split, store)
    except ThawError as error:
        return describe_failure(planned, error)
