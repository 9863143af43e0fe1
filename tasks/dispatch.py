"""Run a stage on a GPU worker, as a child run of deployment `stage/gpu`, and read back what it made.

Only the store passes between the two: the call goes in as a record under its digest, the handle that
comes back lies beside it. So parent and child may run on machines that share nothing else.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any, Literal, get_type_hints

import httpx
from prefect import get_client, get_run_logger
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelling
from pydantic import TypeAdapter

from thaw.errors import NoDeployment, NotPublished, StageFailed
from thaw.records import Made, Record, Split
from thaw.store import Store

Dispatch = Literal["inline", "pools"]
DEPLOYMENT, POOL = "stage/gpu", "thaw-gpu"

_served: dict[str, tuple[Callable[..., Made], Callable[..., Made]]] = {}
# A GPU worker that crashed costs what it had not published; a second one that does is no accident.
_ATTEMPTS = 3
# Prefect ends a worker of limit 1 that is given work within two seconds of a crash.
_PAUSE_SECONDS = 10
_POLL_SECONDS = 2
_MOST_OUTAGES = 30


@dataclass(frozen=True, kw_only=True)
class StageCall(Record):
    """A stage to run elsewhere, and its arguments as JSON; the store, and what is left at its default, are left out."""

    stage: str
    title: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageAnswer(Record):
    """What a stage handed back, as JSON."""

    made: dict[str, Any]


def serve(function: Callable[..., Made], make: Callable[..., Made]) -> None:
    """Let a stage be run for others: `make` runs `function` as a task."""
    _served[_name(function)] = function, make


def run_elsewhere(function: Callable[..., Made], title: str, *args: Any, **kwargs: Any) -> Made:
    """What `function` makes on a GPU worker; what is published already is found without one.

    Raises:
        NoDeployment: the server has no deployment `stage/gpu`.
        StageFailed: the child run failed, was cancelled, or crashed time and again.
    """
    given = signature(function).bind(*args, **kwargs).arguments
    store: Store = given.pop("store")
    try:
        return function(**given, store=store.looking())
    except NotPublished:
        pass
    kinds = get_type_hints(function, include_extras=True)
    arguments = {name: _pack(value, kinds[name]) for name, value in given.items()}
    call = StageCall(stage=_name(function), title=title, arguments=arguments)
    store.publish("calls", call.digest, call)
    for attempt in range(1, _ATTEMPTS + 1):
        state = _outlast_outages(partial(_run_child, call, store, attempt))
        if state.is_completed():
            answer = store.read("answers", call.digest, StageAnswer)
            if answer is None:
                raise StageFailed(
                    f"'{title}' completed on pool {POOL}, but what it made is not in the store at {store.address}. "
                    "Both workers must see the same store under the same path."
                )
            return TypeAdapter(kinds["return"]).validate_python(answer.made)
        if not state.is_crashed():
            break
        get_run_logger().warning("'%s' crashed on its worker (%s)", title, state.message)
        time.sleep(_PAUSE_SECONDS)
    raise StageFailed(f"'{title}' on pool {POOL} ended as {state.name}: {state.message}")


def answer_call(call: StageCall, store: Store) -> Made:
    """Run the stage of a call in the flow run at hand, and publish what it hands back.

    Raises:
        ThawError: what the stage refuses.
    """
    if call.stage not in _served:
        raise StageFailed(
            f"this worker knows no stage {call.stage}: it has another version of Thaw than the run that asks for it."
        )
    function, make = _served[call.stage]
    kinds = get_type_hints(function, include_extras=True)
    arguments = {name: _unpack(value, kinds[name], store) for name, value in call.arguments.items()}
    made = make(**arguments, store=store)
    as_json = TypeAdapter(kinds["return"]).dump_python(made, mode="json")
    store.publish("answers", call.digest, StageAnswer(made=as_json))
    return made


def cancel_children(flow: Any, flow_run: Any, state: Any) -> None:
    """Cancel what a cancelled run handed to GPU workers. What those have published stays."""
    children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run.id]))
    with get_client(sync_client=True) as client:
        for child in client.read_flow_runs(flow_run_filter=children):
            if not child.state.is_final():
                client.set_flow_run_state(child.id, Cancelling(message="the run it works for was cancelled"))


def _outlast_outages(ask: Callable[[], Any]) -> Any:
    """What the server answers, asked again where it was away for a while."""
    for _ in range(_MOST_OUTAGES):
        try:
            return ask()
        except httpx.TransportError as error:
            get_run_logger().warning("the Prefect server is away (%s)", error or type(error).__name__)
            time.sleep(_PAUSE_SECONDS)
    return ask()


def _run_child(call: StageCall, store: Store, attempt: int) -> Any:
    with get_client(sync_client=True) as client:
        queue = client.read_flow_run(flow_run.get_id()).work_queue_name
        try:
            client.read_deployment_by_name(DEPLOYMENT)
            pool = client.read_work_pool(POOL)
        except ObjectNotFound as error:
            raise NoDeployment(
                f"the Prefect server has no deployment {DEPLOYMENT} on a pool {POOL}, which dispatch 'pools' "
                "hands GPU stages to. Make both with `thaw up`, or see deployments/README.md; or use dispatch 'inline'."
            ) from error
    if pool.status != "READY":
        get_run_logger().warning(
            "no worker of pool %s is online: '%s' waits for one. Start it with `thaw up`, or with "
            "`prefect worker start --pool %s`.",
            *(POOL, call.title, POOL),
        )
    run = run_deployment(
        DEPLOYMENT,
        parameters={"call": call.digest, "store": store.address},
        flow_run_name=call.title,
        # What is asked for again finds its child; a run that is tried again starts another.
        idempotency_key=f"{flow_run.get_id()}-{flow_run.get_run_count()}-{call.digest}-{attempt}",
        work_queue_name=queue,
        poll_interval=_POLL_SECONDS,
        timeout=None,
    )
    return run.state


def _pack(value: Any, kind: Any) -> Any:
    """An argument as JSON; a split, which is as long as the dump and published already, by its digest."""
    return value.digest if kind is Split else TypeAdapter(kind).dump_python(value, mode="json")


def _unpack(value: Any, kind: Any, store: Store) -> Any:
    if kind is not Split:
        return TypeAdapter(kind).validate_python(value)
    split = store.read("splits", value, Split)
    if split is None:
        raise StageFailed(f"there is no split {value} in the store at {store.address}.")
    return split


def _name(function: Callable[..., Made]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
