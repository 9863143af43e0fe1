"""Answer calls on a Dask cluster, through Prefect's Dask task runner: each call is a task of the run at hand."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.calls import Answer, StageCall, answer_call, find_slip, publish_call, read_slip
from thaw.errors import MissingPackage, StageFailed, ThawError
from thaw.runner import Runner
from thaw.store import Store

_POLL_SECONDS = 2.0


class ClusterCrew:
    """The workers of a Dask cluster. Dask itself gives what a lost worker had to another one."""

    def __init__(self, runner: Any, store: Store):
        self._runner, self._store = runner, store

    def run(
        self, calls: Sequence[StageCall], watch: Callable[[int], None] = lambda rows: None
    ) -> list[Answer]:
        """As `tasks.calls.Crew` says."""
        for call in calls:
            publish_call(call, self._store)
        futures = [
            self._runner.submit(answer_on_cluster, {"call": call, "store": self._store.address})
            for call in calls
        ]
        waiting = futures
        try:
            while waiting := [future for future in futures if not future.wrapped_future.done()]:
                time.sleep(_POLL_SECONDS)
                watch(sum(read_slip(find_slip(call, self._store)) for call in calls))
            return [_read(future, call) for future, call in zip(futures, calls, strict=True)]
        finally:
            for future in waiting:
                future.wrapped_future.cancel()
            for call in calls:
                find_slip(call, self._store).remove()


@contextmanager
def open_cluster(runner: Runner) -> Iterator[Any]:
    """What tasks are submitted to: the cluster at the runner's address, or one on this machine meanwhile.

    Raises:
        MissingPackage: prefect-dask is not installed.
        StageFailed: the scheduler does not answer.
    """
    try:
        import dask
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise MissingPackage(
            "runner 'dask' needs a package that is not installed: pip install 'thaw[dask]'"
        ) from error
    address = runner.address or dask.config.get("scheduler-address", None)
    # TensorFlow shares its work out among threads itself; two stages in one process would share its seeds.
    here = {
        "n_workers": runner.workers or os.cpu_count() or 1,
        "threads_per_worker": 1,
        "silence_logs": logging.ERROR,
    }
    cluster = DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=here)
    try:
        with cluster as opened:
            yield opened
    except OSError as error:
        where = f"the Dask scheduler at {address}" if address else "a Dask cluster on this machine"
        raise StageFailed(f"{where} does not answer: {error}. Start it, or use runner 'local'.") from error


@task(name="portion", task_run_name="{call.title}", cache_policy=NO_CACHE, persist_result=False)
def answer_on_cluster(call: StageCall, store: str) -> Answer:
    """Answer a call on whatever worker runs this."""
    from distributed import get_worker

    # Importing a stage makes it known.
    from tasks import features, prediction, release  # noqa: F401

    worker = get_worker()
    try:
        return Answer(made=answer_call(call, Store(store)), worker=f"{worker.name} at {worker.address}")
    except ThawError as error:
        get_run_logger().error("%s", error)
        raise


def _read(future: Any, call: StageCall) -> Answer:
    try:
        state = future.wrapped_future.result()
    except Exception as error:  # of Dask: the worker was lost time and again
        raise StageFailed(f"'{call.title}' on the Dask cluster: {error}") from error
    data = state.result(raise_on_failure=False)
    if isinstance(data, Answer):
        return data
    if isinstance(data, ThawError):
        raise data
    raise StageFailed(f"'{call.title}' on the Dask cluster ended as {state.name}: {state.message}")
