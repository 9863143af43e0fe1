"""What nothing refers to goes, and nothing else: what a run made stays, and what is young, claimed or in doubt."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from commands.__main__ import app
from tests.command import PROJECT, SMALL, Server
from tests.prepared import head_of, prepare, tune
from tests.run_samples import make_history
from tests.test_registry import outcome, register_run
from tests.test_store import keys, rows, space
from tests.test_verify import IMAGES, MANIFEST, SPLIT, publish_checkpoint, read, store, write  # noqa: F401
from thaw import prune
from thaw.claims import claim
from thaw.errors import Undecided
from thaw.evaluate import evaluate
from thaw.features import cache_features
from thaw.folds import FoldsConfig, publish_folds
from thaw.marker import MARKER
from thaw.prune import Pruning, prune_store
from thaw.records import ImageRow, Manifest, Split
from thaw.rows import Rows
from thaw.search import Candidate, HeadSearch, Spread
from thaw.shards import SpaceFolder
from thaw.store import Store
from thaw.verify import verify_store

OURS, THEIRS = "c" * 16, "d" * 16
LATER_DAYS = 40


@pytest.fixture
def later(monkeypatch) -> None:
    """Everything there is was written 40 days ago."""
    monkeypatch.setattr("thaw.prune.time", lambda: time.time() + LATER_DAYS * 24 * 3600)


def publish_run(store: Store, name: str = "a", **changes) -> None:  # noqa: F811
    given = {"manifest": MANIFEST.digest, "split": SPLIT.digest, "head": OURS, **changes}
    made = dataclasses.replace(outcome(name), **given)
    with store.publish_folder("runs", made.run) as partial:
        (partial / "outcome.json").write_text(made.to_json())
    register_run(store, made, {})


def fill_space(store: Store, start: int = 0, **changes) -> SpaceFolder:  # noqa: F811
    folder = SpaceFolder(store, space(**changes))
    folder.publish_facts()
    folder.append(keys(3, start=start), rows(3, start=start))
    return folder


def fill_needed(store: Store) -> None:  # noqa: F811
    store.publish("manifests", MANIFEST.digest, MANIFEST)
    store.publish("splits", SPLIT.digest, SPLIT)
    fill_space(store)
    # Other cuts, mirror images and pixels of the same images serve the same runs.
    fill_space(store, cut="block4_pool")
    fill_space(store).space.at("pixels")
    publish_checkpoint(store, OURS)
    # An earlier budget of the same head: nothing names it.
    publish_checkpoint(store, "b" * 16)
    publish_run(store)
    # Nobody tells what it learned from.
    publish_checkpoint(store, "a" * 16, in_space="0" * 16)
    with store.publish_folder("journals", "e" * 16, "000001") as partial:
        (partial / "history.json").write_text(make_history().to_json())


def fill_waste(store: Store) -> set[str]:  # noqa: F811
    """Fill in what may go; returns its kinds."""
    publish_checkpoint(store, THEIRS, split="9" * 16)
    small = fill_space(store, image_size_pixels=32).space
    # On a split that is needed, and yet of no run that is left.
    publish_checkpoint(store, "2" * 16, in_space=small.digest)
    fill_space(store, start=100)
    with store.publish_folder("journals", OURS, "000007") as partial:
        (partial / "history.json").write_text(make_history().to_json())
    write_beside(store, "damaged/checkpoints-x-1", "model.keras")
    write(store, "damaged/manifests-x.json-2", b"{")
    if store.mirror:
        write(store, f"runs/half/{'0' * 16}/model.keras", b"half a model")
        write(store, f"checkpoints/{OURS}/{'1' * 16}/model.keras", b"of one who came second")
    else:
        write_beside(store, "partial/left", "model.keras")
    return {"checkpoints", "features", "journals", "damaged", "runs" if store.mirror else "partial"}


def write_beside(store: Store, folder: str, name: str) -> None:  # noqa: F811
    if not store.mirror:
        store.folder(folder).mkdir(parents=True)
    write(store, f"{folder}/{name}", b"left over")


def look(store: Store) -> dict[str, int]:  # noqa: F811
    return {key: facts.size for key, facts in store.survey().items()}


def places(found: Pruning) -> set[str]:
    return {one.place for one in found.waste}


def test_a_dry_run_tells_what_would_go_and_why_and_changes_nothing(store: Store, later):  # noqa: F811
    fill_needed(store)
    before = look(store)
    kinds = fill_waste(store)
    filled = look(store)
    found = prune_store(store)
    assert look(store) == filled
    assert not found.deleted
    assert {one.kind for one in found.waste} == kinds
    assert sum(one.bytes for one in found.waste) == sum(filled.values()) - sum(before.values()) - len(
        read(store, f"features/{space(image_size_pixels=32).digest}/space.json")
    )
    assert all(round(one.days) == LATER_DAYS for one in found.waste)
    reasons = {one.place: one.reason for one in found.waste}
    assert reasons[f"checkpoints/{THEIRS}"].startswith("no run, search")
    assert {reason for place, reason in reasons.items() if place.startswith("features")} == {
        "no checkpoint that is needed uses its feature space",
        "none of its images is in a manifest or split that is needed",
    }


def test_what_nothing_refers_to_goes_and_all_else_stays_whole(store: Store, later):  # noqa: F811
    fill_needed(store)
    before = look(store)
    fill_waste(store)
    found = prune_store(store, delete=True)
    facts = f"features/{space(image_size_pixels=32).digest}/space.json"
    assert found.deleted
    assert set(look(store)) - {facts} == set(before)
    assert not prune_store(store).waste
    assert verify_store(store).damaged == ()
    assert SpaceFolder(store, space()).missing(keys(4)) == keys(1, start=3)
    # What went can be made again.
    fill_waste(store)
    assert len(SpaceFolder(store, space(image_size_pixels=32))) == 3
    assert verify_store(store).damaged == ()


def test_nothing_younger_than_a_day_goes_whatever_is_asked(store: Store):  # noqa: F811
    fill_needed(store)
    fill_waste(store)
    before = look(store)
    for days in (30, 1, 0, -5):
        assert prune_store(store, days=days, delete=True).waste == ()
    assert look(store) == before


def test_what_is_younger_than_asked_stays_but_for_done_journals(store: Store, later):  # noqa: F811
    fill_needed(store)
    fill_waste(store)
    assert places(prune_store(store, days=50, delete=True)) == {f"journals/{OURS}/000007"}


def test_where_work_goes_on_in_a_space_all_of_it_stays(tmp_path: Path):
    store = Store(tmp_path / "store")  # noqa: F811
    fill_needed(store)
    other = fill_space(store, image_size_pixels=32)
    age_all(store)
    other.append(keys(3, start=3), rows(3, start=3))
    publish_checkpoint(store, THEIRS, split="9" * 16)
    assert prune_store(store).waste == ()


def age_all(store: Store) -> None:  # noqa: F811
    ago = time.time() - LATER_DAYS * 24 * 3600
    for path in (store.folder(), *store.folder().rglob("*")):
        os.utime(path, (ago, ago))


def test_a_young_checkpoint_keeps_its_space_and_a_young_split_its_images(tmp_path: Path):
    store = Store(tmp_path / "store")  # noqa: F811
    fill_needed(store)
    fill_space(store, start=100)
    fill_space(store, precision="bfloat16")
    age_all(store)
    assert len(prune_store(store).waste) == 2
    unused = dataclasses.replace(SPLIT, train=(dataclasses.replace(IMAGES[0], sha256=f"{101:064x}"),))
    store.publish("splits", unused.digest, unused)
    assert len(prune_store(store).waste) == 1
    made = dataclasses.replace(publish_checkpoint(store, "f" * 16), space=space(precision="bfloat16").digest)
    store.discard("checkpoints", "f" * 16)
    with store.publish_folder("checkpoints", "f" * 16) as partial:
        (partial / "checkpoint.json").write_text(made.to_json())
    assert prune_store(store).waste == ()


def test_the_newest_manifest_and_its_features_stay_though_nothing_was_trained_on_it(store: Store, later):  # noqa: F811
    fill_needed(store)
    time.sleep(1.1)
    rows_of_it = tuple(
        ImageRow(path=f"{number}.jpg", label="dog", sha256=f"{number:064x}", width=9, height=9)
        for number in range(100, 103)
    )
    newest = Manifest(layout="flat", classes=("cat", "dog"), images=rows_of_it, quarantined=())
    store.publish("manifests", newest.digest, newest)
    fill_space(store, start=100)
    assert prune_store(store).waste == ()


def test_folds_of_a_search_and_their_heads_stay(store: Store, later):  # noqa: F811
    fill_needed(store)
    others = tuple(
        dataclasses.replace(row, sha256=f"{number:064x}") for number, row in enumerate(IMAGES, 200)
    )
    split = dataclasses.replace(SPLIT, train=others, seed=5)
    store.publish("splits", split.digest, split)
    fold = publish_fold(split, store)
    spread = Spread(mean=0.5, standard_deviation=0.1, standard_error=0.1)
    candidate = Candidate(changes={}, accuracy=spread, log_loss=spread, best_epoch=3.0, chosen=True)
    publish_checkpoint(store, "7" * 16, split=fold)
    publish_checkpoint(store, "8" * 16, split=split.digest)
    assert len(prune_store(store).waste) == 2
    made = HeadSearch(address="5" * 16, split=split.digest, folds=2, images=4, candidates=(candidate,))
    store.publish("searches", made.address, made)
    assert prune_store(store).waste == ()


def publish_fold(split: Split, store: Store) -> str:  # noqa: F811
    learned = dataclasses.replace(
        split,
        classes=("cat",),
        train=split.train,
        validation=(),
    )
    return publish_folds(learned, FoldsConfig(folds=2), 0, store).value[0].digest


def test_while_a_run_is_at_work_features_checkpoints_and_pieces_stay(store: Store, monkeypatch, later):  # noqa: F811
    fill_needed(store)
    fill_waste(store)
    with store.publish_folder("pieces", "e" * 16, "0-64"):
        pass
    before = look(store)
    slip = store.slip("claims", f"checkpoints-{OURS}")
    # One whose holder was killed more than a day ago protects nothing.
    slip.create("long dead")
    assert prune_store(store).busy == ()
    slip.remove()
    time.sleep(1.1)  # S3 tells whole seconds
    with monkeypatch.context() as patch, claim(store, "checkpoints", OURS):
        (held,) = store.survey("claims").values()
        age = prune._age
        patch.setattr(prune, "_age", lambda facts: 0.0 if facts.written >= held.written else age(facts))
        found = prune_store(store, delete=True)
    assert found.busy == (f"checkpoints-{OURS}",)
    assert {one.kind for one in found.kept} == {"features", "checkpoints", "journals", "pieces"}
    assert {one.kind for one in found.waste} == {"damaged", "runs" if store.mirror else "partial"}
    assert set(look(store)) < set(before)
    assert f"journals/{OURS}/000007/{MARKER}" in look(store)


@pytest.mark.parametrize("what", ["outcome", "registry", "split", "search"])
def test_where_nobody_can_tell_what_is_needed_nothing_goes(store: Store, later, what: str):  # noqa: F811
    fill_needed(store)
    fill_waste(store)
    match what:
        case "outcome":
            with store.publish_folder("runs", "x") as partial:
                (partial / "outcome.json").write_text('{"run": "x"')
        case "registry":
            write_revision(store)
        case "split":
            write(store, f"splits/{SPLIT.digest}.json", b"{")
        case "search":
            store.publish("searches", "x", MANIFEST)
    before = look(store)
    for delete in (False, True):
        with pytest.raises(Undecided, match=r"can't be read.*thaw verify --set-aside"):
            prune_store(store, delete=delete)
    assert look(store) == before
    verify_store(store, set_aside=True)
    prune_store(store, delete=True)


def write_revision(store: Store) -> None:  # noqa: F811
    store.create("registry", "000002", "registry.json", data=b'{"revision": 2, "ver')


def test_a_prune_that_is_killed_leaves_whole_things_and_can_be_done_again(tmp_path: Path):
    store = Store(tmp_path / "store")  # noqa: F811
    fill_needed(store)
    fill_waste(store)
    age_all(store)
    script = f"""
        import os, shutil, signal, sys
        sys.path.insert(0, {str(PROJECT)!r})
        remove = shutil.rmtree
        def die(path, *_, **__):
            if "features" in str(path) or any("features" in str(one) for one in path.rglob("*")):
                os.kill(os.getpid(), signal.SIGKILL)
            remove(path, *_, **__)
        shutil.rmtree = die
        from thaw.prune import prune_store
        from thaw.store import Store
        prune_store(Store({store.address!r}), delete=True)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert verify_store(store).damaged == ()
    prune_store(store, delete=True)
    assert verify_store(store).damaged == ()
    assert len(SpaceFolder(store, space())) == 3


