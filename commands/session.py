"""Run a flow from a terminal: on the Prefect server that is set, or on a temporary one."""

import os
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from deployments.server import Server
from thaw.config import Section
from thaw.errors import RunFailed, ThawError
from thaw.registry import Version
from thaw.store import Store

_RECORDS_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended: the name and message of its state, and what it handed back."""

    state: str
    message: str
    data: Any


def run_flow(
    flow: Literal["train", "retrain", "crossvalidate", "compare"],
    config: Section,
    store: Store,
    **parameters: Any,
) -> Ended:
    """Run a flow in this process, and say how it ended.

    Raises:
        NoServer, BadPassword: a server is set, but does not answer or does not let us in.
        ThawError: whatever stopped the run.
    """
    _set_defaults()
    _check_server()
    run = getattr(import_module(f"flows.{flow}"), flow)
    state = run(config, store=store.address, **parameters, return_state=True)
    _wait_for_records(state)
    data: Any = state.result(raise_on_failure=False)
    if isinstance(data, ThawError):
        raise data
    if isinstance(data, BaseException):
        raise RunFailed(
            f"the run was ended by an unforeseen {type(data).__name__}: {data}. Its trace is above."
        )
    return Ended(state=state.name, message=state.message or "", data=data)


def tell_server(champion: Version, reason: str) -> None:
    """Emit the event of a promotion to the Prefect server, where one is set.

    Raises:
        NoServer, BadPassword: it does not answer, or does not let us in. The registry is changed all the same.
    """
    _set_defaults()
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        _check_server()
        from tasks.screen import announce

        announce(champion, reason)


def use_block() -> None:
    """Take the credentials of object stores from the Prefect block that THAW_STORAGE_BLOCK names.

    Raises:
        NoServer, BadPassword: the server that has it does not answer, or does not let us in.
        BadConfig: there is no such block, or it is no good.
    """
    _set_defaults()
    _check_server()
    from tasks.credentials import use_storage_block

    use_storage_block()


def _set_defaults() -> None:
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "thaw")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


def _check_server() -> None:
    """See that the server which is set, if one is, answers and lets us in."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

    url, password = PREFECT_API_URL.value(), PREFECT_API_AUTH_STRING.value()
    if url and not PREFECT_API_KEY.value():  # Prefect Cloud has its own ways
        Server(url=url.rstrip("/"), password=password).check()


def _wait_for_records(state: Any) -> None:
    """Give a temporary server time to write what it was told: it drops the rest when it stops."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        return
    these = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        deadline, before = time.monotonic() + _RECORDS_SECONDS, -1
        while time.monotonic() < deadline:
            runs = client.read_task_runs(flow_run_filter=these)
            ended = sum(run.state is not None and run.state.is_final() for run in runs)
            if ended == len(runs) == before:
                return
            before = ended
            time.sleep(1)
