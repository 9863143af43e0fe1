"""Answer calls on a Dask cluster, through Prefect's Dask task runner: each call is a task of the run at hand."""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect import get_client, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed

from tasks.attempts import Sight
from tasks.calls import MACHINE_FAULTS, Answer, StageCall, answer_call
from tasks.credentials import use_storage_block
from thaw.errors import MissingPackage, StageFailed, ThawError
from thaw.runner import Runner
from thaw.store import Store

_POLL_SECONDS, _LOOK_SECONDS = 2.0, 0.1
_TTL_SECONDS = 30
# TensorFlow takes every core that it sees unless it is told otherwise.
_TENSORFLOW_THREADS = "TF_NUM_INTRAOP_THREADS"


class ClusterWorkers:
    """The workers of a Dask cluster. Dask itself gives what a lost worker had to another one, some times."""

    def __init__(self, cluster: Any, store: Store):
        self._cluster, self._store = cluster, store
        self._warned = False
        # Tasks of which nothing was heard. Until they end, or their worker is given up, they keep it occupied: Dask
        # would take it for idle, and give it the next one.
        self._stuck: list[Any] = []

    def count(self) -> int:
        """As `tasks.attempts.Workers` says: a worker for each thread."""
        return sum(_ask(self._cluster.client.nthreads).values())

    def count_free(self, waiting: int, running: int) -> int:
        """As `tasks.attempts.Workers` says: what waits behind a worker that is ill would wait with it."""
        threads = self.count()
        if not threads and not self._warned:
            self._warned = True
            get_run_logger().warning("the Dask cluster has no worker yet: portions wait for one")
        self._stuck = [future for future in self._stuck if not future.wrapped_future.done()]
        return max(threads - len(self._stuck), 1) - waiting - running

    def start(self, call: StageCall) -> Any:
        """Submit a task.

        Raises:
            StageFailed: the scheduler is gone.
        """
        with _share_server(self._cluster):
            return _ask(self._cluster.submit, answer_on_cluster, {"call": call, "store": self._store.address})

    def look(self, attempts: dict[Any, StageCall]) -> dict[Any, Sight]:
        """What became of tasks."""
        return {future: self._judge(future, call) for future, call in attempts.items()}

    def stop(self, attempts: Iterable[Any], lost: bool = False) -> None:
        """Take tasks back that have not begun; others end when they find their slip gone."""
        for future in attempts:
            if lost:
                self._stuck.append(future)
            else:
                future.wrapped_future.cancel()

    def wait(self, attempts: Iterable[Any]) -> None:
        """Until a task ends, or for as long as the store is left in peace."""
        futures, until = [future.wrapped_future for future in attempts], time.monotonic() + _POLL_SECONDS
        while time.monotonic() < until and not any(future.done() for future in futures):
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Take back what was stuck."""
        for future in self._stuck:
            future.wrapped_future.cancel()

    def _judge(self, future: Any, call: StageCall) -> Sight:
        task_future = future.wrapped_future
        if not task_future.done():
            return Sight(state="given")
        if task_future.cancelled() or task_future.status == "lost":
            return Sight(state="lost", reason="the Dask cluster let go of it")
        try:
            state = task_future.result()
        except Exception as error:  # of Dask: its workers were lost time and again
            return Sight(state="failed", error=StageFailed(f"'{call.title}' on the Dask cluster: {error}"))
        data = state.result(raise_on_failure=False)
        if isinstance(data, Answer):
            return Sight(state="answered", answer=data)
        if isinstance(data, MACHINE_FAULTS):
            return Sight(state="lost", reason=f"it could not go on there: {data}")
        if not isinstance(data, ThawError):
            data = StageFailed(f"'{call.title}' on the Dask cluster ended as {state.name}: {state.message}")
        return Sight(state="failed", error=data)


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
            "runner 'dask' needs prefect-dask, not installed here. It comes with the extra 'dask': "
            "pip install -c constraints.txt -e '.[dask]'"
        ) from error
    # What it says at each step of its life is not what a run's log is for.
    logging.getLogger("distributed").setLevel(logging.ERROR)
    address = runner.address or dask.config.get("scheduler-address", None)
    # When its scheduler gives a worker up that it does not hear of, and starts another.
    dask.config.set({"distributed.scheduler.worker-ttl": f"{max(_TTL_SECONDS, runner.stalled_seconds)} s"})
    cluster = (
        DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=_describe_here(runner))
    )
    with cluster as opened:
        try:
            # Connected to, or started, when it is first asked for.
            opened.client  # noqa: B018
        except OSError as error:
            where = f"the Dask scheduler at {address}" if address else "a Dask cluster on this machine"
            raise StageFailed(
                f"{where} does not answer: {error}. Start it, or use runner 'local'."
            ) from error
        yield opened


@task(name="portion", task_run_name="{call.title}", cache_policy=NO_CACHE, persist_result=False)
def answer_on_cluster(call: StageCall, store: str) -> Any:
    """Answer a call on whatever worker runs this."""
    from distributed import get_worker

    # Importing a stage makes it known.
    from tasks import features, prediction, release  # noqa: F401

    worker = get_worker()
    try:
        use_storage_block()
        return Answer(made=answer_call(call, Store(store)), worker=f"{worker.name} at {worker.address}")
    except ThawError as error:
        return Failed(message=str(error), data=error)


def _describe_here(runner: Runner) -> dict[str, Any]:
    """A cluster on this machine, whose workers share the cores out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = runner.workers or cores
    threads = os.environ.get(_TENSORFLOW_THREADS) or str(max(1, cores // workers))
    return {
        "n_workers": workers,
        # TensorFlow shares its work out among threads itself; two stages in one process would share its seeds.
        "threads_per_worker": 1,
        "silence_logs": logging.ERROR,
        # What of Prefect runs on threads asks the environment for the server, and the rest its context.
        "env": {_TENSORFLOW_THREADS: threads, "PREFECT_API_URL": _find_server()},
    }


@contextmanager
def _share_server(cluster: Any) -> Iterator[None]:
    """Let workers on this machine use the temporary server of this run; each would start one of its own."""
    if cluster.address:
        yield
        return
    with temporary_settings({PREFECT_API_URL: _find_server()}):
        yield


def _find_server() -> str:
    with get_client(sync_client=True) as client:
        return str(client.api_url)


def _ask(ask: Any, *args: Any) -> Any:
    """What the Dask scheduler answers.

    Raises:
        StageFailed: it is gone.
    """
    try:
        return ask(*args)
    except Exception as error:
        raise StageFailed(
            f"the Dask cluster does not answer any more ({error or type(error).__name__}). What its workers published "
            "stays: run the same command again."
        ) from error