def test_in_an_object_store_the_marker_goes_first(s3, tmp_path: Path, monkeypatch, later):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    store = Store(f"{s3.url}/store")  # noqa: F811
    fill_needed(store)
    fill_waste(store)
    deleted: list[list[str]] = []
    delete = store.mirror.objects.delete
    monkeypatch.setattr(
        store.mirror.objects, "delete", lambda names: (deleted.append(list(names)), delete(names))
    )
    prune_store(store, delete=True)
    assert f"checkpoints/{THEIRS}/{MARKER}" in next(
        names for names in deleted if any(THEIRS in name for name in names)
    )


def test_the_command_lists_first_and_deletes_when_told_yes(store: Store, later):  # noqa: F811
    fill_needed(store)
    fill_waste(store)
    before = look(store)
    given = ["prune", "--store", store.address]
    told = CliRunner().invoke(app, given)
    assert told.exit_code == 0
    assert "nothing was changed" in told.output
    assert look(store) == before
    listed = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)
    assert not listed["deleted"]
    assert f"checkpoints/{THEIRS}" in {one["place"] for one in listed["waste"]}
    assert look(store) == before
    done = json.loads(CliRunner().invoke(app, [*given, "--yes", "--json"]).stdout)
    assert done["deleted"]
    assert {one["place"] for one in done["waste"]} == {one["place"] for one in listed["waste"]}
    assert json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)["waste"] == []


