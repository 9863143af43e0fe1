"""Object stores: one contract for all of them, and patience with a network that fails, is slow or is gone."""

import os
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.config import conf
from fsspec.registry import _registry

from tests.s3 import FAILURES, KEY_ID, SECRET, Bucket
from thaw import objects
from thaw.errors import BadConfig, DiskFull, MissingPackage, Mistake, StoreNotWritable, StoreUnreachable
from thaw.location import Url
from thaw.objects import Objects

# What people call their files, and what a URL, a pattern or a shell would take for something else.
NAMES = ["plain.json", "a b.jpg", "cat[1].jpg", "what?.jpg", "50%25.jpg", "a#b+c&d.jpg", "*.jpg", "größe.jpg"]


@pytest.fixture(params=["memory", "s3", "gs"])
def store(request, tmp_path: Path) -> Objects:
    if request.param == "memory":
        return Objects(Url(f"memory://{tmp_path.name}-{os.getpid()}/below"))
    if request.param == "gs":
        return Objects(Url(f"{request.getfixturevalue('gs')}/below"))
    return Objects(Url(f"{request.getfixturevalue('s3').url}/below"))


def fill(store: Objects, number: int) -> dict[str, bytes]:
    files = {f"rows/{index:03}.bin": bytes([index]) * (index + 1) for index in range(number)}
    for key, data in files.items():
        store.replace(key, data)
    return files


def test_an_object_is_created_once(store):
    assert store.create("runs/1.json", b"one")
    assert not store.create("runs/1.json", b"two")
    assert store.read("runs/1.json") == b"one"


def test_who_asks_twice_for_the_same_is_told_that_it_is_there(store):
    assert store.create("runs/1.json", b"one")
    assert store.create("runs/1.json", b"one")


def test_of_threads_that_race_for_one_object_exactly_one_wins(store):
    for race in range(5):
        start = threading.Barrier(8)

        def create(number: int, key: str = f"races/{race}", start: threading.Barrier = start) -> bool:
            start.wait()
            return store.create(key, f"thread {number}".encode())

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create, range(8)))
        assert sum(won) == 1
        assert store.read(f"races/{race}") == f"thread {won.index(True)}".encode()


def test_an_object_is_replaced(store):
    store.replace("registry.json", b"first, and longer")
    store.replace("registry.json", b"second")
    assert store.read("registry.json") == b"second"
    assert store.find("registry.json").size == 6


def test_an_object_may_be_empty(store):
    assert store.create("empty", b"")
    assert store.read("empty") == b""
    assert store.read("empty", 0, 10) == b""
    assert store.find("empty").size == 0


def test_a_part_is_read_as_far_as_there_is_one(store):
    store.replace("digits", b"0123456789")
    assert store.read("digits", 2, 5) == b"234"
    assert store.read("digits", start=7) == b"789"
    assert store.read("digits", end=3) == b"012"
    assert store.read("digits", 8, 50) == b"89"
    assert store.read("digits", 10, 12) == b""


def test_many_are_read_at_once_and_what_is_not_there_is_left_out(store):
    files = fill(store, 40)
    assert store.read_many([*files, "rows/none.bin"]) == files
    assert store.read_many([]) == {}


def test_what_lies_below_a_folder_is_listed_and_nothing_beside_it(store):
    before = time.time()
    for key in ("a/1", "a/b/2", "ab/3", "a.json"):
        store.replace(key, key.encode())
    assert set(store.list()) == {"a/1", "a/b/2", "ab/3", "a.json"}
    listed = store.list("a")
    assert {key: facts.size for key, facts in listed.items()} == {"a/1": 3, "a/b/2": 5}
    assert all(abs(facts.written - before) < 60 for facts in listed.values())
    assert store.list("nothing") == {}
    assert store.list("a.json") == {}


def test_a_list_is_of_now(store):
    store.replace("a/1", b"")
    assert set(store.list("a")) == {"a/1"}
    store.replace("a/2", b"")
    assert set(store.list("a")) == {"a/1", "a/2"}
    store.delete(["a/1"])
    assert set(store.list("a")) == {"a/2"}


def test_deleting_what_is_not_there_is_fine(store):
    files = fill(store, 5)
    store.delete(["nothing", *files, "nothing/either"])
    assert store.list() == {}


