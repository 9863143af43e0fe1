"""Calls given to workers: who gets what, and what happens when a worker is lost or says nothing."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from tasks import attempts
from tasks.attempts import Crew, Sight
from tasks.calls import Answer, StageCall, answer_call, discard_call, find_slip, publish_call, read_progress
from tasks.screen import say_pace
from thaw.errors import StageFailed, StoreUnreachable
from thaw.progress import track
from thaw.records import Made
from thaw.store import Store

STALLED_SECONDS = 100
Script = Callable[[int, StageCall, float], Sight]
WAITING, RUNNING = Sight(state="waiting"), Sight(state="running")
LOST = Sight(state="lost", reason="crashed")
FAILED = Sight(state="failed", error=StageFailed("the dump is gone"))


class Workers:
    """Workers that do as a script says, on a clock that moves ten seconds with each look."""

    def __init__(self, script: Script, free: int = 100):
        self.script, self.free, self.now = script, free, 1000.0
        self.started: list[StageCall] = []
        self.stopped: list[tuple[int, bool]] = []
        self.most_at_once = 0

    def count(self) -> int:
        return self.free

    def count_free(self, waiting: int, running: int) -> int:
        return self.free - waiting - running

    def start(self, call: StageCall) -> int:
        self.started.append(call)
        return len(self.started) - 1

    def look(self, given: dict[int, StageCall]) -> dict[int, Sight]:
        self.most_at_once = max(self.most_at_once, len(given))
        return {number: self.script(number, call, self.now - 1000) for number, call in given.items()}

    def stop(self, given: Iterable[int], lost: bool = False) -> None:
        self.stopped += [(number, lost) for number in given]

    def wait(self, given: Iterable[Any]) -> None:
        self.now += 10

    def close(self) -> None:
        pass


def answer(value: Any = None) -> Sight:
    return Sight(state="answered", answer=Answer(made=Made(value=value, reused=False, note=""), worker="one"))


def call(name: str, rows: int = 10) -> StageCall:
    return StageCall(stage="work", title=name, arguments={"portion": name}, rows_before=2, rows=rows)


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    def run(workers: Workers, *calls: StageCall, **options: Any) -> list[Any]:
        monkeypatch.setattr(attempts.time, "monotonic", lambda: workers.now)
        return [each.made.value for each in Crew(workers, store, STALLED_SECONDS).run(calls, **options)]

    with disable_run_logger():
        yield run


def test_answers_come_in_the_order_of_the_calls(run: Callable):
    workers = Workers(lambda number, call, now: answer(call.title) if now > 50 - 10 * number else RUNNING)
    assert run(workers, call("a"), call("b"), call("c")) == ["a", "b", "c"]


def test_no_more_is_given_out_than_workers_are_free_for(run: Callable):
    workers = Workers(lambda number, call, now: answer(call.title), free=2)
    assert run(workers, *(call(str(number)) for number in range(7))) == [str(number) for number in range(7)]
    assert workers.most_at_once == 2


def test_what_lost_its_worker_is_given_to_another_after_a_pause(run: Callable):
    workers = Workers(lambda number, call, now: LOST if call.attempt == 1 else answer(number))
    assert run(workers, call("a")) == [1]
    assert [each.attempt for each in workers.started] == [1, 2]
    assert workers.now >= 1000 + 20


def test_what_loses_three_workers_is_lost(run: Callable):
    with pytest.raises(StageFailed, match=r"'a' lost its worker 3 times \(at last: crashed\)"):
        run(Workers(lambda *_: LOST), call("a"))


def test_a_silent_worker_is_helped_from_the_other_end_and_stopped_in_the_end(run: Callable):
    workers = Workers(lambda number, call, now: RUNNING if number == 0 or now < 300 else answer(number))
    assert run(workers, call("a")) == [1]
    first, second = workers.started
    assert (first.arguments, second.arguments) == ({"portion": "a"}, {"portion": "a", "backwards": True})
    assert workers.stopped == [(0, True)]


def test_a_worker_that_tells_of_progress_is_left_alone(run: Callable, store: Store):
    told = itertools.count(1)

    def work(number: int, call: StageCall, now: float) -> Sight:
        slip = find_slip(call, store)
        slip.remove()
        slip.create(f"{next(told):012}")
        return answer(number) if now > 1000 else RUNNING

    workers = Workers(work)
    assert run(workers, call("a")) == [0]


def test_while_the_store_is_away_nobody_is_called_silent(run: Callable, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise StoreUnreachable("away")

    monkeypatch.setattr(attempts, "read_progress", fail)
    workers = Workers(lambda number, call, now: answer(number) if now > 1000 else RUNNING)
    assert run(workers, call("a")) == [0]


def test_one_that_takes_much_longer_than_the_rest_gets_help(run: Callable, store: Store):
    told = itertools.count(1)

    def work(number: int, call: StageCall, now: float) -> Sight:
        if number != 0:
            return answer(number) if now > 20 else RUNNING
        slip = find_slip(call, store)
        slip.remove()
        slip.create(f"{next(told):012}")
        return RUNNING

    workers = Workers(work)
    assert run(workers, call("a"), call("b"), call("c")) == [3, 1, 2]
    # It was heard of, so it is told to stop and not given up.
    assert (0, False) in workers.stopped


def test_when_one_fails_the_others_are_stopped_and_nothing_is_left_in_the_store(run: Callable, store: Store):
    def work(number: int, call: StageCall, now: float) -> Sight:
        return FAILED if number == 1 and now > 30 else RUNNING

    workers = Workers(work)
    with pytest.raises(StageFailed, match="^the dump is gone$"):
        run(workers, call("a"), call("b"), call("c"))
    assert {number for number, _ in workers.stopped} == {0, 2}
    assert not any(store.folder("calls").iterdir())


def test_what_fails_on_one_worker_while_another_is_at_it_is_left_to_that_one(run: Callable):
    def work(number: int, call: StageCall, now: float) -> Sight:
        if number == 0:
            return FAILED if now > 250 else RUNNING
        return answer(number) if now > 300 else RUNNING

    workers = Workers(work)
    assert run(workers, call("a")) == [1]
    assert len(workers.started) == 2


def test_who_waits_for_a_machine_is_not_called_silent(run: Callable):
    workers = Workers(lambda number, call, now: answer(number) if now > 500 else Sight(state="given"))
    assert run(workers, call("a")) == [0]


def test_what_is_not_begun_after_ten_minutes_goes_to_another_worker_as_well(run: Callable):
    def work(number: int, call: StageCall, now: float) -> Sight:
        return answer(number) if number and now > 650 else Sight(state="given")

    workers = Workers(work)
    assert run(workers, call("a")) == [1]


def test_progress_counts_what_was_there_before_and_ends_with_all_of_it(run: Callable):
    seen: list[int] = []
    workers = Workers(lambda number, call, now: answer() if now > 10 * (number + 1) else RUNNING)
    run(workers, call("a"), call("b", rows=30), watch=seen.append)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (4, 40)


@pytest.mark.parametrize(
    "done, total, per_second, said",
    [
        (0, 4000, 0.0, "0 of 4,000"),
        (1234, 4000, 28.7, "1,234 of 4,000, 29 a second, 2 min left"),
        (10, 20, 0.55, "10 of 20, 0.55 a second, 18 s left"),
        (1, 1_000_000, 30.0, "1 of 1,000,000, 30 a second, 9 h left"),
        (4000, 4000, 30.0, "4,000 of 4,000, 30 a second"),
    ],
)
def test_progress_is_told_with_its_rate_and_the_time_left(
    done: int, total: int, per_second: float, said: str
):
    assert say_pace(done, total, per_second) == said


def test_a_call_that_is_taken_away_before_anybody_began_is_not_worked_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    from tasks import calls

    def work(store: Store) -> Made[int]:
        with track("rows", 10**9, "rows") as advance:
            while True:
                advance()

    monkeypatch.setattr(calls, "_TOLD_SECONDS", 0.01)
    monkeypatch.setitem(calls._served, "work", (work, work))
    asked = StageCall(stage="work", title="portion 1")
    publish_call(asked, store)
    discard_call(asked, store)
    with pytest.raises(StageFailed, match="nobody waits for 'portion 1' any more"):
        answer_call(asked, store)
    assert read_progress(asked, store) is None


def test_whoever_works_on_a_call_that_is_taken_away_stops(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from tasks import calls

    def work(store: Store) -> Made[int]:
        with track("rows", 10**6, "rows") as advance:
            for number in range(10**6):
                advance()
                if number == 100:
                    wait_for_slip()
                    discard_call(asked, store)
        return Made(value=1, reused=False, note="")

    def wait_for_slip() -> None:
        while read_progress(asked, store) is None:
            pass

    monkeypatch.setattr(calls, "_TOLD_SECONDS", 0.01)
    monkeypatch.setitem(calls._served, "work", (work, work))
    asked = StageCall(stage="work", title="portion 1")
    publish_call(asked, store)
    with pytest.raises(StageFailed, match="nobody waits for 'portion 1' any more"):
        answer_call(asked, store)
