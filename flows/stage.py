"""One GPU stage of another run, on a worker of the GPU pool."""

import os
import socket

from prefect import flow
from prefect.states import Cancelled, Completed, Failed, State

from flows.method import open_store

# What may be asked for: importing a stage makes it known.
from tasks import features, folds, prediction, release, search, training  # noqa: F401
from tasks.calls import MACHINE_FAULTS, Answer, StageCall, answer_call, publish_answer
from tasks.pools import UNABLE, is_waited_for
from tasks.stage import run_stages
from thaw.errors import BadConfig, ThawError


@flow(name="stage")
def run_stage(call: str, store: str | None = None) -> State:
    """Run the stage whose call lies in the store, and leave the handle to its output there.

    Args:
        call: digest of the call, in `calls/` of the store.
    """
    if not is_waited_for():
        return Cancelled(message="the run that asked for it has ended")
    try:
        place = open_store(store)
        found = place.read("calls", call, StageCall)
        if found is None:
            raise BadConfig(
                f"there is no call {call} in the store at {place.address}. Runs of this deployment are started by "
                "others, on pools; both sides must see the same store, under the same path."
            )
        with run_stages():
            made = answer_call(found, place)
        worker = os.environ.get("PREFECT__WORKER_NAME") or socket.gethostname()
        publish_answer(found, Answer(made=made, worker=worker), place)
    except ThawError as error:
        name = UNABLE if isinstance(error, MACHINE_FAULTS) else "Failed"
        return Failed(name=name, message=str(error), data=error)
    return Completed(name="Cached" if made.reused else "Completed", message=made.note)
