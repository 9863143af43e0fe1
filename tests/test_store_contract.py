"""One contract for every store: in a folder, in memory and in an object store, which fails, dies and is damaged."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.command import PROJECT
from tests.s3 import FAILURES, Bucket
from tests.test_claims import ELSEWHERE, HOLD, SHORT_LEASE, launch  # noqa: F401
from tests.test_registry import outcome, register_and_promote
from thaw.claims import claim
from thaw.disk_cache import DiskCache
from thaw.errors import BadConfig, Damaged, NotPublished
from thaw.marker import MARKER, checksum, describe_folder, read_marker
from thaw.records import Quarantined
from thaw.registry import read_registry, register_run
from thaw.store import Store

ROW = Quarantined(path="a.jpg", label="cat", reason="truncated")
OTHER = Quarantined(path="b.jpg", label="dog", reason="truncated")
NAMES = ("one", "two", "deep/three")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    """A machine of the test's own: no copy is left there by another."""
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAW_CACHE_GB", raising=False)
    return tmp_path / "cache"


@pytest.fixture(params=["folder", "memory", "s3", "gs"])
def address(request, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{tmp_path.name}-{os.getpid()}/store"
    if request.param == "gs":
        return f"{request.getfixturevalue('gs')}/store"
    return f"{request.getfixturevalue('s3').url}/store"


@pytest.fixture
def place(address: str) -> Store:
    return Store(address)


@pytest.fixture
def remote(s3: Bucket) -> Store:
    return Store(f"{s3.url}/store")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch) -> Callable[[Store], Store]:
    """The same store, seen by a machine that has no copy of anything."""

    def look(store: Store) -> Store:
        with monkeypatch.context() as patch:
            patch.setenv("THAW_CACHE", str(tmp_path / f"cache-{time.monotonic_ns()}"))
            return Store(store.address)

    return look


def publish(store: Store, who: str, *parts: str, size: int = 1000) -> None:
    with store.publish_folder(*(parts or ("runs", "x"))) as partial:
        (partial / "deep").mkdir()
        for name in NAMES:
            (partial / name).write_text(f"{who} {name} " * size)


def read(store: Store, *parts: str) -> set[str]:
    """Who wrote what is published as a folder."""
    folder = store.fetch(*(parts or ("runs", "x")))
    return {(folder / name).read_text().split()[0] for name in NAMES}


def payload(store: Store, name: str = "one", *parts: str) -> str:
    """The key of a file of a published folder in the object store."""
    folder = "/".join(parts or ("runs", "x"))
    return read_marker(store.mirror.objects.read(f"{folder}/{MARKER}"))[name].find(folder, name)


def bucket(store: Store) -> dict[str, bytes]:
    return store.mirror.objects.read_many(list(store.survey()))


def test_a_record_is_published_read_replaced_and_discarded(place: Store, elsewhere):
    assert place.read("things", "x", Quarantined) is None
    place.publish("things", "x", ROW)
    assert place.read("things", "x", Quarantined) == ROW
    assert elsewhere(place).read("things", "x", Quarantined) == ROW
    place.publish("things", "x", OTHER)
    assert place.read("things", "x", Quarantined) == OTHER
    elsewhere(place).discard("things", "x.json")
    assert place.read("things", "x", Quarantined) is None
    assert place.list("things") == []


def test_a_record_that_another_machine_replaced_is_read_as_it_is_now(place: Store, elsewhere):
    other = elsewhere(place)
    place.publish("things", "x", ROW)
    assert other.read("things", "x", Quarantined) == ROW
    place.publish("things", "x", OTHER)
    assert other.read("things", "x", Quarantined) == OTHER


def test_a_damaged_record_is_set_aside_and_can_be_made_again(place: Store, elsewhere):
    with place.publish_file("things", "x.json") as partial:
        partial.write_text('{"path": "a.jpg", "la')
    assert elsewhere(place).read("things", "x", Quarantined) is None
    assert place.list("things") == []
    assert len(place.survey("damaged")) == 1
    place.publish("things", "x", ROW)
    assert elsewhere(place).read("things", "x", Quarantined) == ROW


def test_a_folder_whose_record_can_not_be_read_or_lacks_a_file_is_set_aside(place: Store, elsewhere):
    for name, files in (("one", ()), ("four", ()), ("one", ("four",))):
        publish(place, "nonsense")
        assert place.is_published("runs", "x")
        assert elsewhere(place).read_folder("runs", "x", name, Quarantined, files) is None
        assert place.list("runs") == []
        assert not place.is_published("runs", "x")


