"""Share a stage out among workers in portions, show how far they are, and say who did what."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from prefect.artifacts import create_table_artifact

from tasks.calls import Answer, Crew, make_call
from tasks.cluster import open_cluster
from tasks.pools import PoolCrew
from tasks.screen import show
from thaw.claims import claim
from thaw.errors import NotPublished
from thaw.progress import track
from thaw.records import Made, Record
from thaw.runner import Runner
from thaw.store import Store


@dataclass(frozen=True)
class Sharing:
    """How a stage is shared out.

    Attributes:
        begin: of a request, and how large portions may be, makes the plan; does what is not worth sharing itself.
        work: does one portion.
    """

    begin: Callable[..., Made]
    work: Callable[..., Made]


def run_shared(
    function: Callable[..., Made], sharing: Sharing, runner: Runner, title: str, request: Record, store: Store
) -> Made:
    """What `function` makes of a request, worked out by many; what is published already is found without them.

    Raises:
        StageFailed: a portion failed, or lost its worker time and again.
    """
    try:
        return function(request, store=store.looking())
    except NotPublished:
        pass
    with claim(store, "portions", request.digest), open_crew(runner, store) as crew:
        limits = {"images": runner.portion_images, "megabytes": runner.portion_megabytes}
        (begun,) = crew.run(
            [make_call(sharing.begin, title, {"request": request, **limits})], lambda rows: None
        )
        plan = begun.made.value
        computed = plan.computed
        if plan.portions:
            calls = [
                make_call(
                    sharing.work, f"{title}: {portion.title}", {"request": plan.request, "portion": portion}
                )
                for portion in plan.portions
            ]
            missing = sum(portion.missing for portion in plan.portions)
            with track(title, plan.rows, "rows", done=plan.rows - missing) as advance:
                answers = crew.run(
                    calls, _follow(advance, sum(portion.rows - portion.missing for portion in plan.portions))
                )
            computed = sum(answer.made.value.computed for answer in answers)
            _show_workers(title, answers)
    made = function(plan.request, store=store.looking())
    note = f"{plan.rows - computed} of {plan.rows} rows were cached"
    if plan.portions:
        workers = len({answer.worker for answer in answers})
        note += f"; {len(answers)} portions by {workers} worker{'s' if workers > 1 else ''}"
    return replace(made, reused=computed == 0, note=note)


@contextmanager
def open_crew(runner: Runner, store: Store) -> Iterator[Crew]:
    """The workers that a runner stands for."""
    if runner.kind == "pools":
        yield PoolCrew(store, runner)
        return
    with open_cluster(runner, store) as crew:
        yield crew


def _follow(advance: Callable[..., None], begun: int) -> Callable[[int], None]:
    """Hand on how far portions are of which so many rows were there to begin with; progress never goes back."""
    told = begun

    def watch(done: int) -> None:
        nonlocal told
        if done > told:
            advance(done - told)
            told = done

    return watch


def _show_workers(title: str, answers: list[Answer]) -> None:
    """A table of who did what, in the Prefect UI."""
    by_worker: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for answer in answers:
        by_worker[answer.worker, answer.made.value.host].append(answer.made.value)
    table = []
    for (worker, host), reports in sorted(by_worker.items()):
        rows, seconds = sum(one.computed for one in reports), sum(one.seconds for one in reports)
        table.append(
            {
                "worker": worker,
                "host": host,
                "portions": len(reports),
                "rows computed": rows,
                "rows found": sum(one.found for one in reports),
                "rows a second": round(rows / seconds, 1) if seconds else 0.0,
                "busy seconds": round(seconds, 1),
            }
        )
    show(create_table_artifact, table=table, description=f"Who did what: {title}")
