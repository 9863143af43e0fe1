"""Runs side by side on one store share their work; one that is killed holds nobody up; a look changes nothing."""

import errno
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.command import PROJECT
from tests.prepared import head_of, tune
from tests.prepared import prepare as prepare_features
from tests.test_features import FEW, fill, prepare
from thaw import claims, precision
from thaw.claims import claim
from thaw.errors import NotPublished
from thaw.evaluate import evaluate
from thaw.precision import choose_precision
from thaw.records import Quarantined
from thaw.slips import FileSlip
from thaw.store import Store

PREAMBLE = """
    import json, logging, os, sys, time
    sys.path.insert(0, {project!r})
    logging.basicConfig(level="INFO", format="%(message)s")
    from thaw import claims
    from thaw.claims import claim
    from thaw.store import Store
    store = Store({store!r})
"""
METHOD = """
    from pathlib import Path
    from tests.test_features import prepare
    from thaw import fill, journal
    from thaw.evaluate import evaluate
    from thaw.features import cache_features
    from thaw.head import train_head
    fill.SHARD_ROWS = 32
    journal._JOURNAL_SECONDS = 0.0
    config, split, backbone = prepare(Path({dump!r}), store, head={{"epochs": 6, "stop": "at_budget"}})
    cached = cache_features(
        split, config.dump, backbone, config.backbone, "block5_pool", store, keep=["block4_pool"]
    )
    bottlenecks = cached.value
    head = train_head(bottlenecks, config.head, config.gate, store).value
    evaluation = evaluate(head, bottlenecks.test, store)
    print(json.dumps({{
        "cached": cached.reused,
        "space": bottlenecks.train.space,
        "head": head.to_json(),
        "evaluation": evaluation.value.to_json(),
        "scored": not evaluation.reused,
    }}))
"""
HOLD = """
    with claim(store, "things", "abc"):
        logging.info("holding")
        time.sleep(60)
"""
STOP_AFTER_THREE_EPOCHS = """
    from thaw import trainer
    run_epoch = trainer._run_epoch
    def run_three(*arguments):
        if arguments[5] == 3:
            time.sleep(300)
        return run_epoch(*arguments)
    trainer._run_epoch = run_three
"""
ELSEWHERE = """
    claims._place = lambda: "elsewhere"
"""
SHORT_LEASE = """
    claims._LEASE_SECONDS = 2.0
"""


