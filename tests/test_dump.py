"""Scanning dumps: every image is verified once, the bad ones are set aside, and nothing is done twice."""

import logging
from pathlib import Path

import pytest

from tests.salted import bad_images, flat_images, jpeg, record_decodes, salt_dump, write_folder, write_zip
from thaw import dump as dumps
from thaw.config import DumpConfig
from thaw.dump import scan_dump
from thaw.errors import BadDump, TooManyBad
from thaw.records import Manifest
from thaw.store import Store

HTML = b"<!DOCTYPE html><html></html>"


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    return record_decodes(monkeypatch)


def scan(path: Path, store: Store, **settings) -> Manifest:
    return scan_dump(DumpConfig(path=path, **settings), store).value


def reasons(manifest: Manifest) -> dict[str, str]:
    return {row.path: row.reason for row in manifest.quarantined}


def published(store: Store) -> list[Path]:
    return sorted(store.folder("manifests").glob("*.json"))


@pytest.mark.parametrize("name", ["salted.zip", "salted"])
def test_every_bad_input_is_set_aside_with_its_reason_and_every_sound_one_kept(tmp_path, store, name):
    salted = salt_dump(tmp_path / name, flat_images(100))
    manifest = scan(salted.path, store, max_quarantine_fraction=0.2)
    found = reasons(manifest)
    assert set(found) == set(salted.quarantined)
    wrong = {path: found[path] for path, reason in salted.quarantined.items() if reason not in found[path]}
    assert wrong == {}
    assert {row.path for row in manifest.images} == salted.sound
    assert set(manifest.ignored) == salted.ignored
    assert manifest.classes == ("cat", "dog")


@pytest.mark.parametrize("name", ["salted.zip", "salted"])
def test_a_dump_scanned_before_is_found_without_decoding_anything(tmp_path, store, decoded, name):
    salted = salt_dump(tmp_path / name, flat_images(100))
    config = DumpConfig(path=salted.path, max_quarantine_fraction=0.2)
    first = scan_dump(config, store)
    assert not first.reused and decoded
    (file,) = published(store)
    written = file.stat().st_mtime_ns, file.stat().st_ino
    decoded.clear()
    second = scan_dump(config, store)
    assert second.reused and decoded == []
    assert second.value == first.value
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == written
    assert "0 decoded" in second.note


def test_no_image_is_decoded_twice_even_if_it_is_there_twice(tmp_path, store, decoded):
    files = flat_images(5) | {"train/cat.77.jpg": jpeg(0), "train/dog.78.jpg": jpeg(1001)}
    scan(write_folder(tmp_path / "dump", files), store)
    assert len(decoded) == 10


def test_the_manifest_is_the_same_wherever_the_dump_lies_and_however_it_is_packed(tmp_path):
    files = flat_images(5)
    paths = [
        write_zip(tmp_path / "one.zip", files),
        write_zip(tmp_path / "two.zip", dict(reversed(files.items()))),
        write_folder(tmp_path / "folder", files),
    ]
    manifests = [scan(path, Store(tmp_path / f"store-{path.name}")) for path in paths]
    assert manifests[0] == manifests[1] == manifests[2]
    assert str(tmp_path) not in manifests[0].to_json()


def test_the_manifest_is_published_under_its_digest(tmp_path, store):
    manifest = scan(write_zip(tmp_path / "dump.zip", flat_images(5)), store)
    assert published(store) == [store.folder("manifests", f"{manifest.digest}.json")]
    assert store.read("manifests", manifest.digest, Manifest) == manifest


def test_a_damaged_manifest_in_the_store_is_made_again(tmp_path, store, decoded):
    path = write_zip(tmp_path / "dump.zip", flat_images(5))
    manifest = scan(path, store)
    published(store)[0].write_text("{")
    decoded.clear()
    assert scan(path, store) == manifest
    assert len(decoded) == 10
    assert store.read("manifests", manifest.digest, Manifest) == manifest


def test_facts_found_by_other_rules_are_not_trusted(tmp_path, store, decoded, monkeypatch):
    path = write_zip(tmp_path / "dump.zip", flat_images(5))
    before = scan(path, store)
    monkeypatch.setattr(dumps, "SCANNER", dumps.SCANNER + 1)
    decoded.clear()
    assert scan(path, store).digest != before.digest
    assert len(decoded) == 10


def test_of_a_grown_dump_only_the_new_images_are_decoded(tmp_path, store, decoded):
    old = flat_images(5) | {"train/cat.50.jpg": HTML}
    scan(write_zip(tmp_path / "old.zip", old), store, max_quarantine_fraction=0.5)
    decoded.clear()
    new = {"train/cat.60.jpg": jpeg(60), "train/dog.60.jpg": jpeg(61)}
    grown = scan_dump(
        DumpConfig(path=write_zip(tmp_path / "new.zip", old | new), max_quarantine_fraction=0.5), store
    )
    assert not grown.reused
    assert sorted(decoded) == sorted(new.values())
    assert len(grown.value.images) == 12
    assert reasons(grown.value) == {"train/cat.50.jpg": "an HTML page, not an image"}