def test_a_folder_is_published_whole_or_not_at_all(place: Store, elsewhere):
    with pytest.raises(RuntimeError), place.publish_folder("runs", "x") as partial:
        (partial / "one").write_text("half")
        raise RuntimeError
    assert place.list("runs") == []
    publish(place, "whole")
    assert place.list("runs") == ["x"]
    assert read(place) == read(elsewhere(place)) == {"whole"}
    assert elsewhere(place).fetch("runs", "x", "deep/three").read_text().startswith("whole deep/three")
    assert elsewhere(place).fetch("runs", "x", "deep", "three").exists()
    assert not elsewhere(place).fetch("runs", "x", "four").exists()
    assert not elsewhere(place).fetch("runs", "y").exists()


def test_of_two_writers_with_bytes_of_their_own_the_first_is_read_by_all(place: Store, elsewhere):
    other = elsewhere(place)
    with place.publish_folder("runs", "x") as slow:
        (slow / "deep").mkdir()
        for name in NAMES:
            (slow / name).write_text(f"slow {name}")
        publish(other, "fast")
    assert read(place) == read(other) == read(elsewhere(place)) == {"fast"}
    # What the second one wrote is there for who looks without fetching, and nothing of its own is left.
    assert place.folder("runs", "x", "one").read_text().startswith("fast")
    assert len(place.survey("runs")) == len(NAMES) + 1


def test_of_threads_that_publish_one_folder_one_is_read_by_all(place: Store, elsewhere):
    stores = [elsewhere(place) if number % 2 else place for number in range(8)]
    start = threading.Barrier(8)

    def race(number: int) -> set[str]:
        start.wait()
        publish(stores[number], str(number))
        return read(stores[number])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(race, range(8)))
    assert len(found[0]) == 1
    assert all(each == found[0] for each in (*found, read(elsewhere(place))))
    assert len(place.survey("runs")) == len(NAMES) + 1


def publish_and_read(address: str, cache: str, who: str) -> list[str]:
    """One of many processes."""
    os.environ["THAW_CACHE"] = cache
    store = Store(address)
    publish(store, who)
    return sorted(read(store))


@pytest.mark.slow
@pytest.mark.parametrize("address", ["folder", "s3"], indirect=True)
def test_of_processes_that_publish_one_folder_one_is_read_by_all(address: str, tmp_path: Path, elsewhere):
    # Two on each machine.
    jobs = [(address, str(tmp_path / f"machine-{number % 3}"), str(number)) for number in range(6)]
    with multiprocessing.get_context("spawn").Pool(6) as pool:
        found = pool.starmap(publish_and_read, jobs)
    assert len(found[0]) == 1
    assert all(each == found[0] for each in (*found, sorted(read(elsewhere(Store(address))))))


@pytest.mark.parametrize("address", ["folder", "s3"], indirect=True)
def test_a_writer_killed_before_its_marker_leaves_nothing_that_is_read(place: Store, elsewhere):
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {str(PROJECT)!r})
        from pathlib import Path
        from tests.test_store_contract import publish
        from thaw.objects import Objects
        from thaw.store import Store
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        Objects.create, Store._place = die, die
        publish(Store({place.address!r}), "killed")
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert ended.returncode == -signal.SIGKILL
    if place.mirror:
        assert len(place.survey("runs")) == len(NAMES)
    assert place.list("runs") == []
    assert not elsewhere(place).fetch("runs", "x").exists()
    publish(place, "again")
    assert place.list("runs") == ["x"]
    assert read(place) == read(elsewhere(place)) == {"again"}


def test_a_server_that_dies_while_a_folder_is_published_and_comes_back_has_it(remote: Store, s3, elsewhere):
    s3.faults(die_after=2, dead_seconds=4)
    publish(remote, "patient")
    assert s3.counts()["failures"] > 0
    assert read(remote) == read(elsewhere(remote)) == {"patient"}


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES)
def test_where_one_request_in_ten_fails_all_is_as_if_none_had(remote: Store, s3, elsewhere, failure: str):
    s3.faults(fail_share=0.1, failure=failure, seed=3)
    other = elsewhere(remote)
    for number in range(6):
        publish(remote, f"first-{number}", "runs", str(number), size=1)
        publish(other, f"second-{number}", "runs", str(number), size=1)
        assert read(remote, "runs", str(number)) == read(other, "runs", str(number)) == {f"first-{number}"}
        assert other.create("registry", f"{number:06}", "registry.json", data=b"first")
        assert not remote.create("registry", f"{number:06}", "registry.json", data=b"second")
        remote.publish("things", str(number), ROW)
        assert other.read("things", str(number), Quarantined) == ROW
    for number in range(6):
        other.discard("runs", str(number))
        assert remote.read_folder("runs", str(number), "one", Quarantined, ()) is None
    assert s3.counts()["failures"] > 5
    s3.faults()
    assert len(remote.survey()) == 12
    assert remote.survey("damaged") == {}


