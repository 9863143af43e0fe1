"""Scanning the real images: figures that a user will see."""

import shutil
import zipfile
from pathlib import Path

import pytest

from tests.salted import record_decodes
from thaw.config import DumpConfig, SplitConfig
from thaw.dump import scan_dump
from thaw.errors import BadDump
from thaw.records import SIDES, Manifest
from thaw.split import split_manifest
from thaw.store import Store

pytestmark = pytest.mark.real


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    return record_decodes(monkeypatch)


def scan(path: Path, store: Store) -> Manifest:
    return scan_dump(DumpConfig(path=path), store).value


def real(shared: Path, name: str) -> Path:
    return shared / "data" / name


def test_the_real_dump_holds_4000_sound_images_and_is_decoded_once(shared, store, decoded):
    config = DumpConfig(path=real(shared, "dogs-vs-cats-200px.zip"))
    first = scan_dump(config, store)
    assert len(decoded) == 4000
    assert len(first.value.images) == 4000 and first.value.quarantined == ()
    assert first.value.images[2].path == "train/cat.2.jpg"
    decoded.clear()
    second = scan_dump(config, store)
    assert second.reused and second.value == first.value and decoded == []


def test_when_the_real_dump_grows_only_new_images_are_decoded_and_none_changes_side(
    shared, store, decoded, tmp_path
):
    grown = tmp_path / "grown.zip"
    shutil.copy(real(shared, "dogs-vs-cats-200px.zip"), grown)
    before = scan(grown, store)
    growth = real(shared, "dogs-vs-cats-200px-growth.zip")
    with zipfile.ZipFile(grown, "a") as target, zipfile.ZipFile(growth) as source:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    decoded.clear()
    after = scan(grown, store)
    assert len(decoded) == 800 and len(after.images) == 4800
    config = SplitConfig(strategy="hash", train=0.7, validation=0.15, test=0.15)
    old, new = split_manifest(before, config), split_manifest(after, config)
    for side in SIDES:
        assert set(old.rows(side)) <= set(new.rows(side))
    assert sum(len(new.rows(side)) for side in SIDES) == 4800


def test_the_real_unlabelled_images_are_refused_with_examples(shared, store):
    with pytest.raises(BadDump, match="no image has a label: the names are like test1/1.jpg, test1/2.jpg"):
        scan(real(shared, "dogs-vs-cats-unlabelled.zip"), store)
