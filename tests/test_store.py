"""The store: whole or absent, never half; damaged things are set aside; full and read-only disks are told."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from thaw.errors import DamagedShard, DiskFull, FeatureOverflow, StoreNotWritable
from thaw.index import pack_keys
from thaw.records import FeatureSpace, Quarantined, digest_of
from thaw.shards import SpaceFolder
from thaw.store import Store

ROW = Quarantined(path="a.jpg", label="cat", reason="truncated")


def space(**changes) -> FeatureSpace:
    facts = {
        "backbone": "vgg16-mini",
        "weights_sha256": "0" * 64,
        "cut": "block5_pool",
        "image_size_pixels": 64,
        "resize_fit": "squash",
        "resize_filter": "bilinear",
        "colour": "rgb",
        "preprocessing": "unit",
        "precision": "float32",
        "storage": "float16",
        "augmentation": None,
    }
    return FeatureSpace(**{**facts, **changes})


def keys(count: int, start: int = 0, view: int = 0) -> list[tuple[str, int]]:
    return [(f"{number:064x}", view) for number in range(start, start + count)]


def rows(count: int, start: int = 0) -> np.ndarray:
    return np.arange(start * 8, (start + count) * 8, dtype=np.float32).reshape(count, 2, 2, 2)


def test_a_record_comes_back_as_it_went_in(store: Store):
    store.publish("things", ROW.digest, ROW)
    assert store.read("things", ROW.digest, Quarantined) == ROW


def test_a_record_that_is_not_there_is_none(store: Store):
    assert store.read("things", "0" * 16, Quarantined) is None


def test_a_damaged_record_is_set_aside_and_counts_as_absent(store: Store):
    store.publish("things", ROW.digest, ROW)
    file = store.folder("things", f"{ROW.digest}.json")
    file.write_text('{"path": "a.jpg", "la')
    assert store.read("things", ROW.digest, Quarantined) is None
    assert not file.exists()
    assert len(list(store.folder("damaged").iterdir())) == 1


def test_digests_depend_on_content_and_not_on_order_of_keys():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1, "b": 2}) != digest_of({"a": 1, "b": 3})
    assert space().digest != space(precision="bfloat16").digest


def test_a_folder_appears_only_when_it_is_whole(store: Store):
    with pytest.raises(RuntimeError), store.publish_folder("runs", "x") as partial:
        (partial / "half").write_text("half")
        raise RuntimeError
    assert not store.folder("runs", "x").exists()
    assert list(store.folder("partial").iterdir()) == []


def test_of_two_writers_of_one_folder_the_first_stays_and_neither_fails(store: Store):
    with store.publish_folder("runs", "x") as slow:
        (slow / "who").write_text("slow")
        with store.publish_folder("runs", "x") as fast:
            (fast / "who").write_text("fast")
    assert store.folder("runs", "x", "who").read_text() == "fast"


def test_a_writer_killed_in_the_middle_leaves_nothing_that_is_read(store: Store):
    script = f"""
        import os, signal
        from thaw.store import Store
        with Store({store.address!r}).publish_folder("runs", "x") as partial:
            (partial / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert ended.returncode == -9
    assert not store.folder("runs", "x").exists()


def test_what_killed_writers_left_is_swept_after_a_day(store: Store):
    store.publish("things", ROW.digest, ROW)
    leftover = store.folder("partial", "left")
    leftover.mkdir()
    store.publish("things", "again", ROW)
    assert leftover.exists()
    os.utime(leftover, (0, 0))
    store.publish("things", "and-again", ROW)
    assert not leftover.exists()


def test_a_store_below_a_file_is_a_mistake_with_a_way_out(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreNotWritable, match="--store"):
        Store(tmp_path / "file" / "store").check_writable()


def test_a_full_disk_is_told_and_leaves_the_store_valid(store: Store):
    folder = SpaceFolder(store, space())
    folder.append(keys(2), rows(2))
    with pytest.raises(DiskFull, match="make room"), store.publish_folder("runs", "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskFull, match="MB left"):
        store.check_room(2**62)
    assert not store.folder("runs", "x").exists()
    assert len(SpaceFolder(store, space())) == 2


def test_rows_are_found_by_image_and_view_in_any_order(store: Store):
    folder = SpaceFolder(store, space())
    folder.append(keys(3), rows(3))
    folder.append(keys(2, start=3), rows(2, start=3))
    again = SpaceFolder(store, space())
    wanted = [keys(1, start=4)[0], keys(1, start=1)[0]]
    assert again.read(again.find(wanted)).dtype == np.float16
    np.testing.assert_array_equal(again.read(again.find(wanted)), np.stack([rows(5)[4], rows(5)[1]]))
    assert again.missing([*keys(6), *keys(1, view=1)]) == [*keys(1, start=5), *keys(1, view=1)]


def test_the_same_row_asked_for_twice_is_missing_once(store: Store):
    assert SpaceFolder(store, space()).missing([*keys(1), *keys(1)]) == keys(1)


@pytest.mark.parametrize("file", ["features.npy", "keys.npy", "shard.json"])
def test_a_shard_with_a_wrong_byte_is_set_aside_and_its_rows_are_missing(store: Store, file: str):
    folder = SpaceFolder(store, space())
    folder.append(keys(3), rows(3))
    folder.append(keys(2, start=3), rows(2, start=3))
    shard = min(store.folder("features", space().digest).glob("*/"), key=lambda path: path.name)
    content = bytearray((shard / file).read_bytes())
    content[-2] ^= 0xFF
    (shard / file).write_bytes(content)
    again = SpaceFolder(store, space())
    assert again.verify() == (file == "features.npy")
    assert len(again) in (2, 3)
    assert len(again.missing(keys(5))) == 5 - len(again)
    assert not shard.exists()
    again.append(again.missing(keys(5)), rows(5 - len(again)))
    assert len(SpaceFolder(store, space())) == 5


def damage_features(store: Store, wanted: list[tuple[str, int]]) -> Path:
    """Change a byte of the features in the shard that holds exactly these rows."""
    for shard in store.folder("features", space().digest).iterdir():
        if np.array_equal(np.load(shard / "keys.npy"), pack_keys(wanted)):
            content = bytearray((shard / "features.npy").read_bytes())
            content[-2] ^= 0xFF
            (shard / "features.npy").write_bytes(content)
            return shard
    raise AssertionError("no such shard")


def change_facts(store: Store, change: Callable[[dict], object]) -> None:
    for file in store.folder("features", space().digest).glob("*/shard.json"):
        facts = json.loads(file.read_text())
        change(facts)
        file.write_text(json.dumps(facts))


def test_opening_reads_no_features(store: Store):
    SpaceFolder(store, space()).append(keys(3), rows(3))
    shard = damage_features(store, keys(3))
    assert SpaceFolder(store, space()).missing(keys(4)) == keys(1, start=3)
    assert shard.exists()


def test_only_shards_that_hold_the_rows_asked_for_are_verified(store: Store):
    folder = SpaceFolder(store, space())
    folder.append(keys(3), rows(3))
    folder.append(keys(2, start=3), rows(2, start=3))
    shard = damage_features(store, keys(3))
    again = SpaceFolder(store, space())
    assert again.verify(keys(9, start=3)) == 0
    assert shard.exists()
    assert again.verify(keys(1)) == 1
    assert not shard.exists()
    assert again.missing(keys(5)) == keys(3)


def test_reading_from_a_damaged_shard_sets_it_aside_and_leaves_other_places_valid(store: Store):
    folder = SpaceFolder(store, space())
    folder.append(keys(3), rows(3))
    folder.append(keys(2, start=3), rows(2, start=3))
    shard = damage_features(store, keys(3))
    again = SpaceFolder(store, space())
    places = again.find(keys(5))
    with pytest.raises(DamagedShard, match="its 3 rows are made again by the same command"):
        again.read(places)
    assert not shard.exists()
    assert again.missing(keys(5)) == keys(3)
    np.testing.assert_array_equal(again.read(places[3:]), rows(2, start=3))
    with pytest.raises(DamagedShard, match="is set aside"):
        again.read(places)
    again.append(keys(3), rows(3))
    np.testing.assert_array_equal(again.read(again.find(keys(5))), rows(5))


def test_a_shard_that_another_run_set_aside_meanwhile_is_told_as_damaged(store: Store):
    SpaceFolder(store, space()).append(keys(3), rows(3))
    late = SpaceFolder(store, space())
    damage_features(store, keys(3))
    SpaceFolder(store, space()).verify()
    with pytest.raises(DamagedShard):
        late.read(late.find(keys(1)))


def test_in_a_store_only_looked_at_a_damaged_shard_stays_and_its_rows_are_missing(store: Store):
    SpaceFolder(store, space()).append(keys(3), rows(3))
    shard = damage_features(store, keys(3))
    looked = SpaceFolder(store.looking(), space())
    assert looked.verify() == 1
    assert shard.exists()
    assert looked.missing(keys(3)) == keys(3)


def test_rows_that_two_shards_hold_outlive_one_of_them(store: Store):
    folder = SpaceFolder(store, space())
    folder.append(keys(3), rows(3))
    folder.append(keys(4), rows(4))
    assert len(folder) == 4
    damage_features(store, keys(3))
    again = SpaceFolder(store, space())
    assert again.verify() == 1
    np.testing.assert_array_equal(again.read(again.find(keys(4))), rows(4))


def test_features_cut_short_are_found_when_the_space_is_opened(store: Store):
    SpaceFolder(store, space()).append(keys(3), rows(3))
    file = next(store.folder("features", space().digest).glob("*/features.npy"))
    file.write_bytes(file.read_bytes()[:-1])
    assert len(SpaceFolder(store, space())) == 0


@pytest.mark.parametrize("change", [lambda facts: facts.pop("bytes"), lambda facts: facts.update(maker="me")])
def test_shards_that_say_less_or_more_of_themselves_are_read(store: Store, change: Callable[[dict], object]):
    SpaceFolder(store, space()).append(keys(3), rows(3))
    change_facts(store, change)
    folder = SpaceFolder(store, space())
    assert folder.verify() == 0
    np.testing.assert_array_equal(folder.read(folder.find(keys(3))), rows(3))


def test_rows_come_in_the_order_asked_for_and_as_often(store: Store):
    folder = SpaceFolder(store, space())
    for start in range(0, 12, 3):
        folder.append(keys(3, start=start), rows(3, start=start))
    order = np.random.default_rng(0).integers(12, size=40)
    wanted = [(f"{number:064x}", 0) for number in order]
    np.testing.assert_array_equal(folder.read(folder.find(wanted)), rows(12)[order])
    assert folder.read(folder.find([])).shape == (0, 2, 2, 2)


def test_a_row_that_no_shard_holds_is_not_found(store: Store):
    folder = SpaceFolder(store, space())
    folder.append(keys(3), rows(3))
    with pytest.raises(KeyError, match="2 rows, first 0+3 0"):
        folder.find(keys(5))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux shows them")
def test_however_many_shards_are_read_few_files_stay_open(store: Store):
    folder = SpaceFolder(store, space())
    for number in range(300):
        folder.append(keys(1, start=number), rows(1, start=number))
    before = len(list(Path("/proc/self/fd").iterdir()))
    np.testing.assert_array_equal(folder.read(folder.find(keys(300))), rows(300).astype(np.float16))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 256


def test_a_space_says_in_plain_json_what_its_digest_stands_for(store: Store):
    SpaceFolder(store, space()).publish_facts()
    file = store.folder("features", space().digest, "space.json")
    assert store.read_file(file, FeatureSpace) == space()


def test_features_beyond_the_storage_dtype_are_refused_with_the_way_out(store: Store):
    with pytest.raises(FeatureOverflow, match="float32"):
        SpaceFolder(store, space()).append(keys(1), np.full((1, 2, 2, 2), 1e6, np.float32))
    assert len(SpaceFolder(store, space())) == 0
