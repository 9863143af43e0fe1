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

from thaw.errors import StoreUnreachable
from thaw.slips import Slip
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
    slip, owner = store.slip("claims", f"{kind}-{digest}"), f"{_place()} {os.getpid()} {uuid4().hex}"
    try:
        _take(slip, owner, f"{kind}/{digest}")
    except OSError as error:
        logger.warning("no claim on %s/%s (%s): another run may make it as well", kind, digest, error)
    ended = Event()
    renewing = Thread(target=_renew, args=(slip, owner, ended), name=f"renew {kind}-{digest}", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with suppress(OSError, StoreUnreachable):
            if _is_held(slip, owner):
                slip.remove()


def _take(slip: Slip, owner: str, what: str) -> None:
    """Create the claim's file, as soon as nobody else who is alive has it."""
    seen, changed, told = None, 0.0, False
    while not slip.create(_content(owner, 0)):
        content = slip.read()
        if content != seen:
            seen, changed = content, time.monotonic()
        if _is_of_the_dead(content) or time.monotonic() - changed > _LEASE_SECONDS:
            logger.info("the run that was making %s is gone; this one takes over", what)
            slip.remove()
            continue
        if not told:
            logger.info("waiting for another run that makes %s", what)
            told = True
        time.sleep(_LOOK_SECONDS)


def _renew(slip: Slip, owner: str, ended: Event) -> None:
    for count in itertools.count(1):
        if ended.wait(_LEASE_SECONDS / _RENEWALS):
            return
        with suppress(OSError, StoreUnreachable):
            if not _is_held(slip, owner):
                return
            slip.rewrite(_content(owner, count))


def _content(owner: str, count: int) -> str:
    return f"{owner} {count:09}"


def _is_held(slip: Slip, owner: str) -> bool:
    return slip.read().startswith(owner)


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
