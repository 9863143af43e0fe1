"""Give calls to workers: again where one is lost, and to a second one where nothing is heard of the first."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol
from uuid import uuid4

from prefect import get_run_logger

from tasks.calls import Answer, StageCall, discard_call, publish_call, read_progress
from thaw.errors import StageFailed, StoreUnreachable, ThawError
from thaw.store import Store

# A worker that is lost costs what it had not published; a third one that is lost is no accident.
_ATTEMPTS = 3
# Prefect ends a worker of limit 1 that is given work within two seconds of a crash.
_PAUSE_SECONDS = 10
# One that takes so many times as long as portions no smaller than it has a worker that is ill.
_STRAGGLES = 3.0
# A machine may be made for it first; a worker that is lost before it began is noticed by this alone.
_BEGINNING_SECONDS = 600
# Before the first batch a worker imports, builds its network and traces it.
_WARM_UP_SECONDS = 60
_READERS = 16


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What is seen of an attempt: it waits for a worker, has one, is answered, failed, or lost its worker.

    One that is `given` has a worker once there is a slip.
    """

    state: Literal["waiting", "given", "running", "answered", "failed", "lost"]
    reason: str = ""
    answer: Answer | None = None
    error: ThawError | None = None


class Workers(Protocol):
    """Whoever answers calls, several at once. What they know an attempt by is their own."""

    def count(self) -> int:
        """How many there are at the moment; more may come, and these may go."""

    def count_free(self, waiting: int, running: int) -> int:
        """How many more calls they can be given, while so many wait for a worker or have one."""

    def start(self, call: StageCall) -> Any:
        """Give a published call to a worker, as soon as one is free; returns what it is known by."""

    def look(self, attempts: dict[Any, StageCall]) -> dict[Any, Sight]:
        """What is seen of each of these attempts."""

    def stop(self, attempts: Iterable[Any], lost: bool = False) -> None:
        """Let nobody work on these any more; `lost` are those of which nothing was heard."""

    def wait(self, attempts: Iterable[Any]) -> None:
        """Until something may have happened to these attempts, for a few seconds."""

    def close(self) -> None:
        """See what was stopped to its end."""


@dataclass
class _Attempt:
    """One worker's go at a call. `heard` is when it last told something new, by this process's clock.

    `given` is when it was first seen to be given to a worker. `done` is None before it told anything, and `advanced`
    once it told of progress.
    """

    call: StageCall
    known_by: Any
    given: float | None = None
    done: int | None = None
    started: float | None = None
    heard: float = 0.0
    advanced: bool = False


@dataclass
class _Job:
    """A call, and the attempts at it that are not over. It may be tried again from `not_before` on.

    `trouble` is what became of the last worker that was lost.
    """

    call: StageCall
    attempts: list[_Attempt] = field(default_factory=list)
    tried: int = 0
    trouble: str = ""
    done: int = 0
    answer: Answer | None = None
    seconds: float = 0.0
    not_before: float = 0.0

    @property
    def rows(self) -> int:
        """How many rows there were to compute."""
        return self.call.rows - self.call.rows_before