def test_files_go_up_and_come_down(store, tmp_path):
    (tmp_path / "up.bin").write_bytes(os.urandom(300_000))
    store.upload(tmp_path / "up.bin", "files/up.bin")
    store.download("files/up.bin", tmp_path / "down.bin")
    assert (tmp_path / "down.bin").read_bytes() == (tmp_path / "up.bin").read_bytes()


def test_a_disk_that_is_full_is_not_waited_for_as_if_it_were_the_store(store, tmp_path):
    store.replace("key", bytes(100_000))
    # A link: what can't be written to its end is deleted by some.
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match="no room on this disk for what comes from .*Make room"):
        store.download("key", tmp_path / "full")


def test_what_is_not_there_is_not_found(store, tmp_path):
    store.replace("folder/file", b"")
    for ask in (
        lambda: store.read("none"),
        lambda: store.read("none", 1, 2),
        lambda: store.find("none"),
        lambda: store.find("folder"),
        lambda: store.download("none", tmp_path / "down.bin"),
    ):
        with pytest.raises(FileNotFoundError):
            ask()


@pytest.mark.parametrize("name", NAMES)
def test_names_mean_nothing_but_themselves(store, name, tmp_path):
    key = f"names/{name}"
    assert store.create(key, b"one")
    assert not store.create(key, b"two")
    assert store.read_many([key]) == {key: b"one"}
    assert set(store.list("names")) == {key}
    assert store.find(key).size == 3
    store.download(key, tmp_path / "down")
    store.upload(tmp_path / "down", f"{key}.copy")
    assert (tmp_path / "down").read_bytes() == store.read(f"{key}.copy") == b"one"
    store.delete([key])
    assert set(store.list()) == {f"{key}.copy"}


def test_another_process_can_be_handed_a_store(store):
    store.replace("key", b"data")
    assert pickle.loads(pickle.dumps(store)).read("key") == b"data"


def test_a_mark_that_a_tool_left_for_a_folder_is_no_object(s3: Bucket):
    store = Objects(Url(s3.url))
    for key in ("folder/", "folder/1", "folder/more/"):
        store.replace(key, b"")
    assert set(store.list()) == {"folder/1"}


def test_reading_an_object_is_one_request(s3: Bucket):
    store = Objects(Url(s3.url))
    store.replace("key", b"data")
    s3.faults()
    store.read("key")
    store.read("key", 1, 3)
    assert s3.counts()["requests"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES)
def test_where_one_request_in_ten_fails_every_call_succeeds(s3: Bucket, tmp_path, failure):
    store = Objects(Url(s3.url))
    s3.faults(fail_share=0.1, failure=failure, seed=1)
    files = fill(store, 20)
    for index in range(10):
        assert store.create(f"created/{index}", f"mine {index}".encode())
        assert not store.create(f"created/{index}", b"another's")
    assert store.read_many([*files, "none"]) == files
    assert {key: facts.size for key, facts in store.list("rows").items()} == {
        key: len(data) for key, data in files.items()
    }
    for key, data in files.items():
        store.download(key, tmp_path / "down")
        assert (tmp_path / "down").read_bytes() == data
    store.delete(list(files))
    assert store.list("rows") == {}
    assert s3.counts()["failures"] > 5


def test_a_slow_store_is_waited_for_at_once_not_in_turn(s3: Bucket):
    store = Objects(Url(s3.url))
    files = fill(store, 64)
    s3.faults(seconds=0.2)
    began = time.monotonic()
    assert store.read_many(list(files)) == files
    assert time.monotonic() - began < 0.5 * len(files) * 0.2


def test_a_store_that_comes_back_was_worth_waiting_for(s3: Bucket, caplog):
    store = Objects(Url(s3.url))
    s3.faults(die_after=1, dead_seconds=6)
    assert store.create("first", b"1")
    assert store.create("second", b"2")
    assert store.read("second") == b"2"
    assert s3.counts()["failures"] > 1
    assert "does not answer" in caplog.text