def test_an_image_that_was_renamed_is_not_decoded_again(tmp_path, store, decoded):
    files = flat_images(5)
    scan(write_zip(tmp_path / "old.zip", files), store)
    decoded.clear()
    renamed = {path.replace("train/", "other/"): data for path, data in files.items()}
    assert len(scan(write_zip(tmp_path / "new.zip", renamed), store).images) == 10
    assert decoded == []


def test_an_image_that_was_contested_before_gets_its_size_when_it_no_longer_is(tmp_path, store):
    files = flat_images(5) | {"train/cat.70.jpg": jpeg(70), "train/dog.70.jpg": jpeg(70)}
    scan(write_zip(tmp_path / "old.zip", files), store, max_quarantine_fraction=0.5)
    del files["train/dog.70.jpg"]
    rows = {row.path: row for row in scan(write_zip(tmp_path / "new.zip", files), store).images}
    assert (rows["train/cat.70.jpg"].width, rows["train/cat.70.jpg"].height) == (48, 40)


def test_rows_come_in_natural_order_with_upright_sizes_and_hashes(tmp_path, store):
    manifest = scan(write_zip(tmp_path / "dump.zip", flat_images(12)), store)
    assert [row.path for row in manifest.images][:12] == [f"train/cat.{number}.jpg" for number in range(12)]
    row = manifest.images[2]
    assert (row.label, row.width, row.height, row.side) == ("cat", 48, 40, None)
    assert row.sha256 == dumps.hashlib.sha256(jpeg(2)).hexdigest()


def test_the_layout_is_logged_and_kept(tmp_path, store, caplog):
    with caplog.at_level(logging.INFO, logger="thaw.dump"):
        manifest = scan(write_zip(tmp_path / "dump.zip", flat_images(3)), store)
    assert manifest.layout == "flat"
    assert "layout flat, classes cat, dog" in caplog.text


def test_more_bad_images_of_a_class_than_allowed_are_refused(tmp_path, store):
    files = flat_images(20)
    for number, (data, _) in zip(range(20, 30), bad_images().values(), strict=False):
        files[f"train/dog.{number}.jpg"] = data
    path = write_zip(tmp_path / "dump.zip", files)
    with pytest.raises(TooManyBad) as caught:
        scan(path, store)
    message = str(caught.value)
    assert "class 'dog' has 10 bad images of 30 (33.3%), more than max_quarantine_fraction 0.05" in message
    assert "raise max_quarantine_fraction" in message
    assert message.count("train/dog.") == 5 and "train/dog.20.jpg: an empty file" in message
    assert message.endswith("and 5 more")


def test_what_was_found_is_published_before_it_is_refused_and_refused_again_from_there(
    tmp_path, store, decoded
):
    path = write_zip(tmp_path / "dump.zip", flat_images(5) | {"train/dog.9.jpg": HTML})
    with pytest.raises(TooManyBad):
        scan(path, store)
    assert len(published(store)) == 1
    decoded.clear()
    with pytest.raises(TooManyBad):
        scan(path, store)
    assert decoded == []
    assert scan_dump(DumpConfig(path=path, max_quarantine_fraction=0.2), store).reused


def test_the_limit_is_a_share_of_one_class_and_may_be_reached(tmp_path, store):
    path = write_zip(tmp_path / "dump.zip", flat_images(9) | {"train/dog.9.jpg": HTML})
    assert len(scan(path, store, max_quarantine_fraction=0.1).images) == 18
    with pytest.raises(TooManyBad, match=r"'dog' has 1 bad images of 10 \(10.0%\)"):
        scan(path, store, max_quarantine_fraction=0.09)


def test_a_class_without_a_usable_image_is_refused_at_any_limit(tmp_path, store):
    files = flat_images(5, classes=("cat",)) | {"train/dog.1.jpg": HTML, "train/dog.2.jpg": b""}
    path = write_zip(tmp_path / "dump.zip", files)
    with pytest.raises(BadDump, match="class 'dog' has no usable image: 2 are bad"):
        scan(path, store, max_quarantine_fraction=1)


def test_duplicates_count_once_and_are_not_bad(tmp_path, store):
    copies = {f"train/cat.{number}.jpg": jpeg(2) for number in range(10, 30)}
    manifest = scan(
        write_zip(tmp_path / "dump.zip", flat_images(3) | copies), store, max_quarantine_fraction=0
    )
    assert len(manifest.images) == 6
    assert reasons(manifest) == dict.fromkeys(copies, "the same bytes as train/cat.2.jpg")