class Crew:
    """Workers that see a store, and what they were given."""

    def __init__(self, workers: Workers, store: Store, stalled_seconds: float):
        self._workers, self._store, self._stalled_seconds = workers, store, stalled_seconds

    def count_workers(self) -> int:
        """How many workers there are at the moment."""
        return self._workers.count()

    def run(
        self, calls: Sequence[StageCall], watch: Callable[[int], None] = lambda rows: None
    ) -> list[Answer]:
        """The answers, in the order of the calls.

        A call whose worker is lost is given to another one, and so is one that nothing is heard of.

        Args:
            watch: told now and then how many rows are done, of all calls together.

        Raises:
            StageFailed: a call lost its worker time and again.
            ThawError: a call failed, and nobody else is at it; the others are stopped.
        """
        asker = uuid4().hex
        jobs = [_Job(call=replace(call, asker=asker), done=call.rows_before) for call in calls]
        try:
            with ThreadPoolExecutor(_READERS) as readers:
                while unfinished := [job for job in jobs if job.answer is None]:
                    self._hand_out(jobs, unfinished)
                    self._workers.wait([attempt.known_by for job in unfinished for attempt in job.attempts])
                    self._look(unfinished, readers)
                    watch(sum(job.done for job in jobs))
        finally:
            self._let_go([attempt for job in jobs for attempt in job.attempts])
        return [job.answer for job in jobs if job.answer]

    def _hand_out(self, jobs: Sequence[_Job], unfinished: Sequence[_Job]) -> None:
        """Give out what nobody works on, and what is in bad hands to a second worker, as far as workers are free."""
        now = time.monotonic()
        attempts = [attempt for job in unfinished for attempt in job.attempts]
        running = sum(attempt.started is not None for attempt in attempts)
        free = self._workers.count_free(len(attempts) - running, running)
        answered = [job for job in jobs if job.answer]
        for job in unfinished:
            if free <= 0:
                return
            if not job.attempts and now >= job.not_before:
                self._start(job, job.call)
            elif job.attempts and job.tried < _ATTEMPTS and (ill := self._judge(job, answered, now)):
                get_run_logger().warning("'%s' is %s: another worker gets it as well", job.call.title, ill)
                # From the other end, where the work can be shared: the two meet.
                self._start(job, job.call.reverse() if job.call.can_be_shared else job.call)
            else:
                continue
            free -= 1

    def _judge(self, job: _Job, answered: Sequence[_Job], now: float) -> str:
        """What is wrong with those who work on a job, if anything."""
        waiting = [attempt for attempt in job.attempts if attempt.started is None]
        if waiting:
            return "" if any(not _is_overdue(attempt, now) for attempt in waiting) else "not begun"
        alone = len(job.attempts) == 1
        # A stage that can't be shared may well say nothing for long, and who gets it as well waits for its claim.
        if (alone or job.call.can_be_shared) and all(self._is_silent(one, now) for one in job.attempts):
            return "not heard of"
        took = [other.seconds for other in answered if other.rows >= job.rows]
        if alone and took:
            taken = now - (job.attempts[0].started or now)
            if taken > _STRAGGLES * max(statistics.median(took), _PAUSE_SECONDS):
                return "slower than the rest"
        return ""

    def _is_silent(self, attempt: _Attempt, now: float) -> bool:
        patience = self._stalled_seconds + (0 if attempt.advanced else _WARM_UP_SECONDS)
        return attempt.started is not None and now - attempt.heard > patience

    def _start(self, job: _Job, call: StageCall) -> None:
        if job.tried >= _ATTEMPTS:
            raise StageFailed(
                f"'{job.call.title}' lost its worker {job.tried} times (at last: {job.trouble}). What they published "
                "stays: see their logs, then run the same command again."
            )
        job.tried += 1
        call = replace(call, attempt=job.tried)
        publish_call(call, self._store)
        job.attempts.append(_Attempt(call=call, known_by=self._workers.start(call)))

    def _look(self, jobs: Sequence[_Job], readers: ThreadPoolExecutor) -> None:
        attempts = [attempt for job in jobs for attempt in job.attempts]
        seen = self._workers.look({attempt.known_by: attempt.call for attempt in attempts})
        for state in ("given", "running"):
            some = [attempt for attempt in attempts if seen[attempt.known_by].state == state]
            list(readers.map(partial(self._hear, has_begun=state == "running"), some))
        for job in jobs:
            for attempt in list(job.attempts):
                sight = seen[attempt.known_by]
                if sight.state == "answered":
                    job.answer, job.done = sight.answer, job.call.rows
                    now = time.monotonic()
                    job.seconds = now - (attempt.started or now)
                    self._stop([other for other in job.attempts if other is not attempt])
                    job.attempts.clear()
                    discard_call(attempt.call, self._store)
                    break
                if sight.state in ("lost", "failed"):
                    job.attempts.remove(attempt)
                    discard_call(attempt.call, self._store)
                    if sight.error and not job.attempts:
                        raise sight.error
                    job.trouble = str(sight.error or sight.reason)
                    job.not_before = time.monotonic() + _PAUSE_SECONDS
                    get_run_logger().warning("'%s' lost its worker (%s)", job.call.title, job.trouble)
                else:
                    job.done = max(job.done, attempt.done or 0)

    def _hear(self, attempt: _Attempt, has_begun: bool) -> None:
        """Ask how far an attempt is."""
        attempt.given = attempt.given or time.monotonic()
        try:
            done = read_progress(attempt.call, self._store)
        except (OSError, StoreUnreachable):
            # Nothing can be heard of anybody.
            done = attempt.done
            attempt.heard = time.monotonic()
        if done is None and not has_begun:
            return
        if attempt.started is None or done != attempt.done:
            attempt.heard = time.monotonic()
            attempt.started = attempt.started or attempt.heard
            attempt.advanced |= attempt.done is not None and done != attempt.done
            attempt.done = done

    def _let_go(self, attempts: Sequence[_Attempt]) -> None:
        """Whatever ends this run, nobody works on for it."""
        try:
            self._stop(attempts)
            self._workers.close()
        except Exception as error:
            # It must not hide what ended the run, and a worker whose slip is gone stops by itself.
            get_run_logger().warning("what was handed out could not be stopped: %s", error)
            for attempt in attempts:
                discard_call(attempt.call, self._store)

    def _stop(self, attempts: Sequence[_Attempt]) -> None:
        now = time.monotonic()
        for attempt in attempts:
            self._workers.stop([attempt.known_by], lost=self._is_silent(attempt, now))
            discard_call(attempt.call, self._store)


def _is_overdue(attempt: _Attempt, now: float) -> bool:
    """Whether a worker that was given a call should have begun by now."""
    return attempt.given is not None and now - attempt.given > _BEGINNING_SECONDS
