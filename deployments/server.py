"""A Prefect server's REST interface, as far as Thaw's commands need it."""

import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from thaw.errors import BadPassword, NoServer, NotApplied

_ANSWER_SECONDS = 4
_HERE = ("127.0.0.1", "localhost", "::1")
_PAGE = 200
_BUSY_PAUSES_SECONDS = (0.2, 0.5, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a server is, as `http://host:port/api`, and its `user:password` if it asks for one."""

    url: str
    password: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What makes the `prefect` command, and whoever uses its client, talk to this server."""
        given = {"PREFECT_API_URL": self.url}
        return {**given, "PREFECT_API_AUTH_STRING": self.password} if self.password else given

    def check(self) -> None:
        """See that the server answers and lets us in.

        Raises:
            NoServer: it does not answer within seconds.
            BadPassword: it asks for another password.
        """
        self.get("admin/version")

    def is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=_ANSWER_SECONDS, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def find(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        """Everything of a kind that the filters leave, page by page."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.post(f"{kind}/filter", limit=_PAGE, offset=len(found), **filters)
            found += page
            if len(page) < _PAGE:
                return found

    def post(self, path: str, **content: Any) -> Any:
        return self._ask("POST", path, content)

    def put(self, path: str, **content: Any) -> Any:
        return self._ask("PUT", path, content)

    def patch(self, path: str, **content: Any) -> Any:
        return self._ask("PATCH", path, content)

    def delete(self, path: str) -> Any:
        return self._ask("DELETE", path)

    def _ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        answer = self._answer(method, path, content)
        # SQLite lets one writer in at a time, and the server sends the next one away.
        for pause in _BUSY_PAUSES_SECONDS:
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(pause)
            answer = self._answer(method, path, content)
        if answer.status_code in (401, 403):
            given = "refuses the password given" if self.password else "asks for a password"
            raise BadPassword(
                f"the Prefect server at {self.url} {given}. Set PREFECT_API_AUTH_STRING=user:password to the one "
                "that it was started with, or stop it with `thaw down` and start it with another."
            )
        if answer.is_error:
            raise NotApplied(
                f"the Prefect server at {self.url} refuses {method} {path} ({answer.status_code}): {answer.text}"
            )
        return answer.json() if answer.content else None

    def _answer(self, method: str, path: str, content: dict[str, Any] | None) -> httpx.Response:
        user, _, password = (self.password or "").partition(":")
        try:
            return httpx.request(
                method,
                f"{self.url}/{path}",
                json=content,
                auth=(user, password) if self.password else None,
                timeout=_ANSWER_SECONDS,
                # A server of this machine is not behind the proxy that the shell may name.
                trust_env=urlsplit(self.url).hostname not in _HERE,
            )
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise NoServer(
                f"the Prefect server at {self.url} does not answer ({error or type(error).__name__}). "
                "`thaw up` starts one on this machine, and `thaw down` forgets one that died with it; with "
                "PREFECT_API_URL unset, a run starts a temporary one."
            ) from None