def test_a_store_that_stays_away_is_said_to_in_plain_words(s3: Bucket, monkeypatch):
    monkeypatch.setattr(objects, "PATIENCE_SECONDS", 1.0)
    store = Objects(Url(f"{s3.url}/store"))
    s3.faults(die_after=0)
    with pytest.raises(StoreUnreachable) as caught:
        store.read_many(["key"])
    assert f"{s3.url}/store did not answer for 1 s" in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert_no_secret(caught.value)


def test_a_bucket_that_is_not_there_is_a_mistake_whatever_is_asked(s3: Bucket, tmp_path):
    store = Objects(Url("s3://no-such-bucket/store"))
    (tmp_path / "file").write_bytes(b"data")
    for ask in (
        lambda: store.read("key"),
        lambda: store.read("key", 1, 2),
        lambda: store.read_many(["key"]),
        lambda: store.find("key"),
        lambda: store.list(),
        lambda: store.create("key", b""),
        lambda: store.replace("key", b""),
        lambda: store.upload(tmp_path / "file", "key"),
        lambda: store.download("key", tmp_path / "down"),
    ):
        with pytest.raises(
            BadConfig, match="no bucket for s3://no-such-bucket/store. Correct its name, or make it"
        ):
            ask()


def test_a_bucket_of_google_that_is_not_there_is_a_mistake_to_list_or_write_to(gs: str, tmp_path):
    store = Objects(Url("gs://no-such-bucket/store"))
    (tmp_path / "file").write_bytes(b"data")
    for ask in (
        lambda: store.list(),
        lambda: store.create("key", b""),
        lambda: store.replace("key", b""),
        lambda: store.upload(tmp_path / "file", "key"),
    ):
        with pytest.raises(BadConfig, match="no bucket for gs://no-such-bucket/store. Correct its name"):
            ask()


@pytest.mark.parametrize(
    ("protocol", "package", "extra"), [("s3", "s3fs", "s3"), ("s3a", "s3fs", "s3"), ("gs", "gcsfs", "gs")]
)
def test_a_protocol_that_nothing_installed_speaks_names_the_extra_that_does(
    monkeypatch: pytest.MonkeyPatch, protocol: str, package: str, extra: str
):
    monkeypatch.delitem(_registry, protocol, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=rf"{protocol}:// needs .*extra '{extra}': .*'\.\[{extra}\]'"):
        Objects(Url(f"{protocol}://bucket/store"))


def test_a_bucket_of_an_impossible_name_is_a_mistake(s3: Bucket):
    store = Objects(Url("s3://no such bucket/store"))
    for ask in (lambda: store.read("key"), lambda: store.create("key", b""), lambda: store.list()):
        with pytest.raises(BadConfig, match="(?s)s3://no such bucket/store can't be used.*Correct the URL"):
            ask()


@pytest.mark.parametrize(
    "changes",
    [
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
        {"AWS_SECRET_ACCESS_KEY": None},
        {"AWS_ACCESS_KEY_ID": "another"},
        {"AWS_PROFILE": "no-such-profile"},
    ],
    ids=["missing", "incomplete", "unknown", "profile"],
)
def test_credentials_that_do_not_do_are_a_mistake_that_says_where_they_come_from(
    s3: Bucket, monkeypatch, changes
):
    for name, value in changes.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    store = Objects(Url(f"{s3.url}/store"))
    for ask in (lambda: store.read("key"), lambda: store.create("key", b""), lambda: store.list()):
        began = time.monotonic()
        with pytest.raises(
            StoreNotWritable, match=f"{s3.url}/store refuses access.*the environment"
        ) as caught:
            ask()
        assert time.monotonic() - began < 20
        assert isinstance(caught.value, Mistake)
        assert_no_secret(caught.value)


def assert_no_secret(error: BaseException) -> None:
    text = str(error)
    assert SECRET not in text
    assert KEY_ID not in text


def test_what_fsspecs_settings_say_of_a_connection_stays(s3: Bucket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(
        conf, "s3", {"config_kwargs": {"s3": {"addressing_style": "path"}, "read_timeout": 7}}
    )
    system = Objects(Url(s3.url))._system
    assert system.config_kwargs["s3"] == {"addressing_style": "path"}
    assert system.config_kwargs["read_timeout"] == 7
    assert system.config_kwargs["connect_timeout"] == 10
