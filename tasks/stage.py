"""What every task shares: a Prefect task around one call into `thaw`.

A stage finishes as `Cached` where its output was found published, as Completed where it was made,
and as Failed with one plain sentence where `thaw` says what is wrong. It reports progress to the
Prefect UI, and how long it took to the flow that called it. A stage that wants a GPU is handed to
the pool of GPU workers, where its flow asks for that.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from tasks.calls import bind, make_call, serve
from tasks.screen import ProgressArtifacts
from tasks.sharing import Crews, Sharing, run_shared
from thaw.errors import NotPublished, ThawError
from thaw.progress import listen
from thaw.records import Made, StageTime
from thaw.runner import Runner
from thaw.store import Store

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")

_HERE = Runner()
_stages: ContextVar[list[StageTime] | None] = ContextVar("stages", default=None)
_crews: ContextVar[Crews] = ContextVar("crews", default=Crews(_HERE))  # noqa: B039

# Prefect sends the loggers of PREFECT_LOGGING_EXTRA_LOGGERS to the run's log, but leaves them at Python's WARNING.
logging.getLogger("thaw").setLevel(logging.INFO)


@contextmanager
def run_stages(runner: Runner = _HERE) -> Iterator[list[StageTime]]:
    """Collect what the stages called inside took; those that want a GPU run where the runner says."""
    collected: list[StageTime] = []
    with Crews(runner) as crews:
        tokens = _stages.set(collected), _crews.set(crews)
        try:
            yield collected
        finally:
            _stages.reset(tokens[0])
            _crews.reset(tokens[1])


def stage(
    name: str,
    wants_gpu: bool = False,
    sharing: Sharing | None = None,
    retries: int = 0,
    present: Callable[[Any], None] = lambda value: None,
) -> Callable[[Callable[Parameters, Made[Value]]], Callable[Parameters, Value]]:
    """Make a function that returns `Made[Value]` a Prefect task whose call returns the value.

    Args:
        name: of each run, as a template of the function's parameters.
        wants_gpu: let it run on the pool of GPU workers.
        sharing: let many workers do it, in portions. The function then takes a request and a store.
        retries: for failures of the surroundings; what `thaw` itself refuses is never retried.
        present: shows the value in the Prefect UI.
    """

    def decorate(function: Callable[Parameters, Made[Value]]) -> Callable[Parameters, Value]:
        def say_name(*args: Parameters.args, **kwargs: Parameters.kwargs) -> str:
            return name.format(**signature(function).bind(*args, **kwargs).arguments)

        @wraps(function)
        def body(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Any:
            try:
                store = signature(function).bind(*args, **kwargs).arguments.get("store")
                with listen(ProgressArtifacts()), _log_traffic(store):
                    made = _make(function, sharing, wants_gpu, say_name(*args, **kwargs), *args, **kwargs)
            except ThawError as error:
                return Failed(message=str(error), data=error)
            present(made.value)
            get_run_logger().info("%s%s", "reused: " if made.reused else "", made.note)
            if made.reused:
                return Completed(name="Cached", message=f"reused: {made.note}", data=made)
            return Completed(message=made.note, data=made)

        prefect_task = task(
            body,
            name=function.__name__.replace("_", " "),
            task_run_name=name,
            retries=retries,
            retry_delay_seconds=10,
            retry_condition_fn=_is_worth_a_retry,
            # Inputs are hashed by the store, not by Prefect, and outputs live there alone.
            cache_policy=NO_CACHE,
            persist_result=False,
        )

        def make(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Made[Value]:
            return prefect_task(*args, **kwargs, return_state=True).result()

        @wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
            started = time.monotonic()
            made = make(*args, **kwargs)
            collected = _stages.get()
            if collected is not None:
                seconds = round(time.monotonic() - started, 3)
                title = say_name(*args, **kwargs)
                collected.append(StageTime(stage=title, seconds=seconds, cached=made.reused))
            return made.value

        if wants_gpu:
            serve(function, make)
        return call

    return decorate


def _make(
    function: Callable[..., Made],
    sharing: Sharing | None,
    wants_gpu: bool,
    title: str,
    *args: Any,
    **kwargs: Any,
) -> Made:
    """What a stage makes, where the runner says."""
    crews = _crews.get()
    if sharing and crews.runner.kind != "local":
        return run_shared(function, sharing, crews, title, *args, **kwargs)
    if wants_gpu and crews.runner.kind == "pools":
        return _make_elsewhere(function, crews, title, *args, **kwargs)
    return function(*args, **kwargs)


def _make_elsewhere(
    function: Callable[..., Made], crews: Crews, title: str, *args: Any, **kwargs: Any
) -> Made:
    """What a stage makes on a GPU worker; what is published already is found without one."""
    given, store = bind(function, *args, **kwargs)
    try:
        return function(**given, store=store.looking())
    except NotPublished:
        (answer,) = crews.open(store, title).run([make_call(function, title, given)])
        return answer.made


@contextmanager
def _log_traffic(store: Store | None) -> Iterator[None]:
    """Say at the end what reading shards of features has cost, where they lie in an object store."""
    cache = store.mirror.cache if store and store.mirror else None
    before = cache.traffic if cache else None
    yield
    if cache and cache.traffic != before:
        get_run_logger().info("features: %s", cache.traffic - before)


def _is_worth_a_retry(_task: Any, _run: Any, state: Any) -> bool:
    return not isinstance(state.data, ThawError)
