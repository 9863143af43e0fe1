"""Training from a store that lies elsewhere, on a disk that is too small: the same results, and few bytes fetched."""

import hashlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tasks import stage
from tests.s3 import Bucket
from thaw import order, spans
from thaw.config import GateConfig, HeadConfig
from thaw.disk_cache import BULKY, Traffic
from thaw.errors import DamagedShard
from thaw.head import build_head, train_head
from thaw.order import group_batches, order_rows
from thaw.records import Features, FeatureSet, FeatureSpace, ImageRow, Split
from thaw.rows import Rows, export_features
from thaw.shards import SpaceFolder
from thaw.store import Store
from thaw.trainer import load_network, predict_rows

SHAPE, SHARD_ROWS = (2, 2, 64), 16
ROW_BYTES = 2 * int(np.prod(SHAPE))
SIDES = {"train": 800, "validation": 96, "test": 32}
SHARDS = sum(SIDES.values()) // SHARD_ROWS
SPACE_BYTES = sum(SIDES.values()) * ROW_BYTES
SPACE = FeatureSpace(
    backbone="drawn",
    weights_sha256="0" * 64,
    cut="block5_pool",
    image_size_pixels=64,
    resize_fit="stretch",
    resize_filter="bilinear",
    colour="rgb",
    preprocessing="none",
    precision="float32",
    storage="float16",
    augmentation=None,
)
HEAD = HeadConfig(epochs=3, stop="at_budget", dense_units=32)


