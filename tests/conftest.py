"""Fixtures that the tests share: the real data, a drawn dump, a store, an object store."""

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests import gs as gs_server
from tests.command import PROJECT, Server
from tests.s3 import Bucket, ObjectServer, list_environment
from thaw.config import TrainConfig, build_config
from thaw.drawings import draw_dump
from thaw.store import Store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that workers which share the tests end together."""

    def find_files(mark: str) -> set[Path]:
        return {item.path for item in items if item.get_closest_marker(mark)}

    real, slow = find_files("real"), find_files("slow")
    items.sort(key=lambda item: (item.path not in real, item.path not in slow))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real images and weights; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("THAW_SHARED") or PROJECT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no real images: {folder}/data is not there; THAW_SHARED can point to them")
    return folder


@pytest.fixture(scope="session")
def drawn_dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of 100 drawn cats and 100 drawn dogs."""
    path = tmp_path_factory.mktemp("dump") / "drawn.zip"
    draw_dump(path, per_class=100)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def small_config(dump: Path, **sections: dict) -> TrainConfig:
    """The demo's recipe on half of its images, smaller ones; `sections` change single settings."""
    settings = {
        "dump": {"path": dump},
        "recipe": "demo",
        "split": {"train": 60, "validation": 20, "test": 20},
        "backbone": {"image_size_pixels": 64},
        "head": {"epochs": 20},
        "gate": {"noise_multiplier": 2},
        "fine_tune": {"epochs": 2, "views": 1},
    }
    for section, changes in sections.items():
        settings[section] = {**settings.get(section, {}), **changes}
    return build_config(settings)


@pytest.fixture(scope="module")
def prepared(drawn_dump: Path, tmp_path_factory: pytest.TempPathFactory):
    """A small run up to its features, as `tests.prepared` makes it."""
    from tests.prepared import prepare

    return prepare(drawn_dump, tmp_path_factory.mktemp("prepared") / "store")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Prefect server on a free port, with a home of its own."""
    home = tmp_path_factory.mktemp("prefect")
    port = _find_port()
    server = Server(url=f"http://127.0.0.1:{port}/api", home=home)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=server.environment, stdout=log, stderr=log, cwd=home)
    try:
        deadline = time.monotonic() + 120
        while not _answers(server):
            assert process.poll() is None and time.monotonic() < deadline, (home / "server.log").read_text()
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A server that speaks S3 on a free port, in a process of its own."""
    home = tmp_path_factory.mktemp("s3")
    with _serve_objects("tests.s3", home) as endpoint:
        yield ObjectServer(endpoint, list_environment(endpoint, nowhere=str(home / "no-profile")))


@pytest.fixture
def s3(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket. This process and those that it starts find it as a user's would, by the environment."""
    from s3fs import S3FileSystem

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in object_server.environment.items():
        monkeypatch.setenv(name, value)
    # Kept instances hold the credentials of the test before.
    S3FileSystem.clear_instance_cache()
    object_server.faults()
    bucket = Bucket(object_server.make_bucket(f"bucket-{next(_BUCKETS)}"), object_server)
    object_server.faults()
    yield bucket
    object_server.faults()
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def google_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a server that speaks Google's protocol, in a process of its own."""
    with _serve_objects("tests.gs", tmp_path_factory.mktemp("gs")) as endpoint:
        yield endpoint


@pytest.fixture
def gs(google_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket of Google's kind."""
    for name, value in gs_server.list_environment(google_server).items():
        monkeypatch.setenv(name, value)
    from gcsfs import GCSFileSystem

    GCSFileSystem.clear_instance_cache()
    yield gs_server.make_bucket(google_server, f"bucket-{next(_BUCKETS)}")
    GCSFileSystem.clear_instance_cache()


_BUCKETS = itertools.count(1)


@contextmanager
def _serve_objects(module: str, home: Path) -> Iterator[str]:
    """Run an object store on a free port; yields its endpoint."""
    endpoint = f"http://127.0.0.1:{(port := _find_port())}"
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(port)], stdout=log, stderr=log, cwd=PROJECT
        )
    try:
        deadline = time.monotonic() + 60
        while not _is_open(port):
            assert process.poll() is None and time.monotonic() < deadline, (home / "server.log").read_text()
            time.sleep(0.1)
        yield endpoint
    finally:
        process.terminate()
        process.wait(30)


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False
