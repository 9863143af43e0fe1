"""An object store through fsspec: bytes under keys, with the patience that a network needs."""

import errno
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from thaw.errors import BadConfig, DiskFull, MissingPackage, StoreNotWritable, StoreUnreachable
from thaw.location import Url

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

# How long an object store may be away before the run gives up: a restart of its server, a cable.
PATIENCE_SECONDS = 120.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 10.0
# An object is asked for and waited for; while one is on its way others can be asked for.
REQUESTS_AT_ONCE = 32
# What is wrong with the question will be wrong again.
_FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_REFUSING_STATUSES = (401, 403)
_PASSING_STATUSES = (408, 409, 425, 429)
_PASSING_CODES = ("BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch")
_PASSING_ERRORS = frozenset(
    {"ConnectionError", "HTTPClientError", "IncompleteReadError", "ResponseParserError"}
)
# Protocols by the package that speaks them, which is also what Thaw's extra is called.
_FAMILIES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
# Of each file system: how often it tries again by itself, quickly, before Thaw does, with patience.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {
            "retries": {"total_max_attempts": 3, "mode": "standard"},
            "connect_timeout": 10,
            "read_timeout": 60,
            "max_pool_connections": REQUESTS_AT_ONCE,
        }
    },
}
# In one piece, which s3fs otherwise asks an object's size for first.
_WHOLE: dict[str, dict[str, Any]] = {"s3": {"max_concurrency": 1}}
# fsspec's memory looks whether there is a file and then writes it.
_CREATING_IN_MEMORY = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of an object: its size in bytes, and when it was written, in seconds since 1970."""

    size: int
    written: float


class Objects:
    """The objects below a URL. Keys are relative POSIX paths. Calls are safe from many threads.

    Every call is repeated while the object store is away or too busy.

    Raises:
        StoreUnreachable: it stayed away for `PATIENCE_SECONDS`.
        StoreNotWritable: it refuses who asks.
        BadConfig: there is no such bucket, or the settings of the connection are wrong.
        DiskFull: this machine's disk has no room for what is downloaded.
        FileNotFoundError: there is no such object.
    """

    def __init__(self, url: Url):
        """Raises MissingPackage where the package that speaks the URL's protocol is not installed."""
        from fsspec.core import url_to_fs  # a store on a disk does without

        self.url = url
        self._warned = -_LONGEST_PAUSE_SECONDS
        self._family = _FAMILIES.get(url.protocol, "")
        options = _choose_options(self._family)
        try:
            self._system, self._root = url_to_fs(str(url), use_listings_cache=False, **options)
        except ImportError as error:
            how = f"It comes with the extra '{self._family}': pip install -c constraints.txt -e '.[{self._family}]'"
            raise MissingPackage(
                f"{url.protocol}:// needs a package that is not installed here. {how if self._family else error}"
            ) from error
        except ValueError as error:
            raise BadConfig(f"{url} can't be opened: {error}") from error
        if self._family == "s3":
            # Of each call; five times five, as it would be, are a minute and a half of silence.
            self._system.retries = 2

    def __reduce__(self) -> tuple[type, tuple[Url]]:
        """Another process opens it by its URL, with credentials of its own."""
        return type(self), (self.url,)

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """An object's bytes, or those from `start` up to `end`, as far as there are any."""
        if start is None and end is None:
            return self._ask(self._system.cat_file, self._path(key), **_WHOLE.get(self._family, {}))
        try:
            return self._ask(self._system.cat_file, self._path(key), start=start or 0, end=end)
        except _NoSuchRange:
            return b""

    def read_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The bytes of several objects, asked for at once; what is not there is left out."""

        def read(key: str) -> bytes | None:
            try:
                return self.read(key)
            except FileNotFoundError:
                return None

        found = zip(keys, self._at_once(read, keys), strict=True)
        return {key: data for key, data in found if data is not None}

    def find(self, key: str) -> Facts:
        """What is known of one object."""
        info = self._ask(self._system.info, self._path(key))
        if info.get("type") == "directory":
            raise FileNotFoundError(f"{self.url}/{key} is a folder")
        return _facts(info)

    def list(self, prefix: str = "") -> dict[str, Facts]:
        """Every object below a folder, by its key, in no order; none below what is not there."""

        def ask() -> dict[str, Any]:
            self._system.invalidate_cache()
            return self._system.find(self._path(prefix), detail=True)

        below, cut = f"{self._path(prefix).rstrip('/')}/", len(self._root.rstrip("/")) + 1
        # Some tools mark a folder by an object whose name ends in a slash.
        return {
            path[cut:]: _facts(info)
            for path, info in self._ask(ask).items()
            if path.startswith(below) and not path.endswith("/")
        }

    def create(self, key: str, data: bytes) -> bool:
        """Put an object where there is none yet, and say whether it is there now as given.

        Of several who create one object with bytes of their own, one is told that it is.
        """
        while True:
            try:
                with _CREATING_IN_MEMORY if self.url.protocol == "memory" else nullcontext():
                    self._ask(self._system.pipe_file, self._path(key), data, mode="create")
                return True
            except FileExistsError:
                with suppress(FileNotFoundError):  # deleted since: then there is none yet
                    # An answer that got lost on its way made us ask twice.
                    return self.read(key) == data

    def replace(self, key: str, data: bytes) -> None:
        """Put an object, over the one that is there."""
        self._ask(self._system.pipe_file, self._path(key), data)

    def upload(self, file: Path, key: str) -> None:
        """Put a file's bytes."""
        if self.url.protocol == "memory":  # an open file there has one position for all who read it
            self.replace(key, file.read_bytes())
            return
        self._ask(self._system.put_file, str(file), self._path(key))

    def download(self, key: str, file: Path) -> None:
        """Get an object's bytes into a file."""
        if self.url.protocol == "memory":
            self._ask(lambda: file.write_bytes(self._system.cat_file(self._path(key))))
            return
        self._ask(self._system.get_file, self._path(key), str(file))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is not there is as good as deleted."""

        def delete(key: str) -> None:
            with suppress(FileNotFoundError):
                self._ask(self._system.rm_file, self._path(key))

        for _ in self._at_once(delete, keys):
            pass

    def _at_once(self, work: Callable[[str], Result], keys: Sequence[str]) -> Iterator[Result]:
        pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)
        try:
            yield from pool.map(work, keys)
        finally:
            pool.shutdown(cancel_futures=True)

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}" if key else self._root

    def _ask(self, call: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        ends, pause = time.monotonic() + PATIENCE_SECONDS, _FIRST_PAUSE_SECONDS
        while True:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                self._raise_final(error)
                if time.monotonic() > ends:
                    raise StoreUnreachable(
                        f"{self.url} did not answer for {PATIENCE_SECONDS:.0f} s ({_say(error)}). "
                        "What is published stays valid: when it is back, run the same command again."
                    ) from error
                self._warn(error)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _warn(self, error: Exception) -> None:
        """Say that the store is away, once for all the threads that wait for it."""
        now = time.monotonic()
        if now - self._warned > _LONGEST_PAUSE_SECONDS:
            self._warned = now
            logger.warning("%s does not answer (%s); asking again", self.url, _say(error))

    def _raise_final(self, error: Exception) -> None:
        """Raise what asking again would not mend, as one of Thaw's errors where a user can put it right."""
        status, code = _read_answer(error)
        if code == "NoSuchBucket" or (isinstance(error, FileNotFoundError) and _names_bucket(error)):
            raise BadConfig(
                f"there is no bucket for {self.url}. Correct its name, or make it with the cloud's own tools."
            ) from error
        if status == 412:
            raise FileExistsError(str(error)) from error
        if status == 416:
            raise _NoSuchRange(str(error)) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and not status:
            raise DiskFull(
                f"there is no room on this disk for what comes from {self.url}. Make room, and run the same command "
                "again."
            ) from error
        # Only files of this machine have names in their errors.
        if isinstance(error, _FINAL) or getattr(error, "filename", None):
            raise error
        if isinstance(error, PermissionError) or status in _REFUSING_STATUSES or _lacks_credentials(error):
            raise StoreNotWritable(
                f"{self.url} refuses access ({_say(error)}). Credentials are looked for in the environment, in the "
                "profile files of the cloud's own tools, in fsspec's settings, and in the Prefect block that "
                "THAW_STORAGE_BLOCK names."
            ) from error
        if _may_pass(error, status, code):
            return
        if status or isinstance(error, ValueError) or _package(error) == "botocore":
            raise BadConfig(
                f"{self.url} can't be used: {_say(error)}. Correct the URL, or the settings of the connection."
            ) from error
        raise error


