"""Answer calls on GPU workers: each is a child run of deployment `stage/gpu`, on any machine that sees the store."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from typing import Any
from uuid import UUID

import httpx
from prefect import get_client, get_run_logger
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling

from tasks.attempts import Sight
from tasks.calls import StageCall, read_answer
from thaw.errors import NoDeployment, StageFailed
from thaw.store import Store

DEPLOYMENT, POOL = "stage/gpu", "thaw-gpu"
# The state of a child run whose machine is at fault, not its work.
UNABLE = "Unable"

_POLL_SECONDS = 2
_OUTAGE_SECONDS, _MOST_OUTAGES = 10, 30
_ASKED_AT_ONCE = 200
# So many wait for a worker at a time: workers are never idle, and those of other runs get their turn.
_MOST_WAITING = 16
# A worker cancels a run within some 5 s. One that was not heard of may be there all the same.
_CANCEL_SECONDS = 15


class PoolWorkers:
    """The workers of the GPU pool."""

    def __init__(self, store: Store, title: str):
        """See that there is such a pool.

        Args:
            title: of what they are to do.

        Raises:
            NoDeployment: the server has no deployment `stage/gpu`.
        """
        self._store = store
        self._queue = _outlast_outages(_find_queue, title)
        # Runs of which nothing was heard, and until when they may cancel themselves.
        self._leaving: dict[UUID, float] = {}

    def count(self) -> int:
        """As `tasks.attempts.Workers` says: those that the server has heard of lately."""
        return _outlast_outages(_count_workers)

    def count_free(self, waiting: int, running: int) -> int:
        """As `tasks.attempts.Workers` says. How many runs each worker takes at a time nobody knows."""
        return _MOST_WAITING - waiting

    def start(self, call: StageCall) -> UUID:
        """Start a child run."""

        def start() -> FlowRun:
            return run_deployment(
                DEPLOYMENT,
                parameters={"call": call.digest, "store": self._store.address},
                flow_run_name=call.title,
                # Asked again, since the server was away, it does not start another.
                idempotency_key=f"{flow_run.get_id()}-{call.digest}",
                work_queue_name=self._queue,
                timeout=0,
            )

        return _outlast_outages(start).id

    def look(self, attempts: dict[UUID, StageCall]) -> dict[UUID, Sight]:
        """What the server says of child runs."""
        found = _outlast_outages(_read_runs, list(attempts))
        return {run: self._judge(found.get(run), call) for run, call in attempts.items()}

    def stop(self, attempts: Iterable[UUID], lost: bool = False) -> None:
        """Cancel child runs. What they have published stays."""
        for run in attempts:
            _outlast_outages(_set_state, run, Cancelling(message="nobody waits for it any more"))
            if lost:
                self._leaving[run] = time.monotonic() + _CANCEL_SECONDS

    def wait(self, attempts: Iterable[UUID]) -> None:
        """For as long as the server is left in peace."""
        time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """See that what nobody was there to cancel does not count as running for ever."""
        while self._leaving:
            runs = _outlast_outages(_read_runs, list(self._leaving))
            now = time.monotonic()
            for run, until in list(self._leaving.items()):
                if run not in runs or runs[run].state.is_final():
                    del self._leaving[run]
                elif now > until:
                    message = "nobody waits for it any more, and no worker was there to cancel it"
                    _outlast_outages(_set_state, run, Cancelled(message=message), force=True)
                    del self._leaving[run]
            if self._leaving:
                time.sleep(_POLL_SECONDS)

    def _judge(self, run: FlowRun | None, call: StageCall) -> Sight:
        if run is None or run.state is None:
            return Sight(state="lost", reason="the server does not know the run any more")
        state = run.state
        if state.is_completed():
            return Sight(state="answered", answer=read_answer(call, self._store))
        if state.is_crashed():
            return Sight(state="lost", reason=f"crashed on its worker: {state.message}")
        if state.name == UNABLE:
            return Sight(state="lost", reason=f"it could not go on there: {state.message}")
        if state.is_final():
            error = StageFailed(f"'{call.title}' on pool {POOL} ended as {state.name}: {state.message}")
            return Sight(state="failed", error=error)
        if state.is_pending():
            # Its process, or its machine, is being started.
            return Sight(state="given")
        return Sight(state="running" if state.is_running() else "waiting")


def cancel_children(flow: Any, flow_run: Any, state: Any) -> None:
    """Cancel what a cancelled run handed to GPU workers. What those have published stays."""
    _cancel_children_of(flow_run.id)


def cancel_earlier_children() -> None:
    """Cancel what this run handed out before it was killed and started again."""
    if flow_run.get_run_count() > 1:
        _outlast_outages(_cancel_children_of, UUID(flow_run.get_id()))


def is_waited_for() -> bool:
    """Whether the run that this one is a child of goes on."""
    parent = flow_run.get_parent_flow_run_id()
    if not parent:
        return True
    asking = _outlast_outages(_read_runs, [UUID(parent)]).get(UUID(parent))
    return asking is not None and not (asking.state and asking.state.is_final())


def _cancel_children_of(run: UUID) -> None:
    children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
    with get_client(sync_client=True) as client:
        # The server shows so many at a time.
        for start in count(0, _ASKED_AT_ONCE):
            some = client.read_flow_runs(flow_run_filter=children, limit=_ASKED_AT_ONCE, offset=start)
            for child in some:
                if not child.state.is_final():
                    message = "the run it works for was cancelled"
                    client.set_flow_run_state(child.id, Cancelling(message=message))
            if len(some) < _ASKED_AT_ONCE:
                return


def _find_queue(title: str) -> str | None:
    """The queue of this run, where its child runs wait as well, once the pool is there."""
    with get_client(sync_client=True) as client:
        queue = client.read_flow_run(flow_run.get_id()).work_queue_name
        try:
            client.read_deployment_by_name(DEPLOYMENT)
            pool = client.read_work_pool(POOL)
        except ObjectNotFound as error:
            raise NoDeployment(
                f"the Prefect server has no deployment {DEPLOYMENT} on a pool {POOL}, which runner 'pools' "
                "hands GPU stages to. Make both with `thaw up`, or see deployments/README.md; or use runner "
                "'local'."
            ) from error
    if pool.status != "READY":
        get_run_logger().warning(
            "no worker of pool %s is online: '%s' waits for one. Start it with `thaw up`, or with "
            "`prefect worker start --pool %s`.",
            *(POOL, title, POOL),
        )
    return queue


def _count_workers() -> int:
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    with get_client(sync_client=True) as client:
        return len(client.read_workers_for_work_pool(POOL, worker_filter=online))


def _read_runs(runs: list[UUID]) -> dict[UUID, FlowRun]:
    found: dict[UUID, FlowRun] = {}
    with get_client(sync_client=True) as client:
        for start in range(0, len(runs), _ASKED_AT_ONCE):
            these = FlowRunFilter(id=FlowRunFilterId(any_=runs[start : start + _ASKED_AT_ONCE]))
            found.update({run.id: run for run in client.read_flow_runs(flow_run_filter=these)})
    return found


def _set_state(run: UUID, state: State, force: bool = False) -> None:
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.set_flow_run_state(run, state, force=force)


def _outlast_outages(ask: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What the server answers, asked again where it was away, or in trouble, for a while."""
    for _ in range(_MOST_OUTAGES):
        try:
            return ask(*args, **options)
        except httpx.TransportError as error:
            trouble = f"is away ({error or type(error).__name__})"
        except httpx.HTTPStatusError as error:
            if not error.response.is_server_error:
                raise
            trouble = f"is in trouble (status {error.response.status_code})"
        get_run_logger().warning("the Prefect server %s", trouble)
        time.sleep(_OUTAGE_SECONDS)
    return ask(*args, **options)
