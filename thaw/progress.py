"""Progress of long stages: a bar on standard error, and whoever else listens."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

Listener = Callable[[str, int, int, str], None]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("progress_listeners", default=())

# A log file gets a line now and then, a terminal a moving bar.
_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 15.0


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Call `listener(label, done, total, note)` at every step of the stages run inside."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


@contextmanager
def track(label: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show the progress of `total` units of work, with their rate and the time left.

    Yields `advance(units=1, note="")`. `done` units were finished before, by a run that was cut off.
    """
    live = sys.stderr.isatty()
    with tqdm(
        total=total,
        initial=done,
        desc=label,
        unit=f" {unit}",
        file=sys.stderr,
        mininterval=_TERMINAL_SECONDS if live else _LOG_SECONDS,
        dynamic_ncols=live,
    ) as bar:

        def advance(units: int = 1, note: str = "") -> None:
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(units)
            for listener in _listeners.get():
                listener(label, bar.n, total, note)

        yield advance