def test_the_same_bytes_under_two_labels_are_all_bad(tmp_path, store):
    files = flat_images(3) | {"train/dog.9.jpg": jpeg(1)}
    path = write_zip(tmp_path / "dump.zip", files)
    with pytest.raises(TooManyBad, match="class 'cat' has 1 bad images of 3"):
        scan(path, store)
    manifest = scan(path, store, max_quarantine_fraction=0.5)
    assert reasons(manifest) == {
        "train/cat.1.jpg": "the same bytes are labelled cat and dog (train/dog.9.jpg)",
        "train/dog.9.jpg": "the same bytes are labelled dog and cat (train/cat.1.jpg)",
    }
    assert {row.kind for row in manifest.quarantined} == {"contested"}


def test_the_same_broken_bytes_under_two_labels_are_broken_rather_than_contested(tmp_path, store):
    files = flat_images(3) | {"train/cat.9.jpg": HTML, "train/dog.9.jpg": HTML}
    manifest = scan(write_zip(tmp_path / "dump.zip", files), store, max_quarantine_fraction=0.5)
    assert set(reasons(manifest).values()) == {"an HTML page, not an image"}


def test_of_duplicates_across_ready_splits_the_one_that_is_tested_stays(tmp_path, store):
    files = {
        f"{side}/{label}/{number}.jpg": jpeg(100 * place + number)
        for place, (side, label) in enumerate(
            (side, label) for side in ("train", "val", "test") for label in "ab"
        )
        for number in range(3)
    }
    files |= {"train/a/50.jpg": jpeg(400), "val/a/50.jpg": jpeg(400), "train/a/51.jpg": jpeg(201)}
    manifest = scan(write_zip(tmp_path / "dump.zip", files), store, max_quarantine_fraction=0)
    assert manifest.layout == "ready_splits"
    assert reasons(manifest) == {
        "train/a/50.jpg": "the same bytes as test/a/0.jpg, which it would leak into train",
        "val/a/50.jpg": "the same bytes as test/a/0.jpg, which it would leak into validation",
        "train/a/51.jpg": "the same bytes as val/a/1.jpg, which it would leak into train",
    }
    sides = {row.path: row.side for row in manifest.images}
    assert (sides["test/a/0.jpg"], sides["val/a/1.jpg"], sides["train/a/0.jpg"]) == (
        "test",
        "validation",
        "train",
    )


def test_unlabelled_images_are_neither_read_nor_counted(tmp_path, store, decoded):
    files = flat_images(3) | {f"test1/{number}.jpg": HTML for number in range(50)}
    manifest = scan(write_zip(tmp_path / "dump.zip", files), store, max_quarantine_fraction=0)
    assert len(manifest.images) == 6 and len(decoded) == 6
    assert {row.kind for row in manifest.quarantined} == {"unlabelled"}
    assert {row.label for row in manifest.quarantined} == {None}


def test_a_damaged_member_of_the_archive_costs_one_image(tmp_path, store):
    salted = salt_dump(tmp_path / "dump.zip", flat_images(100))
    manifest = scan(salted.path, store, max_quarantine_fraction=0.2)
    (row,) = (row for row in manifest.quarantined if "CRC" in row.reason)
    assert (row.label, row.kind, row.sha256) == ("cat", "unreadable", None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat.1.jpg", "cat.2.jpg"], "one class only, 'cat'"),
        (["1.jpg", "2.jpg"], "no image has a label: the names are like 1.jpg, 2.jpg"),
        (["cats/1.jpg", "dogs/1.jpg", "birds/"], "class folder 'birds' holds no images"),
        (["cats/1.jpg", "dogs/1.jpg", "birds/notes.txt"], "class folder 'birds' holds no images"),
        (["readme.txt", "__MACOSX/cat.1.jpg"], "no images, but __MACOSX/cat.1.jpg, readme.txt"),
        (["../cat.1.jpg"], "no images, but nothing; ../cat.1.jpg: its path leads outside"),
        ([], "no images, but nothing"),
        (
            ["train.zip", "test1.zip", "sampleSubmission.csv"],
            r"only further archives \(test1.zip, train.zip\)",
        ),
    ],
)
def test_a_dump_that_nothing_can_be_learned_from_is_one_clear_error(tmp_path, store, names, message):
    path = write_zip(tmp_path / "dump.zip", {name: jpeg(place) for place, name in enumerate(names)})
    with pytest.raises(BadDump, match=rf"^{path} can't be used: .*{message}"):
        scan(path, store)
    assert published(store) == []


def test_an_empty_class_folder_on_disk_is_found(tmp_path, store):
    write_folder(tmp_path / "dump", {"cats/1.jpg": jpeg(1), "dogs/1.jpg": jpeg(2)})
    (tmp_path / "dump" / "birds").mkdir()
    (tmp_path / "dump" / ".git").mkdir()
    with pytest.raises(BadDump, match="class folder 'birds' holds no images"):
        scan(tmp_path / "dump", store)


def test_an_override_of_the_layout_is_heeded(tmp_path, store):
    path = write_zip(tmp_path / "dump.zip", flat_images(3))
    with pytest.raises(BadDump, match="layout 'class_folders' was asked for, but the dump looks like 'flat'"):
        scan(path, store, layout="class_folders")
    assert scan(path, store, layout="flat").layout == "flat"
