"""The registry: nothing is lost, whoever changes it at once or is killed; champions come and go in order."""

import itertools
import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace

import pytest

from tests.command import PROJECT
from thaw.errors import ChampionMoved, NoSuchModel, StoreNotWritable
from thaw.promotion import Decision
from thaw.records import Metrics, Outcome, Verdict, digest_of
from thaw.registry import (
    Registry,
    Version,
    promote,
    read_registry,
    record_decision,
    register_run,
    roll_back,
)
from thaw.store import Store

SETTINGS = {"recipe": "demo", "dump": {"path": "train.zip", "layout": "auto"}, "head": {"epochs": 20}}
PROCESSES = 10
KILLS = 5


def outcome(name: object) -> Outcome:
    return Outcome(
        run=digest_of("run", name),
        recipe="demo",
        manifest="1" * 16,
        split="2" * 16,
        verdict=Verdict(state="plateaued", statistic=0.0, threshold=0.002, epoch=9, reason="flat"),
        head="3" * 16,
        metrics=Metrics(
            images=40,
            accuracy=0.95,
            accuracy_interval=(0.83, 0.99),
            log_loss=0.13,
            auc=0.98,
            confusion=((19, 1), (1, 19)),
        ),
    )


def decision(challenger: int, champion: int | None, kind: str = "promoted") -> Decision:
    return Decision(
        rule={},
        outcome=kind,
        reason="by the rule",
        challenger=challenger,
        champion=champion,
        comparison=None,
        decided_at="2026-01-01T00:00:00+00:00",
    )


def register(store: Store, *names: object) -> list[Version]:
    return [register_run(store, outcome(name), SETTINGS) for name in names]


def champion(store: Store) -> int:
    return read_registry(store).champion.number


def copy(store: Store) -> Registry:
    return Registry.from_json(store.folder("registry.json").read_bytes())


def test_a_store_without_models_has_an_empty_registry_and_stays_untouched(store: Store):
    assert read_registry(store) == Registry()
    assert read_registry(store).champion is None
    assert not store.folder().exists()


def test_a_version_keeps_the_temperature_of_its_model_and_one_without_has_none(store: Store):
    scaled = register_run(store, replace(outcome("a"), temperature=2.5), SETTINGS)
    assert read_registry(store).find(scaled.number).temperature == 2.5
    older = {name: value for name, value in asdict(scaled).items() if name != "temperature"}
    assert Version.from_json(json.dumps(older)).temperature == 1


def test_versions_are_numbered_from_one_and_keep_what_their_run_came_to(store: Store):
    first, second = register(store, "a", "b")
    assert (first.number, second.number) == (1, 2)
    assert first.settings == SETTINGS
    assert (first.test_images, first.accuracy, first.log_loss) == (40, 0.95, 0.13)
    assert first.registered_at.endswith("+00:00")
    assert read_registry(store).versions == (first, second)


def test_the_same_run_keeps_its_number_and_makes_no_revision(store: Store):
    first, _ = register(store, "a", "b")
    revision = read_registry(store).revision
    assert register_run(store, outcome("a"), {}) == first
    assert read_registry(store).revision == revision


def test_a_run_whose_gate_stayed_closed_is_not_registered(store: Store):
    with pytest.raises(NoSuchModel, match="gate stayed closed"):
        register_run(store, replace(outcome("a"), metrics=None), SETTINGS)


def test_a_version_is_found_by_number_by_run_and_as_champion(store: Store):
    first, second = register(store, "a", "b")
    registry = promote(store, 2, "by hand")
    for name in (1, "1", "v1", first.run, first.run[:4]):
        assert registry.find(name) == first
    assert registry.find("champion") == registry.champion == second


def test_a_name_that_means_no_model_or_several_lists_what_there_is(store: Store):
    with pytest.raises(NoSuchModel, match="empty"):
        read_registry(store).find("champion")
    register(store, *range(12))
    registry = promote(store, 12, "by hand")
    alike = replace(registry, versions=tuple(replace(each, run="abcdef") for each in registry.versions))
    with pytest.raises(NoSuchModel, match="'v13' names no model.* v12 .*, champion.* v3 .* and 2 older"):
        registry.find("v13")
    with pytest.raises(NoSuchModel, match="'abcd' names several"):
        alike.find("abcd")
    for nothing in ("", "v", registry.versions[4].run[:3]):
        with pytest.raises(NoSuchModel):
            registry.find(nothing)


def test_a_number_is_never_taken_for_the_beginning_of_a_run(store: Store):
    register(store, "a")
    present = read_registry(store)
    digits = replace(present, versions=(replace(present.versions[0], run="1234567890123456"),))
    assert digits.find("1234") == digits.versions[0]
    with pytest.raises(NoSuchModel):
        digits.find(1234)


