"""An object store that speaks Google's protocol, on this machine and in memory: `python -m tests.gs PORT`."""

import json
import sys
import threading
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any

import httpx
from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.storage import Storage

_READ, _UPLOAD = server._read_data, objects._multipart_upload


def list_environment(endpoint: str) -> dict[str, str]:
    """Where Google's own tools look for a server other than theirs; credentials are none."""
    return {
        "STORAGE_EMULATOR_HOST": endpoint,
        # Who has no credentials asks the machine's own network for some, where nobody answers.
        "NO_GCE_CHECK": "true",
        # gcsfs asks another service, which no emulator has, of which kind a bucket is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


def make_bucket(endpoint: str, name: str) -> str:
    """Make a bucket; returns its URL."""
    httpx.post(f"{endpoint}/storage/v1/b", json={"name": name}, timeout=30).raise_for_status()
    return f"gs://{name}"


def serve(port: int) -> None:
    """Serve until the process is ended."""
    server._read_data, objects._multipart_upload = _read_whole, _upload_once
    storage = Storage(use_memory_fs=True)
    ThreadingHTTPServer(("127.0.0.1", port), partial(_InTurn, storage)).serve_forever()


class _InTurn(server.RequestHandler):
    """Many may ask at once, and what is stored is changed by one at a time."""

    _turn = threading.Lock()

    def do_POST(self) -> None:
        with self._turn:
            super().do_POST()

    def do_PUT(self) -> None:
        with self._turn:
            super().do_PUT()

    def do_DELETE(self) -> None:
        with self._turn:
            super().do_DELETE()


def _read_whole(handler: Any, query: dict[str, list[str]]) -> Any:
    """A request's body. The emulator takes an upload for a mail, whose lines may end as they like."""
    kind = handler.headers.get("Content-Type", "")
    if not kind.startswith("multipart/related"):
        return _READ(handler, query)
    body = handler.rfile.read(int(handler.headers["Content-Length"]))
    mark = b"--" + kind.partition("boundary=")[2].strip('"').encode()
    facts, _, content = body.removeprefix(mark).partition(b"\n" + mark)
    head, _, content = content.removesuffix(b"\n" + mark + b"--").partition(b"\n\n")
    return {
        "meta": json.loads(facts.partition(b"\n\n")[2]),
        "content": content,
        "content-type": head.decode().partition(": ")[2],
    }


def _upload_once(request: Any, response: Any, storage: Storage) -> None:
    """Put an object, unless who asks wants to be the first one: the emulator overlooks that."""
    if request.query.get("ifGenerationMatch") == ["0"]:
        try:
            storage.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
        except NotFound:
            pass
        else:
            response.status = HTTPStatus.PRECONDITION_FAILED
            response.json({"error": {"code": 412, "message": "conditionNotMet"}})
            return
    _UPLOAD(request, response, storage)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
