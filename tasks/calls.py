"""Calls of stages that run elsewhere: what is to be made goes in as a record, the handle to it comes back as one.

Only the store passes between the two sides, so that they may run on machines that share nothing else. On a slip in
it a worker writes how far it is, and by taking the call away its asker lets it know that nobody waits any more.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from inspect import signature
from threading import Event, Thread
from typing import Any, Self, get_type_hints

from pydantic import TypeAdapter

from thaw.errors import DiskFull, StageFailed, StoreUnreachable
from thaw.progress import listen
from thaw.records import Made, Record, Split
from thaw.slips import Slip
from thaw.store import Store

_served: dict[str, tuple[Callable[..., Made], Callable[..., Made]]] = {}
_TOLD_SECONDS = 2.0
_DIGITS = 12
# A network file system may lose sight of a file for a moment.
_MOST_ABSENCES = 2
# What may ail one machine only: another one may fare better.
MACHINE_FAULTS = (DiskFull, StoreUnreachable)


@dataclass(frozen=True, kw_only=True)
class StageCall(Record):
    """A stage to run elsewhere, and its arguments as JSON; the store, and what is left at its default, are left out.

    Progress counts from `rows_before` up to `rows`, where these are known. `asker` and `attempt` tell calls alike
    apart: each has a slip and an answer of its own.
    """

    stage: str
    title: str
    arguments: dict[str, Any] = field(default_factory=dict)
    rows_before: int = 0
    rows: int = 0
    asker: str = ""
    attempt: int = 1

    @property
    def can_be_shared(self) -> bool:
        """Whether a second worker may begin at the other end."""
        return "portion" in self.arguments

    def reverse(self) -> "StageCall":
        """The same work from its other end."""
        return replace(self, arguments={**self.arguments, "backwards": True})


@dataclass(frozen=True, kw_only=True)
class StageAnswer(Record):
    """What a stage handed back, as JSON, and the worker that ran it."""

    made: dict[str, Any]
    worker: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a call came to: what was made, and the worker that made it."""

    made: Made
    worker: str


def serve(function: Callable[..., Made], make: Callable[..., Made]) -> None:
    """Let a stage be run for others: `make` runs `function` as a task."""
    _served[_name(function)] = function, make


def make_call(
    function: Callable[..., Made], title: str, given: dict[str, Any], rows_before: int = 0, rows: int = 0
) -> StageCall:
    """The call of a stage with these arguments."""
    kinds = get_type_hints(function, include_extras=True)
    arguments = {name: _pack(value, kinds[name]) for name, value in given.items()}
    return StageCall(
        stage=_name(function), title=title, arguments=arguments, rows_before=rows_before, rows=rows
    )


def bind(function: Callable[..., Made], *args: Any, **kwargs: Any) -> tuple[dict[str, Any], Store]:
    """A stage's arguments by name, and its store."""
    given = dict(signature(function).bind(*args, **kwargs).arguments)
    return given, given.pop("store")


def publish_call(call: StageCall, store: Store) -> None:
    """Put a call where workers find it."""
    store.publish("calls", call.digest, call)


def discard_call(call: StageCall, store: Store) -> None:
    """Take a call away, with its slip and its answer. Whoever works on it stops."""
    with suppress(OSError, StoreUnreachable):
        for kind in ("calls", "answers"):
            store.discard(kind, f"{call.digest}.json")
        find_slip(call, store).remove()


def answer_call(call: StageCall, store: Store) -> Made:
    """Run the stage of a call in the run at hand.

    Raises:
        ThawError: what the stage refuses.
        StageFailed: the call was taken away meanwhile.
    """
    if call.stage not in _served:
        raise StageFailed(
            f"this worker knows no stage {call.stage}: it has another version of Thaw than the run that asks for it."
        )
    function, make = _served[call.stage]
    kinds = get_type_hints(function, include_extras=True)
    arguments = {name: _unpack(value, kinds[name], store) for name, value in call.arguments.items()}
    with _ProgressSlip(call, store) as slip, listen(slip):
        return make(**arguments, store=store)


def publish_answer(call: StageCall, answer: Answer, store: Store) -> None:
    """Put what a stage handed back where its asker finds it."""
    made = _describe_return(call).dump_python(answer.made, mode="json")
    store.publish("answers", call.digest, StageAnswer(made=made, worker=answer.worker))


def read_answer(call: StageCall, store: Store) -> Answer:
    """What a stage handed back that completed elsewhere.

    Raises:
        StageFailed: the store does not have it.
    """
    answer = store.read("answers", call.digest, StageAnswer)
    if answer is None:
        raise StageFailed(
            f"'{call.title}' completed on its worker, but what it made is not in the store at {store.address}. "
            "Both workers must see the same store, under the same path or URL."
        )
    return Answer(made=_describe_return(call).validate_python(answer.made), worker=answer.worker)


def find_slip(call: StageCall, store: Store) -> Slip:
    """Where whoever answers a call writes how many rows are done."""
    return store.slip("progress", call.digest)


def read_progress(call: StageCall, store: Store) -> int | None:
    """How many rows are done; None where a worker has not begun.

    Raises:
        OSError, StoreUnreachable: the store is away.
    """
    text = find_slip(call, store).read().strip()
    return int(text) if text.isdecimal() else None


class _ProgressSlip:
    """Writes progress on a slip, on a thread of its own: a store that is slow holds no work up.

    What can't be written is left out. Once the call is taken away, the work that tells of progress next is ended.
    """

    def __init__(self, call: StageCall, store: Store):
        self._call, self._store, self._slip = call, store, find_slip(call, store)
        self._done = self._absences = 0
        self._ended = Event()
        self._thread = Thread(target=self._keep_up, name=f"progress of {call.digest}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # Not longer: a store that is away would hold it for minutes.
        self._thread.join(_TOLD_SECONDS)

    def __call__(self, label: str, done: int, total: int, note: str) -> None:
        if self._absences >= _MOST_ABSENCES:
            raise StageFailed(f"nobody waits for '{self._call.title}' any more")
        self._done = done

    def _keep_up(self) -> None:
        begun, told = False, -1
        while True:
            done = self._done
            with suppress(Exception):
                self._absences = 0 if self._is_waited_for() else self._absences + 1
                if done != told and not self._absences:
                    if begun or not self._slip.create(self._say(done)):
                        self._slip.rewrite(self._say(done))
                    begun, told = True, done
            if self._ended.wait(_TOLD_SECONDS):
                break
        if self._absences:
            with suppress(Exception):
                self._slip.remove()

    def _is_waited_for(self) -> bool:
        return self._store.read("calls", self._call.digest, StageCall) is not None

    @staticmethod
    def _say(done: int) -> str:
        return f"{done:0{_DIGITS}}"


def _describe_return(call: StageCall) -> TypeAdapter:
    function, _ = _served[call.stage]
    return TypeAdapter(get_type_hints(function, include_extras=True)["return"])


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
