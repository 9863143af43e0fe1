"""What every task shares: a Prefect task around one call into `thaw`.

A stage finishes as `Cached` where its output was found published, as Completed where it was made,
and as Failed with one plain sentence where `thaw` says what is wrong. It reports progress to the
Prefect UI, and how long it took to the flow that called it.
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
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from thaw.errors import ThawError
from thaw.progress import listen
from thaw.records import Made, StageTime

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")

_stages: ContextVar[list[StageTime] | None] = ContextVar("stages", default=None)
_ARTIFACT_SECONDS = 5.0

# Prefect sends the loggers of PREFECT_LOGGING_EXTRA_LOGGERS to the run's log, but leaves them at Python's WARNING.
logging.getLogger("thaw").setLevel(logging.INFO)


@contextmanager
def time_stages() -> Iterator[list[StageTime]]:
    """Collect what the stages called inside took."""
    collected: list[StageTime] = []
    token = _stages.set(collected)
    try:
        yield collected
    finally:
        _stages.reset(token)


def stage(
    name: str, tags: tuple[str, ...] = (), retries: int = 0
) -> Callable[[Callable[Parameters, Made[Value]]], Callable[Parameters, Value]]:
    """Make a function that returns `Made[Value]` a Prefect task whose call returns the value.

    Args:
        name: of each run, as a template of the function's parameters.
        retries: for failures of the surroundings; what `thaw` itself refuses is never retried.
    """

    def decorate(function: Callable[Parameters, Made[Value]]) -> Callable[Parameters, Value]:
        @wraps(function)
        def body(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Any:
            try:
                with listen(_ProgressArtifacts()):
                    made = function(*args, **kwargs)
            except ThawError as error:
                return Failed(message=str(error), data=error)
            get_run_logger().info("%s%s", "reused: " if made.reused else "", made.note)
            if made.reused:
                return Completed(name="Cached", message=f"reused: {made.note}", data=made)
            return Completed(message=made.note, data=made)

        prefect_task = task(
            body,
            name=function.__name__.replace("_", " "),
            task_run_name=name,
            tags=tags,
            retries=retries,
            retry_delay_seconds=10,
            retry_condition_fn=_is_worth_a_retry,
            # Inputs are hashed by the store, not by Prefect, and outputs live there alone.
            cache_policy=NO_CACHE,
            persist_result=False,
        )

        @wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
            started = time.monotonic()
            state = prefect_task(*args, **kwargs, return_state=True)
            made = state.result()
            collected = _stages.get()
            if collected is not None:
                seconds = round(time.monotonic() - started, 3)
                given = signature(function).bind(*args, **kwargs).arguments
                collected.append(StageTime(stage=name.format(**given), seconds=seconds, cached=made.reused))
            return made.value

        return call

    return decorate


def _is_worth_a_retry(_task: Any, _run: Any, state: Any) -> bool:
    return not isinstance(state.data, ThawError)


def show(create: Callable[..., Any], *content: Any, **options: Any) -> Any:
    """Create or update an artifact in the Prefect UI; a server that can't take it stops no work."""
    try:
        return create(*content, **options)
    except Exception as error:
        get_run_logger().warning("an artifact was not kept: %s", error)
        return None


class _ProgressArtifacts:
    """Shows long work in the Prefect UI, one progress artifact per label."""

    def __init__(self) -> None:
        self._artifacts: dict[str, Any] = {}
        self._started = self._updated = time.monotonic()

    def __call__(self, label: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._updated < _ARTIFACT_SECONDS and not (done == total and label in self._artifacts):
            return
        self._updated = now
        percent = 100 * done / total
        if label not in self._artifacts:
            description = f"{label}: {total} in all"
            self._artifacts[label] = show(create_progress_artifact, progress=percent, description=description)
        elif self._artifacts[label]:
            show(update_progress_artifact, self._artifacts[label], progress=percent)