def draw_split() -> Split:
    def draw(side: str) -> tuple[ImageRow, ...]:
        names = [f"{label}.{side}.{number}" for label in ("cat", "dog") for number in range(SIDES[side] // 2)]
        return tuple(
            ImageRow(
                path=name,
                label=name[:3],
                sha256=hashlib.sha256(name.encode()).hexdigest(),
                width=64,
                height=64,
            )
            for name in names
        )

    return Split(strategy="index", seed=0, classes=("cat", "dog"), **{side: draw(side) for side in SIDES})


def fill(store: Store) -> Features:
    """Publish a split and its rows, drawn about a mean for each class, in shards of the split's order."""
    split, dice = draw_split(), np.random.default_rng(0)
    store.publish("splits", split.digest, split)
    folder = SpaceFolder(store, SPACE)
    folder.publish_facts()
    for side in SIDES:
        labels = np.array(split.labels(side))
        rows = dice.normal(size=(len(labels), *SHAPE)) + 0.1 * labels[:, None, None, None]
        keys = [(row.sha256, 0) for row in split.rows(side)]
        for start in range(0, len(keys), SHARD_ROWS):
            folder.append(keys[start : start + SHARD_ROWS], rows[start : start + SHARD_ROWS])
    sets = {side: FeatureSet(space=SPACE.digest, split=split.digest, side=side) for side in SIDES}
    return Features(cut=SPACE.cut, **sets)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Features]:
    store = Store(tmp_path_factory.mktemp("spans") / "store")
    return store, fill(store)


@pytest.fixture
def open_cold(
    s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[float | None], Store]]:
    """Opens a filled store on a machine that has nothing of it, and room for a share of the space."""
    # An epoch takes several spans.
    monkeypatch.setattr(spans, "SPAN_BYTES", SPACE_BYTES // 4)
    url = f"{s3.url}/store"

    def move(name: str, share: float | None = None) -> Store:
        monkeypatch.setenv("THAW_CACHE", str(tmp_path / name))
        monkeypatch.delenv("THAW_CACHE_GB", raising=False)
        if share:
            monkeypatch.setenv("THAW_CACHE_GB", f"{share * SPACE_BYTES / 1e9:.9f}")
        return Store(url)

    fill(move("writer"))
    return lambda share=None: move("reader" if share is None else f"reader-{share}", share)


@contextmanager
def sample_cache(store: Store) -> Iterator[list[int]]:
    """Bytes of the shards that are on this disk, and on their way to it, over and over."""
    sizes, ended = [], threading.Event()

    def measure() -> None:
        while not ended.wait(0.002):
            total = 0
            files = [*store.folder("features").glob(f"*/*/{BULKY}"), *store.folder("partial").glob("tmp*")]
            for file in files:
                try:
                    total += file.stat().st_size if file.is_file() else 0
                except FileNotFoundError:
                    continue
            sizes.append(total)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield sizes
    finally:
        ended.set()
        thread.join()


def traffic_of(store: Store) -> Traffic:
    return store.mirror.cache.traffic


def share_of_hits(traffic: Traffic) -> float:
    return traffic.hits / (traffic.hits + traffic.misses)


def groups_of(rows: Rows, epoch: int = 0) -> list[np.ndarray]:
    return list(group_batches(order_rows(len(rows), 0, epoch), 32, 2))


def read_epochs(rows: Rows, epochs: int = 2) -> list[np.ndarray]:
    return [each for epoch in range(epochs) for each in rows.read_ahead(groups_of(rows, epoch), epoch)]


def assert_same(some: list[np.ndarray], others: list[np.ndarray]) -> None:
    for one, other in zip(some, others, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_head_trained_on_a_disk_of_half_the_size_is_bit_for_bit_that_of_a_local_store(local, open_cold):
    here, features = local
    expected = train_head(features, HEAD, GateConfig(), here).value
    for share in (None, 0.5):
        store = open_cold(share)
        store.discard("checkpoints", expected.address)
        with sample_cache(store) as sizes:
            trained = train_head(features, HEAD, GateConfig(), store).value
        assert trained == expected
        for which in ("model", "last"):
            weights = [load_network(place, expected.address, which).get_weights() for place in (here, store)]
            assert_same(*weights)
        traffic = traffic_of(store)
        if share:
            assert max(sizes) <= share * SPACE_BYTES * 1.01
            assert share_of_hits(traffic) > 0.3
        else:
            assert traffic.misses == (SIDES["train"] + SIDES["validation"]) // SHARD_ROWS


@pytest.mark.slow
def test_batches_are_those_of_a_local_store_whatever_the_size_of_the_disk(local, open_cold):
    here, features = local
    expected = read_epochs(Rows(features.train, here))
    for share in (None, 0.02):
        assert_same(read_epochs(Rows(features.train, open_cold(share))), expected)


@pytest.mark.slow
def test_passes_back_and_forth_find_about_what_the_disk_has_room_for(local, open_cold):
    features = local[1]
    found = {}
    for share in (0.25, 0.5):
        store = open_cold(share)
        rows = Rows(features.train, store)
        read_epochs(rows, 1)
        warm = traffic_of(store)
        read_epochs(rows)
        found[share] = share_of_hits(traffic_of(store) - warm)
    for share, hits in found.items():
        assert 0.5 * share < hits < share * SPACE_BYTES / (SIDES["train"] * ROW_BYTES) + 0.05


def test_a_disk_with_room_for_a_window_fetches_nearly_every_shard_once_an_epoch(
    local, open_cold, monkeypatch
):
    here, features = local
    monkeypatch.setattr(order, "WINDOW_ROWS", 200)
    monkeypatch.setattr(order, "_BLOCK_ROWS", SHARD_ROWS)
    # A span is half of a window, which is a quarter of the images to train on.
    monkeypatch.setattr(spans, "SPAN_BYTES", 100 * ROW_BYTES)
    store = open_cold(0.5)
    rows = Rows(features.train, store)
    before = traffic_of(store)
    assert_same(read_epochs(rows, 3), read_epochs(Rows(features.train, here), 3))
    shards = SIDES["train"] // SHARD_ROWS
    assert (traffic_of(store) - before).misses < 3 * 1.1 * shards


def test_who_reads_in_order_fetches_a_shard_twice_at_most(local, open_cold, tmp_path):
    features = local[1]
    store = open_cold(0.1)
    rows = Rows(features.train, store)
    shards = SIDES["train"] // SHARD_ROWS
    before = traffic_of(store)
    read = np.concatenate(list(rows.read_in_order(64)))
    once = traffic_of(store) - before
    np.testing.assert_array_equal(read, Rows(features.train, local[0]).read(slice(None)))
    assert once.hits + once.misses <= 2 * shards
    export_features(features, tmp_path / "out", store)
    assert (traffic_of(store) - before - once).misses <= 2 * SHARDS
    for name in ("train", "validation", "test"):
        exported = np.load(tmp_path / "out" / f"bottleneck_features_{name}.npy", allow_pickle=False)
        np.testing.assert_array_equal(exported, Rows(getattr(features, name), local[0]).read(slice(None)))


def test_probabilities_are_those_of_a_local_store(local, open_cold):
    here, features = local
    network = build_head(SHAPE, 2, HEAD)
    one, other = (predict_rows(network, Rows(features.train, place)) for place in (here, open_cold(0.1)))
    np.testing.assert_array_equal(one, other)


def test_a_shard_that_vanishes_while_it_is_read_is_fetched_again(local, open_cold, monkeypatch):
    here, features = local
    store = open_cold()
    rows = Rows(features.train, store)
    bring, taken = store.mirror.bring_file, set()

    def bring_and_lose(folder: str, name: str, marker=None) -> Path:
        file = bring(folder, name, marker)
        if name == BULKY and folder not in taken:
            taken.add(folder)
            file.unlink()
        return file

    monkeypatch.setattr(store.mirror, "bring_file", bring_and_lose)
    assert_same(read_epochs(rows), read_epochs(Rows(features.train, here)))
    assert len(taken) == SIDES["train"] // SHARD_ROWS
    assert not store.list("damaged")


def test_a_server_that_fails_one_request_in_ten_changes_nothing(s3: Bucket, local, open_cold):
    here, features = local
    store = open_cold(0.5)
    rows = Rows(features.train, store)
    s3.faults(fail_share=0.1, seed=1)
    assert_same(read_epochs(rows, 1), read_epochs(Rows(features.train, here), 1))
    assert s3.counts()["failures"] > 3


def test_shards_that_are_lost_for_good_are_said_to_be_once_however_many_read(local, open_cold):
    features = local[1]
    store = open_cold()
    rows = Rows(features.train, store)
    objects = store.mirror.objects
    objects.delete([key for key in objects.list("features") if key.endswith(BULKY)])
    with pytest.raises(DamagedShard, match="made again by the same command"):
        read_epochs(rows, 1)


def test_two_spans_are_held_and_no_more(local, open_cold, monkeypatch):
    features, span = local[1], SPACE_BYTES // 4
    held, most, lock = 0, 0, threading.Lock()
    read = SpaceFolder.read

    def count_and_read(folder: SpaceFolder, places: np.ndarray, *how) -> np.ndarray:
        change(len(places) * ROW_BYTES)
        rows = read(folder, places, *how)
        weakref.finalize(rows, change, -len(places) * ROW_BYTES)
        return rows

    def change(size: int) -> None:
        nonlocal held, most
        with lock:
            held += size
            most = max(most, held)

    monkeypatch.setattr(SpaceFolder, "read", count_and_read)
    rows = Rows(features.train, open_cold())
    batches = groups_of(rows)
    for batch in rows.read_ahead(batches):
        # As long as it takes to read the next span; the batch is held on to meanwhile.
        time.sleep(0.01)
        assert batch.base is None or batch.base.nbytes == batch.nbytes
    assert held == 0
    assert 1.5 * span < most <= 2 * span


def test_a_stage_says_what_reading_shards_has_cost(local, open_cold, monkeypatch, caplog):
    features, store = local[1], open_cold()
    monkeypatch.setattr(stage, "get_run_logger", lambda: logging.getLogger("stage"))
    caplog.set_level("INFO", logger="stage")
    for place in (store, store, local[0]):
        with stage._log_traffic(place):
            Rows(features.validation, place).read(slice(None))
    told = [record.getMessage() for record in caplog.records if record.name == "stage"]
    # Six shards of images to validate on, and one that is looked at for the shape of a row.
    assert told == [
        "features: 0% of 7 shard reads from this disk, 0 MB fetched",
        "features: 100% of 7 shard reads from this disk, 0 MB fetched",
    ]