def test_a_promotion_moves_the_champion_and_says_who_why_and_whom_it_replaced(store: Store):
    register(store, "a", "b")
    record_decision(store, decision(1, None))
    registry = promote(store, 2, "it looks better")
    assert champion(store) == 2
    first, second = registry.moves
    assert (first.champion, first.before, first.by, first.reason) == (1, None, "rule", "by the rule")
    assert (second.champion, second.before, second.by, second.reason) == (2, 1, "person", "it looks better")


def test_promoting_the_champion_changes_nothing(store: Store):
    register(store, "a")
    assert promote(store, 1, "once") == promote(store, 1, "twice")


@pytest.mark.parametrize("kind", ["kept", "held"])
def test_a_decision_that_does_not_promote_is_kept_and_moves_nothing(store: Store, kind: str):
    register(store, "a", "b")
    record_decision(store, decision(1, None))
    registry = record_decision(store, decision(2, 1, kind))
    assert champion(store) == 1
    assert [each.outcome for each in registry.decisions] == ["promoted", kind]


@pytest.mark.parametrize("kind", ["promoted", "kept", "held"])
def test_a_decision_against_a_former_champion_is_refused(store: Store, kind: str):
    register(store, "a", "b", "c")
    promote(store, 1, "first")
    promote(store, 2, "meanwhile")
    before = read_registry(store)
    with pytest.raises(ChampionMoved, match="v3 was compared with v1, and by now the champion is v2"):
        record_decision(store, decision(3, 1, kind))
    with pytest.raises(ChampionMoved, match="compared with no champion"):
        record_decision(store, decision(3, None, kind))
    assert read_registry(store) == before


def test_a_decision_recorded_again_after_a_kill_is_recorded_once(store: Store):
    register(store, "a")
    once = record_decision(store, decision(1, None))
    assert record_decision(store, decision(1, None)) == once


def test_nothing_unregistered_is_promoted(store: Store):
    register(store, "a")
    with pytest.raises(NoSuchModel, match="'7' names no model.*v1"):
        promote(store, 7, "by hand")
    with pytest.raises(NoSuchModel):
        record_decision(store, decision(7, None))


def test_rolling_back_walks_back_rather_than_to_and_fro(store: Store):
    register(store, "a", "b", "c", "d")
    for number in (1, 2, 3):
        promote(store, number, "by hand")
    assert roll_back(store).champion.number == 2
    assert roll_back(store).champion.number == 1
    with pytest.raises(NoSuchModel, match="v1 is the first champion"):
        roll_back(store)
    promote(store, 4, "by hand")
    assert roll_back(store).champion.number == 1
    assert [(move.before, move.champion) for move in read_registry(store).moves] == [
        (None, 1), (1, 2), (2, 3), (3, 2), (2, 1), (1, 4), (4, 1)
    ]  # fmt: skip


def test_promoting_an_earlier_version_by_hand_can_be_rolled_back_too(store: Store):
    register(store, "a", "b")
    for number in (1, 2, 1):
        promote(store, number, "by hand")
    assert roll_back(store).champion.number == 2
    assert roll_back(store).champion.number == 1


def test_without_a_champion_there_is_nothing_to_roll_back(store: Store):
    register(store, "a")
    with pytest.raises(NoSuchModel, match="nothing was promoted yet"):
        roll_back(store)


def test_every_change_is_a_revision_that_stays_as_it_was(store: Store):
    register(store, "a", "b")
    first = store.folder("registry", "000001", "registry.json").read_bytes()
    promote(store, 2, "by hand")
    assert sorted(file.name for file in store.folder("registry").iterdir()) == [
        "000001",
        "000002",
        "000003",
    ]
    assert store.folder("registry", "000001", "registry.json").read_bytes() == first
    assert copy(store) == read_registry(store)
    assert list(store.folder("partial").iterdir()) == []


def test_editing_the_copy_does_not_change_the_revision(store: Store):
    register(store, "a")
    with store.folder("registry.json").open("r+") as file:
        file.write("nonsense")
    assert len(read_registry(store).versions) == 1
    assert copy(store) == read_registry(store)


def test_a_copy_that_lags_is_mended_by_the_next_reader(store: Store):
    register(store, "a")
    lagging = store.folder("registry.json").read_bytes()
    register(store, "b")
    store.folder("registry.json").write_bytes(lagging)
    newest = read_registry(store)
    assert len(newest.versions) == 2
    assert copy(store) == newest