@pytest.mark.slow
def test_after_pruning_an_object_store_a_method_still_finds_all_it_made(
    drawn_dump, s3, tmp_path, monkeypatch, later
):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    address = f"{s3.url}/store"
    made = prepare(drawn_dump, address)
    head = head_of(made).value
    tuned = tune(made, head).value
    scored = evaluate(tuned, made.block4.test, made.store).value
    publish_run(
        made.store,
        manifest=made.store.list("manifests")[0].removesuffix(".json"),
        split=made.split.digest,
        head=head.address,
        fine_tuned=tuned.address,
    )
    fill_waste(made.store)
    assert prune_store(made.store, delete=True).waste
    assert verify_store(made.store).damaged == ()
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "another-machine"))
    again = prepare(drawn_dump, address)
    assert head_of(again).reused
    assert tune(again, head).reused
    assert evaluate(tuned, again.block4.test, again.store).reused
    found = evaluate(tuned, again.block4.test, again.store).value
    np.testing.assert_array_equal(found.metrics.accuracy, scored.metrics.accuracy)
    for features in (again.block4, again.bottlenecks):
        for each in (features.train, features.validation, features.test):
            assert len(Rows(each, again.store)) > 0
    given = (again.split, again.config.dump, again.backbone, again.config.backbone)
    assert cache_features(*given, "block5_pool", again.store).reused
    assert cache_features(*given, "block4_pool", again.store, 1, again.config.augmentation).reused


