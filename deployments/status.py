"""`thaw status`: what is up, what waits, and what to do where something is wrong."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deployments.apply import find_automations, name_deployments
from deployments.processes import Process, find_processes, has_supervisor
from deployments.server import Server
from deployments.setup import Child, read_setup, read_state
from deployments.supervise import CPU_POOL, GPU_POOL
from thaw.errors import BadPassword, NoServer
from thaw.records import Record

_WAITING = ("SCHEDULED", "PENDING")
_RUNNING = ("RUNNING", "CANCELLING")
_STATES = (*_WAITING, *_RUNNING, "PAUSED", "COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True, kw_only=True)
class PoolStatus(Record):
    """A work pool: its queues by priority, its live workers on any machine, its runs that are due or running."""

    name: str
    paused: bool
    queues: tuple[str, ...]
    workers: tuple[str, ...]
    waiting: int
    running: int


@dataclass(frozen=True, kw_only=True)
class ScheduleStatus(Record):
    """A schedule; `next_run` is None while it is off."""

    slug: str
    active: bool
    next_run: str | None


@dataclass(frozen=True, kw_only=True)
class DeploymentStatus(Record):
    """A deployment: where its runs go, and when it runs by itself."""

    name: str
    pool: str
    queue: str
    schedules: tuple[ScheduleStatus, ...]


@dataclass(frozen=True, kw_only=True)
class Status(Record):
    """What `thaw up` keeps running, and what its server holds. All is well where `problems` is empty.

    A child whose process is None is dead. `runs` counts those of every state that are due. Times are UTC.
    """

    url: str
    problems: tuple[str, ...]
    children: tuple[Child, ...] = ()
    pools: tuple[PoolStatus, ...] = ()
    deployments: tuple[DeploymentStatus, ...] = ()
    runs: dict[str, int] = dataclasses.field(default_factory=dict)
    automations: dict[str, bool] = dataclasses.field(default_factory=dict)


def read_status(home: Path) -> Status:
    """Look at the processes of a state folder, and at its server where that answers."""
    setup, processes = read_setup(home), find_processes(home)
    if not processes:
        return Status(url=setup.url, problems=("nothing is up. `thaw up` starts it.",))
    children = _read_children(home, processes)
    seen = Status(url=setup.url, children=children, problems=tuple(_find_dead(children, processes)))
    try:
        setup.server.check()
        return _look_at_server(setup.server, seen)
    except (NoServer, BadPassword) as error:
        return dataclasses.replace(seen, problems=(*seen.problems, str(error)))


def _read_children(home: Path, processes: list[Process]) -> tuple[Child, ...]:
    state, live = read_state(home), {(process.id, process.child) for process in processes}
    return tuple(
        # The number alone could be somebody else's by now.
        child if (child.process, child.name) in live else dataclasses.replace(child, process=None)
        for child in (state.children if state else ())
    )


def _find_dead(children: tuple[Child, ...], processes: list[Process]) -> Iterator[str]:
    if not has_supervisor(processes):
        yield "the supervisor was killed, and nothing that dies is started again. `thaw up` puts it right."
    for child in children:
        if child.process is None:
            yield f"{child.name} is dead. It is started again within a minute; if not, logs/{child.name}.log says why."


def _look_at_server(server: Server, seen: Status) -> Status:
    dead = {child.name for child in seen.children if child.process is None}
    ours = [pool for pool in server.find("work_pools") if pool["name"] in (CPU_POOL, GPU_POOL)]
    pools = tuple(_look_at_pool(server, pool, dead) for pool in ours)
    return dataclasses.replace(
        seen,
        pools=pools,
        deployments=tuple(_look_at_deployments(server)),
        runs={state.lower(): _count_runs(server, state) for state in _STATES},
        automations={found["name"]: found["enabled"] for found in find_automations(server)},
        problems=(*seen.problems, *_find_unserved(pools)),
    )


def _look_at_pool(server: Server, pool: dict[str, Any], dead: set[str]) -> PoolStatus:
    name = pool["name"]
    queues = server.post(f"work_pools/{name}/queues/filter")
    workers = server.post(f"work_pools/{name}/workers/filter")
    # The server takes half a minute to notice a dead worker; of our own we know.
    live = [
        worker
        for worker in workers
        if f"worker-{worker['name']}" not in dead and worker["status"] == "ONLINE"
    ]
    return PoolStatus(
        name=name,
        paused=pool["is_paused"],
        queues=tuple(queue["name"] for queue in sorted(queues, key=lambda queue: queue["priority"])),
        workers=tuple(worker["name"] for worker in live),
        waiting=_count_runs(server, *_WAITING, pool=name),
        running=_count_runs(server, *_RUNNING, pool=name),
    )


def _count_runs(server: Server, *states: str, pool: str | None = None) -> int:
    runs = {
        "state": {"type": {"any_": states}},
        "expected_start_time": {"before_": datetime.now(UTC).isoformat()},
    }
    pools = {"name": {"any_": [pool]}} if pool else None
    return server.post("flow_runs/count", flow_runs=runs, work_pools=pools)


def _look_at_deployments(server: Server) -> Iterator[DeploymentStatus]:
    for name, deployment in sorted(name_deployments(server).items()):
        yield DeploymentStatus(
            name=name,
            pool=deployment["work_pool_name"],
            queue=deployment["work_queue_name"],
            schedules=tuple(
                ScheduleStatus(
                    slug=schedule["slug"],
                    active=schedule["active"],
                    next_run=_find_next_run(server, deployment["id"]) if schedule["active"] else None,
                )
                for schedule in deployment["schedules"]
            ),
        )


def _find_next_run(server: Server, deployment: str) -> str | None:
    planned = server.post(
        "flow_runs/filter",
        deployments={"id": {"any_": [deployment]}},
        flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}},
        sort="EXPECTED_START_TIME_ASC",
        limit=1,
    )
    return planned[0]["expected_start_time"] if planned else None


def _find_unserved(pools: tuple[PoolStatus, ...]) -> Iterator[str]:
    for pool in pools:
        waiting = f"; runs waiting there: {pool.waiting}" if pool.waiting else ""
        if pool.paused:
            yield f"pool {pool.name} is paused{waiting}. `prefect work-pool resume {pool.name}` lets runs in."
        elif not pool.workers:
            yield f"pool {pool.name} has no live worker{waiting}. `thaw up` starts what is missing."
