"""Calls of stages that run elsewhere: what is to be made goes in as a record, the handle to it comes back as one.

Only the store passes between the two sides, so that they may run on machines that share nothing else.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol, get_type_hints

from pydantic import TypeAdapter

from thaw.errors import StageFailed
from thaw.progress import listen
from thaw.records import Made, Record, Split
from thaw.slips import Slip
from thaw.store import Store

_served: dict[str, tuple[Callable[..., Made], Callable[..., Made]]] = {}
_TOLD_SECONDS = 2.0
_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class StageCall(Record):
    """A stage to run elsewhere, and its arguments as JSON; the store, and what is left at its default, are left out."""

    stage: str
    title: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def can_be_shared(self) -> bool:
        """Whether a second worker may begin at the other end."""
        return "portion" in self.arguments

    def add(self, **arguments: Any) -> "StageCall":
        """The same call with further arguments."""
        return StageCall(stage=self.stage, title=self.title, arguments={**self.arguments, **arguments})


@dataclass(frozen=True, kw_only=True)
class StageAnswer(Record):
    """What a stage handed back, as JSON."""

    made: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a call came to: what was made, and the worker that made it."""

    made: Made
    worker: str


class Crew(Protocol):
    """Workers that answer calls, several at once."""

    def run(self, calls: Sequence[StageCall], watch: Callable[[int], None]) -> list[Answer]:
        """The answers, in the order of the calls.

        A call whose worker is lost is given to another one, and so is one that nothing is heard of.

        Args:
            watch: told now and then how many rows are done, of all calls together.

        Raises:
            StageFailed: a call failed, or lost its worker time and again.
        """


def serve(function: Callable[..., Made], make: Callable[..., Made]) -> None:
    """Let a stage be run for others: `make` runs `function` as a task."""
    _served[_name(function)] = function, make


def make_call(function: Callable[..., Made], title: str, given: dict[str, Any]) -> StageCall:
    """The call of a stage with these arguments."""
    kinds = get_type_hints(function, include_extras=True)
    arguments = {name: _pack(value, kinds[name]) for name, value in given.items()}
    return StageCall(stage=_name(function), title=title, arguments=arguments)


def bind(function: Callable[..., Made], *args: Any, **kwargs: Any) -> tuple[dict[str, Any], Store]:
    """A stage's arguments by name, and its store."""
    given = dict(signature(function).bind(*args, **kwargs).arguments)
    return given, given.pop("store")


def publish_call(call: StageCall, store: Store) -> None:
    """Put a call where workers find it."""
    store.publish("calls", call.digest, call)


def answer_call(call: StageCall, store: Store) -> Made:
    """Run the stage of a call in the run at hand, and publish what it hands back.

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
    with listen(_ProgressSlip(find_slip(call, store))):
        made = make(**arguments, store=store)
    as_json = TypeAdapter(kinds["return"]).dump_python(made, mode="json")
    store.publish("answers", call.digest, StageAnswer(made=as_json))
    return made


def read_answer(call: StageCall, store: Store) -> Made:
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
    function, _ = _served[call.stage]
    kind = get_type_hints(function, include_extras=True)["return"]
    return TypeAdapter(kind).validate_python(answer.made)


def find_slip(call: StageCall, store: Store) -> Slip:
    """Where whoever answers a call writes how many rows are done."""
    return store.slip("progress", call.digest)


def read_slip(slip: Slip) -> int:
    """How many rows are done; 0 where nothing was told yet."""
    text = slip.read().strip()
    return int(text) if text.isdecimal() else 0


class _ProgressSlip:
    """Writes progress on a slip, now and then. What can't be written is left out."""

    def __init__(self, slip: Slip):
        self._slip, self._told, self._begun = slip, 0.0, False

    def __call__(self, label: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._told < _TOLD_SECONDS and done < total:
            return
        self._told = now
        text = f"{done:0{_DIGITS}}"
        with suppress(Exception):
            if not self._begun:
                self._begun = True
                self._slip.remove()
                self._slip.create(text)
            else:
                self._slip.rewrite(text)


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
