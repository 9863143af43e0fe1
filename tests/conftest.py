"""Fixtures that the tests share: the real data, a drawn dump, a store."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.command import PROJECT, Server
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False
