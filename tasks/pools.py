"""Answer calls on GPU workers: each is a child run of deployment `stage/gpu`, on any machine that sees the store."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from prefect import get_client, get_run_logger
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling

from tasks.calls import Answer, StageCall, find_slip, publish_call, read_answer, read_slip
from thaw.errors import NoDeployment, StageFailed
from thaw.runner import Runner
from thaw.store import Store

DEPLOYMENT, POOL = "stage/gpu", "thaw-gpu"

# A GPU worker that crashed costs what it had not published; a third one that does is no accident.
_ATTEMPTS = 3
# Prefect ends a worker of limit 1 that is given work within two seconds of a crash.
_PAUSE_SECONDS = 10
_POLL_SECONDS = 2
_MOST_OUTAGES = 30
_ASKED_AT_ONCE = 200
# Of portions alike, one that takes so many times as long as the others has a worker that is ill.
_STRAGGLES = 3.0


@dataclass
class _Attempt:
    """A child run that works on a call. `heard` is when it last told something new, by this process's clock."""

    call: StageCall
    run: UUID
    done: int = 0
    heard: float = 0.0
    started: float | None = None
    ended: bool = False


@dataclass
class _Job:
    """A call, and the child runs that it was given to. It may be tried again from `not_before` on."""

    call: StageCall
    attempts: list[_Attempt] = field(default_factory=list)
    answer: Answer | None = None
    seconds: float = 0.0
    not_before: float = 0.0

    @property
    def alive(self) -> list[_Attempt]:
        return [attempt for attempt in self.attempts if not attempt.ended]

    @property
    def done(self) -> int:
        return max((attempt.done for attempt in self.attempts), default=0)


