"""A look through a store finds every damage, tells what becomes of it, and changes nothing unasked."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands.__main__ import app
from tests.run_samples import make_history
from tests.test_registry import outcome, register
from tests.test_store import keys, rows, space
from thaw.features import FeatureSpace
from thaw.marker import MARKER, read_marker
from thaw.objects import Facts
from thaw.records import Checkpoint, ImageRow, Manifest, Split
from thaw.shards import SpaceFolder
from thaw.store import Store
from thaw.verify import verify_store

IMAGES = tuple(
    ImageRow(path=f"{number}.jpg", label="cat", sha256=f"{number:064x}", width=9, height=9)
    for number in range(6)
)
MANIFEST = Manifest(layout="flat", classes=("cat", "dog"), images=IMAGES, quarantined=())
SPLIT = Split(
    strategy="hash", seed=0, classes=("cat", "dog"), train=IMAGES[:4], validation=IMAGES[4:5], test=IMAGES[5:]
)


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path: Path, monkeypatch) -> Store:
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    if request.param == "folder":
        return Store(tmp_path / "store")
    return Store(f"{request.getfixturevalue('s3').url}/store")


def publish_checkpoint(
    store: Store, address: str = "c" * 16, split: str = SPLIT.digest, in_space: str | None = None
) -> Checkpoint:
    made = Checkpoint(
        address=address,
        stage="head",
        cut="block5_pool",
        split=split,
        space=in_space or space().digest,
        history=make_history(),
    )
    with store.publish_folder("checkpoints", address) as partial:
        for name in ("model.keras", "last.keras"):
            (partial / name).write_text(f"weights of {name}")
        (partial / "checkpoint.json").write_text(made.to_json())
    return made


def fill(store: Store) -> None:
    """A store with something of the common kinds."""
    store.publish("manifests", MANIFEST.digest, MANIFEST)
    store.publish("splits", SPLIT.digest, SPLIT)
    folder = SpaceFolder(store, space())
    folder.publish_facts()
    folder.append(keys(3), rows(3))
    folder.append(keys(3, start=3), rows(3, start=3))
    publish_checkpoint(store)
    with store.publish_folder("runs", outcome("a").run) as partial:
        (partial / "outcome.json").write_text(outcome("a").to_json())
        (partial / "model.keras").write_text("a model")
    register(store, "a", "b")


def find(store: Store, folder: str, name: str) -> str:
    """The key of a file of a published folder."""
    if not store.mirror:
        return f"{folder}/{name}"
    return read_marker(store.mirror.objects.read(f"{folder}/{MARKER}"))[name].find(folder, name)


def write(store: Store, key: str, data: bytes | None) -> None:
    """Write, or delete, behind the store's back."""
    if store.mirror:
        store.mirror.objects.delete([key]) if data is None else store.mirror.objects.replace(key, data)
    elif data is None:
        store.folder(key).unlink()
    else:
        store.folder(key).write_bytes(data)


def read(store: Store, key: str) -> bytes:
    return store.mirror.objects.read(key) if store.mirror else store.folder(key).read_bytes()


def look(store: Store) -> dict[str, Facts]:
    return {key: facts for key, facts in store.survey().items() if not key.startswith("damaged/")}


def test_what_grows_while_it_is_looked_at_is_not_damaged(store: Store, monkeypatch):
    fill(store)
    survey = store.survey()

    def shrink(key: str, facts: Facts) -> Facts:
        return replace(facts, size=facts.size // 2) if key == "registry.json" else facts

    earlier = {key: shrink(key, facts) for key, facts in survey.items()}
    monkeypatch.setattr(Store, "survey", lambda *_: earlier)
    assert verify_store(store).damaged == ()


def test_what_a_listing_did_not_show_yet_is_not_lost(store: Store, monkeypatch):
    fill(store)
    if not store.mirror:
        pytest.skip("a disk shows all of a folder")
    late = find(store, f"runs/{outcome('a').run}", "model.keras")
    earlier = {key: facts for key, facts in store.survey().items() if key != late}
    monkeypatch.setattr(Store, "survey", lambda *_: earlier)
    assert verify_store(store).damaged == ()


def test_a_store_that_is_whole_is_told_so_kind_by_kind_and_stays_as_it_is(store: Store):
    fill(store)
    before = store.survey()
    found = verify_store(store)
    assert found.damaged == ()
    assert {one.kind: one.things for one in found.kinds} == {
        "manifests": 1,
        "splits": 1,
        "features": 3,
        "checkpoints": 1,
        "runs": 1,
        "registry": 2,
        "registry.json": 1,
    }
    assert all(one.unchecked == 0 for one in found.kinds)
    # Every byte is read, and more than once only what is parsed as well.
    assert sum(one.bytes for one in found.kinds) == sum(facts.size for facts in before.values())
    assert store.survey() == before


def test_a_store_that_is_not_there_holds_nothing(store: Store):
    assert verify_store(store).kinds == ()
    assert store.survey() == {}


SHARD = space().digest


@pytest.mark.parametrize("kind", ["features", "checkpoints", "runs"])
@pytest.mark.parametrize("damage", ["bit", "lost", "short"])
def test_damage_of_a_published_folder_is_found_and_set_aside_when_asked(store: Store, kind: str, damage: str):
    fill(store)
    folder, name = {
        "features": (f"features/{SHARD}/{max(store.list('features', SHARD))}", "features.npy"),
        "checkpoints": ("checkpoints/" + "c" * 16, "last.keras"),
        "runs": (f"runs/{outcome('a').run}", "model.keras"),
    }[kind]
    if kind == "features":
        folder = min(
            f"features/{SHARD}/{shard}" for shard in store.list("features", SHARD) if shard != "space.json"
        )
    key = find(store, folder, name)
    data = bytearray(read(store, key))
    data[-1] ^= 1
    write(store, key, {"bit": bytes(data), "lost": None, "short": bytes(data[:-1])}[damage])
    before = store.survey()
    found = verify_store(store)
    assert [one.place for one in found.damaged] == [folder]
    assert name in found.damaged[0].reason
    assert "again" in found.damaged[0].remedy
    assert store.survey() == before
    assert verify_store(store, set_aside=True).damaged == found.damaged
    assert verify_store(store).damaged == ()
    assert folder.split("/")[-1] not in store.list(*folder.split("/")[:-1])
    if kind == "checkpoints":
        publish_checkpoint(store)
        assert verify_store(store).damaged == ()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"files": {"../x": {}}}'])
