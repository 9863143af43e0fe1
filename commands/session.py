"""Run the train flow from a terminal: on the Prefect server that is set, or on a temporary one."""

import os
import time
import urllib.error
import urllib.request
from typing import Any

from thaw.config import TrainConfig
from thaw.errors import NoServer, RunFailed, ThawError
from thaw.records import Outcome
from thaw.store import Store

_ANSWER_SECONDS = 5
_RECORDS_SECONDS = 20


def run_flow(config: TrainConfig, store: Store) -> Outcome:
    """Run `train` in this process and hand back its outcome, also that of a closed gate.

    Raises:
        NoServer: a server is set but does not answer.
        ThawError: whatever stopped the run.
    """
    _set_defaults()
    from prefect.settings import PREFECT_API_URL

    _check_server(PREFECT_API_URL.value())
    from flows.train import train

    state = train(config, store=str(store.root), return_state=True)
    _wait_for_records(state)
    ended: Any = state.result(raise_on_failure=False)
    if isinstance(ended, Outcome):
        return ended
    if isinstance(ended, ThawError):
        raise ended
    raise RunFailed(
        f"the run was ended by an unforeseen {type(ended).__name__}: {ended}. Its trace is above."
    )


def _set_defaults() -> None:
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "thaw")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


def _check_server(url: str | None) -> None:
    if not url:
        return
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_ANSWER_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in is for Prefect to say
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise NoServer(
            f"the Prefect server at {url} does not answer ({reason}). Start it with `prefect server start`, "
            "or unset PREFECT_API_URL to run with a temporary one."
        ) from None


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