def spoil_bytes(store: Store, key: str) -> None:
    data = bytearray(store.mirror.objects.read(key))
    data[len(data) // 2] ^= 0xFF
    store.mirror.objects.replace(key, bytes(data))


def lose(store: Store, key: str) -> None:
    store.mirror.objects.delete([key])


def cut_short(store: Store, key: str) -> None:
    store.mirror.objects.replace(key, store.mirror.objects.read(key)[:-1])


@pytest.mark.parametrize("spoil", [spoil_bytes, lose, cut_short])
def test_damage_in_the_bucket_is_noticed_set_aside_and_made_again(remote: Store, elsewhere, caplog, spoil):
    publish(remote, "first")
    spoil(remote, payload(remote))
    with pytest.raises(Damaged, match="runs/x/one .*It is made again by the command that made it"):
        elsewhere(remote).fetch("runs", "x", "one")
    assert "runs/x is damaged" in caplog.text
    # Also where a copy here is whole.
    assert remote.list("runs") == []
    assert remote.read_folder("runs", "x", "one", Quarantined, ()) is None
    publish(remote, "second")
    assert read(remote) == read(elsewhere(remote)) == {"second"}


@pytest.mark.parametrize("spoil", [spoil_bytes, lose, cut_short])
def test_a_damaged_marker_is_set_aside_and_its_folder_made_again(remote: Store, elsewhere, spoil):
    publish(remote, "first")
    spoil(remote, f"runs/x/{MARKER}")
    assert not elsewhere(remote).is_published("runs", "x")
    assert elsewhere(remote).read_folder("runs", "x", "one", Quarantined, ()) is None
    publish(elsewhere(remote), "second")
    assert read(elsewhere(remote)) == {"second"}
    assert remote.read_folder("runs", "x", "four", Quarantined, ()) is None


def test_whoever_publishes_over_a_damaged_folder_takes_its_place(remote: Store, elsewhere):
    publish(remote, "first")
    spoil_bytes(remote, payload(remote, "two"))
    publish(elsewhere(remote), "second")
    assert read(elsewhere(remote)) == {"second"}


def test_of_many_folders_the_damaged_ones_are_set_aside_and_the_others_brought(remote: Store, elsewhere):
    for number in range(5):
        publish(remote, str(number), "things", str(number))
    spoil_bytes(remote, payload(remote, "one", "things", "1"))
    lose(remote, payload(remote, "two", "things", "3"))
    cut_short(remote, f"things/4/{MARKER}")
    other = elsewhere(remote)
    other.fetch_folders([("things", str(number)) for number in range(6)], but=("two",))
    # What was not asked for is not looked at.
    assert sorted(other.list("things")) == ["0", "2", "3"]
    assert [other.folder("things", "2", name).exists() for name in NAMES] == [True, False, True]
    other.fetch_folders([("things", str(number)) for number in range(6)])
    assert sorted(other.list("things")) == ["0", "2"]


@pytest.mark.parametrize("what", ["bytes", "file", "marker", "half a marker", "all"])
def test_a_damaged_copy_here_is_fetched_anew_and_nothing_is_set_aside(remote: Store, elsewhere, what: str):
    publish(remote, "first")
    other = elsewhere(remote)
    assert read(other) == {"first"}
    file, marker = other.folder("runs", "x", "one"), other.folder("runs", "x", MARKER)
    match what:
        case "bytes":
            file.write_text("x" * file.stat().st_size)
        case "file":
            file.unlink()
        case "marker":
            marker.unlink()
        case "half a marker":
            marker.write_bytes(marker.read_bytes()[:40])
            file.unlink()
        case "all":
            other.mirror.copies.forget("runs/x")
    assert read(other) == {"first"}
    assert remote.survey("damaged") == {}


def test_what_a_reader_finds_damaged_is_set_aside_only_where_it_is_damaged_there(remote: Store, elsewhere):
    publish(remote, "first")
    other = elsewhere(remote)
    assert read(other) == {"first"}
    for name in ("one", "two"):
        other.folder("runs", "x", "one").write_text("of this disk")
        other.set_aside(other.folder("runs", "x"), f"{name} can't be read")
        assert read(other) == {"first"}
    other.folder("runs", "x", "one").unlink()
    other.set_aside(other.folder("runs", "x"), "one went meanwhile")
    assert remote.list("runs") == ["x"]
    # A copy that is whole, and can't be read, was written so.
    assert read(other) == {"first"}
    other.set_aside(other.folder("runs", "x"), "nonsense from the beginning")
    assert remote.list("runs") == []


def test_two_that_set_one_folder_aside_do_it_once_and_leave_what_was_made_since(remote: Store, elsewhere):
    publish(remote, "first")
    other = elsewhere(remote)
    assert read(other) == {"first"}
    spoil_bytes(remote, payload(remote))
    remote.mirror.copies.forget("runs/x")
    with pytest.raises(Damaged):
        remote.fetch("runs", "x")
    publish(remote, "second")
    other.folder("runs", "x", "one").unlink()
    other.set_aside(other.folder("runs", "x"), "of the first one")
    assert read(other) == read(remote) == {"second"}
    assert len(remote.survey("damaged")) == 1


def test_a_marker_here_that_outlives_the_one_there_counts_for_nothing(remote: Store, elsewhere):
    publish(remote, "first")
    other, third = elsewhere(remote), elsewhere(remote)
    assert read(other) == read(third) == {"first"}
    remote.discard("runs", "x")
    # Whoever looks for it finds that it is gone, and its copy goes.
    assert other.read_folder("runs", "x", "one", Quarantined, ()) is None
    assert not other.fetch("runs", "x").exists()
    publish(remote, "second")
    assert read(other) == {"second"}
    # Whoever lists sees that it was written since.
    assert third.list("runs") == ["x"]
    assert read(third) == {"second"}


def test_what_is_lost_of_a_folder_made_again_elsewhere_is_never_mixed(remote: Store, elsewhere):
    publish(remote, "first")
    other = elsewhere(remote)
    assert read(other) == {"first"}
    remote.discard("runs", "x")
    publish(remote, "second")
    other.folder("runs", "x", "two").unlink()
    assert other.fetch("runs", "x", "two").read_text().startswith("second")
    assert read(other) == {"second"}


def test_an_error_on_the_way_ends_bringing_many_and_leaves_no_half(remote: Store, elsewhere, monkeypatch):
    for number in range(40):
        publish(remote, str(number), "things", str(number), size=1)
    other, asked = elsewhere(remote), []
    download = other.mirror.objects.download

    def fail(key: str, file: Path) -> None:
        asked.append(key)
        if len(asked) == 10:
            raise OSError(5, "Input/output error")
        download(key, file)

    monkeypatch.setattr(other.mirror.objects, "download", fail)
    with pytest.raises(OSError, match="Input/output"):
        other.fetch_folders([("things", str(number)) for number in range(40)])
    assert len(asked) < 80
    monkeypatch.undo()
    other.fetch_folders([("things", str(number)) for number in range(40)])
    for number in range(40):
        assert read(other, "things", str(number)) == {str(number)}


def test_of_many_that_create_one_thing_one_does(place: Store):
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return place.create("registry", "000001", "registry.json", data=f"{number}".encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert place.fetch("registry", "000001", "registry.json").read_bytes() == f"{won.index(True)}".encode()
    assert place.list("registry") == ["000001"]


def test_a_list_is_the_newest_first_and_of_what_is_published(place: Store, elsewhere):
    assert place.list("things") == []
    for name in ("b", "c", "a"):
        place.publish("things", name, ROW)
        publish(place, name, "folders", name, size=1)
        time.sleep(1.1 if place.address.startswith("s3") else 0.02)  # S3 tells whole seconds
    assert elsewhere(place).list("things") == ["a.json", "c.json", "b.json"]
    assert elsewhere(place).list("folders") == ["a", "c", "b"]


def test_a_folder_that_is_discarded_is_gone_with_all_that_is_in_it(place: Store, elsewhere):
    publish(place, "x", "journals", "x", "000001")
    publish(place, "y", "journals", "x", "000002")
    other = elsewhere(place)
    other.discard("journals", "x", "000001")
    assert place.list("journals", "x") == ["000002"]
    place.discard("journals", "x")
    place.discard("journals", "x")
    assert place.survey() == {}
    assert not place.folder("journals", "x").exists()


def test_a_store_that_is_looked_at_is_not_written(place: Store):
    publish(place, "x")
    place.publish("things", "bad", ROW)
    with place.publish_file("things", "bad.json") as partial:
        partial.write_text("{")
    if place.mirror:
        spoil_bytes(place, payload(place))
        place.mirror.copies.forget("runs/x")
    before, looked = place.survey(), place.looking()
    assert looked.read("things", "bad", Quarantined) is None
    assert looked.read_folder("runs", "x", "none", Quarantined, ()) is None
    if place.mirror:
        with pytest.raises(Damaged):
            looked.fetch("runs", "x")
        looked.fetch_folders([("runs", "x")])
    looked.set_aside(looked.folder("runs", "x"), "for fun")
    assert looked.list("runs") == ["x"]
    for make in (
        lambda: looked.publish("things", "y", ROW),
        lambda: publish(looked, "y"),
        lambda: looked.create("registry", "1", "registry.json", data=b""),
        lambda: claim(looked, "things", "y").__enter__(),
    ):
        with pytest.raises(NotPublished):
            make()
    assert place.survey() == before


def test_another_process_can_be_handed_a_store(place: Store):
    place.publish("things", "x", ROW)
    handed = pickle.loads(pickle.dumps(place.looking()))
    assert handed.looks_only
    assert handed.read("things", "x", Quarantined) == ROW


def test_a_survey_tells_every_file_with_size_and_age(place: Store):
    place.publish("things", "x", ROW)
    publish(place, "x", size=1)
    found = place.survey()
    assert found["things/x.json"].size == len(ROW.to_json())
    assert all(abs(facts.written - time.time()) < 60 for facts in found.values())
    assert len(found) == 1 + len(NAMES) + 1
    assert place.survey("none") == {}
    assert set(place.survey("things")) == {"things/x.json"}


def test_what_killed_downloads_left_is_swept_after_a_day(remote: Store):
    partials = remote.folder("partial")
    partials.mkdir(parents=True)
    (partials / "half").write_text("half of a download")
    publish(remote, "x")
    assert (partials / "half").exists()
    os.utime(partials / "half", (0, 0))
    publish(remote, "y", "runs", "y")
    assert not (partials / "half").exists()


def test_a_marker_tells_size_and_checksum_of_every_file(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    for name in NAMES:
        (tmp_path / name).write_text(name)
    marker = read_marker(describe_folder(tmp_path))
    assert set(marker) == set(NAMES)
    assert marker["one"].bytes == 3
    assert marker["one"].sha256 == checksum(tmp_path / "one")


@pytest.mark.parametrize(
    "files",
    [
        None,
        [],
        {"x": 1},
        {"x": {"bytes": 1}},
        {"../x": {"bytes": 1, "sha256": "0" * 64}},
        {"x": {"bytes": "1"}},
    ],
)
def test_what_is_no_marker_is_told_so(files):
    with pytest.raises(ValueError, match="not a marker"):
        read_marker(json.dumps({"files": files}).encode())


@pytest.mark.slow
def test_claims_in_an_object_store_are_taken_over_from_the_killed(remote: Store, launch, tmp_path):  # noqa: F811
    holder = launch(SHORT_LEASE + HOLD, store=remote.address)
    holder.await_log("holding")
    here = launch(SHORT_LEASE + HOLD, store=remote.address)
    here.await_log("waiting for another run that makes things/abc")
    holder.kill()
    here.await_log("holding", timeout_seconds=10)
    away = launch(SHORT_LEASE + ELSEWHERE + HOLD, store=remote.address)
    away.await_log("waiting for another run that makes things/abc")
    time.sleep(3)
    assert "holding" not in away.log
    here.kill()
    away.await_log("holding", timeout_seconds=20)


def test_a_claim_is_held_by_one_at_a_time_and_gone_afterwards(place: Store, monkeypatch):
    monkeypatch.setattr("thaw.claims._LOOK_SECONDS", 0.01)
    inside, most = 0, 0

    def work(_):
        nonlocal inside, most
        with claim(place, "things", "abc"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert most == 1
    assert place.survey("claims") == {}


@pytest.mark.slow
def test_processes_that_change_a_registry_in_an_object_store_at_once_lose_nothing(remote: Store, elsewhere):
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        numbers = pool.starmap(register_and_promote, [(remote.address, name) for name in range(8)])
    registry = read_registry(elsewhere(remote))
    assert [version.number for version in registry.versions] == list(range(1, 17))
    assert len({version.run for version in registry.versions}) == 16
    assert sorted(move.champion for move in registry.moves) == sorted(numbers)
    assert registry.revision == 24
    assert remote.survey("damaged") == {}


def test_a_damaged_registry_is_its_revision_before_in_an_object_store_too(remote: Store, elsewhere):
    register_run(remote, outcome("a"), {})
    whole = read_registry(remote)
    register_run(remote, outcome("b"), {})
    for key in ("registry/000002/registry.json", "registry.json"):
        remote.mirror.objects.replace(key, b'{"revision": 2, "ver')
    assert read_registry(elsewhere(remote)) == whole
    register_run(remote, outcome("b"), {})
    assert len(read_registry(elsewhere(remote)).versions) == 2


def put(cache: DiskCache, folder: Path, number: int, size: int = 1000) -> Path:
    file = folder / "features" / "space" / str(number) / "features.npy"
    with cache.room(file, size):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size))
    return file


def held(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("features.npy"))


def test_a_disk_cache_keeps_its_limit_and_lets_go_of_what_was_not_used_for_longest(tmp_path: Path):
    cache = DiskCache(tmp_path, limit_bytes=5000)
    files = [put(cache, tmp_path, number) for number in range(5)]
    assert all(file.exists() for file in files)
    cache.hit(files[0])
    more = put(cache, tmp_path, 5)
    assert held(tmp_path) <= 5000
    assert more.exists() and files[0].exists() and not files[1].exists()
    alone = put(cache, tmp_path, 6, size=9000)
    assert alone.exists() and held(tmp_path) == 9000


def test_threads_and_processes_that_share_a_disk_cache_keep_its_limit(tmp_path: Path):
    caches = [DiskCache(tmp_path, limit_bytes=5000) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: put(caches[number % 2], tmp_path, number), range(200)))
    assert 1000 <= held(tmp_path) <= 5000


def test_without_a_limit_everything_stays(tmp_path: Path):
    cache = DiskCache(tmp_path)
    for number in range(20):
        put(cache, tmp_path, number)
    assert held(tmp_path) == 20_000


@pytest.mark.parametrize("text", ["much", "0", "-1", "nan", "inf", "1e999"])
def test_a_limit_that_is_none_is_a_mistake(tmp_path: Path, monkeypatch, text: str):
    monkeypatch.setenv("THAW_CACHE_GB", text)
    with pytest.raises(BadConfig, match=f"THAW_CACHE_GB is a number of gigabytes above 0.*'{text}'"):
        DiskCache(tmp_path)


def test_shards_that_the_disk_cache_let_go_of_are_fetched_again(s3: Bucket, monkeypatch, elsewhere):
    import numpy as np

    from tests.test_store import keys, rows, space
    from thaw.shards import SpaceFolder

    store = Store(f"{s3.url}/store")
    folder = SpaceFolder(store, space())
    for start in range(0, 30, 3):
        folder.append(keys(3, start=start), rows(3, start=start))
    size = store.folder("features").rglob("features.npy").__next__().stat().st_size
    monkeypatch.setenv("THAW_CACHE_GB", str(3.5 * size / 1e9))
    other = elsewhere(store)
    monkeypatch.delenv("THAW_CACHE_GB")
    for _ in range(2):
        again = SpaceFolder(other, space())
        np.testing.assert_array_equal(again.read(again.find(keys(30))), rows(30).astype(np.float16))
        assert held(other.folder()) <= 3.5 * size
    assert other.mirror.cache.traffic.misses > 15
    assert other.survey("damaged") == {}


def test_of_two_that_make_one_shard_the_second_reads_the_first_ones(s3: Bucket, elsewhere):
    from tests.test_store import keys, rows, space
    from thaw.shards import SpaceFolder

    store = Store(f"{s3.url}/store")
    ours, theirs = SpaceFolder(store, space()), SpaceFolder(elsewhere(store), space())
    ours.append(keys(3), rows(3))
    theirs.append(keys(3), rows(3, start=1))  # as another processor rounds
    for folder in (ours, theirs, SpaceFolder(elsewhere(store), space())):
        assert folder.read(folder.find(keys(3)))[0, 0, 0, 0] == 0
    assert store.survey("damaged") == {}