@pytest.mark.slow
def test_after_pruning_a_run_of_the_same_settings_is_all_cached(server: Server, drawn_dump, tmp_path: Path):
    place = tmp_path / "store"
    command = ["train", "--dump", drawn_dump, "--store", place, "--json", *SMALL]
    first = server.thaw(*command)
    assert first.code == 0, first.err
    # A run of which nothing is left but its features and heads.
    other = server.thaw(*command, "--set=backbone.image_size_pixels=48")
    assert other.code == 0, other.err
    other_run = Store(place)
    other_run.discard("runs", other.json["run"])
    for name in ("registry", "registry.json"):
        other_run.discard(name)
    age_all(other_run)
    pruned = server.thaw("prune", "--store", place, "--yes", "--json")
    assert pruned.code == 0, pruned.err
    assert {one["kind"] for one in pruned.json["waste"]} == {"features", "checkpoints"}
    verified = server.thaw("verify", "--store", place)
    assert verified.code == 0, verified.out
    again = server.thaw(*command)
    # A judgement is no work.
    assert set(again.json["seconds"]) - set(again.json["cached"]) == {"judge convergence"}
    assert again.json["run"] == first.json["run"]
    # And what went is made again.
    anew = server.thaw(*command, "--set=backbone.image_size_pixels=48")
    assert anew.json["test_accuracy"] == other.json["test_accuracy"]