def test_a_marker_that_is_none_is_damage(store: Store, content: bytes):
    fill(store)
    write(store, f"checkpoints/{'c' * 16}/{MARKER}", content)
    (damage,) = verify_store(store, set_aside=True).damaged
    assert "not a marker" in damage.reason or "Expecting" in damage.reason
    assert verify_store(store).damaged == ()


def test_records_are_parsed_and_named_by_their_content(store: Store):
    fill(store)
    write(store, f"manifests/{'0' * 16}.json", MANIFEST.to_json().encode())
    write(store, f"splits/{'1' * 16}.json", b'{"strategy": "hash"}')
    write(store, "registry/000002/registry.json", b'{"revision": 2, "ver')
    found = {one.place: one for one in verify_store(store).damaged}
    assert set(found) == {
        f"manifests/{'0' * 16}.json",
        f"splits/{'1' * 16}.json",
        "registry/000002/registry.json",
    }
    wrong = found[f"manifests/{'0' * 16}.json"]
    assert wrong.reason == "its digest is not that of its content"
    assert "used as it is until it is set aside" in wrong.remedy
    assert "set aside when it is read" in found["registry/000002/registry.json"].remedy
    verify_store(store, set_aside=True)
    assert verify_store(store).damaged == ()
    assert store.read("manifests", MANIFEST.digest, Manifest) == MANIFEST


def test_a_manifest_of_a_version_with_fewer_fields_is_whole(store: Store):
    from thaw.records import _digest

    older = json.loads(MANIFEST.to_json())
    del older["scanner"], older["ignored"]
    store.publish("manifests", "x", MANIFEST)
    write(store, f"manifests/{_digest(1, older)}.json", json.dumps(older).encode())
    write(store, "manifests/x.json", None)
    assert verify_store(store).damaged == ()


def test_what_no_writer_finished_is_not_damaged(store: Store):
    fill(store)
    if store.mirror:
        store.mirror.objects.replace("runs/half/0123456789abcdef/model.keras", b"half")
    else:
        store.folder("partial", "half").mkdir(parents=True)
        store.folder("partial", "half", "model.keras").write_text("half")
    found = verify_store(store)
    assert found.damaged == ()
    assert next(one.things for one in found.kinds if one.kind == "runs") == 1


def test_folders_of_older_versions_are_checked_as_far_as_they_can_be(tmp_path: Path):
    store = Store(tmp_path / "store")
    fill(store)
    for marker in store.folder().rglob(MARKER):
        marker.unlink()
    (store.folder("exports") / "x").mkdir(parents=True)
    (store.folder("exports") / "x" / "model.onnx").write_text("an export")
    found = verify_store(store)
    assert found.damaged == ()
    unchecked = {one.kind: one.unchecked for one in found.kinds}
    assert (unchecked["checkpoints"], unchecked["runs"], unchecked["exports"]) == (2, 1, 1)
    assert unchecked["features"] == 0
    shard = next(store.folder("features").rglob("features.npy"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    (damage,) = verify_store(store).damaged
    assert damage.reason == "features.npy does not match its checksum"
    assert "computes them again" in damage.again


def test_a_space_that_is_not_what_its_folder_is_named_after_is_damage(store: Store):
    fill(store)
    write(store, f"features/{SHARD}/space.json", space(cut="block4_pool").to_json().encode())
    (damage,) = verify_store(store).damaged
    assert damage.place == f"features/{SHARD}/space.json"
    assert FeatureSpace.from_json(read(store, damage.place)).cut == "block4_pool"


def test_an_object_store_is_read_without_keeping_anything_here(s3, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    fill(Store(f"{s3.url}/store"))
    shutil.rmtree(tmp_path / "cache")
    assert verify_store(Store(f"{s3.url}/store")).damaged == ()
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_the_command_tells_in_tables_or_json_and_by_its_exit_code(store: Store):
    fill(store)
    given = ["verify", "--store", store.address]
    whole = CliRunner().invoke(app, given)
    assert whole.exit_code == 0
    assert "no things damaged" in whole.output
    key = find(store, "checkpoints/" + "c" * 16, "model.keras")
    write(store, key, b"other weights")
    told = CliRunner().invoke(app, [*given, "--json"])
    assert told.exit_code == 1
    (damage,) = json.loads(told.stdout)["damaged"]
    assert damage["place"] == "checkpoints/" + "c" * 16
    assert damage["remedy"].endswith("the next run of its settings trains it again")
    assert CliRunner().invoke(app, [*given, "--set-aside"]).exit_code == 1
    assert CliRunner().invoke(app, given).exit_code == 0
