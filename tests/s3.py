"""An object store that speaks S3, on this machine and in memory, which misbehaves when it is told to.

Run as a process of its own, `python -m tests.s3 PORT [ADDRESS]`; the fixture `s3` does that.
"""

import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

# Nothing but the server may ever see these; tests look for them in stores, logs and reports.
KEY_ID, SECRET = "THAW-PLANTED-KEY-ID", "THAW-PLANTED-SECRET-7f3d1c"  # noqa: S105
REGION = "us-east-1"
_CONTROL = "/_faults"
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_DENIED = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>InvalidAccessKeyId</Code><Message>The key id you provided does not exist.</Message></Error>"
)


FAILURES = ("slow_down", "cut", "cut_after", "cut_within")


@dataclass
class Faults:
    """How the server misbehaves from now on.

    Args:
        seconds: every request takes that much longer.
        fail_share: the share of requests that fail, drawn by a generator seeded with `seed`.
        fail_every: every so-manieth request fails; 0 is none.
        failure: what failing is, `any` or one of `FAILURES`: 503 SlowDown; a connection that is cut before
            anything is done, after it is done, so that nobody is told, or in the middle of the answer.
        die_after: after so many PUTs every connection is cut; 0 cuts them at once.
        dead_seconds: for how long, counted from the first connection cut; without it until faults are set again.
    """

    seconds: float = 0.0
    fail_share: float = 0.0
    fail_every: int = 0
    failure: str = "any"
    seed: int = 0
    die_after: int | None = None
    dead_seconds: float | None = None


class Misbehaving:
    """A WSGI application around the one that speaks S3."""

    def __init__(self, application: Callable[..., Iterable[bytes]]):
        self._application = application
        self._lock = threading.Lock()
        # The server behind checks and puts in two steps, which S3 does in one.
        self._creating = threading.Lock()
        self._reset(Faults())

    def _reset(self, faults: Faults) -> None:
        self._faults, self._random = faults, random.Random(faults.seed)
        self._counts: Counter[str] = Counter()
        self._died: float | None = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        if environ["PATH_INFO"] == _CONTROL:
            return self._control(environ["wsgi.input"].read(size), start_response)
        faults, failure = self._faults, self._decide(environ["REQUEST_METHOD"])
        time.sleep(faults.seconds)
        if failure == "cut":
            return _cut(environ, start_response)
        if failure == "slow_down":
            environ["wsgi.input"].read(size)
            return _refuse(start_response, "503 Slow Down", _SLOW_DOWN)
        credential = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2]
        if credential.split("/")[0] != KEY_ID:
            environ["wsgi.input"].read(size)
            return _refuse(start_response, "403 Forbidden", _DENIED)
        if failure == "cut_after":
            b"".join(self._answer(environ, lambda *_: None))
            return _cut(environ, start_response)
        if failure == "cut_within":
            return _cut_within(environ, b"".join(self._answer(environ, start_response)))
        return self._answer(environ, start_response)

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "HTTP_IF_NONE_MATCH" not in environ:
            return self._application(environ, start_response)
        with self._creating:
            return list(self._application(environ, start_response))

    def _control(self, given: bytes, start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            if given:
                self._reset(Faults(**json.loads(given)))
            counts = dict(self._counts)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(counts).encode()]

    def _decide(self, method: str) -> str | None:
        """What becomes of this request, and count it."""
        faults = self._faults
        with self._lock:
            self._counts["requests"] += 1
            drawn = self._random.random()
            failing = drawn < faults.fail_share or (
                faults.fail_every and self._counts["requests"] % faults.fail_every == 0
            )
            failure = faults.failure if failing else None
            if failure == "any":
                failure = self._random.choice(FAILURES)
            if faults.die_after is not None and self._counts["PUT"] >= faults.die_after:
                self._died = self._died or time.monotonic()
                if faults.dead_seconds is None or time.monotonic() < self._died + faults.dead_seconds:
                    failure = "cut"
            if failure != "cut":
                self._counts[method] += 1
            self._counts["failures"] += failure is not None
            return failure


def _refuse(start_response: Callable[..., Any], status: str, body: bytes) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _cut(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    start_response("503 Cut", [])
    return []


def _cut_within(environ: dict[str, Any], body: bytes) -> Iterable[bytes]:
    yield body[: len(body) // 2]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class ObjectServer:
    """The server, seen from a test."""

    endpoint: str
    environment: dict[str, str] = field(default_factory=dict)

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its URL."""
        signed = f"AWS4-HMAC-SHA256 Credential={KEY_ID}/20260101/{REGION}/s3/aws4_request"
        made = httpx.put(f"{self.endpoint}/{name}", headers={"Authorization": signed}, timeout=30)
        made.raise_for_status()
        return f"s3://{name}"

    def faults(self, **faults: Any) -> None:
        """Misbehave as `Faults` says, and count from zero; nothing given is no faults."""
        httpx.post(f"{self.endpoint}{_CONTROL}", json=asdict(Faults(**faults)), timeout=30).raise_for_status()

    def counts(self) -> Counter[str]:
        """Since faults were set: `requests` in all, `failures` given, and those served by method."""
        return Counter(httpx.get(f"{self.endpoint}{_CONTROL}", timeout=30).raise_for_status().json())


@dataclass(frozen=True)
class Bucket:
    """A bucket of a test's own."""

    url: str
    server: ObjectServer

    @property
    def environment(self) -> dict[str, str]:
        """What a user would set. The fixture sets it in this process already."""
        return self.server.environment

    def faults(self, **faults: Any) -> None:
        self.server.faults(**faults)

    def counts(self) -> Counter[str]:
        return self.server.counts()


def list_environment(endpoint: str, nowhere: str) -> dict[str, str]:
    """Where the cloud's own tools look for a server and for credentials.

    Args:
        nowhere: a path without a file, instead of the profiles of whoever runs the tests.
    """
    return {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CONFIG_FILE": nowhere,
        "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        # Without credentials they are asked of the machine's own network, where nobody answers.
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def serve(port: int, address: str = "127.0.0.1") -> None:
    """Serve until the process is ended."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: Any) -> None:
            pass

    application = Misbehaving(DomainDispatcherApplication(create_backend_app))
    make_server(address, port, application, threaded=True, request_handler=Quiet).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), *sys.argv[2:])
