"""An object store through fsspec: bytes under keys, with the patience that a network needs."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from thaw.errors import BadConfig, MissingPackage, StoreNotWritable, StoreUnreachable
from thaw.location import Url

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

# How long an object store may be away before the run gives up: a restart of its server, a cable.
PATIENCE_SECONDS = 120.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 10.0
# What is wrong with the question will be wrong again.
_FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
# Of each file system: what keeps its listings fresh, and lets it try again by itself before Thaw does.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {
            "retries": {"max_attempts": 3, "mode": "standard"},
            "connect_timeout": 10,
            "read_timeout": 60,
        }
    },
}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


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
        FileNotFoundError: there is no such object.
    """

    def __init__(self, url: Url):
        """Raises MissingPackage where the package that speaks the URL's protocol is not installed."""
        from fsspec.core import url_to_fs  # a store on a disk does without

        self.url = url
        options = _OPTIONS.get(url.protocol, {})
        try:
            self._system, self._root = url_to_fs(str(url), use_listings_cache=False, **options)
        except ImportError as error:
            extra = _EXTRAS.get(url.protocol)
            how = f"pip install 'thaw[{extra}]'" if extra else str(error)
            raise MissingPackage(f"{url.protocol}:// needs a package that is not installed: {how}") from error
        except ValueError as error:
            raise BadConfig(f"{url} can't be opened: {error}") from error

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """An object's bytes, or those from `start` up to `end`."""
        return self._ask(self._system.cat_file, self._path(key), start=start, end=end)

    def read_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The bytes of several objects, asked for at once; what is not there is left out."""
        paths = {self._path(key): key for key in keys}
        found = self._ask(self._system.cat, list(paths), on_error="omit") if paths else {}
        return {key: found[path] for path, key in paths.items() if path in found}

    def find(self, key: str) -> Facts:
        """What is known of one object."""
        return _facts(self._ask(self._system.info, self._path(key)))

    def list(self, prefix: str = "") -> dict[str, Facts]:
        """Every object below a folder, by its key."""

        def ask() -> dict[str, Any]:
            self._system.invalidate_cache()
            return self._system.find(self._path(prefix), detail=True)

        cut = len(self._root.rstrip("/")) + 1
        return {path[cut:]: _facts(info) for path, info in self._ask(ask).items()}

    def create(self, key: str, data: bytes) -> bool:
        """Put an object where there is none yet, and say whether it is there now as given."""
        try:
            self._ask(self._system.pipe_file, self._path(key), data, mode="create")
        except FileExistsError:
            # An answer that got lost on its way made us ask twice.
            return self.read(key) == data
        return True

    def replace(self, key: str, data: bytes) -> None:
        """Put an object, over the one that is there."""
        self._ask(self._system.pipe_file, self._path(key), data)

    def upload(self, file: Path, key: str) -> None:
        """Put a file's bytes."""
        self._ask(self._system.put_file, str(file), self._path(key))

    def download(self, key: str, file: Path) -> None:
        """Get an object's bytes into a file."""
        self._ask(self._system.get_file, self._path(key), str(file))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is not there is as good as deleted."""
        for key in keys:
            try:
                self._ask(self._system.rm_file, self._path(key))
            except FileNotFoundError:
                continue

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}" if key else self._root

    def _ask(self, call: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        ends, pause = time.monotonic() + PATIENCE_SECONDS, _FIRST_PAUSE_SECONDS
        while True:
            try:
                return call(*args, **kwargs)
            except _FINAL:
                raise
            except PermissionError as error:
                raise StoreNotWritable(self._say_refused(error)) from error
            except Exception as error:
                if _lacks_credentials(error):
                    raise StoreNotWritable(self._say_refused(error)) from error
                if not _may_pass(error):
                    raise
                if time.monotonic() > ends:
                    raise StoreUnreachable(
                        f"{self.url} did not answer for {PATIENCE_SECONDS:.0f} s ({type(error).__name__}: {error}). "
                        "What is published stays valid: when it is back, run the same command again."
                    ) from error
                logger.warning("%s does not answer (%s); asking again", self.url, type(error).__name__)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _say_refused(self, error: Exception) -> str:
        return (
            f"{self.url} refuses access ({error}). Credentials are looked for in the environment, in the profile "
            "files of the cloud's own tools, in fsspec's settings, and in the Prefect block that "
            "THAW_STORAGE_BLOCK names."
        )


def _may_pass(error: Exception) -> bool:
    """Whether an error may be the network's or the server's mood: file systems raise whatever their library does."""
    package = type(error).__module__.split(".")[0]
    return isinstance(error, OSError | TimeoutError) or package in (
        "aiohttp",
        "aiobotocore",
        "botocore",
        "gcsfs",
        "urllib3",
    )


def _lacks_credentials(error: Exception) -> bool:
    return "credentials" in type(error).__name__.lower()


def _facts(info: dict[str, Any]) -> Facts:
    written = (
        info.get("LastModified") or info.get("updated") or info.get("created") or info.get("mtime") or 0.0
    )
    if isinstance(written, str):
        written = datetime.fromisoformat(written)
    if isinstance(written, datetime):
        written = (written if written.tzinfo else written.replace(tzinfo=UTC)).timestamp()
    return Facts(size=int(info.get("size") or 0), written=float(written))
