"""Who makes what: two runs of the same job share its work instead of doing it twice.

A claim is a lease: a small file in the store that its holder goes on changing, and that counts for
nothing once it stays the same for a while. So a run that was killed holds nobody up, and no two
machines need to agree on a clock. Nothing rests on claims: where one can't be written, or two runs take
one over at the same moment, both work and publish the same, and the first rename wins.
"""

import itertools
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

from thaw.store import Store

logger = logging.getLogger(__name__)

# Long enough for a slow network file system or a busy holder; a run that waits loses no more than this.
_LEASE_SECONDS = 30.0
# Several renewals may fail, or come late, before a lease ends.
_RENEWALS = 6
_LOOK_SECONDS = 0.5


@contextmanager
def claim(store: Store, kind: str, digest: str) -> Iterator[None]:
    """Be the only run that makes `<kind>/<digest>` inside the block; wait while another one does.

    Look again inside whether it is published by now. Claims are not re-entrant. Their files lie in
    `claims/`; whatever is wrong with those is logged and stops no work.

    Raises:
        NotPublished: the store is only looked at, so nothing can be made in it.
    """
    store.check_may_make(kind, digest)
    path, owner = store.folder("claims", f"{kind}-{digest}"), f"{_place()} {os.getpid()} {uuid4().hex}"
    try:
        _take(path, owner, f"{kind}/{digest}")
    except OSError as error:
        logger.warning("no claim on %s/%s (%s): another run may make it as well", kind, digest, error)
    ended = Event()
    renewing = Thread(target=_renew, args=(path, owner, ended), name=f"renew {path.name}", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with suppress(OSError):
            if _is_held(path, owner):
                path.unlink()


def _take(path: Path, owner: str, what: str) -> None:
    """Create the claim's file, as soon as nobody else who is alive has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seen, changed, told = None, 0.0, False
    while not _create(path, owner):
        content = _read(path)
        if content != seen:
            seen, changed = content, time.monotonic()
        if _is_of_the_dead(content) or time.monotonic() - changed > _LEASE_SECONDS:
            logger.info("the run that was making %s is gone; this one takes over", what)
            path.unlink(missing_ok=True)
            continue
        if not told:
            logger.info("waiting for another run that makes %s", what)
            told = True
        time.sleep(_LOOK_SECONDS)


def _renew(path: Path, owner: str, ended: Event) -> None:
    for count in itertools.count(1):
        if ended.wait(_LEASE_SECONDS / _RENEWALS):
            return
        with suppress(OSError):
            if not _is_held(path, owner):
                return
            # Written over in place: on a full disk a new file would not fit.
            with path.open("r+", encoding="ascii") as file:
                file.write(_content(owner, count))


def _create(path: Path, owner: str) -> bool:
    try:
        with path.open("x", encoding="ascii") as file:
            file.write(_content(owner, 0))
    except FileExistsError:
        return False
    return True


def _content(owner: str, count: int) -> str:
    return f"{owner} {count:09}"


def _read(path: Path) -> str:
    """What the claim's file says; nothing where it is not there any more."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return ""


def _is_held(path: Path, owner: str) -> bool:
    return _read(path).startswith(owner)


def _is_of_the_dead(content: str) -> bool:
    """Whether the holder was a process of this very machine and has ended.

    Without this, runs that crash and are started again faster than a lease ends would never get anywhere.
    """
    match content.split():
        case [place, pid, *_] if place == _place() and pid.isdecimal():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                return True
            except OSError:
                return False  # alive, and another user's
    return False


@cache
def _place() -> str:
    """Names the machine, since it was started, and its container: where a process id means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return uuid4().hex  # unlike any other place, so that claims are judged by their lease alone
