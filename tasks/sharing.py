"""Share a stage out among workers in portions, show how far they are, and say who did what."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

from prefect.artifacts import create_table_artifact

from tasks.attempts import Crew
from tasks.calls import Answer, make_call
from tasks.cluster import ClusterWorkers, open_cluster
from tasks.pools import PoolWorkers, cancel_earlier_children
from tasks.screen import show
from thaw.claims import claim
from thaw.errors import NotPublished
from thaw.portions import PortionSize
from thaw.progress import track
from thaw.records import Made, Record
from thaw.runner import Runner
from thaw.store import Store


@dataclass(frozen=True)
class Sharing:
    """How a stage is shared out.

    Attributes:
        begin: of a request, and of how large portions may be, makes the plan; does what is not worth sharing itself.
        work: does one portion.
    """

    begin: Callable[..., Made]
    work: Callable[..., Made]


def run_shared(
    function: Callable[..., Made], sharing: Sharing, crews: "Crews", title: str, request: Record, store: Store
) -> Made:
    """What `function` makes of a request, worked out by many; what is published already is found without them.

    Raises:
        StageFailed: a portion failed, or lost its worker time and again.
    """
    try:
        return function(request, store=store.looking())
    except NotPublished:
        pass
    with claim(store, "portions", request.digest):
        crew = crews.open(store, title)
        size = PortionSize(
            images=crews.runner.portion_images,
            megabytes=crews.runner.portion_megabytes,
            workers=crew.count_workers(),
        )
        (begun,) = crew.run([make_call(sharing.begin, title, {"request": request, "size": size})])
        plan = begun.made.value
        computed = plan.computed
        if plan.portions:
            calls = [
                make_call(
                    sharing.work,
                    f"{title}: {portion.title}",
                    {"request": plan.request, "portion": portion},
                    rows_before=portion.rows - portion.missing,
                    rows=portion.rows,
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
    made = function(plan.request, store=store)
    note = f"{plan.rows - computed} of {plan.rows} rows were cached" if made.reused else made.note
    if plan.portions:
        workers = len({answer.worker for answer in answers})
        note += f"; {len(answers)} portions by {workers} worker{'s' if workers > 1 else ''}"
    return replace(made, reused=made.reused and computed == 0, note=note)


class Crews:
    """The workers that a runner stands for, engaged when they are first needed, until the block ends."""

    def __init__(self, runner: Runner):
        self.runner = runner
        self._engaged = ExitStack()
        self._cluster: Any = None
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engaged.close()

    def open(self, store: Store, title: str) -> Crew:
        """Workers that see a store, for work of this title.

        Raises:
            NoDeployment: there is no pool of them.
            StageFailed: there is no cluster.
        """
        if self.runner.kind == "pools":
            if not self._begun:
                cancel_earlier_children()
            self._begun = True
            return Crew(PoolWorkers(store, title), store, self.runner.stalled_seconds)
        self._cluster = self._cluster or self._engaged.enter_context(open_cluster(self.runner))
        return Crew(ClusterWorkers(self._cluster, store), store, self.runner.stalled_seconds)


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