def test_reading_needs_no_leave_to_write(store: Store):
    register(store, "a")
    store.folder("registry.json").unlink()
    assert len(read_registry(store.looking()).versions) == 1
    shutil.rmtree(store.folder("partial"))
    store.folder("partial").write_text("in the way")
    assert len(read_registry(store).versions) == 1
    assert not store.folder("registry.json").exists()
    with pytest.raises(StoreNotWritable):
        register(store, "b")


each_damage = pytest.mark.parametrize("damage", [b"", b'{"revision": 3, "vers', b"\xff\x00", b"{}{}"])


@each_damage
def test_a_damaged_revision_is_set_aside_and_its_copy_counts(store: Store, damage: bytes, caplog):
    register(store, "a", "b")
    whole = promote(store, 1, "by hand")
    store.folder("registry", "000003", "registry.json").write_bytes(damage)
    assert read_registry(store) == whole
    assert "000003/registry.json is damaged" in caplog.text
    assert len(list(store.folder("damaged").iterdir())) == 1
    assert promote(store, 2, "again").revision == 4
    assert champion(store) == 2


@each_damage
def test_where_the_copy_is_damaged_too_the_revision_before_counts(store: Store, damage: bytes):
    register(store, "a", "b")
    promote(store, 1, "by hand")
    store.folder("registry", "000003", "registry.json").write_bytes(damage)
    store.folder("registry.json").write_bytes(damage)
    registry = read_registry(store)
    assert (registry.revision, registry.champion) == (2, None)
    assert copy(store) == registry
    assert promote(store, 2, "again").revision == 3
    assert champion(store) == 2


def register_and_promote(root: str, name: int) -> int:
    """One of many processes: register two runs, and decide for the first until nobody came in between."""
    store = Store(root)
    number, _ = (version.number for version in register(store, name, f"{name} again"))
    while True:
        present = read_registry(store).champion
        try:
            record_decision(store, decision(number, present.number if present else None))
            return number
        except ChampionMoved:
            continue


def test_ten_processes_that_register_and_promote_at_once_lose_nothing(store: Store):
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        numbers = pool.starmap(register_and_promote, [(store.address, name) for name in range(PROCESSES)])
    registry = read_registry(store)
    assert [version.number for version in registry.versions] == list(range(1, 2 * PROCESSES + 1))
    assert len({version.run for version in registry.versions}) == 2 * PROCESSES
    assert sorted(move.champion for move in registry.moves) == sorted(numbers)
    assert [move.before for move in registry.moves] == [
        None,
        *(move.champion for move in registry.moves[:-1]),
    ]
    assert len(registry.decisions) == PROCESSES
    # Each change made one revision, and each revision holds all of the one before.
    assert registry.revision == 3 * PROCESSES
    revisions = [
        Registry.from_json(file.read_bytes()) for file in sorted(store.folder("registry").glob("*/*"))
    ]
    for before, after in itertools.pairwise(revisions):
        assert after.revision == before.revision + 1
        assert after.versions[: len(before.versions)] == before.versions
        assert after.moves[: len(before.moves)] == before.moves
    assert copy(store) == registry
    assert not store.folder("damaged").exists()


def test_a_process_killed_while_it_changes_the_registry_leaves_it_whole_at_every_moment(store: Store):
    script = f"""
        import itertools, uuid
        from tests.test_registry import promote, register, roll_back
        from thaw.store import Store
        store = Store({store.address!r})
        for name in itertools.count():
            one, other = register(store, uuid.uuid4().hex, uuid.uuid4().hex)
            print(other.run, flush=True)
            promote(store, one.number, "one")
            promote(store, other.number, "other")
            print(roll_back(store).versions[-1].run, flush=True)
    """
    acknowledged, looks, dice = set(), 0, random.Random(0)
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, cwd=PROJECT
        )
        acknowledged.add(process.stdout.readline().strip())
        until = time.monotonic() + dice.uniform(0, 0.4)
        while time.monotonic() < until or looks == 0:
            # Not by read_registry, which would mend.
            assert json.loads(store.folder("registry.json").read_bytes())["versions"]
            newest = max(store.folder("registry").glob("*/*"))
            assert Registry.from_json(newest.read_bytes()).revision == int(newest.parent.name)
            looks += 1
        process.send_signal(signal.SIGKILL)
        acknowledged |= {line for line in process.communicate()[0].split("\n") if len(line) == 16}
        assert json.loads(store.folder("registry.json").read_bytes())["versions"]
        registry = read_registry(store)
        assert acknowledged <= {version.run for version in registry.versions}
        assert copy(store) == registry
    assert looks > KILLS
    assert not store.folder("damaged").exists()