class PoolCrew:
    """The workers of the GPU pool."""

    def __init__(self, store: Store, runner: Runner):
        self._store, self._runner = store, runner
        self._queue: str | None = None

    def run(
        self, calls: Sequence[StageCall], watch: Callable[[int], None] = lambda rows: None
    ) -> list[Answer]:
        """As `tasks.calls.Crew` says.

        Raises:
            NoDeployment: the server has no deployment `stage/gpu`.
        """
        _outlast_outages(self._find_pool, calls)
        jobs = [_Job(call=call) for call in calls]
        try:
            for job in jobs:
                self._start(job)
            while unfinished := [job for job in jobs if job.answer is None]:
                time.sleep(_POLL_SECONDS)
                for job, runs in zip(unfinished, self._read(unfinished), strict=True):
                    self._look_at(job, runs)
                self._help_out(jobs)
                watch(sum(job.done for job in jobs))
        finally:
            # Whatever ends this run, nobody works on for it.
            self._cancel([attempt for job in jobs for attempt in job.alive])
            for attempt in (attempt for job in jobs for attempt in job.attempts):
                find_slip(attempt.call, self._store).remove()
        return [job.answer for job in jobs if job.answer]

    def _find_pool(self, calls: Sequence[StageCall]) -> None:
        with get_client(sync_client=True) as client:
            self._queue = client.read_flow_run(flow_run.get_id()).work_queue_name
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
                *(POOL, calls[0].title, POOL),
            )

    def _start(self, job: _Job, **arguments: Any) -> None:
        """Give a call to a worker, with further arguments where one has it already."""
        call = job.call.add(**arguments)
        publish_call(call, self._store)
        number = len(job.attempts) + 1

        def start() -> FlowRun:
            return run_deployment(
                DEPLOYMENT,
                parameters={"call": call.digest, "store": self._store.address},
                flow_run_name=call.title,
                # What is asked for again finds its child; a run that is tried again starts another.
                idempotency_key=f"{flow_run.get_id()}-{flow_run.get_run_count()}-{call.digest}-{number}",
                work_queue_name=self._queue,
                timeout=0,
            )

        job.attempts.append(_Attempt(call=call, run=_outlast_outages(start).id))

    def _read(self, jobs: Sequence[_Job]) -> list[dict[UUID, FlowRun]]:
        """The child runs of each job, as they are."""
        ids = [attempt.run for job in jobs for attempt in job.alive]
        found: dict[UUID, FlowRun] = {}

        def read() -> None:
            with get_client(sync_client=True) as client:
                for start in range(0, len(ids), _ASKED_AT_ONCE):
                    these = FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + _ASKED_AT_ONCE]))
                    found.update({run.id: run for run in client.read_flow_runs(flow_run_filter=these)})

        _outlast_outages(read)
        return [{each.run: found[each.run] for each in job.alive if each.run in found} for job in jobs]

    def _look_at(self, job: _Job, runs: dict[UUID, FlowRun]) -> None:
        now = time.monotonic()
        for attempt in job.alive:
            run = runs.get(attempt.run)
            if run is None or run.state is None:
                continue
            if run.state.is_completed():
                attempt.ended = True
                made = read_answer(attempt.call, self._store)
                worker = run.labels.get("prefect.worker.name") or run.infrastructure_pid or run.name
                job.answer = Answer(made=made, worker=str(worker))
                job.seconds = now - (attempt.started or now)
                self._cancel(job.alive)
                return
            if run.state.is_crashed():
                attempt.ended = True
                job.not_before = now + _PAUSE_SECONDS
                get_run_logger().warning("'%s' crashed on its worker (%s)", job.call.title, run.state.message)
            elif run.state.is_final():
                raise StageFailed(
                    f"'{job.call.title}' on pool {POOL} ended as {run.state.name}: {run.state.message}"
                )
            elif run.state.is_running() or run.state.is_pending():
                done = read_slip(find_slip(attempt.call, self._store))
                if attempt.started is None or done != attempt.done:
                    attempt.started = attempt.started or now
                    attempt.done, attempt.heard = done, now
        if not job.alive and now >= job.not_before:
            if len(job.attempts) >= _ATTEMPTS:
                raise StageFailed(
                    f"'{job.call.title}' on pool {POOL} ended as Crashed {len(job.attempts)} times. What its workers "
                    "published stays: see their logs, then run the same command again."
                )
            self._start(job)

    def _help_out(self, jobs: Sequence[_Job]) -> None:
        """Give what nothing is heard of, or what takes much longer than the rest, to a second worker."""
        now = time.monotonic()
        took = [job.seconds for job in jobs if job.answer]
        usual = statistics.median(took) if took else None
        for job in jobs:
            if job.answer or len(job.alive) != 1 or len(job.attempts) >= _ATTEMPTS:
                continue
            (attempt,) = job.alive
            if attempt.started is None:
                continue
            silent = now - attempt.heard > self._runner.stalled_seconds
            slow = usual is not None and now - attempt.started > _STRAGGLES * max(usual, _PAUSE_SECONDS)
            if silent or slow:
                get_run_logger().warning(
                    "'%s' is %s: another worker gets it as well",
                    *(job.call.title, "not heard of" if silent else "slower than the rest"),
                )
                # From the other end, where the work can be shared: the two meet.
                self._start(job, **({"backwards": True} if job.call.can_be_shared else {}))

    def _cancel(self, attempts: Sequence[_Attempt]) -> None:
        now = time.monotonic()
        for attempt in attempts:
            attempt.ended = True
            lost = attempt.started is not None and now - attempt.heard > self._runner.stalled_seconds
            # A worker that is not there any more can't cancel anything.
            state = Cancelled if lost else Cancelling
            _outlast_outages(lambda run=attempt.run, state=state: _set_state(run, state))


def cancel_children(flow: Any, flow_run: Any, state: Any) -> None:
    """Cancel what a cancelled run handed to GPU workers. What those have published stays."""
    children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run.id]))
    with get_client(sync_client=True) as client:
        for child in client.read_flow_runs(flow_run_filter=children):
            if not child.state.is_final():
                client.set_flow_run_state(child.id, Cancelling(message="the run it works for was cancelled"))


def _set_state(run: UUID, state: Callable[..., Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(
            run, state(message="nobody waits for it any more"), force=state is Cancelled
        )


def _outlast_outages(ask: Callable[..., Any], *args: Any) -> Any:
    """What the server answers, asked again where it was away for a while."""
    for _ in range(_MOST_OUTAGES):
        try:
            return ask(*args)
        except httpx.TransportError as error:
            get_run_logger().warning("the Prefect server is away (%s)", error or type(error).__name__)
            time.sleep(_PAUSE_SECONDS)
    return ask(*args)