def _choose_options(family: str) -> dict[str, Any]:
    """Options of a file system, and under them what fsspec's settings say of the same things.

    What is given to fsspec would else stand in the place of its settings, such as the style of addresses.
    """
    from fsspec.config import conf

    own, set_by_user = _OPTIONS.get(family, {}), conf.get(family, {})
    return {name: {**options, **set_by_user.get(name, {})} for name, options in own.items()}


class _NoSuchRange(Exception):
    """What was asked for begins where the object has ended."""


def _read_answer(error: Exception) -> tuple[int, str]:
    """The HTTP status and S3's own name of an error that a server answered with, as far as it did."""
    if _package(error) == "gcsfs":
        return int(getattr(error, "code", None) or 0), ""
    if str(error).startswith("Forbidden: "):
        return 403, ""
    for each in (error, error.__cause__, error.__context__):
        answer = getattr(each, "response", None)
        if isinstance(answer, dict):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return int(status or 0), str(answer.get("Error", {}).get("Code", ""))
    return 0, ""


def _names_bucket(error: FileNotFoundError) -> bool:
    """Whether what Google did not find is the place where objects are listed and written to, and not an object."""
    return bool(re.search(r"(^|/)b/[^/]+/o$", str(error)))


def _may_pass(error: Exception, status: int, code: str) -> bool:
    """Whether an error may be the network's or the server's mood: file systems raise whatever their library does."""
    if status:
        return status >= 500 or status in _PASSING_STATUSES or code in _PASSING_CODES
    if _package(error) == "botocore":
        return any(kind.__name__ in _PASSING_ERRORS for kind in type(error).__mro__)
    return isinstance(error, OSError) or _package(error) in (
        "aiobotocore",
        "aiohttp",
        "gcsfs",
        "requests",
        "urllib3",
    )


def _package(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]


def _lacks_credentials(error: Exception) -> bool:
    """No credentials, or a profile, a token or a log-in that there isn't or that has expired."""
    name = type(error).__name__
    return any(word in name for word in ("Credential", "Profile", "Token", "SSO", "Login", "Refresh"))


def _say(error: Exception) -> str:
    """An error with its kind, without the name and password that an endpoint's URL may hold."""
    return f"{type(error).__name__}: {re.sub(r'//[^/@]*@', '//', str(error))}"


def _facts(info: dict[str, Any]) -> Facts:
    written = (
        info.get("LastModified") or info.get("updated") or info.get("created") or info.get("mtime") or 0.0
    )
    if isinstance(written, str):
        written = datetime.fromisoformat(written)
    if isinstance(written, datetime):
        written = (written if written.tzinfo else written.replace(tzinfo=UTC)).timestamp()
    return Facts(size=int(info.get("size") or 0), written=float(written))