class Run:
    """A process of its own that works on a store."""

    def __init__(self, folder: Path, code: str, **given: str):
        script = textwrap.dedent(PREAMBLE + code).format(project=str(PROJECT), **given)
        folder.mkdir()
        self._out, self._log = folder / "out", folder / "log"
        with self._out.open("w") as out, self._log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, "-c", script], stdout=out, stderr=log)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def await_log(self, text: str, timeout_seconds: float = 120) -> None:
        deadline = time.monotonic() + timeout_seconds
        while text not in self.log:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def finish(self, timeout_seconds: float = 120) -> dict:
        code = self.process.wait(timeout_seconds)
        assert code == 0, self.log
        return json.loads(self._out.read_text() or "{}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Run]]:
    """Start runs; whatever still works at the end is killed."""
    folder, runs = tmp_path_factory.mktemp("runs"), []

    def start(code: str, **given: str) -> Run:
        runs.append(Run(folder / str(len(runs)), code, **given))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


def test_of_many_who_claim_the_same_thing_one_works_at_a_time(store: Store, monkeypatch):
    monkeypatch.setattr(claims, "_LOOK_SECONDS", 0.01)
    inside, most = 0, 0

    def work(_):
        nonlocal inside, most
        with claim(store, "things", "abc"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    assert most == 1
    assert not list(store.folder("claims").iterdir())


def test_different_things_are_claimed_side_by_side(store: Store):
    with claim(store, "things", "abc"), claim(store, "things", "abd"), claim(store, "others", "abc"):
        assert len(list(store.folder("claims").iterdir())) == 3


def test_a_claim_outlives_its_lease_while_its_holder_lives_and_waiting_is_told_once(
    store: Store, monkeypatch, caplog
):
    monkeypatch.setattr(claims, "_LEASE_SECONDS", 0.6)
    monkeypatch.setattr(claims, "_LOOK_SECONDS", 0.05)
    caplog.set_level("INFO", logger="thaw.claims")
    held = threading.Event()

    def hold() -> float:
        with claim(store, "things", "abc"):
            held.set()
            time.sleep(2)
            return time.monotonic()

    with ThreadPoolExecutor() as pool:
        ended = pool.submit(hold)
        held.wait()
        with claim(store, "things", "abc"):
            began = time.monotonic()
    assert began > ended.result()
    assert caplog.messages == ["waiting for another run that makes things/abc"]


def test_what_a_killed_run_claimed_is_free_at_once_on_its_own_machine(store: Store, launch):
    holder = launch(HOLD, store=store.address)
    holder.await_log("holding")
    waiter = launch(HOLD, store=store.address)
    waiter.await_log("waiting for another run that makes things/abc")
    holder.kill()
    waiter.await_log("holding", timeout_seconds=5)


def test_what_a_killed_run_claimed_is_free_to_another_machine_after_the_lease(store: Store, launch):
    holder = launch(SHORT_LEASE + HOLD, store=store.address)
    holder.await_log("holding")
    waiter = launch(SHORT_LEASE + ELSEWHERE + HOLD, store=store.address)
    waiter.await_log("waiting for another run that makes things/abc")
    time.sleep(3)
    assert "holding" not in waiter.log
    killed = time.monotonic()
    holder.kill()
    waiter.await_log("holding", timeout_seconds=10)
    assert time.monotonic() - killed > 1


@pytest.mark.parametrize("content", ["", "what a disk makes of it \N{SNOWMAN}", "one two", "0 -1 2 3"])
def test_a_claim_that_nobody_can_read_ends_as_every_lease_does(store: Store, monkeypatch, content: str):
    monkeypatch.setattr(claims, "_LEASE_SECONDS", 0.2)
    monkeypatch.setattr(claims, "_LOOK_SECONDS", 0.05)
    file = store.folder("claims", "things-abc")
    file.parent.mkdir(parents=True)
    file.write_text(content, encoding="utf-8")
    with claim(store, "things", "abc"):
        assert str(os.getpid()) in file.read_text()
    assert not file.exists()


def test_a_run_whose_claim_was_taken_over_leaves_it_to_the_other(store: Store, monkeypatch):
    monkeypatch.setattr(claims, "_LEASE_SECONDS", 0.3)
    file = store.folder("claims", "things-abc")
    with claim(store, "things", "abc"):
        file.write_text("another's")
        time.sleep(0.2)
    assert file.read_text() == "another's"


def test_an_error_in_the_work_is_told_and_frees_the_claim(store: Store):
    with pytest.raises(RuntimeError, match="of the work"), claim(store, "things", "abc"):
        raise RuntimeError("of the work")
    assert not list(store.folder("claims").iterdir())


def make_a_file(folder: Path, _) -> None:
    folder.write_text("")


def make_read_only(folder: Path, _) -> None:
    # Not even root can create a file there.
    folder.symlink_to("/proc", target_is_directory=True)


def make_full(_, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileSlip, "create", create)


@pytest.mark.parametrize("spoil", [make_a_file, make_read_only, make_full])
def test_where_no_claim_can_be_written_the_work_is_done_all_the_same(
    drawn_dump: Path, store: Store, monkeypatch, caplog, spoil: Callable
):
    store.folder().mkdir()
    spoil(store.folder("claims"), monkeypatch)
    assert not fill(drawn_dump, store, split=FEW).reused
    assert "another run may make it as well" in caplog.text
    assert fill(drawn_dump, store, split=FEW).reused


def test_two_runs_calibrate_a_machine_once(store: Store, monkeypatch):
    measured = []

    def measure(name: str) -> float:
        measured.append(name)
        time.sleep(0.1)
        return 100.0

    monkeypatch.setattr(precision, "_measure_rate", measure)
    with ThreadPoolExecutor() as pool:
        one, other = pool.map(lambda _: choose_precision("auto", store), range(2))
    assert one == other
    assert sorted(measured) == ["bfloat16", "float32"]


@pytest.fixture(scope="module")
def side_by_side(
    drawn_dump: Path, tmp_path_factory: pytest.TempPathFactory, launch
) -> tuple[Store, list[Run], list[dict]]:
    """Two runs of the same job, started together: their store, themselves, and what they came to."""
    store = Store(tmp_path_factory.mktemp("shared") / "store")
    prepare(drawn_dump, store)
    runs = [launch(METHOD, store=store.address, dump=str(drawn_dump)) for _ in range(2)]
    return store, runs, [run.finish(300) for run in runs]


@pytest.mark.slow
def test_two_runs_that_fill_a_space_at_once_compute_each_row_once(side_by_side):
    store, runs, (one, other) = side_by_side
    assert sum("waiting for another run that makes features/" in run.log for run in runs) == 1
    assert sorted([one["cached"], other["cached"]]) == [False, True]
    shards = Counter()
    for file in store.folder("features").glob("*/*/keys.npy"):
        shards[file.parent.parent.name] += len(np.load(file, allow_pickle=False))
    # 200 images at block 4 and at block 5.
    assert sorted(shards.values()) == [200, 200]
    assert one["space"] == other["space"]
    assert not store.folder("damaged").exists()


@pytest.mark.slow
def test_two_runs_that_train_a_head_at_once_train_it_once(side_by_side):
    store, runs, (one, other) = side_by_side
    epochs = [number for run in runs for number in re.findall(r"head, epoch (\d) of 6", run.log)]
    assert sorted(epochs) == ["1", "2", "3", "4", "5", "6"]
    assert one["head"] == other["head"]
    assert one["evaluation"] == other["evaluation"]
    assert one["scored"] + other["scored"] == 1
    assert not list(store.folder("journals").iterdir())
    assert not list(store.folder("claims").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("place", ["", SHORT_LEASE + ELSEWHERE], ids=["same machine", "another machine"])
def test_a_run_goes_on_from_where_the_one_it_waited_for_was_killed(
    drawn_dump: Path, side_by_side, store: Store, launch, place: str
):
    given = {"store": store.address, "dump": str(drawn_dump)}
    holder = launch((SHORT_LEASE if place else "") + STOP_AFTER_THREE_EPOCHS + METHOD, **given)
    holder.await_log("head, epoch 3 of 6")
    waiter = launch(place + METHOD, **given)
    waiter.await_log("waiting for another run that makes checkpoints/")
    holder.kill()
    ended = waiter.finish(60)
    assert "going on after epoch 3" in waiter.log
    assert "head, epoch 3 of 6" not in waiter.log
    undisturbed = side_by_side[2][0]
    assert (ended["head"], ended["evaluation"]) == (undisturbed["head"], undisturbed["evaluation"])


LOOK = """
    from pathlib import Path
    from tests.prepared import Prepared, head_of, tune
    from tests.test_features import prepare
    from thaw.errors import NotPublished
    from thaw.evaluate import evaluate
    from thaw.features import cache_features
    config, split, backbone = prepare(Path({dump!r}), store)
    looking, given = store.looking(), (split, config.dump, backbone, config.backbone)
    def look(function, *arguments, **options):
        try:
            return function(*arguments, **options)
        except NotPublished as error:
            refusals.append(str(error).partition("/")[0])
    refusals, made = [], []
    for views in (0, 2, "fresh"):
        look(cache_features, *given, "block3_pool", looking, views, config.augmentation)
    made += [look(cache_features, *given, "block4_pool", looking, 1, config.augmentation)]
    made += [look(cache_features, *given, "block5_pool", looking)]
    prepared = Prepared(config, looking, backbone, split, *(found.value for found in made))
    made += [look(head_of, prepared)]
    look(head_of, prepared, seed=1)
    look(head_of, prepared, budget=2)
    head = made[-1].value
    made += [look(tune, prepared, head, epochs=1)]
    look(tune, prepared, head, epochs=2)
    made += [look(evaluate, head, prepared.bottlenecks.test, looking)]
    look(evaluate, made[-2].value, prepared.block4.test, looking)
    print(json.dumps({{
        "reused": [found.reused for found in made],
        "refusals": refusals,
        "imported": [name for name in ("tensorflow", "keras", "jax") if name in sys.modules],
    }}))
"""


@pytest.mark.slow
def test_a_look_finds_what_is_published_and_refuses_the_rest_before_any_work(
    drawn_dump: Path, tmp_path: Path, launch
):
    prepared = prepare_features(drawn_dump, tmp_path / "store")
    head = head_of(prepared).value
    tune(prepared, head, epochs=1)
    evaluate(head, prepared.bottlenecks.test, prepared.store)
    before = snapshot(prepared.store)
    looked = launch(LOOK, store=str(prepared.store.address), dump=str(drawn_dump)).finish()
    assert looked["reused"] == [True] * 5
    assert looked["refusals"] == ["features"] * 3 + ["checkpoints"] * 3 + ["evaluations"]
    assert looked["imported"] == []
    assert snapshot(prepared.store) == before


def snapshot(store: Store) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.folder().rglob("*")}


def test_a_look_at_a_machine_that_was_not_calibrated_is_refused(store: Store):
    with pytest.raises(NotPublished, match="^calibrations/.* only looked at"):
        choose_precision("auto", store.looking())
    assert not store.folder().exists()


def test_a_look_neither_publishes_nor_tidies_up(store: Store):
    looking, damaged = store.looking(), store.folder("things", "abc.json")
    row = Quarantined(path="a.jpg", label="cat", reason="truncated")
    with pytest.raises(NotPublished, match="^things/abc"):
        looking.publish("things", "abc", row)
    with pytest.raises(NotPublished, match="^things/abc"), looking.publish_folder("things", "abc"):
        pass
    store.publish("things", "abc", row)
    assert looking.read("things", "abc", Quarantined) == row
    damaged.write_text("{")
    assert looking.read("things", "abc", Quarantined) is None
    assert damaged.read_text() == "{"
