"""Fixtures that the tests share: the real data, a drawn dump, a store."""

import os
from pathlib import Path

import pytest

from thaw.config import TrainConfig, build_config
from thaw.drawings import draw_dump
from thaw.store import Store

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real images and weights; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("THAW_SHARED") or PROJECT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no real images: {folder}/data is not there; THAW_SHARED can point to them")
    return folder


@pytest.fixture(scope="session")
def drawn_dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of 60 drawn cats and 60 drawn dogs."""
    path = tmp_path_factory.mktemp("dump") / "drawn.zip"
    draw_dump(path, per_class=60)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def small_config(dump: Path, **sections: dict) -> TrainConfig:
    """The demo's recipe on a third of its images and small ones; `sections` change single settings."""
    settings = {
        "dump": {"path": dump},
        "recipe": "demo",
        "split": {"train": 40, "validation": 10, "test": 10},
        "backbone": {"image_size_pixels": 48},
        "head": {"epochs": 12},
        "gate": {"patience_epochs": 3},
        "fine_tune": {"epochs": 2, "views": 1},
    }
    for section, changes in sections.items():
        settings[section] = {**settings.get(section, {}), **changes}
    return build_config(settings)
